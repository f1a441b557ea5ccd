//! Data I/O of one connection: an io_uring, or a few threads where the kernel forbids it.
//!
//! The connection's reader submits; completions run on the ring's own thread, so replies leave in
//! the order in which the work is done.

mod threads;
mod uring;

use std::sync::Arc;

use crate::store::DataFile;

/// What to do with a data file.
pub enum Work {
    /// Read up to `len` bytes.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Write all of it.
    Write {
        /// First byte.
        offset: u64,
        /// Data.
        data: Vec<u8>,
    },
    /// fdatasync.
    Flush,
}

/// The result: bytes that were read (else empty), or an errno.
pub type Finished = Result<Vec<u8>, i32>;
/// Called once, on a thread of the ring.
pub type Done = Box<dyn FnOnce(Finished) + Send>;

/// Where work goes.
pub enum Ring {
    /// io_uring.
    Uring(uring::Uring),
    /// pread and pwrite.
    Threads(threads::Threads),
}

impl Ring {
    /// An io_uring, or threads when that is refused or `GODWIT_NO_URING` is set.
    pub fn new() -> Ring {
        if std::env::var_os("GODWIT_NO_URING").is_none() {
            match uring::Uring::new() {
                Ok(uring) => return Ring::Uring(uring),
                Err(e) => tracing::warn!("io_uring is not available ({e}); using threads"),
            }
        }
        Ring::Threads(threads::Threads::new())
    }

    /// Start work. Never blocks for the disk.
    pub fn submit(&self, file: Arc<DataFile>, work: Work, done: Done) {
        match self {
            Ring::Uring(uring) => uring.submit(file, work, done),
            Ring::Threads(threads) => threads.submit(file, work, done),
        }
    }
}
