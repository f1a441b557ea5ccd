//! All datastores of a host and the nodes of theirs that are in use.
//!
//! A node is in the table while the kernel knows its id, somebody has pinned it, or it is open (or
//! still being declared closed). There is one [`Node`] per id, so all I/O of a file meets in its slot.

mod node;
mod opens;
mod rename_hook;

use std::ops::Deref;
use std::sync::Arc;

use dashmap::DashMap;
use parking_lot::RwLock;
use proto::ops::names::{Attr, FileKind};
use proto::ops::session::OpenMode;
use proto::{DatastoreId, FileId};
use tracing::{info, warn};

pub use node::Node;
pub(crate) use opens::{Access, handle_access, new_handle};
pub use rename_hook::{PreparedRename, RenameHook};

use crate::datastore::{Datastore, Forwarding};
use crate::gate::Gate;

/// A host's datastores and nodes.
pub struct Files {
    datastores: Vec<Arc<Datastore>>,
    nodes: DashMap<FileId, Arc<Node>>,
    gate: Gate,
    hook: RwLock<Option<Arc<dyn RenameHook>>>,
}

impl Files {
    /// The files of these datastores. Their names must differ.
    pub fn new(datastores: Vec<Arc<Datastore>>) -> Arc<Files> {
        let files = Arc::new(Files {
            datastores,
            nodes: DashMap::new(),
            gate: Gate::default(),
            hook: RwLock::new(None),
        });
        for datastore in &files.datastores {
            let forwarding: std::sync::Weak<dyn Forwarding> = Arc::<Files>::downgrade(&files);
            datastore.set_forwarding(forwarding);
            let (weak, home) = (Arc::downgrade(&files), Arc::downgrade(datastore));
            datastore.set_opens_provider(move || match (weak.upgrade(), home.upgrade()) {
                (Some(files), Some(home)) => files.opens_at(&home),
                _ => Vec::new(),
            });
        }
        files
    }

    /// All datastores, in the order in which they were given.
    pub fn datastores(&self) -> &[Arc<Datastore>] {
        &self.datastores
    }

    /// The datastore of that name.
    pub fn datastore(&self, name: &str) -> Option<Arc<Datastore>> {
        self.datastores.iter().find(|d| d.name() == name).cloned()
    }

    /// The datastore with that identity, if it has been attached.
    pub fn datastore_by_id(&self, id: DatastoreId) -> Option<Arc<Datastore>> {
        self.datastores.iter().find(|d| d.id() == Some(id)).cloned()
    }

    /// Another datastore that claims to be the same as this one, or to give the same ids to its
    /// files. Such a pair can't be used on one host: which file is meant would be a guess.
    pub fn twin_of(&self, datastore: &Datastore) -> Option<Arc<Datastore>> {
        let mine = datastore.info()?;
        self.datastores
            .iter()
            .filter(|other| other.name() != datastore.name())
            .find(|other| {
                other.info().is_some_and(|o| o.datastore == mine.datastore || o.prefix == mine.prefix)
            })
            .cloned()
    }

    /// A node that is in use.
    pub fn node(&self, id: FileId) -> Option<Arc<Node>> {
        self.nodes.get(&id).map(|node| node.clone())
    }

    /// Keep a node in the table. Made if it is not there yet, with `home` as its datastore.
    pub fn pin(self: &Arc<Self>, id: FileId, kind: FileKind, home: &Arc<Datastore>) -> Pinned {
        let entry = self.nodes.entry(id).or_insert_with(|| Node::new(self, id, kind, home.clone()));
        let node = entry.clone();
        // Counted before the table's lock is let go, so that nobody takes it out in between.
        node.counts().pins += 1;
        drop(entry);
        Pinned { files: self.clone(), node }
    }

    /// Have `hook` asked about renames from one datastore to another.
    pub fn set_rename_hook(&self, hook: Arc<dyn RenameHook>) {
        *self.hook.write() = Some(hook);
    }

    /// What operations on names pass through.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Nodes in the table, for tests and metrics.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn rename_hook(&self) -> Option<Arc<dyn RenameHook>> {
        self.hook.read().clone()
    }

    /// The kernel learns a node: one more time that it must forget.
    pub(crate) fn remember(self: &Arc<Self>, attr: &Attr, home: &Arc<Datastore>) -> Arc<Node> {
        let entry = self
            .nodes
            .entry(attr.file)
            .or_insert_with(|| Node::new(self, attr.file, attr.kind, home.clone()));
        let node = entry.clone();
        node.counts().lookups += 1;
        drop(entry);
        node.seen(attr);
        if !Arc::ptr_eq(&node.home(), home) {
            info!(file = %attr.file, to = home.name(), "found on another datastore than before");
            node.set_home(home.clone());
        }
        node
    }

    /// The kernel forgets a node `times` times.
    pub(crate) fn forget(&self, id: FileId, times: u64) {
        self.nodes.remove_if(&id, |_, node| {
            let mut counts = node.counts();
            counts.lookups = counts.lookups.saturating_sub(times);
            counts.is_unused()
        });
    }

    fn unpin(&self, id: FileId) {
        self.nodes.remove_if(&id, |_, node| {
            let mut counts = node.counts();
            counts.pins -= 1;
            counts.is_unused()
        });
    }

    fn opens_at(&self, home: &Arc<Datastore>) -> Vec<(FileId, OpenMode)> {
        self.nodes
            .iter()
            .filter(|node| Arc::ptr_eq(&node.home(), home))
            .map(|node| (node.id(), node.counts().declared))
            .filter(|(_, mode)| *mode != OpenMode::Closed)
            .collect()
    }
}

impl Forwarding for Files {
    fn moved(&self, file: FileId, to: DatastoreId, name: &str) -> Option<Arc<Datastore>> {
        let Some(home) = self.datastore_by_id(to) else {
            warn!(%file, "moved to datastore {name}, which this host does not have or has not reached yet");
            return None;
        };
        if let Some(node) = self.node(file) {
            node.set_home(home.clone());
        }
        Some(home)
    }
}

/// A node that stays in the table while this lives.
pub struct Pinned {
    files: Arc<Files>,
    node: Arc<Node>,
}

impl Deref for Pinned {
    type Target = Arc<Node>;

    fn deref(&self) -> &Arc<Node> {
        &self.node
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.files.unpin(self.node.id());
    }
}
