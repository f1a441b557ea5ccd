//! One connection: handshake, attach, then requests in and replies out.
//!
//! This thread reads and dispatches. Data work goes to the connection's ring, metadata changes to
//! the executor, look-ups are answered here. Replies leave from whichever thread has them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use proto::frame::{FrameError, HEADER_LEN, Header};
use proto::handshake::{CLIENT_LEN, ClientGreeting, encode_server};
use proto::ops::session::{Attach, Attached};
use proto::ops::{OutFrame, Reply, Request, Stamp, frame_error, frame_reply};
use proto::{Generation, RequestId, WireError};

use crate::datastore::Datastore;
use crate::executor::{Executor, Job};
use crate::replies::Replies;
use crate::requests;
use crate::ring::Ring;
use crate::sessions::{Claim, LEASE, LiveSession, RENEW};

/// Bytes of requests in work at once; the socket is not read above it.
const MAX_IN_WORK: u64 = 64 << 20;
const READ_BUFFER: usize = 256 << 10;

/// What all connections of a server share.
#[derive(Clone)]
pub struct Service {
    /// The datastore.
    pub datastore: Arc<Datastore>,
    /// Its metadata thread.
    pub executor: Executor,
}

/// A connection after it has attached.
pub struct Connection {
    /// What is served.
    pub service: Service,
    /// On whose behalf.
    pub session: Arc<LiveSession>,
    version: u16,
    replies: Replies,
    ring: OnceLock<Ring>,
    in_work: Mutex<InWork>,
    changed: Condvar,
}

#[derive(Default)]
struct InWork {
    requests: u64,
    bytes: u64,
}

/// A request in work: answers it once, and is counted until then.
pub struct Ticket {
    connection: Arc<Connection>,
    request: RequestId,
    bytes: u64,
}

impl Connection {
    fn stamp(&self, request: RequestId) -> Stamp {
        Stamp {
            version: self.version,
            request,
            session: self.session.generation,
            epoch: self.service.datastore.identity.epoch,
            settled_below: RequestId(0),
        }
    }

    /// The connection's ring; set up with the first data request.
    pub fn ring(&self) -> &Ring {
        self.ring.get_or_init(Ring::new)
    }

    fn send(&self, frame: OutFrame) {
        self.replies.send(frame);
    }

    fn ticket(self: &Arc<Self>, request: RequestId, bytes: u64) -> Ticket {
        let mut in_work = self.in_work.lock();
        while in_work.bytes > 0 && in_work.bytes + bytes > MAX_IN_WORK {
            self.changed.wait(&mut in_work);
        }
        in_work.requests += 1;
        in_work.bytes += bytes;
        Ticket { connection: self.clone(), request, bytes }
    }

    fn wait_idle(&self) {
        let mut in_work = self.in_work.lock();
        while in_work.requests > 0 {
            self.changed.wait(&mut in_work);
        }
    }
}

impl Ticket {
    /// Answer the request.
    pub fn answer(self, result: Result<(Reply, Bytes), WireError>) {
        let stamp = self.connection.stamp(self.request);
        self.connection.send(match result {
            Ok((reply, data)) => frame_reply(stamp, &reply, data),
            Err(error) => frame_error(stamp, &error),
        });
    }

    /// The connection it belongs to.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut in_work = self.connection.in_work.lock();
        in_work.requests -= 1;
        in_work.bytes -= self.bytes;
        drop(in_work);
        self.connection.changed.notify_all();
    }
}

fn write_frame(stream: &mut TcpStream, frame: &OutFrame) -> std::io::Result<()> {
    let mut parts = [std::io::IoSlice::new(&frame.head), std::io::IoSlice::new(&frame.data)];
    let mut rest = &mut parts[..];
    while rest.iter().any(|part| !part.is_empty()) {
        match stream.write_vectored(rest) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(n) => std::io::IoSlice::advance_slices(&mut rest, n),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A request as it arrived.
pub struct Arrived {
    /// Its header.
    pub header: Header,
    /// The operation.
    pub request: Request,
    /// File data.
    pub data: Vec<u8>,
}

fn receive(reader: &mut impl Read) -> Result<Option<Arrived>, FrameError> {
    let mut raw = [0; HEADER_LEN];
    if reader.read_exact(&mut raw).is_err() {
        return Ok(None);
    }
    let header = Header::decode(&raw)?;
    let mut body = vec![0; header.payload_len()];
    if reader.read_exact(&mut body).is_err() {
        return Ok(None);
    }
    header.check_payload(&body)?;
    let data = body.split_off(header.body_len as usize);
    let request = Request::decode(header.kind, &body)?;
    Ok(Some(Arrived { header, request, data }))
}

/// Serve a connection until it ends.
pub fn serve(service: Service, mut stream: TcpStream) {
    let peer = stream.peer_addr().map(|a| a.to_string()).unwrap_or_default();
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(LEASE));
    let mut greeting = [0; CLIENT_LEN];
    if stream.read_exact(&mut greeting).is_err() {
        return;
    }
    let choice = match ClientGreeting::decode(&greeting) {
        Ok(greeting) => greeting.choose(),
        Err(e) => {
            tracing::warn!(peer, "handshake: {e}");
            return;
        }
    };
    if stream.write_all(&encode_server(&choice)).is_err() {
        return;
    }
    let Ok(version) = choice else { return };
    let first = match receive(&mut stream) {
        Ok(Some(first)) => first,
        Ok(None) => return,
        Err(e) => {
            tracing::warn!(peer, "first frame: {e}");
            return;
        }
    };
    let _ = stream.set_read_timeout(None);
    attach(service, stream, version, first, &peer);
}

fn attach(service: Service, mut stream: TcpStream, version: u16, first: Arrived, peer: &str) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let Request::Attach(ask) = &first.request else {
        tracing::warn!(peer, "the first request is {}, not Attach", first.request.name());
        return;
    };
    let refuse = |stream: &mut TcpStream, error: WireError| {
        tracing::warn!(peer, host = ask.host, "attach refused: {error}");
        let stamp = Stamp {
            version,
            request: first.header.request,
            session: Generation(0),
            epoch: service.datastore.identity.epoch,
            settled_below: RequestId(0),
        };
        let _ = write_frame(stream, &frame_error(stamp, &error));
    };
    let attaching = service.datastore.sessions.attaching.lock();
    let session = match session_for(&service, ask) {
        Ok(session) => session,
        Err(error) => {
            drop(attaching);
            return refuse(&mut stream, error);
        }
    };
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let (Ok(control), Ok(reader)) = (stream.try_clone(), stream.try_clone()) else { return };
    session.take_channel(ask.channel, control, number);
    drop(attaching);
    let connection = Arc::new(Connection {
        service: service.clone(),
        session: session.clone(),
        version,
        replies: Replies::new(stream),
        ring: OnceLock::new(),
        in_work: Mutex::default(),
        changed: Condvar::new(),
    });
    tracing::info!(peer, host = session.host, session = %session.generation, channel = ask.channel, "attached");
    let attached = attached(&service.datastore, &session);
    connection.send(frame_reply(
        connection.stamp(first.header.request),
        &Reply::Attach(attached),
        Bytes::new(),
    ));
    run(&connection, reader, peer);
    connection.wait_idle();
    session.leave_channel(ask.channel, number);
    tracing::info!(peer, host = session.host, channel = ask.channel, "connection ended");
}

fn session_for(service: &Service, ask: &Attach) -> Result<Arc<LiveSession>, WireError> {
    let name = &service.datastore.identity.name;
    if ask.datastore != *name {
        return Err(WireError::Invalid {
            reason: format!("this server keeps datastore {name}, not {}", ask.datastore),
        });
    }
    if ask.host.is_empty() || ask.host.len() > 255 {
        return Err(WireError::Invalid { reason: "a host's name has 1 to 255 bytes".into() });
    }
    let registry = &service.datastore.sessions;
    match registry.claim(&ask.host, ask.instance, ask.resume)? {
        Claim::Resume(session) => Ok(session),
        Claim::New => {
            let (tell, told) = std::sync::mpsc::channel();
            let answer = Box::new(move |result| drop(tell.send(result)));
            service.executor.submit(Job::OpenSession {
                host: ask.host.clone(),
                instance: ask.instance,
                answer,
            });
            let generation = told
                .recv()
                .map_err(|_| WireError::Failed { reason: "the metadata thread has ended".into() })??;
            Ok(registry.open(&ask.host, ask.instance, generation))
        }
    }
}

fn attached(datastore: &Datastore, session: &LiveSession) -> Attached {
    let identity = &datastore.identity;
    Attached {
        datastore: identity.id,
        name: identity.name.clone(),
        epoch: identity.epoch,
        session: session.generation,
        prefix: identity.prefix,
        root: proto::FileId::datastore_root(identity.prefix).unwrap_or(proto::FileId::MOUNT_ROOT),
        server: datastore.server,
        boot: datastore.boot.clone(),
        lease_ms: LEASE.as_millis() as u32,
        renew_ms: RENEW.as_millis() as u32,
        next_request: RequestId(1),
    }
}

fn run(connection: &Arc<Connection>, reader: TcpStream, peer: &str) {
    let mut reader = std::io::BufReader::with_capacity(READ_BUFFER, reader);
    loop {
        match receive(&mut reader) {
            Ok(Some(arrived)) => {
                connection.session.renew();
                let wanted = match &arrived.request {
                    Request::Read(ask) => u64::from(ask.len),
                    _ => arrived.data.len() as u64,
                };
                let ticket = connection.ticket(arrived.header.request, wanted);
                match check(connection, &arrived.header) {
                    Ok(()) => requests::dispatch(ticket, arrived),
                    Err(error) => ticket.answer(Err(error)),
                }
            }
            Ok(None) => return,
            Err(e) => {
                tracing::warn!(peer, "{e}; closing the connection");
                let _ = reader.get_ref().shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    }
}

fn check(connection: &Connection, header: &Header) -> Result<(), WireError> {
    connection.session.check()?;
    let current = connection.service.datastore.identity.epoch;
    if header.epoch != current {
        return Err(WireError::WrongEpoch { current });
    }
    if header.session != connection.session.generation {
        return Err(WireError::Fenced {
            reason: format!("session {} is not this connection's", header.session),
        });
    }
    Ok(())
}
