//! Random schedules on a slot: every request is submitted and answered exactly once, to the right
//! backing, and the waiters fire at the right moment.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use block_mirror::{Completion, Disk, DiskError, DiskResult, DiskSlot, Request, Response, SharedDisk};
use proptest::prelude::*;

/// Keeps what it is given until the test completes it.
#[derive(Default)]
struct Parking {
    name: usize,
    parked: Mutex<Vec<(u64, Completion)>>,
    /// The requests in the order in which they came.
    seen: Mutex<Vec<u64>>,
}

impl Disk for Parking {
    fn submit(&self, request: Request, done: Completion) {
        let Request::Read { offset, .. } = request else { panic!("unexpected {request:?}") };
        self.seen.lock().unwrap().push(offset);
        self.parked.lock().unwrap().push((offset, done));
    }
    fn describe(&self) -> String {
        self.name.to_string()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Submit,
    Finish(usize, usize),
    Hold,
    Release,
    Swap,
    Drained,
    Close,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => Just(Op::Submit),
        10 => (any::<usize>(), any::<usize>()).prop_map(|(disk, index)| Op::Finish(disk, index)),
        2 => Just(Op::Hold),
        2 => Just(Op::Release),
        2 => Just(Op::Swap),
        2 => Just(Op::Drained),
        1 => Just(Op::Close),
    ]
}

/// What the slot should look like, kept apart from it.
struct Model {
    disks: Vec<Arc<Parking>>,
    held: Vec<u64>,
    holding: bool,
    closed: bool,
    waiters: Vec<ModelWaiter>,
}

struct ModelWaiter {
    fired: Arc<AtomicU64>,
    /// The (disk, request) pairs that must end first; `None` for "whatever is in flight".
    waits: Option<Vec<(usize, u64)>>,
    was_due: bool,
}

fn run(ops: Vec<Op>) {
    let first = Arc::new(Parking::default());
    let slot = DiskSlot::new(first.clone());
    let mut model =
        Model { disks: vec![first], held: vec![], holding: false, closed: false, waiters: vec![] };
    let answers: Arc<Mutex<Vec<(u64, DiskResult)>>> = Arc::default();
    let mut expected_answers: Vec<(u64, DiskResult)> = vec![];
    let mut next = 0;
    for op in ops.into_iter().chain([Op::Release, Op::Close]) {
        let current = model.disks.last().unwrap().clone();
        match op {
            Op::Submit => {
                let id = next;
                next += 1;
                let seen = current.seen.lock().unwrap().len();
                let answers = answers.clone();
                let done = Box::new(move |result| answers.lock().unwrap().push((id, result)));
                slot.submit(Request::Read { offset: id, len: 1 }, done);
                if model.closed {
                    expected_answers.push((id, Err(DiskError::Closed)));
                } else if model.holding {
                    model.held.push(id);
                } else {
                    assert_eq!(current.seen.lock().unwrap()[seen..], [id]);
                }
            }
            Op::Finish(disk, index) => {
                let disk = &model.disks[disk % model.disks.len()];
                let mut parked = disk.parked.lock().unwrap();
                if parked.is_empty() {
                    continue;
                }
                let index = index % parked.len();
                let (id, done) = parked.remove(index);
                drop(parked);
                done(Ok(Response::Done));
                expected_answers.push((id, Ok(Response::Done)));
            }
            Op::Hold => {
                slot.hold();
                model.holding = !model.closed;
            }
            Op::Release => {
                let seen = current.seen.lock().unwrap().len();
                slot.release();
                assert_eq!(current.seen.lock().unwrap()[seen..], model.held[..]);
                model.held.clear();
                model.holding = false;
            }
            Op::Swap => {
                let new = Arc::new(Parking { name: model.disks.len(), ..Parking::default() });
                let fired = Arc::new(AtomicU64::new(0));
                let counter = fired.clone();
                let parked = current.parked.lock().unwrap();
                let waits = parked.iter().map(|(id, _)| (current.name, *id)).collect();
                drop(parked);
                model.waiters.push(ModelWaiter { fired, waits: Some(waits), was_due: false });
                model.disks.push(new.clone());
                let old = slot.swap_then(new as SharedDisk, move || {
                    counter.fetch_add(1, Ordering::SeqCst);
                });
                assert_eq!(old.describe(), current.describe());
            }
            Op::Drained => {
                let fired = Arc::new(AtomicU64::new(0));
                let counter = fired.clone();
                model.waiters.push(ModelWaiter { fired, waits: None, was_due: false });
                slot.on_drained(move || {
                    counter.fetch_add(1, Ordering::SeqCst);
                });
            }
            Op::Close => {
                slot.close();
                let closed = model.held.drain(..).map(|id| (id, Err(DiskError::Closed)));
                expected_answers.extend(closed);
                (model.holding, model.closed) = (false, true);
            }
        }
        check(&slot, &mut model);
        assert_eq!(*answers.lock().unwrap(), expected_answers);
    }
}

fn check(slot: &DiskSlot, model: &mut Model) {
    let parked = |disk: &Arc<Parking>| disk.parked.lock().unwrap().len() as u64;
    let in_flight: u64 = model.disks.iter().map(parked).sum();
    assert_eq!(slot.in_flight(), in_flight);
    assert_eq!(slot.is_holding(), model.holding);
    for ModelWaiter { fired, waits, was_due } in &mut model.waiters {
        let still = |(disk, id): &(usize, u64)| {
            model.disks[*disk].parked.lock().unwrap().iter().any(|(parked, _)| parked == id)
        };
        *was_due |= waits.as_ref().map_or(in_flight == 0, |waits| !waits.iter().any(still));
        assert_eq!(fired.load(Ordering::SeqCst), u64::from(*was_due));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_request_once_and_waiters_in_time(ops in prop::collection::vec(op(), 0..60)) {
        run(ops);
    }
}

#[test]
fn a_completion_may_submit_and_a_waiter_may_release() {
    let disk = Arc::new(Parking::default());
    let slot = Arc::new(DiskSlot::new(disk.clone()));
    let again = slot.clone();
    slot.submit(
        Request::Read { offset: 1, len: 1 },
        Box::new(move |_| again.submit(Request::Read { offset: 2, len: 1 }, Box::new(|_| {}))),
    );
    slot.hold();
    let waiting = slot.clone();
    slot.on_drained(move || waiting.release());
    let (_, done) = disk.parked.lock().unwrap().pop().unwrap();
    done(Ok(Response::Done));
    assert_eq!(*disk.seen.lock().unwrap(), [1, 2]);
    assert_eq!(slot.in_flight(), 1);
}
