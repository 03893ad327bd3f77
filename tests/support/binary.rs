//! The `openwit-ingest` binary as a process: started, watched, signalled, killed.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::wait;

/// Longer than any command takes on a busy machine; what takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// A process that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Panics with all it said unless it ended with `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Its standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let parsed = serde_json::from_str(&self.stdout);
        parsed.unwrap_or_else(|error| panic!("stdout is not JSON: {error}\n{}\nstderr:\n{}", self.stdout, self.stderr))
    }
}

/// Runs `openwit-ingest` to its end.
pub fn openwit(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Finished {
    Process::start(args).wait(PATIENCE)
}

/// A running process; killed when dropped.
pub struct Process {
    child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts `openwit-ingest`.
    pub fn start(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_openwit-ingest"));
        command.args(args).env_remove("OPENWIT_LOG");
        Self::spawn(command)
    }

    /// Starts any command.
    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let readers = vec![
            collect(child.stdout.take().expect("stdout is piped"), Arc::clone(&stdout)),
            collect(child.stderr.take().expect("stderr is piped"), Arc::clone(&stderr)),
        ];
        Process { child, stdout, stderr, readers }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        lock(&self.stderr).clone()
    }

    /// True once it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_some()
    }

    /// Waits until it has written `text` to standard error, or has ended; true if the text is there.
    pub fn wait_for(&mut self, text: &str) -> bool {
        let arrived = wait::until_or_late(PATIENCE, || self.stderr().contains(text) || self.has_ended());
        assert!(arrived, "no `{text}` within {PATIENCE:?}:\n{}", self.stderr());
        self.stderr().contains(text)
    }

    /// Sends it a signal; it must not have been seen to have ended.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: kill takes two numbers and touches no memory. A child that was not waited for keeps its id, even when it has ended.
        let sent = unsafe { libc::kill(self.id() as libc::pid_t, signal) };
        assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
    }

    /// Kills it without any warning, and waits until it is gone; true if it was still running.
    pub fn kill(mut self) -> bool {
        if self.has_ended() {
            return false;
        }
        self.signal(libc::SIGKILL);
        self.child.wait().expect("a child can be waited for");
        true
    }

    /// Waits for its end.
    pub fn wait(mut self, patience: Duration) -> Finished {
        let ended = wait::until_or_late(patience, || self.has_ended());
        assert!(ended, "still running after {patience:?}:\n{}", self.stderr());
        let status = self.child.wait().expect("a child can be waited for");
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader does not panic");
        }
        Finished { code: status.code(), stdout: lock(&self.stdout).clone(), stderr: lock(&self.stderr).clone() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(pipe: impl Read + Send + 'static, text: Arc<Mutex<String>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            lock(&text).push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
