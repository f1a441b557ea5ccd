//! The receiving half of a channel: frames cut out of one large buffer without copying their data.

use std::net::TcpStream;

use bytes::{Buf, Bytes, BytesMut};
use proto::frame::{FrameError, HEADER_LEN, Header};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Room asked for when the buffer runs short.
const CHUNK: usize = 256 << 10;
/// Less room than this is not worth a system call.
const LOW: usize = 32 << 10;

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes, and perhaps there are more.
    Some,
    /// Nothing now (or in time, on a socket with a timeout).
    Nothing,
    /// The peer will send no more.
    End,
}

/// Bytes that came and are not yet taken as frames.
#[derive(Default)]
pub struct Inbox {
    buffer: BytesMut,
    /// Header of the frame that is still incomplete, and already taken off the buffer.
    header: Option<Header>,
}

impl Inbox {
    /// Read once from the socket.
    pub fn receive(&mut self, socket: &TcpStream) -> Result<Received, Errno> {
        let missing = self.header.map_or(0, |h| h.payload_len().saturating_sub(self.buffer.len()));
        if self.buffer.capacity() - self.buffer.len() < missing.max(LOW) {
            self.buffer.reserve(missing.max(CHUNK));
        }
        loop {
            let (got, _) = match recv(socket, self.buffer.spare_capacity_mut(), RecvFlags::empty()) {
                Ok((parts, _)) => parts,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                Err(e) => return Err(e),
            };
            let got = got.len();
            if got == 0 {
                return Ok(Received::End);
            }
            let len = self.buffer.len() + got;
            // SAFETY: `recv` initialised the first `got` bytes of the spare capacity, as the type
            // of its result says, and they lie directly behind `buffer.len()`.
            #[allow(unsafe_code)]
            unsafe {
                self.buffer.set_len(len);
            }
            return Ok(Received::Some);
        }
    }

    /// The next whole frame: its header and its body and data behind each other, checksums verified.
    pub fn next_frame(&mut self) -> Result<Option<(Header, Bytes)>, FrameError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                let Some(raw) = self.buffer.first_chunk::<HEADER_LEN>() else { return Ok(None) };
                let header = Header::decode(raw)?;
                self.buffer.advance(HEADER_LEN);
                self.header = Some(header);
                header
            }
        };
        if self.buffer.len() < header.payload_len() {
            return Ok(None);
        }
        self.header = None;
        let payload = self.buffer.split_to(header.payload_len()).freeze();
        header.check_payload(&payload)?;
        Ok(Some((header, payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::ops::{Stamp, data, frame_request};
    use proto::{Epoch, FileId, Generation, RequestId};
    use std::io::Write;
    use std::net::TcpListener;

    #[test]
    fn frames_come_out_whole_however_the_bytes_arrive() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let sizes = [0usize, 1, 4096, 100_000, 1 << 20, 3, 0, 4 << 20, 70_000];
        let frames: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(i, &len)| {
                let write =
                    data::Write { file: FileId(5), offset: 0, digest: None, fua: false, incoming: None };
                let stamp = Stamp {
                    version: 1,
                    request: RequestId(i as u64 + 1),
                    session: Generation(1),
                    epoch: Epoch(1),
                    settled_below: RequestId(1),
                };
                frame_request(stamp, &write.clone_request(), Bytes::from(vec![i as u8; len]))
            })
            .collect();
        let thread = std::thread::spawn(move || {
            let all: Vec<u8> = frames.iter().flat_map(|f| [&f.head[..], &f.data[..]].concat()).collect();
            for (i, piece) in all.chunks(9_973).enumerate() {
                sender.write_all(&piece[..piece.len() / 2]).unwrap();
                if i % 50 == 0 {
                    std::thread::yield_now();
                }
                sender.write_all(&piece[piece.len() / 2..]).unwrap();
            }
        });
        let mut inbox = Inbox::default();
        let mut seen = Vec::new();
        loop {
            let received = inbox.receive(&socket).unwrap();
            while let Some((header, payload)) = inbox.next_frame().unwrap() {
                let data = payload.slice(header.body_len as usize..);
                assert!(data.iter().all(|&b| b == seen.len() as u8));
                seen.push(data.len());
            }
            if received == Received::End {
                break;
            }
        }
        assert_eq!(seen, sizes);
        thread.join().unwrap();
    }

    trait CloneRequest {
        fn clone_request(&self) -> proto::ops::Request;
    }
    impl CloneRequest for data::Write {
        fn clone_request(&self) -> proto::ops::Request {
            proto::ops::Request::Write(self.clone())
        }
    }

    #[test]
    fn an_altered_payload_is_refused() {
        let write = data::Write { file: FileId(5), offset: 0, digest: None, fua: false, incoming: None };
        let stamp = Stamp {
            version: 1,
            request: RequestId(1),
            session: Generation(1),
            epoch: Epoch(1),
            settled_below: RequestId(1),
        };
        let frame = frame_request(stamp, &proto::ops::Request::Write(write), Bytes::from_static(b"data"));
        let mut inbox = Inbox::default();
        inbox.buffer.extend_from_slice(&frame.head);
        inbox.buffer.extend_from_slice(b"dada");
        assert_eq!(inbox.next_frame(), Err(FrameError::PayloadChecksum));
    }
}
