//! The cluster-wide table of file locks: POSIX and OFD byte ranges, and flock.
//!
//! Rules, beside those of fcntl(2) and flock(2):
//! - A blocking request queues behind earlier ones that it conflicts with, so readers can't starve
//!   a writer. It overtakes them when its owner holds all that it asks for, and when waiting would
//!   close a cycle that only the queue's order makes.
//! - A request that doesn't wait looks at holders only, as on Linux.
//! - A cycle of POSIX owners that wait for what others *hold* is refused as a deadlock. Cycles with
//!   a flock or an OFD lock in them are not looked for.
//! - A flock that can't be converted is lost, then waited for or refused, as on Linux.
//!
//! What is granted is in the records of files ([`FileLocks`]); each step tells which records
//! changed, and nothing may be answered before those are durable. Waits need not be durable, as
//! their requests are sent again.

mod file;
mod ranges;
mod table;
mod waits;

#[cfg(test)]
mod byte_model;
#[cfg(test)]
mod cases_test;
#[cfg(test)]
mod model_test;

pub use file::{FileLocks, OwnerLocks};
pub use ranges::{Mode, Range, Span, Spans};
pub use table::{ImportError, Listed, LockTable};

use std::collections::BTreeSet;

use proto::{FileId, Generation, RequestId};
use serde::{Deserialize, Serialize};

/// What sort of lock; part of who owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A process's byte ranges. FUSE shows OFD locks as these, each open file an owner of its own.
    Posix,
    /// An open file's byte ranges, where the caller can tell: conflicts like `Posix`, but is never
    /// part of a deadlock.
    Ofd,
    /// A whole file's lock of an open file. Doesn't conflict with the other two.
    Flock,
}

impl Kind {
    /// Whether locks of both kinds see each other.
    pub fn meets(self, other: Kind) -> bool {
        (self == Kind::Flock) == (other == Kind::Flock)
    }
}

/// Who holds or wants locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The host's session.
    pub session: Generation,
    /// The kernel's number of the owner; means something on that host only.
    pub id: u64,
    /// Sort of lock.
    pub kind: Kind,
}

/// A lock that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Of which file.
    pub file: FileId,
    /// By whom.
    pub owner: Owner,
    /// Process that asks, on its host; told to others by [`LockTable::test`].
    pub pid: u32,
    /// Which bytes; a flock has the whole file, whatever is said here.
    pub range: Range,
    /// How.
    pub mode: Mode,
}

/// A lock that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// By whom.
    pub owner: Owner,
    /// Process that asked for it last, on its host.
    pub pid: u32,
    /// Which bytes and how.
    pub span: Span,
}

/// Names a wait, and orders it: a lower one came earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ticket(pub u64);

/// A request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// Its place.
    pub ticket: Ticket,
    /// The request to be answered, of the owner's session.
    pub request: RequestId,
    /// What it wants.
    pub ask: Ask,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It holds the lock.
    Granted,
    /// It will be in a later step's `granted` or `dropped`.
    Waiting(Ticket),
    /// EAGAIN: somebody has it.
    Conflict(Holder),
    /// EDEADLK: everybody would wait for ever.
    Deadlock,
    /// EINVAL: the range ends before it starts, or a request id comes again with another wish.
    Invalid,
}

/// What a call did beside its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "waiters want to be answered and records to be stored"]
pub struct Step {
    /// Waits that hold their lock now, in order.
    pub granted: Vec<Wait>,
    /// Waits that ended without a lock, in order.
    pub dropped: Vec<Wait>,
    /// Files whose record is another now, or is gone.
    pub changed: BTreeSet<FileId>,
}
