//! What a server answers when it can't do as asked.

use serde::{Deserialize, Serialize};

use crate::ids::{DatastoreId, Epoch};

/// An error reply. The client turns it into an errno, a retry, or a message for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum WireError {
    /// An ordinary file system answer such as ENOENT.
    #[error("{context}: {}", std::io::Error::from_raw_os_error(*errno))]
    Posix {
        /// Linux errno.
        errno: i32,
        /// The object and what was being done.
        context: String,
    },
    /// The session or the grant under which the request was sent is over.
    #[error("fenced: {reason}")]
    Fenced {
        /// By what and since when.
        reason: String,
    },
    /// The request's epoch is not the server's.
    #[error("the datastore's epoch is {current}, the request's is another")]
    WrongEpoch {
        /// The server's epoch.
        current: Epoch,
    },
    /// The file is now kept by another datastore: ask there.
    #[error("the file has moved to datastore {name}")]
    Moved {
        /// Where it is.
        to: DatastoreId,
        /// That datastore's name when it moved.
        name: String,
    },
    /// The digest did not match what arrived; nothing was written.
    #[error("digest mismatch at offset {offset}, {len} bytes")]
    Digest {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The datastore is full; nothing was written.
    #[error("no space left on datastore {datastore}: {free} bytes free, {needed} needed")]
    NoSpace {
        /// The full one's name.
        datastore: String,
        /// Free bytes.
        free: u64,
        /// Needed bytes.
        needed: u64,
    },
    /// Somebody else uses the object in a way that excludes the request.
    #[error("{object} is in use by {holder}")]
    Busy {
        /// The object's name or id.
        object: String,
        /// Who holds it, and how.
        holder: String,
    },
    /// No record of this move (any more).
    #[error("no such move")]
    NoSuchMove,
    /// The move's record is in a state that forbids the step.
    #[error("the move is {state}")]
    MoveState {
        /// The state.
        state: String,
    },
    /// The request breaks the protocol.
    #[error("invalid request: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The server can't keep its promises (its disk failed, say) and refuses work until restarted.
    #[error("the server failed: {reason}")]
    Failed {
        /// What happened.
        reason: String,
    },
}

impl WireError {
    /// The errno that a file system adapter answers with.
    pub fn errno(&self) -> i32 {
        const EIO: i32 = 5;
        const EBUSY: i32 = 16;
        const EINVAL: i32 = 22;
        const ENOSPC: i32 = 28;
        const ESTALE: i32 = 116;
        match self {
            WireError::Posix { errno, .. } => *errno,
            WireError::NoSpace { .. } => ENOSPC,
            WireError::Busy { .. } => EBUSY,
            WireError::Moved { .. } | WireError::NoSuchMove => ESTALE,
            WireError::Invalid { .. } => EINVAL,
            _ => EIO,
        }
    }

    /// An errno with the object it is about.
    pub fn posix(errno: i32, context: impl Into<String>) -> Self {
        WireError::Posix { errno, context: context.into() }
    }
}
