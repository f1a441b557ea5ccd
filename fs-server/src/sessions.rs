//! Sessions of hosts: who is attached on which channels, what is open, who has been fenced.
//!
//! A session's generation is durable (the executor stores it); this is what lives in memory.
//! Expiry is courteous: a host that is away keeps its session until another one needs what it holds.

use std::collections::{BTreeMap, HashMap};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use proto::ops::session::{OpenMode, SessionInfo};
use proto::{FileId, Generation, InstanceId, WireError};

/// How long a session lives without renewal.
pub const LEASE: Duration = Duration::from_secs(8);
/// How often a client renews.
pub const RENEW: Duration = Duration::from_secs(2);

/// A host's session.
pub struct LiveSession {
    /// The host.
    pub host: String,
    /// The run of dshost.
    pub instance: InstanceId,
    /// Fencing token.
    pub generation: Generation,
    fenced: AtomicBool,
    state: Mutex<State>,
    drained: Condvar,
}

struct State {
    renewed: Instant,
    channels: BTreeMap<u8, Channel>,
    opens: HashMap<FileId, OpenMode>,
    address: String,
}

struct Channel {
    stream: TcpStream,
    number: u64,
}

impl LiveSession {
    fn new(host: String, instance: InstanceId, generation: Generation) -> Arc<LiveSession> {
        let state = State {
            renewed: Instant::now(),
            channels: BTreeMap::new(),
            opens: HashMap::new(),
            address: String::new(),
        };
        Arc::new(LiveSession {
            host,
            instance,
            generation,
            fenced: AtomicBool::new(false),
            state: Mutex::new(state),
            drained: Condvar::new(),
        })
    }

    /// Refuse what a fenced session asks.
    pub fn check(&self) -> Result<(), WireError> {
        if self.fenced.load(Ordering::SeqCst) {
            return Err(WireError::Fenced {
                reason: format!(
                    "session {} of host {} was taken over by a later one",
                    self.generation, self.host
                ),
            });
        }
        Ok(())
    }

    /// The host is alive.
    pub fn renew(&self) {
        self.state.lock().renewed = Instant::now();
    }

    fn expired(&self) -> bool {
        self.state.lock().renewed.elapsed() > LEASE
    }

    fn connected(&self) -> bool {
        !self.state.lock().channels.is_empty()
    }

    /// Declare how a file is open.
    pub fn set_open(&self, file: FileId, mode: OpenMode) {
        let mut state = self.state.lock();
        match mode {
            OpenMode::Closed => state.opens.remove(&file),
            _ => state.opens.insert(file, mode),
        };
    }

    /// How a file is open.
    pub fn open_mode(&self, file: FileId) -> OpenMode {
        self.state.lock().opens.get(&file).copied().unwrap_or(OpenMode::Closed)
    }

    /// A connection takes over `channel`; an earlier one is closed, and its work is over when this returns.
    pub fn take_channel(&self, channel: u8, stream: TcpStream, number: u64) {
        let address = stream.peer_addr().map(|a| a.to_string()).unwrap_or_default();
        let mut state = self.state.lock();
        while let Some(old) = state.channels.get(&channel) {
            let _ = old.stream.shutdown(Shutdown::Both);
            self.drained.wait(&mut state);
        }
        if self.fenced.load(Ordering::SeqCst) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        state.channels.insert(channel, Channel { stream, number });
        state.address = address;
        state.renewed = Instant::now();
    }

    /// A connection's work is over.
    pub fn leave_channel(&self, channel: u8, number: u64) {
        let mut state = self.state.lock();
        if state.channels.get(&channel).is_some_and(|c| c.number == number) {
            state.channels.remove(&channel);
        }
        self.drained.notify_all();
    }

    /// Nothing more is taken from it; its connections are closed. What it asked for may still be in work.
    fn shut_out(&self) {
        self.fenced.store(true, Ordering::SeqCst);
        let mut state = self.state.lock();
        for channel in state.channels.values() {
            let _ = channel.stream.shutdown(Shutdown::Both);
        }
        state.opens.clear();
    }

    /// Wait until nothing that it asked for is in work. Not for the metadata thread, which may have
    /// some of that work before it.
    pub fn wait_drained(&self) {
        let mut state = self.state.lock();
        while !state.channels.is_empty() {
            self.drained.wait(&mut state);
        }
        state.opens.clear();
    }

    /// The host has ended in order: it has nothing open any more.
    pub fn close_all(&self) {
        self.state.lock().opens.clear();
    }
}

/// All sessions of a datastore.
#[derive(Default)]
pub struct Registry {
    sessions: Mutex<BTreeMap<String, Arc<LiveSession>>>,
    /// Held while a connection gets its session and its channel.
    pub attaching: Mutex<()>,
    /// Held while it is decided who may write, until that is noted.
    pub deciding: Mutex<()>,
}

/// What an attaching host gets.
pub enum Claim {
    /// The session that it has already.
    Resume(Arc<LiveSession>),
    /// A new one is to be made; the old one has been fenced.
    New,
}

impl Registry {
    /// A session known from the store, whose host has not been seen since the server started.
    pub fn restore(&self, host: &str, instance: InstanceId, generation: Generation) {
        self.sessions.lock().insert(host.into(), LiveSession::new(host.into(), instance, generation));
    }

    /// May this instance of `host` have the host's session? With `resume` it had one, and wants that or none.
    pub fn claim(
        &self,
        host: &str,
        instance: InstanceId,
        resume: Option<Generation>,
    ) -> Result<Claim, WireError> {
        let current = self.sessions.lock().get(host).cloned();
        match current {
            Some(session)
                if session.instance == instance && resume.is_none_or(|g| g == session.generation) =>
            {
                session.check()?;
                Ok(Claim::Resume(session))
            }
            // Whoever has it now is not disturbed: the one that asks is of the past.
            _ if resume.is_some() => Err(WireError::Fenced {
                reason: format!(
                    "the session of host {host} is over: a later dshost of that name took its place"
                ),
            }),
            None => Ok(Claim::New),
            Some(session) if session.connected() && !session.expired() => {
                let address = session.state.lock().address.clone();
                Err(WireError::Busy {
                    object: format!("the host name {host}"),
                    holder: format!(
                        "another running dshost at {address}; give this one another --name or stop that one"
                    ),
                })
            }
            Some(session) => {
                session.shut_out();
                session.wait_drained();
                Ok(Claim::New)
            }
        }
    }

    /// The host's session from now on.
    pub fn open(&self, host: &str, instance: InstanceId, generation: Generation) -> Arc<LiveSession> {
        let session = LiveSession::new(host.into(), instance, generation);
        self.sessions.lock().insert(host.into(), session.clone());
        session
    }

    /// Whether any session has a file open.
    pub fn is_open(&self, file: FileId) -> bool {
        self.sessions.lock().values().any(|s| s.open_mode(file) != OpenMode::Closed)
    }

    /// Another host that has a file open for writing is the error. One whose lease is over is
    /// fenced instead; what it asked for may still be in work.
    pub fn no_writer_besides(&self, host: &str, file: FileId) -> Result<Vec<Arc<LiveSession>>, String> {
        let sessions = self.sessions.lock();
        let writers = || sessions.values().filter(|s| s.host != host && s.open_mode(file) == OpenMode::Write);
        if let Some(alive) = writers().find(|s| !s.expired()) {
            return Err(alive.host.clone());
        }
        Ok(writers().cloned().inspect(|s| s.shut_out()).collect())
    }

    /// Whether all sessions known from the store have come back or had time to.
    pub fn settled(&self, since_start: Duration) -> bool {
        since_start > LEASE * 2 || self.sessions.lock().values().all(|s| s.connected())
    }

    /// For administrators.
    pub fn list(&self) -> Vec<SessionInfo> {
        let sessions: Vec<_> = self.sessions.lock().values().cloned().collect();
        sessions
            .iter()
            .map(|s| {
                let state = s.state.lock();
                SessionInfo {
                    host: s.host.clone(),
                    generation: s.generation,
                    address: state.address.clone(),
                    connections: state.channels.len() as u32,
                    renewed_ms_ago: state.renewed.elapsed().as_millis() as u64,
                    opens: state.opens.len() as u32,
                }
            })
            .collect()
    }
}
