//! The table: requests, releases, and who is granted what after each.

use std::collections::BTreeSet;

use proto::{FileId, Generation, RequestId};
use serde::{Deserialize, Serialize};

use super::file::FileLocks;
use super::ranges::Range;
use super::waits::{Edges, Files, Graph, Waits, held_by, queued_before};
use super::{Answer, Ask, Holder, Kind, Owner, Step, Ticket, Wait};

/// All locks and waits of a datastore.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockTable {
    files: Files,
    waits: Waits,
    /// The next wait's ticket.
    next: u64,
}

/// One file's locks and waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Of which file.
    pub file: FileId,
    /// In order of owners and bytes.
    pub holders: Vec<Holder>,
    /// In the order they came.
    pub waits: Vec<Wait>,
}

/// Why a file's record isn't taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// The file has other locks or waits here.
    #[error("the file has other locks here")]
    Occupied,
    /// Requests could not have made it.
    #[error("a damaged record of locks")]
    Unsound,
}

impl LockTable {
    /// Get a lock at once or not at all. Those who wait for it are overtaken.
    pub fn try_lock(&mut self, ask: &Ask) -> (Answer, Step) {
        let mut step = Step::default();
        let Some(ask) = normal(ask) else { return (Answer::Invalid, step) };
        let conflict = self.test(&ask);
        match conflict {
            None => self.grant(&ask, &mut step),
            Some(_) => self.lose_converted(&ask, &mut step),
        }
        self.settle([ask.file].into(), self.is_waiting(ask.owner), &mut step);
        (conflict.map_or(Answer::Granted, Answer::Conflict), step)
    }

    /// Get a lock, or wait for it. The same request may come again: while it waits it keeps its
    /// ticket, and when its owner has the lock it is granted.
    pub fn lock(&mut self, request: RequestId, ask: &Ask) -> (Answer, Step) {
        let mut step = Step::default();
        let Some(ask) = normal(ask) else { return (Answer::Invalid, step) };
        if let Some(wait) = self.find(ask.owner.session, request) {
            let answer = if wait.ask == ask { Answer::Waiting(wait.ticket) } else { Answer::Invalid };
            return (answer, step);
        }
        let earlier = self.waits.get(&ask.file).map_or(&[][..], Vec::as_slice);
        if self.may_have(earlier, &ask) {
            self.grant(&ask, &mut step);
            self.settle([ask.file].into(), self.is_waiting(ask.owner), &mut step);
            return (Answer::Granted, step);
        }
        if ask.owner.kind == Kind::Posix {
            let graph = Graph::new(&self.files, &self.waits);
            if graph.reaches(held_by(&self.files, &ask), ask.owner, Edges::PosixHeld) {
                return (Answer::Deadlock, step);
            }
        }
        if self.test(&ask).is_some() {
            self.lose_converted(&ask, &mut step);
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waits.entry(ask.file).or_default().push(Wait { ticket, request, ask });
        self.settle([ask.file].into(), true, &mut step);
        match step.granted.iter().position(|wait| wait.ticket == ticket) {
            Some(at) => {
                step.granted.remove(at);
                (Answer::Granted, step)
            }
            None => (Answer::Waiting(ticket), step),
        }
    }

    /// Unlock a range, if any of it is locked. A flock is unlocked as a whole.
    pub fn unlock(&mut self, file: FileId, owner: Owner, range: Range) -> Step {
        let mut step = Step::default();
        let range = if owner.kind == Kind::Flock { Range::WHOLE } else { range };
        if range.is_valid() {
            self.change(file, &mut step, |locks| locks.unlock(owner, range));
            self.settle([file].into(), false, &mut step);
        }
        step
    }

    /// What keeps the lock from being granted now: of all conflicts that which begins first.
    pub fn test(&self, ask: &Ask) -> Option<Holder> {
        let ask = normal(ask)?;
        self.files.get(&ask.file)?.first_conflict(ask.owner, ask.span())
    }

    /// End a wait (the waiter was interrupted). It is in `dropped`, unless it had ended before.
    pub fn cancel(&mut self, session: Generation, request: RequestId) -> Step {
        let mut step = Step::default();
        if let Some(wait) = self.find(session, request) {
            self.drop_waits(wait.ask.file, &mut step, |w| w.ticket == wait.ticket);
            self.settle([wait.ask.file].into(), false, &mut step);
        }
        step
    }

    /// The owner closed a descriptor of the file (FUSE_FLUSH): its locks go, but what another of
    /// its threads waits for, through another descriptor, is still waited for.
    pub fn flush(&mut self, file: FileId, owner: Owner) -> Step {
        self.unlock(file, owner, Range::WHOLE)
    }

    /// The owner is done with the file: its locks and waits go.
    pub fn release_owner(&mut self, file: FileId, owner: Owner) -> Step {
        let mut step = Step::default();
        self.drop_waits(file, &mut step, |wait| wait.ask.owner == owner);
        self.change(file, &mut step, |locks| locks.unlock(owner, Range::WHOLE));
        self.settle([file].into(), false, &mut step);
        step
    }

    /// Everything of a session goes. A dead host must be fenced, and drained of what was already
    /// admitted, before.
    pub fn release_session(&mut self, session: Generation) -> Step {
        let mut step = Step::default();
        let files: BTreeSet<FileId> = self.files.keys().chain(self.waits.keys()).copied().collect();
        for file in &files {
            self.drop_waits(*file, &mut step, |wait| wait.ask.owner.session == session);
            self.change(*file, &mut step, |locks| locks.unlock_session(session));
        }
        let mut touched = step.changed.clone();
        touched.extend(step.dropped.iter().map(|wait| wait.ask.file));
        self.settle(touched, false, &mut step);
        step
    }

    /// Everything of a file goes: it is deleted, or has moved away.
    pub fn release_file(&mut self, file: FileId) -> Step {
        let mut step = Step::default();
        self.drop_waits(file, &mut step, |_| true);
        if self.files.remove(&file).is_some() {
            step.changed.insert(file);
        }
        step
    }

    /// The record of a file, if anything of it is locked. Waits are not part of it: their requests
    /// follow the file and come again.
    pub fn export(&self, file: FileId) -> Option<&FileLocks> {
        self.files.get(&file)
    }

    /// Take a file's record, from the store or from another datastore. Taking it twice is fine.
    pub fn import(&mut self, file: FileId, locks: FileLocks) -> Result<Step, ImportError> {
        if !locks.is_sound() {
            return Err(ImportError::Unsound);
        }
        let mut step = Step::default();
        match self.files.get(&file) {
            Some(here) if *here == locks => {}
            None if !self.waits.contains_key(&file) => self.change(file, &mut step, |here| {
                *here = locks;
                !here.is_empty()
            }),
            _ => return Err(ImportError::Occupied),
        }
        Ok(step)
    }

    /// One file's locks and waits.
    pub fn list(&self, file: FileId) -> Listed {
        Listed {
            file,
            holders: self.files.get(&file).into_iter().flat_map(FileLocks::holders).collect(),
            waits: self.waits.get(&file).cloned().unwrap_or_default(),
        }
    }

    /// Every file with a lock or a wait, in order.
    pub fn list_all(&self) -> impl Iterator<Item = Listed> {
        let files: BTreeSet<FileId> = self.files.keys().chain(self.waits.keys()).copied().collect();
        files.into_iter().map(|file| self.list(file))
    }

    /// No lock and no wait.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.waits.is_empty()
    }

    /// Whether a request can be granted, as far as holders and the queue's order say.
    fn may_have(&self, earlier: &[Wait], ask: &Ask) -> bool {
        let covered = |locks: &FileLocks| locks.covers(ask.owner, ask.span());
        held_by(&self.files, ask).next().is_none()
            && (queued_before(earlier, ask).next().is_none()
                || self.files.get(&ask.file).is_some_and(covered))
    }

    /// Grant all waits that can be: those of the files `touched`, and all others as well once the
    /// wait-for graph has a new edge (`edge`), which may close a cycle of the queue's making.
    fn settle(&mut self, mut touched: BTreeSet<FileId>, mut edge: bool, step: &mut Step) {
        loop {
            if std::mem::take(&mut edge) {
                touched = self.waits.keys().copied().collect();
            }
            let before = step.granted.len();
            for file in &touched {
                self.settle_file(*file, step);
            }
            edge = step.granted[before..].iter().any(|wait| self.is_waiting(wait.ask.owner));
            if step.granted.len() == before {
                return;
            }
        }
    }

    /// One walk along a file's queue.
    fn settle_file(&mut self, file: FileId, step: &mut Step) {
        let mut from = 0;
        while let Some(at) = self.next_grant(file, from) {
            let Some(queue) = self.waits.get_mut(&file) else { return };
            let wait = queue.remove(at);
            if queue.is_empty() {
                self.waits.remove(&file);
            }
            self.grant(&wait.ask, step);
            step.granted.push(wait);
            from = at;
        }
    }

    /// Where in a file's queue, from a place on, the next wait is that can be granted.
    fn next_grant(&self, file: FileId, from: usize) -> Option<usize> {
        let queue = self.waits.get(&file)?;
        let mut graph = None;
        (from..queue.len()).find(|at| {
            let (earlier, ask) = (&queue[..*at], &queue[*at].ask);
            if held_by(&self.files, ask).next().is_some() {
                return false;
            }
            self.may_have(earlier, ask) || {
                let graph = graph.get_or_insert_with(|| Graph::new(&self.files, &self.waits));
                graph.reaches(queued_before(earlier, ask), ask.owner, Edges::All)
            }
        })
    }

    fn grant(&mut self, ask: &Ask, step: &mut Step) {
        self.change(ask.file, step, |locks| locks.grant(ask));
    }

    /// A flock that can't be converted at once is given up first, as Linux does.
    fn lose_converted(&mut self, ask: &Ask, step: &mut Step) {
        if ask.owner.kind == Kind::Flock {
            self.change(ask.file, step, |locks| locks.unlock(ask.owner, Range::WHOLE));
        }
    }

    /// Change a file's record; `how` tells whether it did.
    fn change(&mut self, file: FileId, step: &mut Step, how: impl FnOnce(&mut FileLocks) -> bool) {
        let locks = self.files.entry(file).or_default();
        if how(locks) {
            step.changed.insert(file);
        }
        if locks.is_empty() {
            self.files.remove(&file);
        }
    }

    fn drop_waits(&mut self, file: FileId, step: &mut Step, which: impl Fn(&Wait) -> bool) {
        let Some(queue) = self.waits.get_mut(&file) else { return };
        step.dropped.extend(queue.extract_if(.., |wait| which(wait)));
        if queue.is_empty() {
            self.waits.remove(&file);
        }
    }

    fn find(&self, session: Generation, request: RequestId) -> Option<Wait> {
        let is_it = |wait: &&Wait| wait.request == request && wait.ask.owner.session == session;
        self.waits.values().flatten().find(is_it).copied()
    }

    fn is_waiting(&self, owner: Owner) -> bool {
        self.waits.values().flatten().any(|wait| wait.ask.owner == owner)
    }
}

/// The request with a range that means what it says.
fn normal(ask: &Ask) -> Option<Ask> {
    let range = if ask.owner.kind == Kind::Flock { Range::WHOLE } else { ask.range };
    range.is_valid().then_some(Ask { range, ..*ask })
}
