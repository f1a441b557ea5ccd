//! A file, directory or other inode in use on this host.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use block_mirror::DiskSlot;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard, RwLock};
use proto::ops::names::{Attr, FileKind};
use proto::ops::session::{OpenMode, SetOpen};
use proto::ops::{Operation, Request};
use proto::{FileId, WireError};
use tracing::warn;

use super::Files;
use crate::datastore::{ARRIVAL_RETRY, ARRIVAL_TRIES, Datastore, Forwarding, MAX_HOPS};
use crate::error::CallError;
use crate::transport::Channel;

/// S_ISUID and S_ISGID.
const SET_ID: u16 = 0o6000;

/// One inode. Its id is its name on the wire, to the kernel, and in `st_ino`.
pub struct Node {
    files: Weak<Files>,
    id: FileId,
    kind: FileKind,
    home: RwLock<Arc<Datastore>>,
    slot: OnceLock<DiskSlot>,
    counts: Mutex<Counts>,
    /// The set-id bits were set when the mode was last seen.
    privileged: AtomicBool,
    /// Held while a declaration is under way: they reach the server one after the other.
    pub(super) declaring: tokio::sync::Mutex<()>,
}

/// Who uses a node.
#[derive(Debug)]
pub(super) struct Counts {
    pub lookups: u64,
    pub pins: u64,
    pub readers: u64,
    pub writers: u64,
    /// How the server knows it to be open here.
    pub declared: OpenMode,
}

impl Counts {
    pub fn is_unused(&self) -> bool {
        self.lookups == 0
            && self.pins == 0
            && self.readers == 0
            && self.writers == 0
            && self.declared == OpenMode::Closed
    }

    pub fn strongest(&self) -> OpenMode {
        match (self.writers, self.readers) {
            (1.., _) => OpenMode::Write,
            (0, 1..) => OpenMode::Read,
            (0, 0) => OpenMode::Closed,
        }
    }
}

impl Node {
    pub(super) fn new(files: &Arc<Files>, id: FileId, kind: FileKind, home: Arc<Datastore>) -> Arc<Node> {
        Arc::new(Node {
            files: Arc::downgrade(files),
            id,
            kind,
            home: RwLock::new(home),
            slot: OnceLock::new(),
            counts: Mutex::new(Counts {
                lookups: 0,
                pins: 0,
                readers: 0,
                writers: 0,
                declared: OpenMode::Closed,
            }),
            privileged: AtomicBool::new(false),
            declaring: tokio::sync::Mutex::new(()),
        })
    }

    /// Its id, for ever.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// What it is.
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// The datastore that keeps it.
    pub fn home(&self) -> Arc<Datastore> {
        self.home.read().clone()
    }

    /// From now on `home` keeps it. If it is open, that is declared there, ahead of whatever is
    /// asked of it next. What sits in the slot is left alone.
    pub fn set_home(&self, home: Arc<Datastore>) {
        let mut current = self.home.write();
        if Arc::ptr_eq(&current, &home) {
            return;
        }
        let mode = self.counts.lock().declared;
        if mode != OpenMode::Closed {
            let (file, name) = (self.id, home.name().to_string());
            home.submit(
                Channel::Io,
                Request::SetOpen(SetOpen { file, mode }),
                Bytes::new(),
                Box::new(move |result| {
                    if let Err(e) = result {
                        warn!(%file, "declare it open on datastore {name}: {e}");
                    }
                }),
            );
        }
        *current = home;
    }

    /// Where all I/O of the file goes through. Only regular files carry data; the slot of any other
    /// node answers as its datastore does.
    pub fn slot(&self) -> &DiskSlot {
        self.slot.get_or_init(|| {
            let home = self.home();
            DiskSlot::new(home.disk(self.id, None, Channel::Io, format!("{}/{}", home.name(), self.id)))
        })
    }

    /// Attributes of it have been seen.
    pub(crate) fn seen(&self, attr: &Attr) {
        self.privileged.store(attr.mode & SET_ID != 0, Ordering::Relaxed);
    }

    /// Whether it runs as somebody else: a write by an ordinary user must take that away first.
    pub(crate) fn is_privileged(&self) -> bool {
        self.privileged.load(Ordering::Relaxed)
    }

    /// The strongest mode among the kernel's open handles.
    pub fn open_mode(&self) -> OpenMode {
        self.counts.lock().strongest()
    }

    pub(super) fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock()
    }

    /// Do an operation at the node's home. When the node has moved, the home changes and the
    /// operation is done there.
    pub(crate) async fn call<O>(&self, operation: O) -> Result<O::Reply, CallError>
    where
        O: Operation + Clone,
        O::Reply: Send,
    {
        let (mut arriving, mut hops) = (0, 0);
        loop {
            let home = self.home();
            match home.call(operation.clone()).await {
                Err(CallError::Wire(WireError::Moved { to, name })) => {
                    let files = self.files.upgrade().ok_or(CallError::Closed)?;
                    let known = files.moved(self.id, to, &name);
                    hops += 1;
                    if hops > MAX_HOPS || known.is_none_or(|next| Arc::ptr_eq(&next, &home)) {
                        return Err(CallError::Wire(WireError::Moved { to, name }));
                    }
                    arriving = ARRIVAL_TRIES;
                }
                // Between the source's commit and the destination's publishing nobody has it.
                Err(e) if arriving > 0 && matches!(e.errno(), libc::ESTALE | libc::ENOENT) => {
                    arriving -= 1;
                    if arriving == 0 {
                        return Err(e);
                    }
                    tokio::time::sleep(ARRIVAL_RETRY).await;
                }
                result => return result,
            }
        }
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({} {:?} on {})", self.id, self.kind, self.home().name())
    }
}
