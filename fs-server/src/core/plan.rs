//! What planning a request needs to know beside the tables, and what it asks for beside changes.

use proto::ops::names::{Name, Time};
use proto::{FileId, MoveId, WireError};

/// By whom a file's tree is being moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mover {
    /// The move.
    pub id: MoveId,
    /// The host that runs it.
    pub host: String,
}

impl Mover {
    /// Refused for the move's sake.
    pub fn busy(&self, object: impl Into<String>) -> WireError {
        WireError::Busy { object: object.into(), holder: format!("move {}, run by {}", self.id, self.host) }
    }
}

/// Facts of the moment, gathered by the driver.
pub struct Context<'a> {
    /// The server's time.
    pub now: Time,
    /// The host that asks.
    pub host: &'a str,
    /// Whether any session has a file open.
    pub is_open: &'a dyn Fn(FileId) -> bool,
    /// Whether a name matches the patterns of files with one writer.
    pub exclusive: &'a dyn Fn(&Name) -> bool,
    /// The move and host that a file's tree is being moved by, if it is.
    pub moving: &'a dyn Fn(FileId) -> Option<Mover>,
    /// Prefix of ids born here.
    pub prefix: u32,
}

impl Context<'_> {
    /// Refuse a change of a tree that another host is moving.
    pub fn may_change(&self, file: FileId) -> Result<(), WireError> {
        match (self.moving)(file) {
            Some(mover) if mover.host != self.host => Err(mover.busy(format!("file {file}"))),
            _ => Ok(()),
        }
    }

    /// The move that a file's tree belongs to.
    pub fn tree_of(&self, file: FileId) -> Option<MoveId> {
        (self.moving)(file).map(|mover| mover.id)
    }
}

/// What the driver does after the transaction is durable. Each may be done twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Remove the data file.
    RemoveData(FileId),
    /// Set a data file's mtime.
    SetMtime(FileId, Time),
    /// A file was incoming and is live now.
    Published(FileId),
    /// At once, as what is planned next depends on it: a file came into a directory, so it belongs
    /// to the moving tree of that, or to none.
    Joined {
        /// Where.
        parent: FileId,
        /// What.
        file: FileId,
    },
}

/// An ordinary errno.
pub fn posix(errno: i32, context: impl Into<String>) -> WireError {
    WireError::posix(errno, context)
}

/// Errno values of Linux.
pub mod errno {
    #![allow(missing_docs)]
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const EIO: i32 = 5;
    pub const EBUSY: i32 = 16;
    pub const EEXIST: i32 = 17;
    pub const ENOTDIR: i32 = 20;
    pub const EISDIR: i32 = 21;
    pub const EINVAL: i32 = 22;
    pub const ENOSPC: i32 = 28;
    pub const EMLINK: i32 = 31;
    pub const ERANGE: i32 = 34;
    pub const ENAMETOOLONG: i32 = 36;
    pub const ENOTEMPTY: i32 = 39;
    pub const ENODATA: i32 = 61;
    pub const EOPNOTSUPP: i32 = 95;
}
