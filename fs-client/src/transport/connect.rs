//! From an address to an attached connection: TCP, greeting, Attach, and after a restart of the
//! server the declaration of what is open. Blocks, within time limits.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::frame::{FrameError, Header};
use proto::handshake::{ClientGreeting, GreetingError, SERVER_LEN, decode_server};
use proto::ops::session::{Attach, Attached, SetOpen};
use proto::ops::{Reply, Request, decode_reply};
use proto::{RequestId, WireError};
use rustix::io::Errno;
use rustix::net::sockopt;
use tracing::warn;

use super::inbox::{Inbox, Received};
use super::outbox::Link;
use super::{Channel, Pending, Session};

/// For a TCP connection to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// For the server to answer greeting and Attach. It may first wait for I/O of the connection before.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{address} is not an address: {error}")]
    Address { address: String, error: io::Error },
    #[error("connect to {address}: {error}")]
    Connect { address: String, error: io::Error },
    #[error("{address} {doing}: {error}")]
    Talk { address: String, doing: &'static str, error: io::Error },
    #[error("{address}: {error}")]
    Greeting { address: String, error: GreetingError },
    #[error("{address}: {error}")]
    Frame { address: String, error: FrameError },
    #[error("{address} refuses: {reason}")]
    Refused { address: String, reason: String },
    /// The session is over: no later attempt can succeed.
    #[error("fenced: {0}")]
    Fenced(String),
}

/// A connection that is ready for requests.
pub struct Established {
    pub link: Link,
    pub inbox: Inbox,
    pub attached: Arc<Attached>,
}

struct Talk<'a> {
    address: &'a str,
    socket: TcpStream,
    inbox: Inbox,
}

/// Connect one channel.
pub fn establish(session: &Session, channel: Channel) -> Result<Established, ConnectError> {
    let address = session.config.address.as_str();
    let mut talk = Talk { address, socket: open(address)?, inbox: Inbox::default() };
    let version = talk.greet()?;
    let before = session.attached();
    let attach = Attach {
        datastore: session.config.name.clone(),
        host: session.config.host.clone(),
        instance: session.config.instance,
        channel: channel.number(),
        resume: before.as_ref().map(|a| a.session),
    };
    let attached = match talk.ask(version, &Request::Attach(attach))? {
        Ok(Reply::Attach(attached)) => attached,
        Ok(_) => return Err(talk.frame_error(FrameError::Kind)),
        Err(WireError::Fenced { reason }) => return Err(ConnectError::Fenced(reason)),
        Err(e) => return Err(ConnectError::Refused { address: address.into(), reason: e.to_string() }),
    };
    check_same(address, before.as_deref(), &attached)?;
    let link = Link {
        socket: Arc::new(talk.socket.try_clone().map_err(|e| talk.talk_error("hand over", e))?),
        version,
        session: attached.session,
        epoch: attached.epoch,
    };
    if channel == Channel::Io && before.is_some_and(|b| b.server != attached.server) {
        talk.declare_opens(session, &link)?;
    }
    talk.socket.set_nonblocking(true).map_err(|e| talk.talk_error("unblock", e))?;
    Ok(Established { link, inbox: talk.inbox, attached: Arc::new(attached) })
}

fn open(address: &str) -> Result<TcpStream, ConnectError> {
    let addresses: Vec<SocketAddr> = address
        .to_socket_addrs()
        .map_err(|error| ConnectError::Address { address: address.into(), error })?
        .collect();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for candidate in addresses {
        match TcpStream::connect_timeout(&candidate, CONNECT_LIMIT) {
            Ok(socket) => {
                let prepare = || {
                    socket.set_nodelay(true)?;
                    socket.set_read_timeout(Some(ANSWER_LIMIT))?;
                    socket.set_write_timeout(Some(ANSWER_LIMIT))?;
                    sockopt::set_socket_keepalive(&socket, true)?;
                    sockopt::set_tcp_keepidle(&socket, Duration::from_secs(5))?;
                    sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(2))?;
                    sockopt::set_tcp_keepcnt(&socket, 3)?;
                    io::Result::Ok(())
                };
                prepare().map_err(|error| ConnectError::Connect { address: address.into(), error })?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(ConnectError::Connect { address: address.into(), error: last })
}

/// A resumed session must be the same session of the same datastore.
fn check_same(address: &str, before: Option<&Attached>, now: &Attached) -> Result<(), ConnectError> {
    let Some(before) = before else { return Ok(()) };
    if before.datastore != now.datastore {
        return Err(ConnectError::Refused {
            address: address.into(),
            reason: format!(
                "it serves another datastore ({}) than before ({})",
                now.datastore, before.datastore
            ),
        });
    }
    if before.session != now.session {
        return Err(ConnectError::Fenced(format!(
            "session {} was replaced by session {}",
            before.session, now.session
        )));
    }
    Ok(())
}

impl Talk<'_> {
    fn talk_error(&self, doing: &'static str, error: io::Error) -> ConnectError {
        ConnectError::Talk { address: self.address.into(), doing, error }
    }

    fn frame_error(&self, error: FrameError) -> ConnectError {
        ConnectError::Frame { address: self.address.into(), error }
    }

    fn greet(&mut self) -> Result<u16, ConnectError> {
        let mut exchange = || {
            self.socket.write_all(&ClientGreeting::ours().encode())?;
            let mut raw = [0; SERVER_LEN];
            self.socket.read_exact(&mut raw)?;
            io::Result::Ok(raw)
        };
        let raw = exchange().map_err(|e| self.talk_error("greeting", e))?;
        let (version, reason_len) = decode_server(&raw)
            .map_err(|error| ConnectError::Greeting { address: self.address.into(), error })?;
        if version != 0 {
            return Ok(version);
        }
        let mut reason = vec![0; reason_len];
        self.socket.read_exact(&mut reason).map_err(|e| self.talk_error("greeting", e))?;
        let reason = String::from_utf8_lossy(&reason).into_owned();
        Err(ConnectError::Refused { address: self.address.into(), reason })
    }

    /// One exchange outside of any session.
    fn ask(&mut self, version: u16, request: &Request) -> Result<Result<Reply, WireError>, ConnectError> {
        let pending = Pending::new(request, Bytes::new(), Box::new(|_| {}));
        let head = Header { version, ..pending.header }.encode();
        let bytes = [&head[..], &pending.body].concat();
        self.socket.write_all(&bytes).map_err(|e| self.talk_error("attach", e))?;
        let (header, payload) = self.next_frame("attach")?;
        self.decode(&header, &payload)
    }

    fn decode(&self, header: &Header, payload: &Bytes) -> Result<Result<Reply, WireError>, ConnectError> {
        decode_reply(header, &payload[..header.body_len as usize]).map_err(|e| self.frame_error(e))
    }

    fn next_frame(&mut self, doing: &'static str) -> Result<(Header, Bytes), ConnectError> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            if let Some(frame) = self.inbox.next_frame().map_err(|e| self.frame_error(e))? {
                return Ok(frame);
            }
            let late = Instant::now() >= deadline;
            match self.inbox.receive(&self.socket) {
                Ok(Received::Some) if !late => {}
                Ok(Received::Some | Received::Nothing) => {
                    return Err(self.talk_error(doing, io::ErrorKind::TimedOut.into()));
                }
                Ok(Received::End) => return Err(self.talk_error(doing, io::ErrorKind::UnexpectedEof.into())),
                Err(e) => return Err(self.talk_error(doing, e.into())),
            }
        }
    }

    /// The server was restarted and has forgotten what is open: say it again before anything that
    /// relies on it is sent again.
    fn declare_opens(&mut self, session: &Session, link: &Link) -> Result<(), ConnectError> {
        let opens = session.opens.get().map(|provider| provider()).unwrap_or_default();
        let mut waiting = Vec::new();
        let result = opens.iter().try_for_each(|&(file, mode)| {
            let pending =
                Pending::new(&Request::SetOpen(SetOpen { file, mode }), Bytes::new(), Box::new(|_| {}));
            let (header, body) = (pending.header, pending.body.clone());
            let mut requests = session.requests.lock();
            let request = requests.core.begin(Channel::Io.number(), pending);
            let settled_below = requests.core.settled_below();
            drop(requests);
            waiting.push((request, file));
            let head = link.stamp(Header { request, settled_below, ..header });
            self.socket
                .write_all(&[&head[..], &body].concat())
                .map_err(|e| self.talk_error("declare opens", e))
        });
        let result = result.and_then(|()| self.take_declarations(&waiting));
        // A lost connection comes back with a fresh declaration: these are not sent again.
        let mut requests = session.requests.lock();
        for (id, _) in &waiting {
            requests.core.complete(Channel::Io.number(), *id);
        }
        result
    }

    fn take_declarations(&mut self, waiting: &[(RequestId, proto::FileId)]) -> Result<(), ConnectError> {
        for _ in waiting {
            let (header, payload) = self.next_frame("declare opens")?;
            let Some((_, file)) = waiting.iter().find(|(id, _)| *id == header.request) else {
                return Err(self.frame_error(FrameError::Range));
            };
            if let Err(e) = self.decode(&header, &payload)? {
                warn!(address = self.address, %file, "declare it open again: {e}");
            }
        }
        Ok(())
    }
}

impl From<Errno> for ConnectError {
    fn from(error: Errno) -> Self {
        ConnectError::Talk { address: String::new(), doing: "socket", error: error.into() }
    }
}
