//! The block interface that every stack of Godwit is made of.
//!
//! A [`Disk`] takes [`Request`]s and answers each exactly once through its [`Completion`], on any
//! thread and in any order. `submit` never blocks on I/O, so FUSE and NBD adapters may call it
//! from the thread that read the request. A datastore file, a [`crate::DiskSlot`] and a
//! [`crate::Mirror`] are all disks.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// What is asked of a disk. Offsets and lengths are bytes and need no alignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read `len` bytes at `offset`. Past the end of the disk the answer is short.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes wanted.
        len: u32,
    },
    /// Like `Read`, and the answer carries the BLAKE3 digest that the data's keeper computed
    /// from what it read. `offset` must lie inside the disk.
    ReadDigest {
        /// First byte.
        offset: u64,
        /// Bytes wanted.
        len: u32,
    },
    /// Write `data` at `offset`; a write past the end extends the disk.
    Write {
        /// First byte.
        offset: u64,
        /// What to write.
        data: Bytes,
        /// Where present the keeper compares it with what arrived, before it writes.
        digest: Option<[u8; 32]>,
        /// Answer only when the data is durable (NBD_CMD_FLAG_FUA).
        fua: bool,
    },
    /// Make every write answered before this request durable (fdatasync).
    Flush,
    /// The range reads as zeroes afterwards and its space is given back. Never extends the disk.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The range reads as zeroes afterwards and stays or becomes allocated
    /// (FALLOC_FL_ZERO_RANGE). Extends the disk unless `keep_size`.
    Zero {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Leave the size alone even when the range ends past it.
        keep_size: bool,
    },
    /// Reserve space without changing contents (fallocate mode 0 or KEEP_SIZE).
    Allocate {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Leave the size alone even when the range ends past it.
        keep_size: bool,
    },
    /// Set the size: cut off, or grow by a hole.
    Resize {
        /// New size in bytes.
        size: u64,
    },
    /// List the allocated extents that overlap the range, in order, clipped to it.
    /// The keeper may stop early; [`Response::Extents`] says how far it looked.
    Map {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// A run of allocated bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// To `Read` and `ReadDigest`.
    Data {
        /// What was read; shorter than asked only at the end of the disk.
        data: Bytes,
        /// Present when asked by `ReadDigest`.
        digest: Option<[u8; 32]>,
    },
    /// To everything that changes the disk, and to `Flush`.
    Done,
    /// To `Map`.
    Extents {
        /// Allocated runs, in order, not touching each other.
        extents: Vec<Extent>,
        /// The list is complete for bytes below this offset; ask again from here.
        /// At least one byte past the request's offset, unless the disk ends there.
        upto: u64,
    },
}

/// Why a disk refused or failed a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The keeper is out of space; nothing of the request was lost but its own data.
    #[error("no space left on {keeper}")]
    NoSpace {
        /// Who keeps the data, for the message ("datastore ds2").
        keeper: String,
    },
    /// The digest did not match what arrived: the data was altered on its way.
    #[error("digest mismatch at offset {offset}, {len} bytes: the data was altered on its way")]
    Digest {
        /// First byte of the chunk.
        offset: u64,
        /// Bytes of the chunk.
        len: u64,
    },
    /// This holder's session or lock is over; it must not write here again.
    #[error("fenced: {reason}")]
    Fenced {
        /// By what.
        reason: String,
    },
    /// The keeper does not have this file any more.
    #[error("stale: {reason}")]
    Stale {
        /// What happened to it.
        reason: String,
    },
    /// The stack was shut down while the request was waiting.
    #[error("the disk was closed")]
    Closed,
    /// Any other failure, with its errno.
    #[error("{context}: {}", std::io::Error::from_raw_os_error(*errno))]
    Io {
        /// Linux errno.
        errno: i32,
        /// What was being done, and to what.
        context: String,
    },
}

impl DiskError {
    /// The errno that a file system adapter answers with.
    pub fn errno(&self) -> i32 {
        match self {
            DiskError::NoSpace { .. } => rustix::io::Errno::NOSPC.raw_os_error(),
            DiskError::Io { errno, .. } => *errno,
            DiskError::Stale { .. } => rustix::io::Errno::STALE.raw_os_error(),
            _ => rustix::io::Errno::IO.raw_os_error(),
        }
    }
}

/// What a request ends with.
pub type DiskResult = Result<Response, DiskError>;

/// Called exactly once with the result of a request. It may run on the thread of the network
/// receiver, so it must not block.
pub type Completion = Box<dyn FnOnce(DiskResult) + Send>;

/// Something that keeps blocks.
pub trait Disk: Send + Sync {
    /// Start a request. Never blocks on I/O; `done` is called exactly once, perhaps before
    /// `submit` returns.
    fn submit(&self, request: Request, done: Completion);

    /// For messages and logs: "ds1/vm42/disk0.raw".
    fn describe(&self) -> String;
}

impl fmt::Debug for dyn Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Disk({})", self.describe())
    }
}

/// A disk shared between those who use it.
pub type SharedDisk = Arc<dyn Disk>;

impl Request {
    /// Whether the request can change what a later read sees.
    pub fn mutates(&self) -> bool {
        matches!(
            self,
            Request::Write { .. }
                | Request::Discard { .. }
                | Request::Zero { .. }
                | Request::Resize { .. }
                | Request::Allocate { .. }
        )
    }
}
