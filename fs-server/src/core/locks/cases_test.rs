//! The classic cases, one by one.

use proto::{FileId, Generation, RequestId};

use super::Mode::{Exclusive, Shared};
use super::*;

const FILE: FileId = FileId(1);
const OTHER: FileId = FileId(2);

fn owner(session: u64, kind: Kind) -> Owner {
    Owner { session: Generation(session), id: 7, kind }
}

fn posix(session: u64, start: u64, end: u64, mode: Mode) -> Ask {
    Ask {
        file: FILE,
        owner: owner(session, Kind::Posix),
        pid: 40 + session as u32,
        range: Range::new(start, end),
        mode,
    }
}

fn flock(session: u64, mode: Mode) -> Ask {
    Ask { owner: owner(session, Kind::Flock), ..posix(session, 0, u64::MAX, mode) }
}

/// A table where requests are numbered by themselves.
#[derive(Default)]
struct Desk {
    table: LockTable,
    requests: u64,
}

impl Desk {
    fn lock(&mut self, ask: Ask) -> Answer {
        self.requests += 1;
        let (answer, step) = self.table.lock(RequestId(self.requests), &ask);
        assert!(step.granted.is_empty() && step.dropped.is_empty(), "{step:?}");
        answer
    }

    fn has(&mut self, ask: Ask) {
        assert_eq!(self.lock(ask), Answer::Granted, "{ask:?}");
    }

    fn waits(&mut self, ask: Ask) {
        let answer = self.lock(ask);
        assert!(matches!(answer, Answer::Waiting(_)), "{ask:?}: {answer:?}");
    }

    fn unlock(&mut self, ask: Ask) -> Vec<Ask> {
        asks(self.table.unlock(ask.file, ask.owner, ask.range).granted)
    }

    fn spans(&self) -> Vec<(u64, u64, Mode)> {
        let holders = self.table.list(FILE).holders;
        holders.iter().map(|h| (h.span.range.start, h.span.range.end, h.span.mode)).collect()
    }
}

fn asks(waits: Vec<Wait>) -> Vec<Ask> {
    waits.into_iter().map(|wait| wait.ask).collect()
}

#[test]
fn ranges_split_merge_upgrade_and_downgrade() {
    let mut desk = Desk::default();
    desk.has(posix(1, 0, 99, Shared));
    desk.has(posix(1, 40, 59, Exclusive));
    assert_eq!(desk.spans(), [(0, 39, Shared), (40, 59, Exclusive), (60, 99, Shared)]);
    desk.has(posix(1, 40, 59, Shared));
    assert_eq!(desk.spans(), [(0, 99, Shared)]);
    desk.unlock(posix(1, 10, 19, Shared));
    assert_eq!(desk.spans(), [(0, 9, Shared), (20, 99, Shared)]);
    desk.has(posix(1, 100, u64::MAX, Shared));
    desk.has(posix(1, 10, 19, Shared));
    assert_eq!(desk.spans(), [(0, u64::MAX, Shared)]);
    desk.unlock(posix(1, u64::MAX, u64::MAX, Shared));
    assert_eq!(desk.spans(), [(0, u64::MAX - 1, Shared)]);
    desk.unlock(posix(1, 0, u64::MAX, Shared));
    assert!(desk.table.is_empty());
}

#[test]
fn the_end_of_the_file_goes_through_fuse_and_back() {
    let end = i64::MAX as u64;
    assert_eq!(Range::from_fuse(5, end), Range::new(5, u64::MAX));
    assert_eq!(Range::from_fuse(5, end).fuse_end(), end);
    assert_eq!(Range::from_fuse(5, 9).fuse_end(), 9);
}

#[test]
fn a_test_names_the_first_holder_in_the_way() {
    let mut desk = Desk::default();
    desk.has(posix(1, 50, 59, Exclusive));
    desk.has(posix(2, 10, 19, Shared));
    let first = desk.table.test(&posix(3, 0, 99, Exclusive)).expect("a conflict");
    assert_eq!((first.owner.session, first.pid), (Generation(2), 42));
    let first = desk.table.test(&posix(3, 0, 99, Shared)).expect("a conflict");
    assert_eq!((first.owner.session, first.pid, first.span.range.start), (Generation(1), 41, 50));
    assert_eq!(desk.table.test(&posix(3, 0, 49, Shared)), None);
    assert_eq!(desk.table.try_lock(&posix(3, 0, 99, Shared)).0, Answer::Conflict(first));
}

#[test]
fn qemu_on_another_host_is_refused() {
    let mut desk = Desk::default();
    for byte in [100, 101, 201] {
        let (answer, _) = desk.table.try_lock(&posix(1, byte, byte, Shared));
        assert_eq!(answer, Answer::Granted);
    }
    assert_eq!(desk.table.test(&posix(2, 100, 100, Exclusive)).map(|h| h.pid), Some(41));
    // Its descriptor is closed: nobody unlocks, the handle's owner is released.
    let step = desk.table.release_owner(FILE, owner(1, Kind::Posix));
    assert_eq!(step.changed, [FILE].into());
    assert_eq!(desk.table.test(&posix(2, 100, 100, Exclusive)), None);
}

#[test]
fn posix_and_flock_dont_meet_but_ofd_and_posix_do() {
    let mut desk = Desk::default();
    desk.has(flock(1, Exclusive));
    desk.has(posix(2, 0, 9, Exclusive));
    let ofd = Ask { owner: owner(3, Kind::Ofd), ..posix(3, 9, 9, Shared) };
    assert!(matches!(desk.table.try_lock(&ofd).0, Answer::Conflict(_)));
}

#[test]
fn readers_dont_starve_a_writer() {
    let mut desk = Desk::default();
    let (reader, writer, late) = (posix(1, 0, 9, Shared), posix(2, 0, 9, Exclusive), posix(3, 5, 6, Shared));
    desk.has(reader);
    desk.waits(writer);
    desk.waits(late);
    desk.has(posix(4, 10, 19, Shared));
    assert_eq!(desk.unlock(reader), [writer]);
    assert_eq!(desk.unlock(writer), [late]);
}

#[test]
fn a_waiting_writer_doesnt_stop_the_one_it_waits_for() {
    let mut desk = Desk::default();
    desk.has(posix(1, 0, 9, Shared));
    let writer = posix(2, 0, 19, Exclusive);
    desk.waits(writer);
    desk.has(posix(1, 2, 3, Shared));
    // More than it has, yet the writer waits for it anyhow.
    desk.has(posix(1, 5, 19, Exclusive));
    assert_eq!(desk.unlock(posix(1, 0, 9, Shared)), []);
    assert_eq!(desk.unlock(posix(1, 0, 19, Shared)), [writer]);
}

#[test]
fn the_queue_makes_no_deadlock_that_holders_dont() {
    let mut desk = Desk::default();
    let theirs = Ask { file: OTHER, ..posix(3, 0, 9, Exclusive) };
    desk.has(posix(1, 0, 9, Shared));
    desk.has(theirs);
    desk.waits(posix(2, 0, 9, Exclusive));
    let behind = posix(3, 0, 9, Shared);
    desk.waits(behind);
    // 1 waits for 3, 3 for its turn after 2, 2 for 1: so 3 need not wait for its turn.
    let (answer, step) = desk.table.lock(RequestId(99), &Ask { file: OTHER, ..posix(1, 0, 9, Exclusive) });
    assert!(matches!(answer, Answer::Waiting(_)));
    assert_eq!(asks(step.granted), [behind]);
}

#[test]
fn posix_deadlocks_are_refused_across_files_and_sessions() {
    let at = |file, session| Ask { file: FileId(file), ..posix(session, 0, 0, Exclusive) };
    let mut desk = Desk::default();
    for n in 1..4 {
        desk.has(at(n, n));
    }
    desk.waits(at(2, 1));
    desk.waits(at(3, 2));
    assert_eq!(desk.lock(at(1, 3)), Answer::Deadlock);
    assert_eq!(desk.lock(at(1, 3)), Answer::Deadlock, "the same again");
    let step = desk.table.cancel(Generation(1), RequestId(4));
    assert_eq!((asks(step.dropped), step.granted), (vec![at(2, 1)], vec![]));
    desk.waits(at(1, 3));
}

#[test]
fn two_readers_that_upgrade_deadlock() {
    let mut desk = Desk::default();
    desk.has(posix(1, 0, 9, Shared));
    desk.has(posix(2, 0, 9, Shared));
    desk.waits(posix(1, 0, 9, Exclusive));
    assert_eq!(desk.lock(posix(2, 0, 9, Exclusive)), Answer::Deadlock);
}

#[test]
fn ofd_and_flock_cycles_are_left_alone() {
    for kind in [Kind::Ofd, Kind::Flock] {
        let at = |file, session| Ask {
            file: FileId(file),
            owner: owner(session, kind),
            ..posix(session, 0, 0, Exclusive)
        };
        let mut desk = Desk::default();
        desk.has(at(1, 1));
        desk.has(at(2, 2));
        desk.waits(at(2, 1));
        desk.waits(at(1, 2));
    }
}

#[test]
fn a_flock_is_lost_when_its_conversion_has_to_wait() {
    let mut desk = Desk::default();
    desk.has(flock(1, Shared));
    desk.has(flock(1, Exclusive));
    desk.has(flock(1, Shared));
    desk.has(flock(2, Shared));
    // Refused, and nothing left of it: so 2 converts at once.
    assert!(matches!(desk.table.try_lock(&flock(1, Exclusive)).0, Answer::Conflict(_)));
    desk.has(flock(2, Exclusive));
    desk.has(flock(2, Shared));
    desk.has(flock(1, Shared));
    desk.waits(flock(1, Exclusive));
    assert_eq!(desk.spans(), [(0, u64::MAX, Shared)]);
    assert_eq!(desk.unlock(flock(2, Shared)), [flock(1, Exclusive)]);
}

#[test]
fn a_request_that_comes_again_keeps_its_ticket() {
    let mut desk = Desk::default();
    desk.has(posix(1, 0, 9, Exclusive));
    let ask = posix(2, 0, 9, Shared);
    let first = desk.table.lock(RequestId(50), &ask).0;
    assert_eq!(desk.table.lock(RequestId(50), &ask), (first, Step::default()));
    assert_eq!(desk.table.lock(RequestId(50), &posix(2, 0, 8, Shared)).0, Answer::Invalid);
    assert_eq!(desk.table.lock(RequestId(51), &posix(2, 9, 8, Shared)).0, Answer::Invalid);
    assert_eq!(desk.unlock(posix(1, 0, 9, Exclusive)), [ask]);
    assert_eq!(desk.table.lock(RequestId(50), &ask), (Answer::Granted, Step::default()));
}

#[test]
fn a_session_that_ends_leaves_nothing_and_wakes_others() {
    let mut desk = Desk::default();
    desk.has(posix(1, 0, 9, Exclusive));
    desk.has(flock(1, Exclusive));
    desk.has(posix(2, 20, 29, Shared));
    let (theirs, next, last) = (posix(1, 15, 25, Exclusive), flock(3, Shared), posix(3, 15, 16, Shared));
    desk.waits(theirs);
    desk.waits(next);
    desk.waits(last);
    let step = desk.table.release_session(Generation(1));
    assert_eq!((asks(step.granted), asks(step.dropped)), (vec![next, last], vec![theirs]));
    assert_eq!(desk.table.list_all().flat_map(|l| l.holders).filter(|h| h.owner.session.0 == 1).count(), 0);
}

#[test]
fn a_flush_keeps_what_another_thread_waits_for() {
    let mut desk = Desk::default();
    desk.has(posix(1, 0, 9, Exclusive));
    desk.has(posix(2, 20, 29, Exclusive));
    desk.waits(posix(2, 0, 9, Exclusive));
    let step = desk.table.flush(FILE, owner(2, Kind::Posix));
    assert_eq!((step.dropped, step.changed), (vec![], [FILE].into()));
    assert_eq!(desk.unlock(posix(1, 0, 9, Exclusive)), [posix(2, 0, 9, Exclusive)]);
}

#[test]
fn a_file_takes_its_locks_along_and_its_waits_come_after() {
    let mut desk = Desk::default();
    desk.has(posix(1, 0, 9, Exclusive));
    desk.waits(posix(2, 0, 9, Exclusive));
    let record = desk.table.export(FILE).cloned().expect("locked");
    let step = desk.table.release_file(FILE);
    assert_eq!((asks(step.dropped), step.changed), (vec![posix(2, 0, 9, Exclusive)], [FILE].into()));
    assert!(desk.table.is_empty());

    let mut there = Desk::default();
    let record = record.with_sessions(|g| Some(Generation(g.0 + 10)));
    assert_eq!(there.table.import(FILE, record.clone()).map(|s| s.changed), Ok([FILE].into()));
    there.waits(posix(12, 0, 9, Exclusive));
    assert_eq!(there.table.import(FILE, FileLocks::default()), Err(ImportError::Occupied));
    assert_eq!(there.unlock(posix(11, 0, 9, Exclusive)), [posix(12, 0, 9, Exclusive)]);

    // Two of its sessions can't be one there.
    let mut shared = Desk::default();
    shared.has(posix(1, 0, 9, Shared));
    shared.has(posix(2, 0, 9, Shared));
    let both = shared.table.export(FILE).cloned().expect("locked");
    let one = both.with_sessions(|_| Some(Generation(5)));
    assert_eq!(LockTable::default().import(FILE, one), Err(ImportError::Unsound));
}

#[test]
fn an_owner_that_overtakes_may_close_a_cycle_elsewhere() {
    let at = |file, session, start, end, mode| Ask { file: FileId(file), ..posix(session, start, end, mode) };
    let mut desk = Desk::default();
    let last = at(1, 8, 10, 10, Exclusive);
    for held in [
        at(1, 6, 0, 4, Shared),
        at(1, 7, 5, 9, Shared),
        last,
        at(2, 1, 0, 0, Exclusive),
        at(3, 3, 0, 0, Shared),
        at(4, 5, 0, 0, Exclusive),
    ] {
        desk.has(held);
    }
    let (overtakes, elsewhere) = (at(1, 1, 0, 10, Shared), at(3, 5, 0, 0, Shared));
    for wanted in [
        at(1, 2, 0, 4, Exclusive),
        at(1, 3, 5, 9, Exclusive),
        overtakes,
        at(2, 6, 0, 0, Exclusive),
        at(4, 1, 0, 0, Exclusive),
        at(3, 4, 0, 0, Exclusive),
        elsewhere,
    ] {
        desk.waits(wanted);
    }
    // 1 overtakes 2, which waits for 6, which waits for 1. Now 3 waits for 1, whose other thread
    // waits for 5, which has its turn after 4, which waits for 3.
    assert_eq!(desk.unlock(last), [overtakes, elsewhere]);
}
