//! Replies on their way out of a connection.
//!
//! Whoever has a reply hands it over and is never held up by a client that does not read: what the
//! socket does not take at once is written by a thread that lives as long as there is a backlog.

use std::collections::VecDeque;
use std::io::{IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use proto::ops::OutFrame;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

/// Bytes kept for a client that does not read them; with more it has lost the connection.
const MAX_BACKLOG: usize = 128 << 20;

/// The outgoing side of a connection.
#[derive(Clone)]
pub struct Replies {
    shared: Arc<Shared>,
}

struct Shared {
    stream: TcpStream,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    backlog: VecDeque<Bytes>,
    bytes: usize,
    /// A thread writes the backlog; everything new goes behind it.
    writing: bool,
    /// The connection is broken: its reader notices, and the client asks again.
    broken: bool,
}

impl Replies {
    /// Replies that go into `stream`.
    pub fn new(stream: TcpStream) -> Replies {
        Replies { shared: Arc::new(Shared { stream, state: Mutex::default() }) }
    }

    /// Send a frame. Frames leave in the order in which they are handed over.
    pub fn send(&self, frame: OutFrame) {
        let mut state = self.shared.state.lock();
        if state.broken {
            return;
        }
        let mut parts = [Bytes::from(frame.head), frame.data];
        if !state.writing && !self.shared.write_now(&mut parts) {
            return self.shared.give_up(&mut state);
        }
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            state.bytes += part.len();
            state.backlog.push_back(part);
        }
        if state.bytes > MAX_BACKLOG {
            return self.shared.give_up(&mut state);
        }
        if !state.backlog.is_empty() && !state.writing {
            state.writing = true;
            let shared = self.shared.clone();
            let started =
                std::thread::Builder::new().name("backlog".into()).spawn(move || shared.write_backlog());
            if started.is_err() {
                self.shared.give_up(&mut state);
            }
        }
    }
}

impl Shared {
    /// Write what the socket takes without waiting; false when it is broken.
    fn write_now(&self, parts: &mut [Bytes; 2]) -> bool {
        while parts.iter().any(|part| !part.is_empty()) {
            let slices = [IoSlice::new(&parts[0]), IoSlice::new(&parts[1])];
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(&self.stream, &slices, &mut SendAncillaryBuffer::default(), flags) {
                Ok(mut sent) => {
                    for part in parts.iter_mut() {
                        let taken = sent.min(part.len());
                        let _ = part.split_to(taken);
                        sent -= taken;
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn write_backlog(&self) {
        loop {
            let part = {
                let mut state = self.state.lock();
                match state.backlog.pop_front() {
                    Some(part) if !state.broken => {
                        state.bytes -= part.len();
                        part
                    }
                    _ => {
                        state.writing = false;
                        return;
                    }
                }
            };
            if (&self.stream).write_all(&part).is_err() {
                self.give_up(&mut self.state.lock());
            }
        }
    }

    fn give_up(&self, state: &mut State) {
        state.broken = true;
        state.backlog.clear();
        state.bytes = 0;
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        (listener.accept().expect("accept").0, client)
    }

    fn frame(byte: u8, len: usize) -> OutFrame {
        OutFrame { head: vec![byte; 64], data: Bytes::from(vec![byte; len]) }
    }

    #[test]
    fn a_client_that_does_not_read_holds_nobody_up_and_gets_all_in_order() {
        let (server, mut client) = pair();
        let replies = Replies::new(server);
        for byte in 0..40 {
            replies.send(frame(byte, 1 << 20));
        }
        let mut seen = vec![0; 64 + (1 << 20)];
        for byte in 0..40 {
            client.read_exact(&mut seen).expect("a reply");
            assert!(seen.iter().all(|b| *b == byte), "reply {byte}");
        }
    }

    #[test]
    fn a_client_that_never_reads_loses_the_connection() {
        let (server, mut client) = pair();
        let replies = Replies::new(server);
        for _ in 0..200 {
            replies.send(frame(1, 1 << 20));
        }
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
        assert!(rest.len() < 200 << 20);
        assert!(replies.shared.state.lock().broken);
    }
}
