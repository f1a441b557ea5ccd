//! Open handles, and what the server is told of them.
//!
//! A handle is a running number with the access mode in its lowest bits, so that whoever gets it
//! back from the kernel, also a successor of this process, knows what it was opened for. The server
//! hears only the strongest mode, when that changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proto::ops::session::{OpenMode, SetOpen};
use tracing::warn;

use super::{Files, Node, Pinned};
use crate::error::CallError;

/// What a handle was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    ReadWrite,
}

impl Access {
    /// From the flags of open(2).
    pub fn of_flags(flags: i32) -> Access {
        match flags & libc::O_ACCMODE {
            libc::O_RDONLY => Access::Read,
            libc::O_WRONLY => Access::Write,
            _ => Access::ReadWrite,
        }
    }

    /// What the server is told.
    pub fn mode(self) -> OpenMode {
        if self == Access::Read { OpenMode::Read } else { OpenMode::Write }
    }
}

/// A handle that was not in use before.
pub(crate) fn new_handle(access: Access) -> u64 {
    static SEQUENCE: AtomicU64 = AtomicU64::new(1);
    SEQUENCE.fetch_add(1, Ordering::Relaxed) << 2 | access as u64
}

/// What a handle was opened for.
pub(crate) fn handle_access(handle: u64) -> Access {
    match handle & 3 {
        0 => Access::Read,
        1 => Access::Write,
        _ => Access::ReadWrite,
    }
}

impl Node {
    fn count_open(&self, access: Access) {
        let mut counts = self.counts();
        match access.mode() {
            OpenMode::Write => counts.writers += 1,
            _ => counts.readers += 1,
        }
    }

    fn count_close(&self, access: Access) {
        let mut counts = self.counts();
        let count = match access.mode() {
            OpenMode::Write => &mut counts.writers,
            _ => &mut counts.readers,
        };
        *count = count.saturating_sub(1);
    }

    /// One more handle; the server must agree where that makes the mode stronger.
    pub(crate) async fn open(&self, access: Access) -> Result<(), CallError> {
        self.count_open(access);
        let result = self.declare().await;
        if result.is_err() {
            self.count_close(access);
        }
        result
    }

    /// One more handle of a file that the server has declared open while it created it.
    pub(crate) fn opened_by_create(&self, access: Access) {
        self.count_open(access);
        let mut counts = self.counts();
        counts.declared = counts.declared.max(access.mode());
    }

    /// Tell the server the strongest mode, if it doesn't know it.
    async fn declare(&self) -> Result<(), CallError> {
        let _one_at_a_time = self.declaring.lock().await;
        let mode = {
            let counts = self.counts();
            let strongest = counts.strongest();
            if strongest == counts.declared {
                return Ok(());
            }
            strongest
        };
        self.call(SetOpen { file: self.id(), mode }).await?;
        self.counts().declared = mode;
        Ok(())
    }
}

impl Files {
    /// One handle less. The server hears of it soon.
    pub(crate) async fn close(self: Arc<Self>, node: Arc<Node>, access: Access) {
        // Stays in the table until the server knows, so that a later open comes behind.
        let node: Pinned = self.pin(node.id(), node.kind(), &node.home());
        node.count_close(access);
        if let Err(e) = node.declare().await {
            // The server drops the opens of a session that ends, so this costs at most space.
            warn!(file = %node.id(), "declare it closed: {e}");
            node.counts().declared = OpenMode::Closed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_tells_its_access() {
        let mut seen = std::collections::HashSet::new();
        for (flags, access, mode) in [
            (libc::O_RDONLY, Access::Read, OpenMode::Read),
            (libc::O_WRONLY | libc::O_APPEND, Access::Write, OpenMode::Write),
            (libc::O_RDWR | libc::O_DIRECT, Access::ReadWrite, OpenMode::Write),
        ] {
            assert_eq!(Access::of_flags(flags), access);
            assert_eq!(access.mode(), mode);
            let handle = new_handle(access);
            assert_eq!(handle_access(handle), access);
            assert!(seen.insert(handle));
        }
    }
}
