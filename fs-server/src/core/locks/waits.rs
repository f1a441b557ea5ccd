//! Who waits for whom: what keeps a wait from its lock, and cycles of owners.

use std::collections::{BTreeMap, BTreeSet};

use proto::FileId;

use super::file::FileLocks;
use super::ranges::Span;
use super::{Ask, Kind, Owner, Wait};

impl Ask {
    /// Which bytes and how.
    pub(super) fn span(&self) -> Span {
        Span { range: self.range, mode: self.mode }
    }

    /// Whether both can't be granted.
    fn conflicts(&self, other: &Ask) -> bool {
        self.file == other.file
            && self.owner != other.owner
            && self.owner.kind.meets(other.owner.kind)
            && self.range.overlaps(other.range)
            && self.mode.conflicts(other.mode)
    }
}

/// All waits, per file in the order they came; no file without one.
pub(super) type Waits = BTreeMap<FileId, Vec<Wait>>;

/// What is held, per file; no file without a lock.
pub(super) type Files = BTreeMap<FileId, FileLocks>;

/// Owners of what is held in the way of `ask`.
pub(super) fn held_by<'a>(files: &'a Files, ask: &'a Ask) -> impl Iterator<Item = Owner> + 'a {
    files.get(&ask.file).into_iter().flat_map(|f| f.conflicts(ask.owner, ask.span())).map(|h| h.owner)
}

/// Owners that wait in `earlier` for what conflicts with `ask`.
pub(super) fn queued_before<'a>(earlier: &'a [Wait], ask: &'a Ask) -> impl Iterator<Item = Owner> + 'a {
    earlier.iter().filter(|wait| wait.ask.conflicts(ask)).map(|wait| wait.ask.owner)
}

/// Which edges count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Edges {
    /// From a POSIX owner that waits to POSIX owners that hold: a deadlock, if they form a cycle.
    PosixHeld,
    /// To all holders, and to those earlier in the queue.
    All,
}

/// The wait-for graph of a moment. Edges are found when they are walked.
pub(super) struct Graph<'a> {
    files: &'a Files,
    waits: &'a Waits,
    /// Where each owner waits.
    places: BTreeMap<Owner, Vec<(FileId, usize)>>,
}

impl<'a> Graph<'a> {
    pub fn new(files: &'a Files, waits: &'a Waits) -> Self {
        let mut places: BTreeMap<Owner, Vec<(FileId, usize)>> = BTreeMap::new();
        for (file, queue) in waits {
            for (at, wait) in queue.iter().enumerate() {
                places.entry(wait.ask.owner).or_default().push((*file, at));
            }
        }
        Self { files, waits, places }
    }

    /// Whether one of `from` is `to` or waits, directly or not, for `to`.
    pub fn reaches(&self, from: impl Iterator<Item = Owner>, to: Owner, edges: Edges) -> bool {
        let counts = |owner: &Owner| edges == Edges::All || owner.kind == Kind::Posix;
        let mut seen = BTreeSet::new();
        let mut next: Vec<Owner> = from.filter(counts).collect();
        while let Some(owner) = next.pop() {
            if owner == to {
                return true;
            }
            if !seen.insert(owner) {
                continue;
            }
            for (file, at) in self.places.get(&owner).into_iter().flatten() {
                let queue = &self.waits[file];
                next.extend(held_by(self.files, &queue[*at].ask).filter(counts));
                if edges == Edges::All {
                    next.extend(queued_before(&queue[..*at], &queue[*at].ask));
                }
            }
        }
        false
    }
}
