//! Identifiers, each a type of its own so that none can be taken for another.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Names a datastore for ever, across renames of the datastore and moves of its directory.
/// Born when the datastore's directory is first served.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DatastoreId(pub Uuid);

/// Names one move. Chosen by the host that runs it; both datastores keep records under it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MoveId(pub Uuid);

/// Names one run of a program: a new one at each start, so that a restart can be told from a reconnect.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub Uuid);

macro_rules! uuid_id {
    ($($name:ident),*) => {$(
        impl $name {
            /// A new one, at random (UUID version 4).
            #[allow(clippy::new_without_default)]
            pub fn new() -> Self {
                Self(Uuid::new_v4())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    )*};
}
uuid_id!(DatastoreId, MoveId, InstanceId);

/// Names a file, directory or symlink for ever, on every datastore and every host.
///
/// The upper 24 bits are the prefix of the datastore where the file was born, the lower 40 bits
/// count that datastore's births; none is used twice. A move keeps the id, so it serves as the
/// FUSE node id and as `st_ino` before, during and after a move and in a successor process.
/// Prefix 0 belongs to the nodes that a mount makes up itself (its root).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileId(pub u64);

impl FileId {
    /// The root of a mount, above all datastores (FUSE_ROOT_ID).
    pub const MOUNT_ROOT: FileId = FileId(1);
    /// Bits that count births.
    pub const COUNTER_BITS: u32 = 40;

    /// The id of birth number `counter` on the datastore with `prefix`.
    /// `None` when the counter or the prefix is out of range.
    pub fn of(prefix: u32, counter: u64) -> Option<FileId> {
        (prefix != 0 && prefix < (1 << 24) && counter < (1 << Self::COUNTER_BITS) && counter != 0)
            .then_some(FileId((prefix as u64) << Self::COUNTER_BITS | counter))
    }

    /// The root directory of the datastore with `prefix`.
    pub fn datastore_root(prefix: u32) -> Option<FileId> {
        Self::of(prefix, 1)
    }

    /// The prefix of the datastore where the file was born.
    pub fn prefix(self) -> u32 {
        (self.0 >> Self::COUNTER_BITS) as u32
    }

    /// The birth number.
    pub fn counter(self) -> u64 {
        self.0 & ((1 << Self::COUNTER_BITS) - 1)
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}:{:x}", self.prefix(), self.counter())
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

macro_rules! counter_id {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);
        impl $name {
            /// The one after this.
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    )*};
}
counter_id! {
    /// The configuration of servers that keep a datastore. Raised when another server takes over;
    /// a request with another epoch than the server's is refused. Starts at 1.
    Epoch;
    /// A host's session with a datastore, or a file's ownership. Only grows; a request with an
    /// older one than the server knows is refused (fencing token). 0 means none yet.
    Generation;
    /// Names a request within its session. Grows by one a request, never used twice; a request
    /// that is sent again after a reconnect keeps it, so that the server does it once.
    RequestId;
    /// Place in a datastore's one order of metadata changes.
    Position;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_id_packs_prefix_and_counter() {
        let id = FileId::of(0xabcdef, 0x12_3456_789a).expect("in range");
        assert_eq!((id.prefix(), id.counter()), (0xabcdef, 0x12_3456_789a));
        assert_eq!(FileId::of(0, 1), None);
        assert_eq!(FileId::of(1 << 24, 1), None);
        assert_eq!(FileId::of(1, 1 << 40), None);
        assert_eq!(FileId::of(1, 0), None);
    }
}
