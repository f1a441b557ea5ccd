//! What goes into and comes out of the mirror core: [`Input`], [`Output`] and their parts.
//!
//! Times are nanoseconds on a monotonic clock of the driver's choice. Ids are given by whoever
//! names the thing first and are never reused within one core.

use std::ops::Range;

use crate::{DiskError, Extent, Request};

/// One of the two disks of a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the guest's data is and reads go.
    Source,
    /// Where the data is going.
    Destination,
}

/// A guest request, named by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestId(pub u64);

/// Something the core asked for, named by the core. Done exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// What a guest request changes. Requests that change nothing never reach the core: they go to
/// the source at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// New data in a range.
    Write(Range<u64>),
    /// The range becomes a hole.
    Discard(Range<u64>),
    /// The range reads as zeroes.
    Zero {
        /// Bytes.
        range: Range<u64>,
        /// Never extends the disk.
        keep_size: bool,
    },
    /// Space is reserved; contents stay.
    Allocate {
        /// Bytes.
        range: Range<u64>,
        /// Never extends the disk.
        keep_size: bool,
    },
    /// The disk gets another size.
    Resize {
        /// In bytes.
        size: u64,
    },
}

impl Mutation {
    /// What `request` changes, if it does.
    pub fn of(request: &Request) -> Option<Mutation> {
        let range = |offset: u64, len: u64| offset..offset.saturating_add(len);
        Some(match *request {
            Request::Write { offset, ref data, .. } => Mutation::Write(range(offset, data.len() as u64)),
            Request::Discard { offset, len } => Mutation::Discard(range(offset, len)),
            Request::Zero { offset, len, keep_size } => {
                Mutation::Zero { range: range(offset, len), keep_size }
            }
            Request::Allocate { offset, len, keep_size } => {
                Mutation::Allocate { range: range(offset, len), keep_size }
            }
            Request::Resize { size } => Mutation::Resize { size },
            Request::Read { .. } | Request::ReadDigest { .. } | Request::Flush | Request::Map { .. } => {
                return None;
            }
        })
    }

    /// The bytes that nothing else may change out of order with this.
    pub(super) fn span(&self) -> Range<u64> {
        match self {
            Mutation::Write(range)
            | Mutation::Discard(range)
            | Mutation::Zero { range, .. }
            | Mutation::Allocate { range, .. } => range.clone(),
            Mutation::Resize { .. } => 0..u64::MAX,
        }
    }

    /// The bytes whose contents may differ afterwards; a resize is accounted for by its size.
    pub(super) fn changes(&self) -> Range<u64> {
        match self {
            Mutation::Write(range) | Mutation::Discard(range) | Mutation::Zero { range, .. } => range.clone(),
            Mutation::Allocate { .. } | Mutation::Resize { .. } => 0..0,
        }
    }

    /// The size that the disk has at least afterwards.
    pub(super) fn extends_to(&self) -> Option<u64> {
        match self {
            Mutation::Write(range)
            | Mutation::Zero { range, keep_size: false }
            | Mutation::Allocate { range, keep_size: false }
                if !range.is_empty() =>
            {
                Some(range.end)
            }
            _ => None,
        }
    }

    /// Whether it leaves nothing but zeroes in its range.
    pub(super) fn zeroes(&self) -> bool {
        matches!(self, Mutation::Discard(_) | Mutation::Zero { .. })
    }
}

/// How far a mirror is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Guest requests pass to the source and are recorded; nothing is copied yet.
    Attached,
    /// First walk over everything allocated.
    Bulk,
    /// Further walks over what the guest changed meanwhile.
    Converge,
    /// Guest writes go to both disks, except into regions that are still to be copied; what is
    /// left can only become less.
    Mirror,
    /// Nothing is left to copy, the destination was flushed, every guest write goes to both.
    Synced,
    /// Given up; the guest goes on with the source. [`Output::Failed`] says why.
    Failed,
    /// Called off; the guest goes on with the source.
    Cancelled,
    /// The move is committed; whatever still arrives goes to the destination.
    Switched,
}

impl Phase {
    /// Whether guest writes go to both disks.
    pub fn is_mirroring(self) -> bool {
        matches!(self, Phase::Mirror | Phase::Synced)
    }

    /// Whether nothing will be copied any more.
    pub fn is_over(self) -> bool {
        matches!(self, Phase::Failed | Phase::Cancelled | Phase::Switched)
    }
}

/// Why a mirror gave up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailReason {
    /// The destination is full.
    #[error("{0}")]
    NoSpace(DiskError),
    /// A region arrived altered each time that it was copied.
    #[error("copying {len} bytes at offset {offset} failed {attempts} times: {error}")]
    Region {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// How often it was tried.
        attempts: u32,
        /// The last error.
        error: DiskError,
    },
    /// The source could not be read or mapped.
    #[error("the source does not answer: {0}")]
    Source(DiskError),
    /// The destination refused for good, or too many times in a row.
    #[error("the destination does not answer: {0}")]
    Destination(DiskError),
    /// The disk is larger than a dirty bitmap can describe.
    #[error("the disk is too large to move: {0} bytes")]
    TooLarge(u64),
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Nothing that the source was asked before the mirror was attached is in flight any more:
    /// begin to copy. `size` is the source's size in bytes, asked for after the attachment.
    Start {
        /// In bytes.
        size: u64,
    },
    /// The guest asks for a change.
    Guest {
        /// Its name from now on.
        guest: GuestId,
        /// What changes.
        mutation: Mutation,
    },
    /// An op ended.
    Done {
        /// Which.
        op: OpId,
        /// How.
        outcome: Outcome,
    },
    /// Start no copies until `Resume`. Guest writes go where the phase says.
    Pause,
    /// The way back from `Pause`.
    Resume,
    /// Copy at most so many bytes per second; `None` for no limit.
    SetLimit(Option<u64>),
    /// Give up on request.
    Cancel,
    /// The destination may have lost anything it was sent: start over.
    DestinationLost,
    /// The move is committed. Only after [`super::MirrorCore::ready_to_switch`].
    Switched,
    /// The time of the last [`Output::WakeAt`] has come.
    Tick,
}

/// How an op ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A guest op, flush or resize succeeded.
    Done,
    /// A copy succeeded.
    Copied {
        /// Bytes written to the destination.
        written: u64,
        /// Bytes that were zeroes and were not sent.
        zeroes: u64,
    },
    /// A page of the source's map.
    Mapped {
        /// Allocated runs.
        extents: Vec<Extent>,
        /// Complete below this offset.
        upto: u64,
    },
    /// It failed at `side`.
    Failed {
        /// Whose error it is.
        side: Side,
        /// The error.
        error: DiskError,
    },
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Submit the guest's request to `side`.
    Guest {
        /// Report its end with this.
        op: OpId,
        /// Whose request.
        guest: GuestId,
        /// To which disk.
        side: Side,
        /// The guest's answer is the result of this op.
        answers: bool,
    },
    /// The guest's request is done: answer with the result of its op that had `answers`.
    Answer {
        /// Whose.
        guest: GuestId,
    },
    /// Copy a range: read `read_len` bytes from the source, take the rest as zeroes, and make the
    /// destination's range the same, writing nothing past `read_len`: what lies there is discarded.
    Copy {
        /// Report its end with this.
        op: OpId,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Bytes that lie inside the source.
        read_len: u64,
        /// The destination's range was never written: zeroes need no discard.
        fresh: bool,
    },
    /// List the source's extents.
    Map {
        /// Report its end with this.
        op: OpId,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Flush the destination.
    FlushDestination {
        /// Report its end with this.
        op: OpId,
    },
    /// Give the destination this size.
    ResizeDestination {
        /// Report its end with this.
        op: OpId,
        /// In bytes.
        size: u64,
    },
    /// Send [`Input::Tick`] at this time. Replaces any earlier one.
    WakeAt(u64),
    /// The phase changed.
    Phase(Phase),
    /// The phase became [`Phase::Failed`], for this reason.
    Failed(FailReason),
}
