//! Guest requests in the mirror core: where each goes, and what becomes of it.

use std::ops::Range;

use super::core::{MirrorCore, OpKind};
use super::messages::{FailReason, GuestId, Mutation, Outcome, Output, Phase, Side};
use super::order::{GuestWork, Stage, Ticket, Want, Work, overlap};
use crate::DiskError;

impl MirrorCore {
    pub(super) fn guest_arrived(&mut self, guest: GuestId, mutation: Mutation) {
        if let Some(end) = mutation.extends_to() {
            // Too far for a bitmap: should the source accept it all the same, the move ends then.
            let _ = self.cover(end);
        }
        let span = mutation.span();
        let since = self.now;
        let stage = Stage::Waiting;
        let work = GuestWork { guest, mutation, stage, since, source_only: false, redirty: false };
        let ticket = self.order.push(span, Work::Guest(work));
        if self.phase.is_over() {
            self.start_plain(ticket);
        } else if self.may_start(ticket) {
            self.start_guest(ticket);
        } else {
            self.arm_patience();
        }
    }

    /// Starts everything whose turn has come.
    pub(super) fn start_waiting(&mut self) {
        for ticket in self.order.waiting() {
            if !self.may_start(ticket) {
                continue;
            }
            match self.order.get(ticket).work {
                Work::Guest(_) => self.start_guest(ticket),
                Work::Copy(_) => self.start_copy(ticket),
                Work::SetSize { .. } => self.start_set_size(ticket),
            }
        }
    }

    pub(super) fn may_start(&self, ticket: Ticket) -> bool {
        let entry = self.order.get(ticket);
        let want = match &entry.work {
            Work::Guest(work) => {
                if matches!(work.mutation, Mutation::Resize { .. })
                    && (self.phase == Phase::Attached || self.map.in_flight)
                {
                    // Attached: the size to start with would be unknown. Map: its page would
                    // list what is being cut off.
                    return false;
                }
                self.want(work)
            }
            _ if self.strict() => Want::Both,
            _ => Want::CopyBeside,
        };
        !self.order.blocked(ticket, &entry.span, want, self.strict())
    }

    pub(super) fn want(&self, work: &GuestWork) -> Want {
        let resize = matches!(work.mutation, Mutation::Resize { .. });
        match (work.source_only, resize) {
            (true, true) => Want::SourceSize,
            (true, false) => Want::Source,
            (false, true) => Want::Both,
            (false, false) if self.strict() || self.zeroes_both(work) => Want::Both,
            (false, false) => Want::Source,
        }
    }

    /// Whether this is a zeroing so large that the destination shall do it by itself.
    fn zeroes_both(&self, work: &GuestWork) -> bool {
        let regions = self.regions(&work.mutation.changes());
        work.mutation.zeroes()
            && (regions.end - regions.start) * self.granularity >= self.config.zero_both_bytes
            && !matches!(self.phase, Phase::Attached)
            && self.now >= self.retry_at
            && !self.order.iter().any(|(_, entry)| {
                matches!(&entry.work, Work::Guest(other) if other.stage == Stage::Straggler)
                    && overlap(&entry.span, &work.mutation.span())
            })
    }

    /// While mirroring: a write goes to the source alone only where all of it will be copied anyway.
    fn goes_to_both(&self, work: &GuestWork) -> bool {
        if self.want(work) != Want::Both {
            return false;
        }
        if matches!(work.mutation, Mutation::Allocate { .. }) || self.zeroes_both(work) {
            return true;
        }
        let regions = self.regions(&work.mutation.changes());
        let wanted = regions.end - regions.start;
        let run = self.bitmap.next_dirty_run(regions.start, wanted);
        wanted > 0 && run != Some(regions)
    }

    fn start_guest(&mut self, ticket: Ticket) {
        let Work::Guest(work) = &self.order.get(ticket).work else { unreachable!("a guest's ticket") };
        let (guest, mutation) = (work.guest, work.mutation.clone());
        let changes = mutation.changes();
        if matches!(mutation, Mutation::Resize { .. }) {
            self.order.guest_mut(ticket).stage = Stage::ResizingSource;
            self.issue_guest(ticket, guest, Side::Source, true);
        } else if self.goes_to_both(work) {
            let regions = self.regions(&changes);
            if mutation.zeroes() {
                let inner = changes.start.div_ceil(self.granularity)..changes.end / self.granularity;
                self.bitmap.clear_range(inner);
            } else {
                self.touched.set_range(regions);
            }
            self.order.guest_mut(ticket).stage = Stage::Both { source: None, destination: None };
            self.issue_guest(ticket, guest, Side::Source, true);
            self.issue_guest(ticket, guest, Side::Destination, false);
            self.arm_patience();
        } else {
            self.mark_dirty(&changes);
            self.order.guest_mut(ticket).stage = Stage::SourceOnly;
            self.issue_guest(ticket, guest, Side::Source, true);
        }
    }

    /// To the side where the guest's data is, once the mirror is over.
    pub(super) fn start_plain(&mut self, ticket: Ticket) {
        let side = if self.phase == Phase::Switched { Side::Destination } else { Side::Source };
        let work = self.order.guest_mut(ticket);
        work.stage = Stage::Plain;
        let guest = work.guest;
        self.issue_guest(ticket, guest, side, true);
    }

    pub(super) fn guest_op_ended(&mut self, ticket: Ticket, side: Side, outcome: Outcome) {
        let error = match outcome {
            Outcome::Failed { error, .. } => Some(error),
            _ => None,
        };
        let stage = self.order.guest_mut(ticket).stage;
        match stage {
            Stage::Plain => {
                self.leave(ticket, true);
            }
            Stage::SourceOnly => self.source_only_ended(ticket, error.is_none()),
            Stage::Both { .. } => self.both_part_ended(ticket, side, error),
            Stage::ResizingSource => self.resized_source(ticket, error.is_none()),
            Stage::ResizingDestination => self.resized_destination(ticket, error),
            Stage::Straggler => {
                self.leave(ticket, false);
                if let Some(error) = error {
                    self.destination_failed(error);
                }
            }
            Stage::Waiting => unreachable!("a waiting request has no op"),
        }
    }

    /// The entry goes; whoever waited for it may have a turn.
    fn leave(&mut self, ticket: Ticket, answer: bool) -> Mutation {
        let Work::Guest(work) = self.order.remove(ticket).work else { unreachable!("a guest's ticket") };
        if answer {
            self.out.push(Output::Answer { guest: work.guest });
        }
        self.recheck = true;
        work.mutation
    }

    fn source_only_ended(&mut self, ticket: Ticket, ok: bool) {
        let redirty = self.order.guest_mut(ticket).redirty;
        let mutation = self.leave(ticket, true);
        if ok {
            self.source_reaches(mutation.extends_to());
        } else {
            self.torn_at_source(&mutation.changes());
        }
        if redirty {
            self.mark_dirty(&mutation.changes());
        }
    }

    fn both_part_ended(&mut self, ticket: Ticket, side: Side, error: Option<DiskError>) {
        let now = self.now;
        let work = self.order.guest_mut(ticket);
        let Stage::Both { source, destination } = &mut work.stage else { unreachable!("of this stage") };
        let ok = error.is_none();
        match side {
            Side::Source => {
                *source = Some(ok);
                work.since = now;
            }
            Side::Destination => *destination = Some(ok),
        }
        match (*source, *destination) {
            (Some(source), Some(destination)) => self.both_ended(ticket, source, destination),
            (Some(_), None) if work.source_only => self.make_straggler(ticket),
            _ => {}
        }
        match error {
            Some(error) if side == Side::Destination => self.destination_failed(error),
            None if side == Side::Destination => self.errors_in_a_row = 0,
            _ => {}
        }
    }

    fn both_ended(&mut self, ticket: Ticket, source: bool, destination: bool) {
        let mutation = self.leave(ticket, true);
        let changes = mutation.changes();
        if source {
            self.source_reaches(mutation.extends_to());
        } else {
            self.torn_at_source(&changes);
        }
        self.destination_may_reach(mutation.extends_to(), source && destination);
        if source && destination {
            self.stats.mirrored += changes.end - changes.start;
            if matches!(mutation, Mutation::Write(_)) {
                self.flushing.sent += changes.end - changes.start;
            }
        } else {
            self.mark_dirty(&changes);
        }
    }

    /// The guest has its answer; what the destination does with its part shows later.
    pub(super) fn make_straggler(&mut self, ticket: Ticket) {
        let work = self.order.guest_mut(ticket);
        let (guest, mutation) = (work.guest, work.mutation.clone());
        let source_ok = !matches!(work.stage, Stage::Both { source: Some(false), .. });
        work.stage = Stage::Straggler;
        self.out.push(Output::Answer { guest });
        if source_ok && !matches!(mutation, Mutation::Resize { .. }) {
            self.source_reaches(mutation.extends_to());
        }
        self.destination_may_reach(mutation.extends_to(), false);
        self.mark_dirty(&mutation.changes());
        if let Mutation::Resize { size } = mutation {
            self.destination_keeps_tail(size);
        }
        self.recheck = true;
    }

    fn resized_source(&mut self, ticket: Ticket, ok: bool) {
        let work = self.order.guest_mut(ticket);
        let (guest, source_only) = (work.guest, work.source_only);
        let Mutation::Resize { size } = work.mutation else { unreachable!("of this stage") };
        if !ok || self.phase.is_over() {
            self.leave(ticket, true);
            return;
        }
        self.size = size;
        self.map.end = self.map.end.min(size);
        if source_only {
            self.leave(ticket, true);
            self.destination_keeps_tail(size);
        } else {
            let work = self.order.guest_mut(ticket);
            work.stage = Stage::ResizingDestination;
            work.since = self.now;
            self.issue_guest(ticket, guest, Side::Destination, false);
            self.arm_patience();
        }
        if self.cover(size).is_err() {
            self.fail(FailReason::TooLarge(size));
        }
    }

    fn resized_destination(&mut self, ticket: Ticket, error: Option<DiskError>) {
        let redirty = self.order.guest_mut(ticket).redirty;
        let Mutation::Resize { size } = self.leave(ticket, true) else { unreachable!("of this stage") };
        match error {
            None if !redirty => {
                self.destination_size = size;
                self.destination_size_sure = true;
                self.bitmap.clear_range(size.div_ceil(self.granularity)..u64::MAX);
                self.errors_in_a_row = 0;
            }
            None => self.destination_keeps_tail(size),
            Some(error) => {
                self.destination_keeps_tail(size);
                self.destination_failed(error);
            }
        }
    }

    /// The source was cut to `size`, the destination perhaps not: should the source grow again,
    /// what the destination has there must not show.
    fn destination_keeps_tail(&mut self, size: u64) {
        self.mark_dirty(&(size..self.destination_size.max(size)));
        self.destination_size = self.destination_size.max(size);
        self.destination_size_sure = false;
    }

    /// A write that failed at the source may have changed any part of its range that lies inside
    /// the disk (it never extends it). Copies read as far as the known size; what lies behind it
    /// must be read again when others turn out to have extended the disk meanwhile.
    fn torn_at_source(&mut self, changes: &Range<u64>) {
        if changes.end > self.size {
            let start = if self.torn.is_empty() { changes.start } else { self.torn.start.min(changes.start) };
            self.torn = start..self.torn.end.max(changes.end);
        }
    }

    fn source_reaches(&mut self, end: Option<u64>) {
        if let Some(end) = end.filter(|end| *end > self.size) {
            let torn = std::mem::take(&mut self.torn);
            self.mark_dirty(&torn);
            self.size = self.size.max(end);
            if self.cover(end).is_err() {
                self.fail(FailReason::TooLarge(end));
            }
        }
    }

    pub(super) fn destination_may_reach(&mut self, end: Option<u64>, surely: bool) {
        if let Some(end) = end.filter(|end| *end > self.destination_size) {
            self.destination_size = end;
            self.destination_size_sure &= surely;
        }
    }

    /// Ends what the guest waits for when the mirror is over: the source's answer is enough.
    pub(super) fn release_guests(&mut self) {
        for ticket in self.order.iter().map(|(ticket, _)| ticket).collect::<Vec<_>>() {
            let Work::Guest(work) = &self.order.get(ticket).work else { continue };
            match work.stage {
                Stage::Waiting => self.start_plain(ticket),
                Stage::Both { source: Some(_), .. } | Stage::ResizingDestination => {
                    self.leave(ticket, true);
                }
                Stage::Straggler => {
                    self.leave(ticket, false);
                }
                Stage::Both { source: None, .. } | Stage::SourceOnly | Stage::ResizingSource => {
                    self.order.guest_mut(ticket).stage = Stage::Plain;
                }
                Stage::Plain => {}
            }
        }
        self.forget_ops(|kind| matches!(kind, OpKind::Guest(_, Side::Destination)));
    }
}
