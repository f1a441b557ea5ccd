//! Random requests of several owners, sessions and files: the model says of each grant whether it
//! may be, and whether one is missing.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proto::{FileId, Generation, RequestId};

use super::byte_model::{BYTES, Model, range};
use super::*;

const FILES: u64 = 3;

/// The table beside the model, and a store that sees only the records said to have changed.
#[derive(Default)]
struct Pair {
    table: LockTable,
    model: Model,
    store: BTreeMap<FileId, FileLocks>,
    requests: u64,
}

impl Pair {
    fn lose_flock(&mut self, ask: &Ask) {
        if ask.owner.kind == Kind::Flock {
            self.model.set(ask.file, ask.owner, Range::WHOLE, None);
        }
    }

    fn try_lock(&mut self, ask: &Ask) {
        let conflict = self.model.first_conflict(ask);
        let tested = self.table.test(ask);
        assert_eq!(tested.map(|h| (h.span.range.start, h.owner, h.span)), conflict, "{ask:?}");
        let (answer, step) = self.table.try_lock(ask);
        match tested {
            Some(holder) => {
                assert_eq!(answer, Answer::Conflict(holder));
                self.lose_flock(ask);
            }
            None => {
                assert_eq!(answer, Answer::Granted);
                self.model.set(ask.file, ask.owner, ask.range, Some(ask.mode));
            }
        }
        self.check(step);
    }

    fn lock(&mut self, ask: &Ask) {
        self.requests += 1;
        let request = RequestId(self.requests);
        let deadlock = self.model.would_deadlock(ask);
        let (answer, step) = self.table.lock(request, ask);
        assert_eq!(answer == Answer::Deadlock, deadlock, "{ask:?}: {answer:?}");
        if deadlock {
            assert_eq!(step, Step::default());
            return;
        }
        if !self.model.holders_against(ask).is_empty() {
            self.lose_flock(ask);
        }
        match answer {
            Answer::Waiting(ticket) => {
                self.model.waits.push(Wait { ticket, request, ask: *ask });
                self.check(step);
            }
            Answer::Granted => {
                // Its place among the others' grants isn't told, so one of them must be right.
                let mine = Wait { ticket: Ticket(u64::MAX), request, ask: *ask };
                self.model.waits.push(mine);
                let right = (0..=step.granted.len()).find_map(|at| {
                    let mut model = self.model.clone();
                    let mut granted = step.granted.clone();
                    granted.insert(at, mine);
                    model.take_grants(&granted).then_some(model)
                });
                self.model = right.unwrap_or_else(|| panic!("{ask:?} was granted: {step:#?}"));
                let alone = !step.granted.iter().any(|wait| wait.ask.owner == ask.owner);
                self.check(Step { granted: Vec::new(), ..step });
                if alone {
                    let again = self.table.lock(request, ask);
                    assert_eq!(again, (Answer::Granted, Step::default()), "the same again");
                }
            }
            _ => panic!("{ask:?}: {answer:?}"),
        }
    }

    fn repeat(&mut self, wait: &Wait) {
        let again = self.table.lock(wait.request, &wait.ask);
        assert_eq!(again, (Answer::Waiting(wait.ticket), Step::default()));
    }

    /// Locks and waits for which `which` holds go.
    fn gone(&mut self, step: Step, locks: impl Fn(FileId, Owner) -> bool, waits: impl Fn(&Wait) -> bool) {
        let dropped: BTreeSet<_> = self.model.waits.extract_if(.., |w| waits(w)).map(|w| w.ticket).collect();
        assert_eq!(step.dropped.iter().map(|w| w.ticket).collect::<BTreeSet<_>>(), dropped);
        self.model.held.retain(|(file, owner), _| !locks(*file, *owner));
        self.check(step);
    }

    fn release_owner(&mut self, file: FileId, owner: Owner) {
        let step = self.table.release_owner(file, owner);
        self.gone(step, |f, o| (f, o) == (file, owner), |w| (w.ask.file, w.ask.owner) == (file, owner));
    }

    fn release_session(&mut self, session: Generation) {
        let step = self.table.release_session(session);
        self.gone(step, |_, o| o.session == session, |w| w.ask.owner.session == session);
    }

    /// A file moves to an empty datastore whose sessions are others, and back.
    fn round_trip(&mut self, file: FileId) {
        let Some(record) = self.table.export(file).cloned() else { return };
        let bytes = postcard::to_stdvec(&record).expect("encode");
        let record: FileLocks = postcard::from_bytes(&bytes).expect("decode");
        let there = |g: Generation| Some(Generation(100 - g.0));
        let mut other = LockTable::default();
        let moved = record.clone().with_sessions(there);
        assert_eq!(other.import(file, moved.clone()).map(|s| s.changed), Ok([file].into()));
        assert_eq!(other.import(file, moved), Ok(Step::default()), "twice is once");
        let back = other.export(file).cloned().expect("held").with_sessions(there);
        assert_eq!(back, record);
        assert_eq!(self.table.import(file, back), Ok(Step::default()), "as it was");
    }

    fn check(&mut self, step: Step) {
        assert!(self.model.take_grants(&step.granted), "{step:#?}");
        for file in &step.changed {
            match self.table.export(*file) {
                Some(record) => self.store.insert(*file, record.clone()),
                None => self.store.remove(file),
            };
        }
        let mut restarted = LockTable::default();
        for (file, record) in &self.store {
            let _ = restarted.import(*file, record.clone()).expect("a good record");
        }
        for file in (1..=FILES).map(FileId) {
            let listed = self.table.list(file);
            let owners = self.model.held.keys().filter(|(f, _)| *f == file).map(|(_, owner)| *owner);
            let expected: Vec<_> =
                owners.flat_map(|o| self.model.spans(file, o).into_iter().map(move |s| (o, s))).collect();
            let held: Vec<_> = listed.holders.iter().map(|h| (h.owner, h.span)).collect();
            assert_eq!(held, expected);
            let waits: Vec<_> = self.model.waits.iter().filter(|w| w.ask.file == file).copied().collect();
            assert_eq!(listed.waits, waits);
            assert_eq!(restarted.list(file).holders, listed.holders, "the store has it");
            for (owner, span) in &held {
                let other = |(o, s): &(Owner, Span)| {
                    o != owner
                        && o.kind.meets(owner.kind)
                        && s.range.overlaps(span.range)
                        && s.mode.conflicts(span.mode)
                };
                assert!(!held.iter().any(other), "{owner:?} is not alone: {held:#?}");
            }
        }
        let bytes = postcard::to_stdvec(&self.table).expect("encode");
        assert_eq!(postcard::from_bytes::<LockTable>(&bytes).as_ref(), Ok(&self.table));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Try(Ask),
    Lock(Ask),
    Unlock(Ask),
    Cancel(usize),
    Repeat(usize),
    Flush(Ask),
    Release(Ask),
    Session(Generation),
    File(FileId),
    Move(FileId),
}

fn ask(kinds: &'static [Kind]) -> impl Strategy<Value = Ask> {
    let mode = prop_oneof![Just(Mode::Shared), Just(Mode::Exclusive)];
    let place = prop_oneof![3 => (0..8u64, 0..5u64), 1 => (0..BYTES, 0..BYTES)];
    (1..=FILES, 1u64..3, 1u64..3, prop::sample::select(kinds), 1u32..3, place, mode).prop_map(
        |(file, session, id, kind, pid, (first, more), mode)| {
            let part = range(first, (first + more).min(BYTES - 1));
            let range = if kind == Kind::Flock { Range::WHOLE } else { part };
            let owner = Owner { session: Generation(session), id, kind };
            Ask { file: FileId(file), owner, pid, range, mode }
        },
    )
}

fn op(kinds: &'static [Kind]) -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => ask(kinds).prop_map(Op::Try),
        16 => ask(kinds).prop_map(Op::Lock),
        6 => ask(kinds).prop_map(Op::Unlock),
        2 => (0usize..8).prop_map(Op::Cancel),
        1 => (0usize..8).prop_map(Op::Repeat),
        1 => ask(kinds).prop_map(Op::Flush),
        1 => ask(kinds).prop_map(Op::Release),
        1 => (1u64..3).prop_map(|s| Op::Session(Generation(s))),
        1 => (1..=FILES).prop_map(|f| Op::File(FileId(f))),
        1 => (1..=FILES).prop_map(|f| Op::Move(FileId(f))),
    ]
}

fn run(pair: &mut Pair, op: &Op) {
    match op {
        Op::Try(ask) => pair.try_lock(ask),
        Op::Lock(ask) => pair.lock(ask),
        Op::Unlock(ask) => {
            pair.model.set(ask.file, ask.owner, ask.range, None);
            let step = pair.table.unlock(ask.file, ask.owner, ask.range);
            pair.check(step);
        }
        Op::Cancel(n) => {
            let Some(wait) = pair.model.waits.get(*n).copied() else { return };
            let step = pair.table.cancel(wait.ask.owner.session, wait.request);
            pair.gone(step, |_, _| false, |w| w.ticket == wait.ticket);
        }
        Op::Repeat(n) => {
            let Some(wait) = pair.model.waits.get(*n).copied() else { return };
            pair.repeat(&wait);
        }
        Op::Flush(ask) => {
            let step = pair.table.flush(ask.file, ask.owner);
            pair.gone(step, |f, o| (f, o) == (ask.file, ask.owner), |_| false);
        }
        Op::Release(ask) => pair.release_owner(ask.file, ask.owner),
        Op::Session(session) => pair.release_session(*session),
        Op::File(file) => {
            let step = pair.table.release_file(*file);
            pair.gone(step, |f, _| f == *file, |w| w.ask.file == *file);
        }
        Op::Move(file) => pair.round_trip(*file),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn random_requests_agree_with_the_model(
        ops in prop::collection::vec(op(&[Kind::Posix, Kind::Posix, Kind::Ofd, Kind::Flock]), 1..60),
    ) {
        let mut pair = Pair::default();
        for op in &ops {
            run(&mut pair, op);
        }
        pair.release_session(Generation(1));
        pair.release_session(Generation(2));
        prop_assert!(pair.table.is_empty(), "{:#?}", pair.table);
        prop_assert!(pair.store.is_empty());
    }

    /// Owners with one thread each: as none is ever in a cycle, all waits end when those who don't
    /// wait let go.
    #[test]
    fn posix_owners_never_wait_for_ever(ops in prop::collection::vec(op(&[Kind::Posix]), 1..80)) {
        let mut pair = Pair::default();
        for op in &ops {
            let waiting = |ask: &Ask| pair.model.waits.iter().any(|w| w.ask.owner == ask.owner);
            match op {
                Op::Try(ask) | Op::Lock(ask) | Op::Unlock(ask) if waiting(ask) => {}
                Op::Flush(ask) | Op::Release(ask) if waiting(ask) => {}
                _ => run(&mut pair, op),
            }
        }
        while !pair.model.waits.is_empty() {
            let idle = |owner: &Owner| !pair.model.waits.iter().any(|w| w.ask.owner == *owner);
            let next = pair.model.held.keys().find(|(_, owner)| idle(owner)).copied();
            let Some((file, owner)) = next else { panic!("all wait: {:#?}", pair.table) };
            pair.release_owner(file, owner);
        }
    }
}
