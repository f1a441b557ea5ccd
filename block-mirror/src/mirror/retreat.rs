//! What the mirror core does when the destination errs, stalls or forgets, and how it gives up.
//! In all of it the guest's requests go on with the source.

use super::copier::is_final;
use super::core::{MapWalk, MirrorCore, OpKind};
use super::messages::{FailReason, Mutation, Output, Phase};
use super::order::{Stage, Ticket, Want, Work};
use crate::DiskError;

impl MirrorCore {
    /// No new copies for a while, longer with each of `attempts`.
    pub(super) fn back_off(&mut self, attempts: u32) {
        let pause = self.config.retry_ns.saturating_mul(1 << attempts.saturating_sub(1).min(6));
        self.retry_at = self.retry_at.max(self.now.saturating_add(pause));
    }

    /// The destination refused something; what it was is dirty again.
    pub(super) fn destination_failed(&mut self, error: DiskError) {
        if self.phase.is_over() {
            return;
        }
        if matches!(error, DiskError::NoSpace { .. }) {
            return self.fail(FailReason::NoSpace(error));
        }
        self.errors_in_a_row += 1;
        if is_final(&error) || self.errors_in_a_row >= self.config.destination_attempts {
            return self.fail(FailReason::Destination(error));
        }
        self.back_off(self.errors_in_a_row);
        self.step_back(Phase::Converge);
    }

    /// From writing to both disks back to the source alone.
    fn step_back(&mut self, to: Phase) {
        if self.strict() {
            self.stats.step_backs += 1;
            self.set_phase(to);
            self.left_by_last_pass = None;
            self.passes_are_over = false;
        }
        // Copies beside the guest don't wait.
        for ticket in self.order.waiting() {
            if !matches!(self.order.get(ticket).work, Work::Guest(_)) {
                self.order.remove(ticket);
            }
        }
        self.recheck = true;
    }

    /// The destination may have lost anything: everything that is allocated, and everything that
    /// it was ever sent, must be copied again.
    pub(super) fn destination_lost(&mut self) {
        if self.phase.is_over() || self.phase == Phase::Attached {
            return;
        }
        self.step_back(Phase::Bulk);
        self.set_phase(Phase::Bulk);
        for entry in self.order.entries_mut() {
            match &mut entry.work {
                Work::Guest(work) => work.redirty |= work.stage == Stage::ResizingDestination,
                Work::SetSize { doubtful, .. } => *doubtful = true,
                Work::Copy(_) => {}
            }
        }
        // That includes what is in flight to it: those bits stay, since no copy of theirs can
        // begin before it ends.
        let mut from = 0;
        while let Some(run) = self.touched.next_dirty_run(from, u64::MAX) {
            from = run.end;
            self.bitmap.set_range(run);
        }
        // A page in flight is of the old walk; `next` tells them apart.
        self.map = MapWalk { end: self.size, in_flight: self.map.in_flight, ..MapWalk::default() };
        self.flushing.unsettled = true;
        self.flushing.sent = 0;
        self.destination_size_sure = false;
        self.attempts.clear();
        self.cursor = 0;
        self.copied_in_pass = false;
        self.left_by_last_pass = None;
        self.passes_are_over = false;
        self.recheck = true;
    }

    pub(super) fn arm_patience(&mut self) {
        if self.patience_at.is_none() {
            self.patience_at = Some(self.now.saturating_add(self.config.patience_ns));
        }
    }

    /// When a guest request waits too long for the destination, all go on without it.
    pub(super) fn check_patience(&mut self) {
        if self.patience_at.is_none_or(|at| at > self.now) {
            return;
        }
        self.patience_at = None;
        let patience = self.config.patience_ns;
        let (mut overdue, mut next) = (false, None);
        for (ticket, entry) in self.order.iter() {
            let Work::Guest(work) = &entry.work else { continue };
            let on_destination = match work.stage {
                Stage::Both { source, .. } => source.is_some(),
                Stage::ResizingDestination => true,
                Stage::Waiting => self.waits_for_destination(ticket),
                _ => continue,
            };
            let deadline = work.since.saturating_add(patience);
            if on_destination && deadline <= self.now {
                overdue = true;
            }
            let look = deadline.max(self.now.saturating_add(patience / 8 + 1));
            next = Some(next.map_or(look, |next: u64| next.min(look)));
        }
        if overdue {
            self.go_without_destination();
        }
        self.patience_at = next;
    }

    /// Whether a waiting request could go on if it went to the source alone.
    fn waits_for_destination(&self, ticket: Ticket) -> bool {
        let entry = self.order.get(ticket);
        let Work::Guest(work) = &entry.work else { return false };
        let want = match work.mutation {
            Mutation::Resize { .. } if self.phase == Phase::Attached || self.map.in_flight => return false,
            Mutation::Resize { .. } => Want::SourceSize,
            _ => Want::Source,
        };
        !work.source_only && !self.order.blocked(ticket, &entry.span, want, self.strict())
    }

    fn go_without_destination(&mut self) {
        self.retry_at = self.retry_at.max(self.now.saturating_add(self.config.patience_ns));
        self.step_back(Phase::Converge);
        let mut stragglers = Vec::new();
        for (ticket, _, work) in self.order.guests_mut() {
            match work.stage {
                Stage::Both { source: Some(_), .. } | Stage::ResizingDestination => stragglers.push(ticket),
                Stage::Waiting | Stage::Both { .. } | Stage::ResizingSource => work.source_only = true,
                Stage::SourceOnly | Stage::Straggler | Stage::Plain => {}
            }
        }
        for ticket in stragglers {
            if self.phase.is_over() {
                return; // One of them grew the disk too far.
            }
            self.make_straggler(ticket);
        }
    }

    pub(super) fn fail(&mut self, reason: FailReason) {
        if !self.phase.is_over() {
            self.out.push(Output::Failed(reason));
            self.give_up(Phase::Failed);
        }
    }

    /// The mirror is over: the guest goes on with the source, nothing else matters.
    pub(super) fn give_up(&mut self, phase: Phase) {
        if self.phase.is_over() {
            return;
        }
        self.set_phase(phase);
        self.patience_at = None;
        self.forget_ops(|kind| !matches!(kind, OpKind::Guest(..)));
        for ticket in self.order.iter().map(|(ticket, _)| ticket).collect::<Vec<_>>() {
            if !matches!(self.order.get(ticket).work, Work::Guest(_)) {
                self.order.remove(ticket);
            }
        }
        self.release_guests();
    }
}
