//! A host's session with one datastore, over several connections that come back by themselves.
//!
//! A request is submitted from any thread and never blocks; it is answered exactly once, however
//! often its connection breaks: unanswered requests are sent again, with the same ids, as soon as
//! the server is back. Each channel has one thread, which connects, receives, runs completions and
//! renews the lease. The bookkeeping is in `core`.

mod channel;
mod connect;
mod core;
mod inbox;
mod outbox;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use proto::frame::{HEADER_LEN, Header};
use proto::ops::session::{Attached, OpenMode};
use proto::ops::{Reply, Request, Stamp, frame_request};
use proto::{Epoch, FileId, Generation, RequestId};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::watch;
use tracing::{error, info, warn};

use self::core::SessionCore;
use self::outbox::Outbox;
use crate::datastore::DatastoreConfig;
use crate::error::CallError;

/// Which connection of a session a request uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Guest I/O and names.
    Io,
    /// Bulk copies, so that they never stand in a guest's way.
    Copy,
}

impl Channel {
    const ALL: [Channel; 2] = [Channel::Io, Channel::Copy];

    fn number(self) -> u8 {
        match self {
            Channel::Io => 0,
            Channel::Copy => 1,
        }
    }
}

/// Called once with a request's reply and its data.
pub type Done = Box<dyn FnOnce(Result<(Reply, Bytes), CallError>) + Send>;

/// How the connection stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Whether the server answers now.
    pub connected: bool,
    /// What is wrong when it does not.
    pub error: Option<String>,
    /// Whether the session is over for good: everything fails until the program is started again.
    pub fenced: bool,
}

/// A request that waits for its reply, with all that is needed to send it again.
struct Pending {
    header: Header,
    body: Bytes,
    data: Bytes,
    done: Done,
}

impl Pending {
    fn new(request: &Request, data: Bytes, done: Done) -> Self {
        let unstamped = Stamp {
            version: 0,
            request: RequestId(0),
            session: Generation(0),
            epoch: Epoch(0),
            settled_below: RequestId(0),
        };
        let frame = frame_request(unstamped, request, data);
        let raw = frame.head.first_chunk::<HEADER_LEN>().expect("a frame begins with a whole header");
        let header = Header::decode(raw).expect("a header that was just encoded decodes");
        let body = Bytes::from(frame.head).slice(HEADER_LEN..);
        Pending { header, body, data: frame.data, done }
    }
}

struct Requests {
    core: SessionCore<Pending>,
    /// Set when nothing will be answered any more.
    over: Option<CallError>,
}

/// One channel's ends.
struct Line {
    /// Taken before `Session::requests` where both are needed.
    outbox: Mutex<Outbox>,
    /// Rouses the channel's thread.
    wake: OwnedFd,
    renewing: AtomicBool,
}

impl Line {
    fn rouse(&self) {
        // Only a full counter could fail, and then the thread is being roused anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

type OpensProvider = Box<dyn Fn() -> Vec<(FileId, OpenMode)> + Send + Sync>;
type BootListener = Arc<dyn Fn() + Send + Sync>;

/// The session; shared by its users and its channels' threads.
pub(crate) struct Session {
    config: DatastoreConfig,
    requests: Mutex<Requests>,
    lines: [Line; 2],
    link: Mutex<LinkState>,
    link_changed: Condvar,
    attached: watch::Sender<Option<Arc<Attached>>>,
    opens: OnceLock<OpensProvider>,
    boot_listeners: Mutex<Vec<BootListener>>,
}

impl Session {
    /// Start connecting in the background.
    pub fn start(config: DatastoreConfig) -> Arc<Session> {
        let line = || Line {
            outbox: Mutex::default(),
            wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
                .expect("an eventfd can be had unless the process is out of descriptors"),
            renewing: AtomicBool::new(false),
        };
        let session = Arc::new(Session {
            config,
            requests: Mutex::new(Requests { core: SessionCore::new(), over: None }),
            lines: [line(), line()],
            link: Mutex::default(),
            link_changed: Condvar::new(),
            attached: watch::Sender::new(None),
            opens: OnceLock::new(),
            boot_listeners: Mutex::default(),
        });
        for channel in Channel::ALL {
            let session = session.clone();
            std::thread::Builder::new()
                .name(format!("{}-{}", session.config.name, channel.number()))
                .spawn(move || channel::run(&session, channel))
                .expect("a thread can be had unless the machine is out of them");
        }
        session
    }

    /// What the server said when it attached this session last.
    pub fn attached(&self) -> Option<Arc<Attached>> {
        self.attached.borrow().clone()
    }

    /// Changes of [`Session::attached`].
    pub fn watch_attached(&self) -> watch::Receiver<Option<Arc<Attached>>> {
        self.attached.subscribe()
    }

    /// How the connection stands.
    pub fn link(&self) -> LinkState {
        self.link.lock().clone()
    }

    /// Who knows what is open, so that it can be declared to a restarted server.
    pub fn set_opens_provider(&self, provider: OpensProvider) {
        let _ = self.opens.set(provider);
    }

    /// Have `listener` called when the server's machine was booted anew: writes that were not
    /// flushed may be gone. It runs on the channel's thread before anything is sent again.
    pub fn on_boot_change(&self, listener: BootListener) {
        self.boot_listeners.lock().push(listener);
    }

    /// Start a request; `done` is called exactly once.
    pub fn submit(&self, channel: Channel, request: &Request, data: Bytes, done: Done) {
        let pending = Pending::new(request, data, done);
        let line = self.line(channel);
        let mut outbox = line.outbox.lock();
        let mut requests = self.requests.lock();
        if let Some(over) = requests.over.clone() {
            drop((outbox, requests));
            return (pending.done)(Err(over));
        }
        if outbox.link().is_none() {
            requests.core.begin(channel.number(), pending);
            return;
        }
        let (header, body, data) = (pending.header, pending.body.clone(), pending.data.clone());
        let request = requests.core.begin(channel.number(), pending);
        let settled_below = requests.core.settled_below();
        drop(requests);
        let watch = outbox.send(Header { request, settled_below, ..header }, body, data);
        drop(outbox);
        if watch {
            line.rouse();
        }
    }

    /// End the session on this side: whatever waits fails, and so does whatever comes.
    pub fn end(&self, reason: CallError) {
        let waiting = {
            let mut requests = self.requests.lock();
            if requests.over.is_some() {
                return;
            }
            requests.over = Some(reason.clone());
            requests.core.take_all()
        };
        for line in &self.lines {
            line.rouse();
        }
        self.link_changed.notify_all();
        for pending in waiting {
            (pending.done)(Err(reason.clone()));
        }
    }

    fn line(&self, channel: Channel) -> &Line {
        &self.lines[channel.number() as usize]
    }

    fn is_over(&self) -> bool {
        self.requests.lock().over.is_some()
    }

    fn fence(&self, reason: String) {
        error!(datastore = self.config.name, "this host's session is over, all I/O on it fails: {reason}");
        *self.link.lock() = LinkState { connected: false, error: Some(reason.clone()), fenced: true };
        self.end(CallError::Fenced(reason));
    }

    /// Note that the I/O channel has or has not a connection. Troubles of the other show in the log only.
    fn note_link(&self, channel: Channel, error: Option<String>) {
        if channel != Channel::Io {
            if let Some(error) = error {
                warn!(datastore = self.config.name, "copy channel: {error}");
            }
            return;
        }
        let mut link = self.link.lock();
        if link.fenced || (link.connected == error.is_none() && link.error == error) {
            return;
        }
        match &error {
            None => info!(datastore = self.config.name, address = self.config.address, "connected"),
            Some(error) => warn!(datastore = self.config.name, "{error}; trying again"),
        }
        *link = LinkState { connected: error.is_none(), error, fenced: false };
        drop(link);
        self.link_changed.notify_all();
    }

    /// Wait until the I/O channel is connected; false after `patience`.
    fn wait_io_connected(&self, patience: Duration) -> bool {
        let mut link = self.link.lock();
        if !link.connected {
            self.link_changed.wait_for(&mut link, patience);
        }
        link.connected
    }

    /// Keep the lease alive; one renewal per channel at a time.
    fn renew(self: &Arc<Self>, channel: Channel) {
        if self.line(channel).renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        let session = self.clone();
        self.submit(
            channel,
            &Request::Renew(proto::ops::session::Renew {}),
            Bytes::new(),
            Box::new(move |_| session.line(channel).renewing.store(false, Ordering::Release)),
        );
    }
}
