//! Who holds what of one file: the record that is stored, and handed on when the file moves.

use proto::Generation;
use serde::{Deserialize, Serialize};

use super::ranges::{Range, Span, Spans};
use super::{Ask, Holder, Kind, Owner};

/// What one owner holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerLocks {
    /// By whom.
    pub owner: Owner,
    /// Process that asked last, on its host.
    pub pid: u32,
    /// Which bytes and how; never empty.
    pub spans: Spans,
}

impl OwnerLocks {
    fn holder(&self, span: &Span) -> Holder {
        Holder { owner: self.owner, pid: self.pid, span: *span }
    }
}

/// Everything held of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLocks {
    /// In order of owners.
    owners: Vec<OwnerLocks>,
}

impl FileLocks {
    /// Nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// In order of owners.
    pub fn owners(&self) -> &[OwnerLocks] {
        &self.owners
    }

    /// Each held span.
    pub fn holders(&self) -> impl Iterator<Item = Holder> {
        self.owners.iter().flat_map(|locks| locks.spans.as_slice().iter().map(|span| locks.holder(span)))
    }

    /// The same locks under the sessions of another datastore. An owner whose session has no
    /// counterpart there (`None`) loses its locks.
    pub fn with_sessions(self, mut counterpart: impl FnMut(Generation) -> Option<Generation>) -> FileLocks {
        let rename = |mut locks: OwnerLocks| {
            locks.owner.session = counterpart(locks.owner.session)?;
            Some(locks)
        };
        let mut owners: Vec<OwnerLocks> = self.owners.into_iter().filter_map(rename).collect();
        owners.sort_by_key(|locks| locks.owner);
        FileLocks { owners }
    }

    /// Whether requests could have made it: no two owners in conflict, nothing empty, all in order.
    pub fn is_sound(&self) -> bool {
        let each = |locks: &OwnerLocks| {
            let whole = |span: &Span| span.range == Range::WHOLE;
            let shape = locks.owner.kind != Kind::Flock || locks.spans.as_slice().iter().all(whole);
            let alone = |span: &Span| self.conflicts(locks.owner, *span).next().is_none();
            !locks.spans.is_empty()
                && locks.spans.is_sound()
                && shape
                && locks.spans.as_slice().iter().all(alone)
        };
        self.owners.windows(2).all(|pair| pair[0].owner < pair[1].owner) && self.owners.iter().all(each)
    }

    /// Every held span that keeps `owner` from having `span`, one per other owner.
    pub fn conflicts(&self, owner: Owner, span: Span) -> impl Iterator<Item = Holder> {
        self.owners
            .iter()
            .filter(move |locks| locks.owner != owner && locks.owner.kind.meets(owner.kind))
            .filter_map(move |locks| {
                let mut over = locks.spans.over(span.range);
                over.find(|held| held.mode.conflicts(span.mode)).map(|held| locks.holder(held))
            })
    }

    /// The conflict that begins first.
    pub fn first_conflict(&self, owner: Owner, span: Span) -> Option<Holder> {
        self.conflicts(owner, span).min_by_key(|holder| (holder.span.range.start, holder.owner))
    }

    /// Whether the owner holds all of it already, as strongly or stronger.
    pub fn covers(&self, owner: Owner, span: Span) -> bool {
        self.find(owner).is_ok_and(|at| self.owners[at].spans.cover(span.range, span.mode))
    }

    /// Give the owner its lock; conflicts were ruled out before. True if the record changed.
    pub(super) fn grant(&mut self, ask: &Ask) -> bool {
        let at = match self.find(ask.owner) {
            Ok(at) => at,
            Err(at) => {
                let fresh = OwnerLocks { owner: ask.owner, pid: ask.pid, spans: Spans::default() };
                self.owners.insert(at, fresh);
                at
            }
        };
        let locks = &mut self.owners[at];
        let other_pid = std::mem::replace(&mut locks.pid, ask.pid) != ask.pid;
        locks.spans.set(ask.range, Some(ask.mode)) || other_pid
    }

    /// Take a range from an owner. True if the record changed.
    pub(super) fn unlock(&mut self, owner: Owner, range: Range) -> bool {
        let Ok(at) = self.find(owner) else { return false };
        let changed = self.owners[at].spans.set(range, None);
        if self.owners[at].spans.is_empty() {
            self.owners.remove(at);
        }
        changed
    }

    /// Take everything from a session. True if the record changed.
    pub(super) fn unlock_session(&mut self, session: Generation) -> bool {
        let before = self.owners.len();
        self.owners.retain(|locks| locks.owner.session != session);
        self.owners.len() != before
    }

    fn find(&self, owner: Owner) -> Result<usize, usize> {
        self.owners.binary_search_by_key(&owner, |locks| locks.owner)
    }
}
