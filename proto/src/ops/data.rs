//! File data.

use serde::{Deserialize, Serialize};

use crate::ids::{FileId, MoveId};

/// Read. The bytes come as the reply's data, fewer only at the end of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Which file.
    pub file: FileId,
    /// First byte.
    pub offset: u64,
    /// Bytes, at most [`crate::frame::MAX_DATA`].
    pub len: u32,
    /// Have the server compute the BLAKE3 digest of what it read.
    pub digest: bool,
    /// The move that owns the file, when it is incoming.
    pub incoming: Option<MoveId>,
}

/// Answer to [`Read`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadDone {
    /// BLAKE3 of the data, when asked for.
    pub digest: Option<[u8; 32]>,
}

/// Write the frame's data; extends the file when it ends past it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Which file.
    pub file: FileId,
    /// First byte.
    pub offset: u64,
    /// BLAKE3 of the data: the server writes only what matches it.
    pub digest: Option<[u8; 32]>,
    /// Answer only when the data is durable.
    pub fua: bool,
    /// The move that owns the file, when it is incoming.
    pub incoming: Option<MoveId>,
}

/// Make all writes that were answered before durable (fdatasync).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flush {
    /// Which file.
    pub file: FileId,
    /// The move that owns the file, when it is incoming.
    pub incoming: Option<MoveId>,
}

/// Punch a hole; never changes the size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discard {
    /// Which file.
    pub file: FileId,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The move that owns the file, when it is incoming.
    pub incoming: Option<MoveId>,
}

/// Write zeroes and keep or make the range allocated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zero {
    /// Which file.
    pub file: FileId,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Leave the size alone.
    pub keep_size: bool,
    /// The move that owns the file, when it is incoming.
    pub incoming: Option<MoveId>,
}

/// Reserve space; contents stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocate {
    /// Which file.
    pub file: FileId,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Leave the size alone.
    pub keep_size: bool,
    /// The move that owns the file, when it is incoming.
    pub incoming: Option<MoveId>,
}

/// Set the size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Which file.
    pub file: FileId,
    /// New size in bytes.
    pub size: u64,
    /// The move that owns the file, when it is incoming.
    pub incoming: Option<MoveId>,
}

/// List allocated extents (SEEK_DATA, SEEK_HOLE).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    /// Which file.
    pub file: FileId,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The move that owns the file, when it is incoming.
    pub incoming: Option<MoveId>,
}

/// Answer to [`Map`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extents {
    /// Allocated runs (offset, bytes), in order, clipped to the range.
    pub extents: Vec<(u64, u64)>,
    /// Complete below this offset.
    pub upto: u64,
}
