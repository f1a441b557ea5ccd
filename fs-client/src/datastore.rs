//! One datastore as a host knows it: a session that heals itself, calls, and files as disks.

use std::future::Future;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use block_mirror::SharedDisk;
use bytes::Bytes;
use proto::ops::session::{Attached, Detach, OpenMode};
use proto::ops::{Operation, Request};
use proto::{DatastoreId, FileId, InstanceId, MoveId, WireError};
use tokio::sync::oneshot;

use crate::error::CallError;
use crate::file::DatastoreFile;
use crate::transport::{Channel, Done, LinkState, Session};

/// Datastores in a row that may pass something on before it fails.
pub(crate) const MAX_HOPS: u32 = 16;
/// Between asking again a datastore to which a file is said to have moved.
pub(crate) const ARRIVAL_RETRY: Duration = Duration::from_millis(50);
/// How often, before its word that it does not have the file is believed.
pub(crate) const ARRIVAL_TRIES: u32 = 200;

/// How to reach a datastore, and as whom.
#[derive(Clone, Debug)]
pub struct DatastoreConfig {
    /// The datastore's name.
    pub name: String,
    /// `host:port` of its server.
    pub address: String,
    /// This host's name.
    pub host: String,
    /// This run of this host's program.
    pub instance: InstanceId,
}

/// Who knows where files go that leave a datastore.
pub(crate) trait Forwarding: Send + Sync {
    /// `file` is now kept by the datastore `to`. Its session on this host, if there is one.
    fn moved(&self, file: FileId, to: DatastoreId, name: &str) -> Option<Arc<Datastore>>;
}

/// A session with one datastore. Shared by all who use it; when the last one lets go the session's
/// threads end.
pub struct Datastore {
    config: DatastoreConfig,
    session: Arc<Session>,
    forwarding: OnceLock<Weak<dyn Forwarding>>,
}

impl Datastore {
    /// Start a session. Connects in the background, and again whenever the connection breaks.
    pub fn start(config: DatastoreConfig) -> Arc<Datastore> {
        let session = Session::start(config.clone());
        Arc::new(Datastore { config, session, forwarding: OnceLock::new() })
    }

    /// The datastore's name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Where its server listens.
    pub fn address(&self) -> &str {
        &self.config.address
    }

    /// What the server said at the last attach; none before the first.
    pub fn info(&self) -> Option<Attached> {
        self.session.attached().map(|attached| Attached::clone(&attached))
    }

    /// The datastore's identity, once attached.
    pub fn id(&self) -> Option<DatastoreId> {
        self.session.attached().map(|a| a.datastore)
    }

    /// Its root directory, once attached.
    pub fn root(&self) -> Option<FileId> {
        self.session.attached().map(|a| a.root)
    }

    /// How the connection stands.
    pub fn state(&self) -> LinkState {
        self.session.link()
    }

    /// Wait until the session has been attached for the first time. `None` after `timeout`.
    pub async fn wait_attached(&self, timeout: Duration) -> Option<Attached> {
        let mut watch = self.session.watch_attached();
        let attached = tokio::time::timeout(timeout, watch.wait_for(Option::is_some)).await.ok()?.ok()?;
        attached.as_ref().map(|a| Attached::clone(a))
    }

    /// Have `listener` called when the server's machine was booted anew (unflushed writes may be
    /// lost), before anything is sent again. It must not block.
    pub fn on_boot_change(&self, listener: impl Fn() + Send + Sync + 'static) {
        self.session.on_boot_change(Arc::new(listener));
    }

    /// Start a request on a channel; never blocks. `done` is called exactly once, on the channel's
    /// thread, after the server answered; lost connections only make it later.
    pub fn submit(&self, channel: Channel, request: Request, data: Bytes, done: Done) {
        self.session.submit(channel, &request, data, done);
    }

    /// Do an operation on the I/O channel. The request is under way when this returns; dropping
    /// the future does not take it back.
    pub fn call<O: Operation>(
        &self,
        operation: O,
    ) -> impl Future<Output = Result<O::Reply, CallError>> + Send + use<O>
    where
        O::Reply: Send,
    {
        let (answer, answered) = oneshot::channel();
        self.submit(
            Channel::Io,
            operation.request(),
            Bytes::new(),
            Box::new(move |result| {
                let _ = answer.send(result);
            }),
        );
        async move {
            let (reply, _) = answered.await.map_err(|_| CallError::Closed)??;
            O::reply(reply).ok_or_else(|| {
                CallError::Wire(WireError::Failed { reason: "the reply is of another operation".into() })
            })
        }
    }

    /// A file as a disk. `incoming` names the move that owns the file while it is not published.
    /// On the I/O channel the disk follows its file when another host moves it.
    pub fn disk(
        self: &Arc<Self>,
        file: FileId,
        incoming: Option<MoveId>,
        channel: Channel,
        label: impl Into<String>,
    ) -> SharedDisk {
        Arc::new(DatastoreFile::new(self.clone(), file, incoming, channel, label.into()))
    }

    /// End the session in order: the server drops its opens at once instead of at the lease's end.
    /// Everything that waits or comes afterwards fails with [`CallError::Closed`].
    pub async fn shutdown(&self, patience: Duration) {
        if self.state().connected {
            let _ = tokio::time::timeout(patience, self.call(Detach {})).await;
        }
        self.session.end(CallError::Closed);
    }

    pub(crate) fn set_forwarding(&self, forwarding: Weak<dyn Forwarding>) {
        let _ = self.forwarding.set(forwarding);
    }

    /// Where `file` is now, if this host can reach it there.
    pub(crate) fn follow(&self, file: FileId, to: DatastoreId, name: &str) -> Option<Arc<Datastore>> {
        self.forwarding.get()?.upgrade()?.moved(file, to, name)
    }

    pub(crate) fn set_opens_provider(
        &self,
        provider: impl Fn() -> Vec<(FileId, OpenMode)> + Send + Sync + 'static,
    ) {
        self.session.set_opens_provider(Box::new(provider));
    }
}

impl Drop for Datastore {
    fn drop(&mut self) {
        self.session.end(CallError::Closed);
    }
}

impl std::fmt::Debug for Datastore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Datastore({} at {})", self.config.name, self.config.address)
    }
}
