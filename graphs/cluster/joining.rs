//! How the processes of a cluster find each other: all connect, in any order, or one of them says what is wrong.
//!
//! Both ends of a connection say hello: who they are, and what must be alike on both. Whoever says something else, like a port scan, is let
//! go. A process that dies while others wait for a third one can come again.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use openwit_operators::clock::Clock;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{Config, Peer};
use crate::recovery::Logged;

/// What connections begin with.
const MAGIC: &[u8; 16] = b"openwit-cluster\n";
/// The coverage of a log with a hundred thousand partitions takes a tenth of it.
const HELLO_BYTES_MAX: u32 = 256 << 20;

/// How long the other end may take for its hello, once it is connected.
const HELLO_WAIT: Duration = Duration::from_secs(3);
const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// Between two looks at who has come.
const LOOK: Duration = Duration::from_millis(20);
/// Between two attempts to connect.
const ATTEMPT: Duration = Duration::from_millis(250);
/// Between two messages about who is missing.
const TELL: Duration = Duration::from_secs(5);

/// Clocks further apart than this are told: epochs are wall-clock times, so a commit takes as much longer.
const CLOCKS_APART_TOLD_MS: u64 = 500;
/// Clocks further apart than this are refused.
const CLOCKS_APART_MAX_MS: u64 = 30_000;

/// Why there will be no cluster.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("binding {address}, which is this process's address in the cluster")]
    Bind { address: String, source: io::Error },
    #[error("{peer} has another configuration: {differences}")]
    Differs { peer: Peer, differences: String },
    #[error("the clock of {peer} is {apart_ms} ms away from this one: synchronize them, with NTP say")]
    Clocks { peer: Peer, apart_ms: u64 },
}

/// What this process says of itself.
pub(crate) struct Own {
    /// What must be alike in all processes: what it is, and its value.
    pub facts: BTreeMap<String, String>,
    /// What its log had in it at the start.
    pub logged: Logged,
}

/// The other processes, by their numbers; nothing at this one's own.
pub(crate) struct Joined {
    pub data: Vec<Option<TcpStream>>,
    pub control: Vec<Option<TcpStream>>,
    pub logged: Vec<Option<Logged>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Link {
    Data,
    Control,
}

const LINKS: [Link; 2] = [Link::Data, Link::Control];

#[derive(Serialize, Deserialize)]
struct Hello {
    process: usize,
    link: Link,
    facts: BTreeMap<String, String>,
    now_ms: u64,
    /// On control connections.
    logged: Option<Logged>,
}

impl Hello {
    fn write(&self, mut stream: &TcpStream) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        stream.write_all(&[&MAGIC[..], &length.to_be_bytes()].concat())?;
        stream.write_all(&text)
    }

    fn read(mut stream: &TcpStream) -> io::Result<Hello> {
        let (mut magic, mut length) = ([0; MAGIC.len()], [0; 4]);
        stream.read_exact(&mut magic)?;
        if magic != *MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "what is there is no openwit-ingest in a cluster"));
        }
        stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        if length > HELLO_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("its hello has {length} bytes")));
        }
        let mut text = Vec::new();
        stream.take(length.into()).read_to_end(&mut text)?;
        serde_json::from_slice(&text).map_err(io::Error::from)
    }
}

/// What is there of another process.
#[derive(Default)]
struct Seat {
    data: Option<TcpStream>,
    control: Option<TcpStream>,
    logged: Option<Logged>,
    last_error: Option<String>,
    /// When to try next to connect.
    next: Option<Instant>,
}

impl Seat {
    fn link(&mut self, link: Link) -> &mut Option<TcpStream> {
        match link {
            Link::Data => &mut self.data,
            Link::Control => &mut self.control,
        }
    }

    fn is_taken(&self) -> bool {
        self.data.is_some() && self.control.is_some()
    }

    fn take(&mut self, stream: TcpStream, hello: Hello) {
        if hello.logged.is_some() {
            self.logged = hello.logged;
        }
        *self.link(hello.link) = Some(stream);
    }

    /// Lets go of connections whose other end has gone.
    fn look(&mut self) {
        for link in LINKS {
            let held = self.link(link);
            *held = held.take().filter(is_alive);
        }
    }
}

/// True unless the other end has closed: it says nothing before all are there, or so much that it may be read later.
fn is_alive(stream: &TcpStream) -> bool {
    let looked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let is_alive = match looked {
        Ok(bytes) => bytes > 0,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    };
    is_alive && stream.set_nonblocking(false).is_ok()
}

/// Connects with all others; `None` if `is_over` came true before.
pub(crate) fn join(config: &Config, own: Own, clock: &dyn Clock, is_over: impl Fn() -> bool) -> Result<Option<Joined>, Error> {
    let address = config.own_address();
    let bound = TcpListener::bind(address).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    let listener = bound.map_err(|source| Error::Bind { address: address.to_owned(), source })?;
    info!(process = config.process(), processes = config.processes(), address, "joining the cluster");
    let seats = (0..config.processes()).map(|_| Seat::default()).collect();
    let mut joining = Joining { config, own, clock, seats };
    let mut told = Instant::now();
    loop {
        joining.admit(&listener)?;
        joining.visit()?;
        let missing: Vec<usize> = config.others().filter(|number| !joining.seats[*number].is_taken()).collect();
        if missing.is_empty() {
            info!(processes = config.processes(), "the cluster is complete");
            return Ok(Some(joining.joined()));
        }
        if is_over() {
            return Ok(None);
        }
        if told.elapsed() >= TELL {
            told = Instant::now();
            for number in missing {
                let error = joining.seats[number].last_error.as_deref().unwrap_or("it has not connected");
                warn!(error, "waiting for {}", config.peer(number));
            }
        }
        std::thread::sleep(LOOK);
        config.others().for_each(|number| joining.seats[number].look());
    }
}

struct Joining<'a> {
    config: &'a Config,
    own: Own,
    clock: &'a dyn Clock,
    seats: Vec<Seat>,
}

impl Joining<'_> {
    fn hello(&self, link: Link) -> Hello {
        Hello {
            process: self.config.process(),
            link,
            facts: self.own.facts.clone(),
            now_ms: self.clock.now_ms(),
            logged: (link == Link::Control).then(|| self.own.logged.clone()),
        }
    }

    /// Answers those who have connected.
    fn admit(&mut self, listener: &TcpListener) -> Result<(), Error> {
        while let Ok((stream, from)) = listener.accept() {
            let read = prepare(&stream).and_then(|()| Hello::read(&stream));
            match read {
                Ok(hello) if self.config.process() < hello.process && hello.process < self.config.processes() => {
                    // It is to learn of a difference as well.
                    let answered = self.hello(hello.link).write(&stream);
                    let peer = self.config.peer(hello.process);
                    self.compare(&peer, &hello)?;
                    if let Err(error) = answered {
                        self.seats[peer.number].last_error = Some(error.to_string());
                    } else {
                        self.seats[peer.number].take(stream, hello);
                    }
                }
                Ok(hello) => {
                    warn!(%from, process = hello.process, "a process that is none of those that connect to this one was let go; compare --process and --hostfile");
                }
                Err(error) => warn!(%from, %error, "a connection to the cluster's port was let go"),
            }
        }
        Ok(())
    }

    /// Connects to those with lower numbers.
    fn visit(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        for number in 0..self.config.process() {
            if self.seats[number].is_taken() || self.seats[number].next.is_some_and(|next| next > now) {
                continue;
            }
            let peer = self.config.peer(number);
            self.seats[number].next = Some(now + ATTEMPT);
            for link in LINKS {
                if self.seats[number].link(link).is_some() {
                    continue;
                }
                match connect(&peer.address).and_then(|stream| self.greet(stream, link)) {
                    Ok((stream, hello)) => {
                        self.compare(&peer, &hello)?;
                        self.compare_clocks(&peer, hello.now_ms)?;
                        self.seats[number].take(stream, hello);
                    }
                    Err(error) => {
                        self.seats[number].last_error = Some(error.to_string());
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn greet(&self, stream: TcpStream, link: Link) -> io::Result<(TcpStream, Hello)> {
        prepare(&stream)?;
        self.hello(link).write(&stream)?;
        let hello = Hello::read(&stream)?;
        Ok((stream, hello))
    }

    fn compare(&self, peer: &Peer, hello: &Hello) -> Result<(), Error> {
        let mut differences = Vec::new();
        if hello.process != peer.number {
            differences.push(format!("it says that it is process {}", hello.process));
        }
        let (here, there) = (&self.own.facts, &hello.facts);
        for fact in here.keys().chain(there.keys().filter(|fact| !here.contains_key(*fact))) {
            let of = |facts: &BTreeMap<String, String>| facts.get(fact).cloned().unwrap_or_else(|| "unknown".into());
            if here.get(fact) != there.get(fact) {
                differences.push(format!("{fact} is {} there and {} here", of(there), of(here)));
            }
        }
        let is_alike = differences.is_empty();
        is_alike.then_some(()).ok_or_else(|| Error::Differs { peer: peer.clone(), differences: differences.join("; ") })
    }

    /// Only for what was written just now: a hello to a process that is busy waits.
    fn compare_clocks(&self, peer: &Peer, now_ms: u64) -> Result<(), Error> {
        let apart_ms = self.clock.now_ms().abs_diff(now_ms);
        if apart_ms > CLOCKS_APART_MAX_MS {
            return Err(Error::Clocks { peer: peer.clone(), apart_ms });
        }
        if apart_ms > CLOCKS_APART_TOLD_MS {
            warn!(apart_ms, "the clock of {peer} is away from this one: offsets are committed as much later");
        }
        Ok(())
    }

    fn joined(self) -> Joined {
        let mut joined = Joined { data: Vec::new(), control: Vec::new(), logged: Vec::new() };
        for seat in self.seats {
            joined.data.push(seat.data);
            joined.control.push(seat.control);
            joined.logged.push(seat.logged);
        }
        joined
    }
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
    for resolved in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&resolved, CONNECT_WAIT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HELLO_WAIT))?;
    stream.set_write_timeout(Some(HELLO_WAIT))
}

#[cfg(test)]
mod tests;
