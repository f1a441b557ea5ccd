//! What the mount's operations work on, and the two ways from a kernel's number to a node.

use std::sync::Arc;
use std::time::SystemTime;

use dashmap::DashMap;
use proto::FileId;
use tracing::debug;

use crate::error::CallError;
use crate::gate::Ticket;
use crate::nodes::{Files, Node};

/// An operation's answer, or the errno.
pub type Outcome<T> = Result<T, i32>;

/// The files of a host as the kernel is to see them.
pub struct View {
    pub files: Arc<Files>,
    /// The mount root's times.
    pub born: SystemTime,
    /// By handle of an open directory: the offset at which its listing ends.
    pub listings: DashMap<u64, u64>,
}

impl View {
    pub fn new(files: Arc<Files>) -> Arc<View> {
        Arc::new(View { files, born: SystemTime::now(), listings: DashMap::new() })
    }

    /// The node behind a number that the kernel was given.
    pub fn node(&self, id: FileId) -> Outcome<Arc<Node>> {
        self.files.node(id).ok_or(libc::ESTALE)
    }

    /// Enter the gate with the nodes that an operation concerns.
    pub async fn enter(&self, ids: &[FileId]) -> Ticket {
        self.files.gate().enter(ids).await
    }
}

/// A call's failure as the kernel hears it. What is not the caller's everyday business is logged.
pub fn errno(error: CallError) -> i32 {
    let errno = error.errno();
    if matches!(errno, libc::EIO | libc::ESTALE | libc::EINVAL) {
        tracing::warn!("{error}");
    } else {
        debug!("{error}");
    }
    errno
}
