//! A connection of timely's whose end is a fault with a name, not a panic of timely's threads.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use openwit_operators::fault::Health;
use timely::communication::allocator::zero_copy::stream::Stream;

use super::{NAME, Peer};

/// Timely's last message is a header of zeros.
const LAST_HEADER_BYTES: usize = 48;

/// A connection to another process.
pub(crate) struct Watched {
    stream: TcpStream,
    peer: Peer,
    health: Health,
    /// Zeros at the end of what was read.
    zeros: usize,
}

impl Watched {
    pub(crate) fn new(stream: TcpStream, peer: Peer, health: Health) -> io::Result<Self> {
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        Ok(Watched { stream, peer, health, zeros: 0 })
    }

    fn raise(&self, why: &str) {
        self.health.fail(NAME, format!("{} is gone: {why}", self.peer));
    }

    /// The process is about to end by its fault: a reader that came back would panic, and tell of it.
    fn rest(&self, why: &str) -> ! {
        self.raise(why);
        loop {
            std::thread::park();
        }
    }
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) if self.zeros < LAST_HEADER_BYTES => self.rest("its connection is closed"),
                Ok(read) => {
                    let zeros = buffer[..read].iter().rev().take_while(|byte| **byte == 0).count();
                    self.zeros = if zeros == read { self.zeros.saturating_add(zeros) } else { zeros };
                    return Ok(read);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It was closed with something of ours unread, behind its own last message.
                Err(_) if self.zeros >= LAST_HEADER_BYTES => return Ok(0),
                Err(error) => self.rest(&error.to_string()),
            }
        }
    }
}

impl Write for Watched {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self.stream.write(buffer) {
            Err(error) if error.kind() != ErrorKind::Interrupted => {
                self.raise(&error.to_string());
                Ok(buffer.len())
            }
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Watched {
    fn try_clone(&self) -> io::Result<Self> {
        let (stream, peer, health) = (self.stream.try_clone()?, self.peer.clone(), self.health.clone());
        Ok(Watched { stream, peer, health, zeros: 0 })
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.stream.set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        // What cannot be shut down is closed already.
        let _ = self.stream.shutdown(how);
        Ok(())
    }
}
