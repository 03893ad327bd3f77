//! What the processes of a cluster tell each other beside the data: that they are there, that all are to stop, that one has failed or is
//! done. A line of JSON each.
//!
//! A process that says nothing for `SILENCE_MAX` counts as gone, whatever its connections look like: a machine that lost its power closes
//! none.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use openwit_operators::fault::Health;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::{Config, NAME, Peer};

/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(1);
/// After so long without one a process counts as gone.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long a word may take to leave.
const WRITE_WAIT: Duration = Duration::from_secs(2);
/// How long the others may take for their last word.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Word {
    Alive,
    /// All sources are to close.
    Stop,
    /// A fault, in words.
    Failed(String),
    /// The graph is done, all that was for the others is sent.
    Done,
}

enum Note {
    /// Something has changed: look at the health.
    Look,
    End,
}

/// The threads that speak with the other processes.
pub(crate) struct Links {
    notes: Sender<Note>,
    /// Nobody minds any more who is there.
    is_over: Arc<AtomicBool>,
    speaker: JoinHandle<()>,
    listeners: Vec<JoinHandle<()>>,
}

impl Links {
    /// Starts them; `stop` is called when another process is told to stop.
    pub(crate) fn start(
        config: &Config,
        connections: Vec<Option<TcpStream>>,
        health: &Health,
        stop: impl Fn() + Clone + Send + 'static,
    ) -> std::io::Result<Links> {
        let is_over = Arc::new(AtomicBool::new(false));
        let (mut writers, mut listeners) = (Vec::new(), Vec::new());
        for (number, stream) in connections.into_iter().enumerate() {
            let Some(stream) = stream else { continue };
            stream.set_read_timeout(Some(SILENCE_MAX))?;
            stream.set_write_timeout(Some(WRITE_WAIT))?;
            writers.push(stream.try_clone()?);
            let listener = Listener { peer: config.peer(number), health: health.clone(), is_over: is_over.clone() };
            let (name, stop) = (format!("cluster-ear-{number}"), stop.clone());
            listeners.push(std::thread::Builder::new().name(name).spawn(move || listener.listen(stream, stop))?);
        }
        let (notes, inbox) = channel();
        let wake = notes.clone();
        // Fails only when the speaker has ended.
        health.on_wake(move || drop(wake.send(Note::Look)));
        let of_speaker = health.clone();
        let speaker =
            std::thread::Builder::new().name("cluster-voice".into()).spawn(move || speak(writers, &inbox, &of_speaker))?;
        Ok(Links { notes, is_over, speaker, listeners })
    }

    /// Says the last word, that of the health, and waits for those of the others.
    pub(crate) fn end(self) {
        self.is_over.store(true, Ordering::Release);
        let _ = self.notes.send(Note::End);
        let _ = self.speaker.join();
        // Without their ends a last word of ours that is still on its way could be lost with the connection.
        let deadline = Instant::now() + LAST_WORDS_WAIT;
        while self.listeners.iter().any(|listener| !listener.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn speak(connections: Vec<TcpStream>, inbox: &Receiver<Note>, health: &Health) {
    let say = |word: &Word| {
        let mut line = serde_json::to_vec(word).expect("words are plain");
        line.push(b'\n');
        // Whoever does not take it has gone: its listener tells.
        connections.iter().for_each(|mut stream| drop(stream.write_all(&line)));
    };
    let (mut has_failed, mut is_stopping) = (false, false);
    loop {
        let note = inbox.recv_timeout(BEAT);
        if let Some(fault) = health.fault().filter(|_| !has_failed) {
            has_failed = true;
            say(&Word::Failed(fault.to_string()));
        }
        if health.stopping() && !is_stopping {
            is_stopping = true;
            say(&Word::Stop);
        }
        match note {
            Ok(Note::Look) => {}
            Err(RecvTimeoutError::Timeout) => say(&Word::Alive),
            Ok(Note::End) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if !has_failed {
        say(&Word::Done);
    }
    connections.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Write)));
}

struct Listener {
    peer: Peer,
    health: Health,
    is_over: Arc<AtomicBool>,
}

impl Listener {
    fn listen(&self, stream: TcpStream, stop: impl Fn()) {
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        loop {
            line.clear();
            let word = match lines.read_line(&mut line) {
                Ok(0) => return self.gone("its connection is closed"),
                Ok(_) => serde_json::from_str(&line),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                    return self.gone(&format!("it has said nothing for {} s", SILENCE_MAX.as_secs()));
                }
                Err(error) => return self.gone(&error.to_string()),
            };
            match word {
                Ok(Word::Alive) => {}
                Ok(Word::Stop) => {
                    if !self.health.stopping() {
                        info!("{} is stopping, and so is this one", self.peer);
                    }
                    stop();
                }
                Ok(Word::Failed(fault)) => {
                    self.health.fail(NAME, format!("{} has failed: {fault}", self.peer));
                    return;
                }
                Ok(Word::Done) => return,
                Err(error) => return self.gone(&format!("what it says is no word of a cluster: {error}")),
            }
        }
    }

    fn gone(&self, why: &str) {
        if !self.is_over.load(Ordering::Acquire) {
            self.health.fail(NAME, format!("{} is gone: {why}", self.peer));
        }
    }
}

#[cfg(test)]
mod tests;
