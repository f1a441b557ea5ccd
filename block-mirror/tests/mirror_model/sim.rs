//! Two disks in memory, the ops in flight to them, and the checks.

use std::collections::BTreeMap;
use std::ops::Range;

use block_mirror::{
    Bitmap, DiskError, Extent, GuestId, Input, MirrorConfig, MirrorCore, Mutation, OpId, Outcome, Output,
    Phase, Side,
};

/// Bytes per region: small, so that small disks have many.
pub const REGION: u64 = 16;

/// A plain disk: its bytes, and which were ever written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plain {
    pub bytes: Vec<u8>,
}

impl Plain {
    /// # Panics
    /// When the two differ, saying where.
    pub fn assert_same(&self, other: &Plain, what: &str) {
        let place = self.bytes.iter().zip(&other.bytes).position(|(a, b)| a != b);
        assert!(
            self == other,
            "{what}: {} and {} bytes, first difference at {place:?}",
            self.bytes.len(),
            other.bytes.len()
        );
    }

    pub fn read(&self, range: Range<u64>) -> Vec<u8> {
        range.map(|at| self.bytes.get(at as usize).copied().unwrap_or(0)).collect()
    }

    fn extend(&mut self, end: u64) {
        if self.bytes.len() < end as usize {
            self.bytes.resize(end as usize, 0);
        }
    }

    fn put(&mut self, range: Range<u64>, value: u8) {
        let end = (range.end as usize).min(self.bytes.len());
        self.bytes[(range.start as usize).min(end)..end].fill(value);
    }

    pub fn apply(&mut self, mutation: &Mutation, value: u8) {
        match mutation {
            Mutation::Write(range) => {
                if !range.is_empty() {
                    self.extend(range.end);
                }
                self.put(range.clone(), value);
            }
            Mutation::Discard(range) => self.put(range.clone(), 0),
            Mutation::Zero { range, keep_size } => {
                if !keep_size {
                    self.extend(range.end);
                }
                self.put(range.clone(), 0);
            }
            Mutation::Allocate { range, keep_size } => {
                if !keep_size {
                    self.extend(range.end);
                }
            }
            Mutation::Resize { size } => self.bytes.resize(*size as usize, 0),
        }
    }
}

/// An op that was issued: what it does to the disks happens at a moment of its own, before its end.
#[derive(Clone, Debug)]
pub struct InFlight {
    pub what: Output,
    pub step: Step,
}

#[derive(Clone, Debug)]
pub enum Step {
    Issued,
    /// A copy has read these bytes.
    Read(Vec<u8>),
    /// A map has seen this.
    Seen(Vec<Extent>, u64),
    /// It has happened and its end can be reported.
    Happened,
    /// It is going to fail so.
    Failing(Side, DiskError),
}

#[derive(Debug)]
pub struct Guest {
    pub mutation: Mutation,
    pub value: u8,
    /// Ops to the side that answers: issued, ended.
    pub issued: u32,
    pub ended: u32,
    pub answered: bool,
}

pub struct Sim {
    pub core: MirrorCore,
    pub now: u64,
    pub wake: Option<u64>,
    pub source: Plain,
    pub destination: Plain,
    pub ops: BTreeMap<OpId, InFlight>,
    pub guests: BTreeMap<GuestId, Guest>,
    /// In flight to the source from before the mirror was attached.
    pub before: Vec<(Mutation, u8)>,
    pub failed: bool,
    pub steps: u64,
    /// What the last flush of the destination kept for sure.
    pub flushed: Plain,
}

impl Sim {
    pub fn new(config: MirrorConfig, source: Plain) -> Sim {
        let bitmap = Bitmap::heap_with(0, REGION as u32).unwrap();
        Sim {
            core: MirrorCore::new(bitmap, config).unwrap(),
            now: 0,
            wake: None,
            source,
            destination: Plain::default(),
            ops: BTreeMap::new(),
            guests: BTreeMap::new(),
            before: Vec::new(),
            failed: false,
            steps: 0,
            flushed: Plain::default(),
        }
    }

    pub fn input(&mut self, input: Input) {
        let mut outputs = Vec::new();
        self.core.step(self.now, input, &mut outputs);
        self.steps += 1;
        for output in outputs {
            self.take(output);
        }
        self.check();
    }

    fn take(&mut self, output: Output) {
        match output {
            Output::Guest { op, guest, side, answers } => {
                let expected =
                    if self.core.phase() == Phase::Switched { Side::Destination } else { Side::Source };
                assert_eq!(answers, side == expected, "{side:?} answers in {:?}", self.core.phase());
                let known = self.guests.get_mut(&guest).unwrap();
                assert!(!known.answered, "{guest:?} issued after its answer");
                known.issued += u32::from(answers);
                assert!(known.issued <= 1, "{guest:?} issued twice");
                self.put_op(op, output);
            }
            Output::Answer { guest } => {
                let guest = self.guests.get_mut(&guest).unwrap();
                assert!(!guest.answered, "answered twice");
                assert_eq!(guest.ended, 1, "answered before its op ended");
                guest.answered = true;
            }
            Output::Copy { op, .. }
            | Output::Map { op, .. }
            | Output::FlushDestination { op }
            | Output::ResizeDestination { op, .. } => self.put_op(op, output),
            Output::WakeAt(at) => self.wake = Some(at),
            Output::Phase(_) => {}
            Output::Failed(_) => self.failed = true,
        }
    }

    fn put_op(&mut self, op: OpId, what: Output) {
        let before = self.ops.insert(op, InFlight { what, step: Step::Issued });
        assert!(before.is_none(), "{op:?} issued twice");
    }

    /// The promises, looked at.
    fn check(&self) {
        self.core.check_invariants();
        let regions = (self.source.bytes.len().max(self.destination.bytes.len()) as u64).div_ceil(REGION);
        for region in 0..regions {
            if self.core.is_settled(region) {
                let span = region * REGION..(region + 1) * REGION;
                assert_eq!(
                    self.source.read(span.clone()),
                    self.destination.read(span),
                    "region {region} is said to be settled; {:?}",
                    self.core.phase()
                );
            }
        }
        for (id, guest) in &self.guests {
            let waits = guest.issued == 0 && !guest.answered;
            assert!(!(waits && self.core.phase().is_over()), "{id:?} waits after the end");
        }
    }

    /// Guest requests without an answer.
    pub fn unanswered(&self) -> usize {
        self.guests.values().filter(|guest| !guest.answered).count()
    }

    /// One thing happens to op number `index`: it reads, or takes effect, or ends.
    pub fn advance(&mut self, index: usize) {
        let Some(op) = self.ops.keys().nth(index % self.ops.len().max(1)).copied() else { return };
        let InFlight { what, step } = self.ops.remove(&op).unwrap();
        let next = match (&what, step) {
            (_, Step::Failing(side, error)) => {
                return self.end(op, what, Outcome::Failed { side, error });
            }
            (Output::Guest { guest, side, .. }, Step::Issued) => {
                let (mutation, value) = (self.guests[guest].mutation.clone(), self.guests[guest].value);
                self.disk(*side).apply(&mutation, value);
                Step::Happened
            }
            (Output::Copy { offset, len, read_len, .. }, Step::Issued) => {
                let mut data = self.source.read(*offset..*offset + *read_len);
                data.resize(*len as usize, 0);
                Step::Read(data)
            }
            (Output::Copy { offset, len, read_len, fresh, .. }, Step::Read(data)) => {
                self.land(*offset, &data, *read_len, *fresh);
                return self.end(op, what.clone(), Outcome::Copied { written: *len, zeroes: 0 });
            }
            (Output::Map { offset, len, .. }, Step::Issued) => self.look(*offset, *len),
            (Output::Map { .. }, Step::Seen(extents, upto)) => {
                return self.end(op, what.clone(), Outcome::Mapped { extents, upto });
            }
            (Output::ResizeDestination { size, .. }, Step::Issued) => {
                self.destination.apply(&Mutation::Resize { size: *size }, 0);
                Step::Happened
            }
            (Output::FlushDestination { .. }, Step::Issued) => {
                self.flushed = self.destination.clone();
                Step::Happened
            }
            (_, Step::Happened) => return self.end(op, what, Outcome::Done),
            (what, step) => panic!("{what:?} in {step:?}"),
        };
        self.ops.insert(op, InFlight { what, step: next });
    }

    /// Op number `index` fails, having taken effect on the first `done` bytes or not at all.
    pub fn break_op(&mut self, index: usize, done: u64, error: DiskError, of_source: bool) {
        let Some(op) = self.ops.keys().nth(index % self.ops.len().max(1)).copied() else { return };
        let InFlight { what, step } = self.ops.remove(&op).unwrap();
        let (side, step) = match (&what, step) {
            (_, step @ (Step::Happened | Step::Failing(..))) => (Side::Source, step),
            (Output::Guest { guest, side, .. }, _) => {
                let (mutation, value) = (self.guests[guest].mutation.clone(), self.guests[guest].value);
                if let Mutation::Write(range) = &mutation {
                    let disk = self.disk(*side);
                    // A failed write reaches no further than the disk did.
                    let end = range.end.min(range.start + done).min(disk.bytes.len() as u64);
                    disk.put(range.start.min(end)..end, value);
                }
                (*side, Step::Failing(*side, error))
            }
            (Output::Copy { offset, read_len, fresh, .. }, Step::Read(data)) if !of_source => {
                let done = (done as usize).min(data.len());
                self.land(*offset, &data[..done], *read_len, *fresh);
                (Side::Destination, Step::Failing(Side::Destination, error))
            }
            (Output::Copy { .. } | Output::Map { .. }, _) => {
                (Side::Source, Step::Failing(Side::Source, error))
            }
            _ => (Side::Destination, Step::Failing(Side::Destination, error)),
        };
        let _ = side;
        self.ops.insert(op, InFlight { what, step });
    }

    fn end(&mut self, op: OpId, what: Output, outcome: Outcome) {
        if let Output::Guest { guest, answers: true, .. } = &what {
            self.guests.get_mut(guest).unwrap().ended += 1;
        }
        self.input(Input::Done { op, outcome });
    }

    fn disk(&mut self, side: Side) -> &mut Plain {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }

    /// What a copier does: nonzero blocks are written, zeroes are discarded unless never written,
    /// and nothing is written past what was read.
    fn land(&mut self, offset: u64, data: &[u8], read_len: u64, fresh: bool) {
        const BLOCK: usize = 4;
        let read = &data[..data.len().min(read_len as usize)];
        if !fresh {
            self.destination.put(offset + read_len..offset + data.len() as u64, 0);
        }
        for (index, block) in read.chunks(BLOCK).enumerate() {
            let start = offset + (index * BLOCK) as u64;
            let range = start..start + block.len() as u64;
            if block.iter().any(|byte| *byte != 0) {
                self.destination.extend(range.end);
                self.destination.bytes[start as usize..][..block.len()].copy_from_slice(block);
            } else if !fresh {
                self.destination.put(range, 0);
            }
        }
    }

    /// Nonzero regions count as allocated; at most three of them per page.
    fn look(&mut self, offset: u64, len: u64) -> Step {
        let end = (offset + len).min(self.source.bytes.len() as u64);
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < 3 {
            let stop = ((at / REGION + 1) * REGION).min(end);
            if self.source.read(at..stop).iter().any(|byte| *byte != 0) {
                extents.push(Extent { offset: at, len: stop - at });
            }
            at = stop;
        }
        Step::Seen(extents, at)
    }

    /// The destination forgets what was not flushed, wholly or in part.
    pub fn lose(&mut self, from: u64) {
        let mut kept = self.flushed.clone();
        kept.bytes.resize(self.destination.bytes.len(), 0);
        for at in (from as usize).min(kept.bytes.len())..kept.bytes.len() {
            self.destination.bytes[at] = kept.bytes[at];
        }
        if from.is_multiple_of(2) {
            self.destination.bytes.resize(self.flushed.bytes.len(), 0);
        }
        self.input(Input::DestinationLost);
    }
}
