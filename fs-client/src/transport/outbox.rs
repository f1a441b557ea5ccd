//! The sending half of a channel: any thread writes its frame straight into the socket; what the
//! socket does not take is kept in order and sent by the channel's thread when there is room.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use proto::frame::{HEADER_LEN, Header};
use proto::{Epoch, Generation};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

/// Slices handed to one system call.
const MAX_SLICES: usize = 64;

/// A connection that frames may be sent on, and what is put into each frame's header.
#[derive(Clone)]
pub struct Link {
    /// The socket, not blocking.
    pub socket: Arc<TcpStream>,
    /// Protocol version agreed on.
    pub version: u16,
    /// The session's generation.
    pub session: Generation,
    /// The datastore's epoch.
    pub epoch: Epoch,
}

impl Link {
    /// A header as it goes over this connection.
    pub fn stamp(&self, header: Header) -> [u8; HEADER_LEN] {
        Header { version: self.version, session: self.session, epoch: self.epoch, ..header }.encode()
    }
}

/// What is to be sent on a channel. Without a link nothing is.
#[derive(Default)]
pub struct Outbox {
    link: Option<Link>,
    backlog: VecDeque<Bytes>,
}

impl Outbox {
    /// The connection, if there is one.
    pub fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// Use a new connection from now on.
    pub fn open(&mut self, link: Link) {
        self.backlog.clear();
        self.link = Some(link);
    }

    /// The connection is gone; what it did not take is sent again by whoever opens the next one.
    pub fn close(&mut self) {
        if let Some(link) = self.link.take() {
            let _ = link.socket.shutdown(Shutdown::Both);
        }
        self.backlog.clear();
    }

    /// Whether something waits for room in the socket.
    pub fn is_backed_up(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Send a frame. Returns whether the channel's thread must now watch for room.
    pub fn send(&mut self, header: Header, body: Bytes, data: Bytes) -> bool {
        let Some(link) = &self.link else { return false };
        let head = link.stamp(header);
        if !self.backlog.is_empty() {
            self.keep(&head, body, data, 0);
            return false;
        }
        let sent = write(&link.socket, &[IoSlice::new(&head), IoSlice::new(&body), IoSlice::new(&data)]);
        let total = HEADER_LEN + body.len() + data.len();
        match sent {
            Ok(n) if n == total => false,
            Ok(n) => {
                self.keep(&head, body, data, n);
                true
            }
            Err(_) => {
                // The channel's thread sees the end of the connection and opens another.
                self.close();
                false
            }
        }
    }

    /// Send what waits, as far as there is room.
    pub fn drain(&mut self) {
        while !self.backlog.is_empty() {
            let Some(link) = &self.link else { return };
            let slices: Vec<IoSlice<'_>> =
                self.backlog.iter().take(MAX_SLICES).map(|chunk| IoSlice::new(chunk)).collect();
            match write(&link.socket, &slices) {
                Ok(0) => return,
                Ok(n) => self.advance(n),
                Err(_) => return self.close(),
            }
        }
    }

    fn keep(&mut self, head: &[u8], body: Bytes, data: Bytes, mut sent: usize) {
        for mut chunk in [Bytes::copy_from_slice(head), body, data] {
            let cut = sent.min(chunk.len());
            chunk.advance(cut);
            sent -= cut;
            if !chunk.is_empty() {
                self.backlog.push_back(chunk);
            }
        }
    }

    fn advance(&mut self, mut sent: usize) {
        while sent > 0 {
            let Some(chunk) = self.backlog.front_mut() else { return };
            if sent < chunk.len() {
                chunk.advance(sent);
                return;
            }
            sent -= chunk.len();
            self.backlog.pop_front();
        }
    }
}

/// One write that does not block; 0 when there is no room.
fn write(socket: &TcpStream, slices: &[IoSlice<'_>]) -> Result<usize, Errno> {
    loop {
        match sendmsg(
            socket,
            slices,
            &mut SendAncillaryBuffer::default(),
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(0),
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::RequestId;
    use std::io::Read;
    use std::net::TcpListener;

    fn header(id: u64, data: &[u8]) -> Header {
        Header {
            version: 0,
            kind: 0x21,
            request: RequestId(id),
            session: Generation(0),
            epoch: Epoch(0),
            settled_below: RequestId(1),
            body_len: 3,
            data_len: data.len() as u32,
            payload_crc: proto::frame::payload_crc(b"abc", data),
        }
    }

    #[test]
    fn what_the_socket_does_not_take_is_kept_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let mut outbox = Outbox::default();
        outbox.open(Link { socket: Arc::new(socket), version: 1, session: Generation(7), epoch: Epoch(9) });
        let data: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
        const FRAMES: u64 = 60;
        let mut watched = 0;
        for id in 1..=FRAMES {
            watched +=
                outbox.send(header(id, &data), Bytes::from_static(b"abc"), Bytes::copy_from_slice(&data))
                    as u32;
        }
        assert_eq!(watched, 1, "the thread is woken once, by the first frame that did not fit");
        let reader = std::thread::spawn(move || {
            for id in 1..=FRAMES {
                let mut head = [0; HEADER_LEN];
                peer.read_exact(&mut head).unwrap();
                let header = Header::decode(&head).unwrap();
                assert_eq!(
                    (header.request, header.session, header.version),
                    (RequestId(id), Generation(7), 1)
                );
                let mut payload = vec![0; header.payload_len()];
                peer.read_exact(&mut payload).unwrap();
                header.check_payload(&payload).unwrap();
            }
        });
        while outbox.is_backed_up() {
            outbox.drain();
        }
        reader.join().unwrap();
    }
}
