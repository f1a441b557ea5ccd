//! A small client that says exactly what it is told to say: any request id, session and epoch, any bytes.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use godwit_tests::process::PATIENCE;
use proto::frame::{HEADER_LEN, Header};
use proto::handshake::{ClientGreeting, SERVER_LEN, decode_server};
use proto::ops::session::{Attach, Attached};
use proto::ops::{Operation, Reply, Request, Stamp, decode_reply, frame_request};
use proto::{Epoch, Generation, InstanceId, RequestId, WireError};

/// What a request is answered with: the reply and its data, or an error.
pub type Answer = Result<(Reply, Bytes), WireError>;

/// Who attaches.
#[derive(Clone, Debug)]
pub struct Host {
    pub name: String,
    pub instance: InstanceId,
}

impl Host {
    /// A run of the host `name`; each call is another run.
    pub fn run(name: &str) -> Host {
        Host { name: name.into(), instance: InstanceId::new() }
    }

    pub fn attach(&self, channel: u8, resume: Option<Generation>) -> Attach {
        Attach { datastore: "ds1".into(), host: self.name.clone(), instance: self.instance, channel, resume }
    }
}

/// A connection. What it stamps its requests with can be changed at will.
pub struct Wire {
    stream: TcpStream,
    version: u16,
    pub session: Generation,
    pub epoch: Epoch,
    pub settled_below: RequestId,
    early: HashMap<RequestId, Answer>,
}

fn broken(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

/// Connect, send `greeting`, and take the server's answer: the version, or why not.
pub fn greet(address: &str, greeting: &[u8]) -> io::Result<(TcpStream, Result<u16, String>)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    // Only so that a server that hangs fails the test.
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(greeting)?;
    let mut raw = [0; SERVER_LEN];
    stream.read_exact(&mut raw)?;
    let (version, reason_len) = decode_server(&raw).map_err(broken)?;
    let mut reason = vec![0; reason_len];
    stream.read_exact(&mut reason)?;
    let reason = String::from_utf8(reason).map_err(broken)?;
    Ok((stream, if version == 0 { Err(reason) } else { Ok(version) }))
}

impl Wire {
    /// A connection after the handshake, not attached.
    pub fn connect(address: &str) -> io::Result<Wire> {
        let (stream, version) = greet(address, &ClientGreeting::ours().encode())?;
        Ok(Wire {
            stream,
            version: version.map_err(broken)?,
            session: Generation(0),
            epoch: Epoch(0),
            settled_below: RequestId(1),
            early: HashMap::new(),
        })
    }

    /// Attach on this connection.
    pub fn say_attach(&mut self, ask: Attach) -> io::Result<Result<Attached, WireError>> {
        let answer = self.try_call(ask)?;
        if let Ok(attached) = &answer {
            (self.session, self.epoch) = (attached.session, attached.epoch);
        }
        Ok(answer)
    }

    /// Connect and attach.
    pub fn try_attach(address: &str, ask: Attach) -> io::Result<Result<(Wire, Attached), WireError>> {
        let mut wire = Wire::connect(address)?;
        Ok(wire.say_attach(ask)?.map(|attached| (wire, attached)))
    }

    /// An id that was not used in any session, above all that a test chooses itself.
    pub fn fresh(&self) -> RequestId {
        static NEXT: AtomicU64 = AtomicU64::new(1_000_000);
        RequestId(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Send a request under the id `id`.
    pub fn send(&mut self, id: RequestId, request: &Request, data: Bytes) -> io::Result<()> {
        let stamp = Stamp {
            version: self.version,
            request: id,
            session: self.session,
            epoch: self.epoch,
            settled_below: self.settled_below,
        };
        let frame = frame_request(stamp, request, data);
        self.send_raw(&frame.head)?;
        self.send_raw(&frame.data)
    }

    /// Send any bytes.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next answer, whosever it is.
    pub fn receive(&mut self) -> io::Result<(RequestId, Answer)> {
        if let Some(id) = self.early.keys().next().copied() {
            return Ok((id, self.early.remove(&id).unwrap()));
        }
        self.receive_frame()
    }

    fn receive_frame(&mut self) -> io::Result<(RequestId, Answer)> {
        let mut raw = [0; HEADER_LEN];
        self.stream.read_exact(&mut raw)?;
        let header = Header::decode(&raw).map_err(broken)?;
        let mut body = vec![0; header.payload_len()];
        self.stream.read_exact(&mut body)?;
        header.check_payload(&body).map_err(broken)?;
        let data = Bytes::from(body.split_off(header.body_len as usize));
        let answer = decode_reply(&header, &body).map_err(broken)?;
        Ok((header.request, answer.map(|reply| (reply, data))))
    }

    /// The answer to `id`; others that come before are kept.
    pub fn receive_for(&mut self, id: RequestId) -> io::Result<Answer> {
        if let Some(answer) = self.early.remove(&id) {
            return Ok(answer);
        }
        loop {
            let (whose, answer) = self.receive_frame()?;
            if whose == id {
                return Ok(answer);
            }
            self.early.insert(whose, answer);
        }
    }

    /// Ask under a fresh id; the outer error is the connection's.
    pub fn try_call<O: Operation>(&mut self, ask: O) -> io::Result<Result<O::Reply, WireError>> {
        let id = self.fresh();
        self.send(id, &ask.request(), Bytes::new())?;
        let answer = self.receive_for(id)?;
        Ok(answer.map(|(reply, _)| O::reply(reply).expect("the reply is of the operation's kind")))
    }

    /// Ask; the connection must hold.
    pub fn call<O: Operation>(&mut self, ask: O) -> Result<O::Reply, WireError> {
        self.try_call(ask).expect("the connection holds")
    }

    /// Ask with data, or for data; the connection must hold.
    pub fn call_data<O: Operation>(&mut self, ask: O, data: &[u8]) -> Result<Bytes, WireError> {
        let id = self.fresh();
        self.send(id, &ask.request(), Bytes::copy_from_slice(data)).expect("the connection holds");
        let answer = self.receive_for(id).expect("the connection holds");
        answer.map(|(_, data)| data)
    }

    /// Send without waiting; answers are to be had by [`Wire::receive_for`].
    pub fn post<O: Operation>(&mut self, ask: O, data: Bytes) -> RequestId {
        let id = self.fresh();
        self.send(id, &ask.request(), data).expect("the connection holds");
        id
    }

    /// Whether the server closes the connection without another word.
    pub fn is_closed_by_server(&mut self) -> bool {
        let mut one = [0];
        match self.stream.read(&mut one) {
            Ok(n) => n == 0,
            Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// No more will be sent.
    pub fn shut_down_sending(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}
