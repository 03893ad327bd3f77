//! A network that can be cut: a TCP proxy on 127.0.0.1 between a process and a service.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the network does with connections, old and new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// It works.
    Whole,
    /// Connections break, new ones are closed at once.
    Cut,
    /// Connections stay, nothing passes; what was sent arrives when it works again.
    Stalled,
    /// Everything arrives this much later.
    Slow(Duration),
    /// Half open: requests arrive, answers are lost. A connection that lost one breaks when the network works again, as its stream
    /// has a hole.
    Deaf,
}

/// How long a pump waits for bytes before it looks at the network's state again.
const LOOK: Duration = Duration::from_millis(5);

struct State {
    network: Mutex<Network>,
    is_over: AtomicBool,
    /// Bytes of answers lost while deaf.
    lost: AtomicU64,
    /// Bytes of requests that reached the target.
    sent: AtomicU64,
}

impl State {
    fn network(&self) -> Network {
        *lock(&self.network)
    }
}

/// A proxy; it ends when dropped.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

impl Proxy {
    /// A proxy to `target`, `host:port`, with a whole network.
    pub fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a listener can be made non-blocking");
        let address = listener.local_addr().expect("it is bound");
        let network = Mutex::new(Network::Whole);
        let state =
            Arc::new(State { network, is_over: AtomicBool::default(), lost: AtomicU64::default(), sent: AtomicU64::default() });
        let (target, shared) = (target.to_owned(), state.clone());
        std::thread::spawn(move || accept(&listener, &target, &shared));
        Proxy { address, state }
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes the network.
    pub fn set(&self, network: Network) {
        *lock(&self.state.network) = network;
    }

    /// Bytes of answers that were lost so far.
    pub fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::Relaxed)
    }

    /// Bytes of requests that reached the target so far.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
    }
}

fn accept(listener: &TcpListener, target: &str, state: &Arc<State>) {
    while !state.is_over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((client, _)) if state.network() != Network::Cut => connect(&client, target, state),
            // Dropped: the client sees its connection close.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK),
            Err(error) => panic!("accepting a connection: {error}"),
        }
    }
}

fn connect(client: &TcpStream, target: &str, state: &Arc<State>) {
    // Where the target is away, the client's connection is closed by dropping it.
    let Ok(server) = TcpStream::connect(target) else { return };
    for stream in [client, &server] {
        stream.set_nonblocking(false).expect("a stream can block");
        stream.set_read_timeout(Some(LOOK)).expect("a timeout that is not zero");
        // Small requests should not wait for each other: this is to look like a network, not to slow one down.
        stream.set_nodelay(true).expect("a TCP stream");
    }
    for (from, to, is_answer) in [(client, &server, false), (&server, client, true)] {
        let (from, to) = (from.try_clone().expect("a handle"), to.try_clone().expect("a handle"));
        let state = state.clone();
        std::thread::spawn(move || pump(from, to, is_answer, &state));
    }
}

/// Carries bytes one way until either end or the network breaks.
fn pump(mut from: TcpStream, mut to: TcpStream, is_answer: bool, state: &State) {
    let mut bytes = vec![0; 64 << 10];
    let mut has_hole = false;
    loop {
        let network = state.network();
        if state.is_over.load(Ordering::Relaxed) || network == Network::Cut || (has_hole && network != Network::Deaf) {
            break;
        }
        if network == Network::Stalled {
            std::thread::sleep(LOOK);
            continue;
        }
        let count = match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        match state.network() {
            Network::Deaf if is_answer => {
                has_hole = true;
                state.lost.fetch_add(count as u64, Ordering::Relaxed);
                continue;
            }
            Network::Slow(delay) => std::thread::sleep(delay),
            _ => {}
        }
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
        if !is_answer {
            state.sent.fetch_add(count as u64, Ordering::Relaxed);
        }
    }
    // Both ways: the other pump ends with its next read.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
