//! The records of a move on its two datastores, and the one commit point.
//!
//! The source's record decides. While it says `Copying`, the source is authoritative and the
//! destination's tree is invisible. `MoveCommit` turns it to `Committed` in one durable
//! transaction that also removes the old name: from then on the destination is authoritative,
//! and whoever finds the two records apart publishes the destination and finishes the source.
//! A destination record without a source record is dead and is dropped.

use serde::{Deserialize, Serialize};

use super::names::{Name, Time, TreeEntry};
use crate::ids::{DatastoreId, FileId, Generation, MoveId};

/// Which side of a move a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MoveSide {
    /// Where the tree was.
    Source,
    /// Where it goes.
    Destination,
}

/// How far a move is, as its datastore knows durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MoveState {
    /// Data is being copied; nothing has changed for anybody.
    Copying,
    /// Destination only: all is there and durable; the source's record decides.
    Sealed,
    /// Source only: the destination is authoritative; data still occupies space here.
    Committed,
    /// Destination: the tree is live. Source: the space is freed. The record is history and forwarding address.
    Finished,
}

/// A durable record of a move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    /// Which move.
    pub id: MoveId,
    /// Which side this record is.
    pub side: MoveSide,
    /// How far it is.
    pub state: MoveState,
    /// The host that runs it.
    pub host: String,
    /// The other datastore.
    pub peer: DatastoreId,
    /// Its name.
    pub peer_name: String,
    /// Root of the tree (the id is the same on both sides).
    pub root: FileId,
    /// Directory of the root's name on this side.
    pub parent: FileId,
    /// The root's name on this side.
    pub name: Name,
    /// The tree's ownership after the commit; raised by each move.
    pub generation: Generation,
    /// When it began, by this server's clock.
    pub began: Time,
    /// When it reached its state.
    pub changed: Time,
}

/// Start a move on its source.
///
/// Refused with `Busy` when another host has a file of the tree open for writing, when another move
/// overlaps, or when a file has names outside the tree. From then on other hosts can't change the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveBegin {
    /// Which move.
    pub id: MoveId,
    /// Directory of the tree's root.
    pub parent: FileId,
    /// Name of the tree's root.
    pub name: Name,
    /// The inode that the client found there.
    pub root: FileId,
    /// Where it goes.
    pub to: DatastoreId,
    /// That datastore's name.
    pub to_name: String,
}

/// Commit. The server fences the tree's files, waits for admitted writes, then makes the record durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveCommit {
    /// Which move.
    pub id: MoveId,
}

/// Free the source's space. Refused before the commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveFinish {
    /// Which move.
    pub id: MoveId,
}

/// Forget a move that has not committed (refused with `MoveState` afterwards).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveAbort {
    /// Which move.
    pub id: MoveId,
}

/// List records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveList {
    /// Only this one, or all that are not `Finished`.
    pub id: Option<MoveId>,
}

/// Answer to [`MoveList`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecords {
    /// The records.
    pub records: Vec<MoveRecord>,
}

/// Start a move on its destination: the name is reserved, nothing is visible.
///
/// EEXIST when the name is taken or reserved; `NoSpace` when `bytes` are not free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingBegin {
    /// Which move.
    pub id: MoveId,
    /// Where it comes from.
    pub from: DatastoreId,
    /// That datastore's name.
    pub from_name: String,
    /// Root of the tree.
    pub root: FileId,
    /// Directory that will hold it here.
    pub parent: FileId,
    /// Its name there.
    pub name: Name,
    /// Bytes that will be needed.
    pub bytes: u64,
    /// Only check; leave no record.
    pub check_only: bool,
}

/// Add or update inodes and names. The root comes with the reserved parent and name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingPut {
    /// Which move.
    pub id: MoveId,
    /// What to put. An inode's ids, attributes, target and xattrs are taken as they are; nlink is
    /// counted by the server, size is set by data operations.
    pub entries: Vec<TreeEntry>,
}

/// Remove names; an inode without a name goes with its data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingRemove {
    /// Which move.
    pub id: MoveId,
    /// (directory, name) pairs.
    pub names: Vec<(FileId, Name)>,
}

/// Everything is there; data was flushed by the client before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingSeal {
    /// Which move.
    pub id: MoveId,
}

/// Make the tree live under the reserved name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingPublish {
    /// Which move.
    pub id: MoveId,
    /// The generation from the source's commit record.
    pub generation: Generation,
}

/// Delete the incoming tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingDrop {
    /// Which move.
    pub id: MoveId,
}
