//! The mirror engine as a state machine: `step(now, input, &mut outputs)`.
//!
//! What it promises, with `changed` standing for "both disks may differ there":
//! - A region that is clean, and on which nothing is in flight, is the same on both disks.
//!   Whatever may break that marks the region dirty first: a write that goes to the source alone
//!   before it is issued, a copy that fails, a destination that errs.
//! - The copier clears a region's bit before it reads. A source-only write that was in flight then
//!   marks the region again when it ends, since the copy may have read what was there before.
//! - Two things that change the destination never overlap ([`super::order`]).
//! - Every guest request goes to the source exactly once, its result is the source's, and no
//!   error or delay of the destination reaches the guest for longer than the configured patience.
//! - In [`Phase::Mirror`] the guest cannot raise the dirty count, so the copy ends at any write rate.
//!
//! It moves no data, knows no clock and holds no lock; [`super::Mirror`] drives it. The parts:
//! `guest` (requests and what becomes of them), `copier` (map, copies), `phases` (transitions,
//! flushes, sizes), `retreat` (errors, delays, giving up).

use std::collections::BTreeMap;
use std::ops::Range;

use super::config::MirrorConfig;
use super::limiter::Limiter;
use super::messages::{GuestId, Input, OpId, Outcome, Output, Phase, Side};
use super::order::{Order, Stage, Ticket, Work, overlap};
use super::stats::{Progress, Stats};
use crate::{Bitmap, BitmapError};

/// What an op in flight belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpKind {
    Guest(Ticket, Side),
    Copy(Ticket),
    SetSize(Ticket),
    Map { offset: u64 },
    Flush { last: bool },
}

/// How far the source's map has been read.
#[derive(Debug, Default)]
pub(super) struct MapWalk {
    pub(super) next: u64,
    pub(super) end: u64,
    pub(super) in_flight: bool,
    pub(super) attempts: u32,
}

impl MapWalk {
    pub(super) fn done(&self) -> bool {
        self.next >= self.end
    }
}

/// What the destination was sent and not yet asked to keep.
#[derive(Debug, Default)]
pub(super) struct Flushing {
    pub(super) in_flight: bool,
    /// Bytes sent since the last flush was issued.
    pub(super) sent: u64,
    /// Something was dirty or copied after the last flush was issued.
    pub(super) unsettled: bool,
}

/// See the module's comment.
#[derive(Debug)]
pub struct MirrorCore {
    pub(super) config: MirrorConfig,
    pub(super) bitmap: Bitmap,
    /// Regions of the destination that were ever sent data: the others are holes there.
    pub(super) touched: Bitmap,
    pub(super) granularity: u64,
    pub(super) phase: Phase,
    pub(super) paused: bool,
    /// The source's size as of the requests that have ended.
    pub(super) size: u64,
    /// Behind the size, where writes failed.
    pub(super) torn: Range<u64>,
    /// The destination's; when not sure, the largest that it can be.
    pub(super) destination_size: u64,
    pub(super) destination_size_sure: bool,
    pub(super) order: Order,
    ops: BTreeMap<OpId, OpKind>,
    next_op: u64,
    pub(super) map: MapWalk,
    /// The region at which the copier's walk goes on.
    pub(super) cursor: u64,
    pub(super) copied_in_pass: bool,
    /// Dirty regions when the last pass ended.
    pub(super) left_by_last_pass: Option<u64>,
    /// Passes no longer gain on the guest.
    pub(super) passes_are_over: bool,
    pub(super) flushing: Flushing,
    pub(super) limiter: Limiter,
    pub(super) stats: Stats,
    /// No copying before this time.
    pub(super) retry_at: u64,
    /// Destination errors since it last did something right.
    pub(super) errors_in_a_row: u32,
    /// Failed attempts by region.
    pub(super) attempts: BTreeMap<u64, u32>,
    /// When to look for guest requests that the destination keeps waiting.
    pub(super) patience_at: Option<u64>,
    announced_wake: Option<u64>,
    /// An entry left or the rules changed: somebody's turn may have come.
    pub(super) recheck: bool,
    pub(super) now: u64,
    pub(super) out: Vec<Output>,
}

impl MirrorCore {
    /// A mirror to an empty destination (size 0). `bitmap` is clean, of any length, and gives the
    /// granularity.
    pub fn new(bitmap: Bitmap, config: MirrorConfig) -> Result<MirrorCore, BitmapError> {
        let granularity = bitmap.granularity();
        Ok(MirrorCore {
            touched: Bitmap::heap_with(bitmap.len(), granularity)?,
            granularity: u64::from(granularity),
            limiter: Limiter::new(config.limit),
            config,
            bitmap,
            phase: Phase::Attached,
            paused: false,
            size: 0,
            torn: 0..0,
            destination_size: 0,
            destination_size_sure: true,
            order: Order::default(),
            ops: BTreeMap::new(),
            next_op: 0,
            map: MapWalk::default(),
            cursor: 0,
            copied_in_pass: false,
            left_by_last_pass: None,
            passes_are_over: false,
            flushing: Flushing::default(),
            stats: Stats::default(),
            retry_at: 0,
            errors_in_a_row: 0,
            attempts: BTreeMap::new(),
            patience_at: None,
            announced_wake: None,
            recheck: false,
            now: 0,
            out: Vec::new(),
        })
    }

    /// Takes one input at time `now` (ns) and appends what is to be done, in order.
    pub fn step(&mut self, now: u64, input: Input, outputs: &mut Vec<Output>) {
        self.now = self.now.max(now);
        match input {
            Input::Start { size } => self.start(size),
            Input::Guest { guest, mutation } => self.guest_arrived(guest, mutation),
            Input::Done { op, outcome } => self.op_ended(op, outcome),
            Input::Pause => self.paused = true,
            Input::Resume => self.paused = false,
            Input::SetLimit(rate) => self.limiter.set_rate(rate, self.now),
            Input::Cancel => self.give_up(Phase::Cancelled),
            Input::DestinationLost => self.destination_lost(),
            Input::Switched => self.switched(),
            Input::Tick => {
                self.announced_wake = None;
                self.check_patience();
            }
        }
        self.keep_house();
        outputs.append(&mut self.out);
    }

    /// After every input: whose turn has come, what phase it is, what can be started.
    fn keep_house(&mut self) {
        loop {
            if std::mem::take(&mut self.recheck) {
                self.start_waiting();
            }
            self.advance_phase();
            self.read_map();
            self.copy_more();
            self.finish_up();
            if !self.recheck {
                break;
            }
        }
        self.schedule_wake();
    }

    fn op_ended(&mut self, op: OpId, outcome: Outcome) {
        // An op of which nothing depends any more was forgotten.
        let Some(kind) = self.ops.remove(&op) else { return };
        match kind {
            OpKind::Guest(ticket, side) => self.guest_op_ended(ticket, side, outcome),
            OpKind::Copy(ticket) => self.copy_ended(ticket, outcome),
            OpKind::SetSize(ticket) => self.set_size_ended(ticket, outcome),
            OpKind::Map { offset } => self.map_ended(offset, outcome),
            OpKind::Flush { last } => self.flush_ended(last, outcome),
        }
    }

    pub(super) fn new_op(&mut self, kind: OpKind) -> OpId {
        let op = OpId(self.next_op);
        self.next_op += 1;
        self.ops.insert(op, kind);
        op
    }

    pub(super) fn forget_ops(&mut self, mut forget: impl FnMut(&OpKind) -> bool) {
        self.ops.retain(|_, kind| !forget(kind));
    }

    pub(super) fn issue_guest(&mut self, ticket: Ticket, guest: GuestId, side: Side, answers: bool) {
        let op = self.new_op(OpKind::Guest(ticket, side));
        self.out.push(Output::Guest { op, guest, side, answers });
    }

    /// Whether guest writes take turns with copies and go to both disks.
    pub(super) fn strict(&self) -> bool {
        self.phase.is_mirroring()
    }

    pub(super) fn set_phase(&mut self, phase: Phase) {
        if self.phase != phase {
            self.phase = phase;
            self.out.push(Output::Phase(phase));
            self.recheck = true;
        }
    }

    /// The regions that `range` touches, as far as the bitmap goes.
    pub(super) fn regions(&self, range: &Range<u64>) -> Range<u64> {
        if range.is_empty() {
            return 0..0;
        }
        let end = range.end.div_ceil(self.granularity).min(self.bitmap.len());
        (range.start / self.granularity).min(end)..end
    }

    pub(super) fn mark_dirty(&mut self, range: &Range<u64>) {
        let newly = self.bitmap.set_range(self.regions(range));
        self.stats.dirty_rate.add(newly * self.granularity, self.now);
        self.flushing.unsettled |= !range.is_empty();
    }

    /// Makes the bitmaps cover `size` bytes.
    pub(super) fn cover(&mut self, size: u64) -> Result<(), BitmapError> {
        let regions = size.div_ceil(self.granularity);
        self.bitmap.grow(regions)?;
        self.touched.grow(regions)
    }

    pub(super) fn dirty_bytes(&self) -> u64 {
        self.bitmap.count() * self.granularity
    }

    /// Sizes are known to agree.
    pub(super) fn sizes_agree(&self) -> bool {
        self.destination_size_sure && self.destination_size == self.size
    }

    fn schedule_wake(&mut self) {
        let mut wake = self.patience_at;
        let mut consider = |at: u64| wake = Some(wake.map_or(at, |wake: u64| wake.min(at)));
        if !self.phase.is_over() && self.phase != Phase::Attached && !self.paused {
            if self.retry_at > self.now {
                consider(self.retry_at);
            } else if let Some(at) = self.limiter.ready_at(self.now).filter(|_| self.bitmap.count() > 0) {
                consider(at);
            }
        }
        if wake != self.announced_wake
            && let Some(at) = wake
        {
            self.out.push(Output::WakeAt(at));
            self.announced_wake = wake;
        }
    }

    /// How far the mirror is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether both disks are the same and nothing is in flight: true only in [`Phase::Synced`],
    /// and stays true only while the slot in front holds new requests back.
    pub fn ready_to_switch(&self) -> bool {
        self.phase == Phase::Synced && self.bitmap.count() == 0 && self.order.is_empty() && self.sizes_agree()
    }

    /// Bytes of the source as of the requests that have ended; known from [`Input::Start`] on.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The picture at time `now`.
    pub fn progress(&self, now: u64) -> Progress {
        let running: u64 = self
            .order
            .iter()
            .filter(|(_, entry)| matches!(&entry.work, Work::Copy(work) if work.running))
            .map(|(_, entry)| entry.span.end - entry.span.start)
            .sum();
        let dirty = self.dirty_bytes() + running;
        Progress {
            phase: self.phase,
            paused: self.paused,
            size: self.size,
            total_estimate: self.stats.copied + dirty,
            copied: self.stats.copied,
            zeroes: self.stats.zeroes,
            mirrored: self.stats.mirrored,
            dirty,
            passes: self.stats.passes,
            step_backs: self.stats.step_backs,
            copy_rate: self.stats.copy_rate.per_second(now),
            dirty_rate: self.stats.dirty_rate.per_second(now),
        }
    }

    /// Whether the core promises that both disks hold the same bytes in region `region`; for
    /// simulators, which look.
    pub fn is_settled(&self, region: u64) -> bool {
        let span = region * self.granularity..(region + 1) * self.granularity;
        let mapped = self.map.done() || span.end <= self.map.next;
        mapped
            && self.phase != Phase::Attached
            && !self.phase.is_over()
            && !self.bitmap.is_set(region)
            && !self.order.iter().any(|(_, entry)| {
                overlap(&entry.span, &span)
                    && match &entry.work {
                        Work::Copy(work) => work.running,
                        Work::SetSize { .. } => false,
                        Work::Guest(work) => match work.stage {
                            Stage::SourceOnly => work.redirty,
                            Stage::Waiting => false,
                            _ => true,
                        },
                    }
            })
    }

    /// For simulators, after every step.
    ///
    /// # Panics
    /// When the state contradicts itself, or somebody waits whose turn has come.
    pub fn check_invariants(&self) {
        self.bitmap.check_invariants();
        assert!(self.out.is_empty() && !self.recheck);
        assert!(self.order.copies() <= self.config.depth.max(1));
        let strict = self.strict();
        if strict {
            assert!(!self.order.any_guest(Stage::Straggler), "stragglers while mirroring");
        }
        if self.phase == Phase::Synced {
            assert!(self.bitmap.count() == 0 && self.order.copies() == 0 && self.map.done());
        }
        for (ticket, entry) in self.order.iter() {
            if entry.waits() {
                assert!(!self.phase.is_over(), "{entry:?} waits after the end");
                assert!(!self.may_start(ticket), "{entry:?} waits for nothing");
            }
            for (_, other) in self.order.iter().take_while(|(other, _)| *other < ticket) {
                if overlap(&entry.span, &other.span) && entry.writes_destination() {
                    assert!(!other.writes_destination(), "{entry:?} and {other:?} overlap");
                }
            }
        }
    }
}
