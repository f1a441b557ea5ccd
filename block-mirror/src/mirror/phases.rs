//! The mirror core's way from attached to synced to switched, with the flushes and the size that
//! the destination needs on it.

use super::config::Mode;
use super::core::{MapWalk, MirrorCore, OpKind};
use super::messages::{FailReason, Outcome, Output, Phase};
use super::order::{Stage, Ticket, Work};

impl MirrorCore {
    pub(super) fn start(&mut self, size: u64) {
        if self.phase != Phase::Attached {
            return;
        }
        // Writes that ended since the size was asked for may have extended the disk; nothing can
        // have cut it, since resizes wait for this.
        self.size = self.size.max(size);
        if self.cover(self.size).is_err() {
            return self.fail(FailReason::TooLarge(self.size));
        }
        self.map = MapWalk { end: self.size, ..MapWalk::default() };
        self.set_phase(Phase::Bulk);
        self.want_set_size();
    }

    pub(super) fn advance_phase(&mut self) {
        match self.phase {
            Phase::Bulk | Phase::Converge => {
                let little_left =
                    self.phase == Phase::Converge && self.dirty_bytes() <= self.config.converged_bytes;
                let now_or_never = match self.config.mode {
                    Mode::Auto => self.phase == Phase::Converge && self.passes_are_over,
                    Mode::Background => false,
                    Mode::Mirror => true,
                };
                if (little_left || now_or_never)
                    && self.map.done()
                    && self.now >= self.retry_at
                    && !self.order.any_guest(Stage::Straggler)
                {
                    self.enter_mirror();
                }
            }
            Phase::Synced if self.bitmap.count() > 0 || !self.sizes_agree() => {
                self.set_phase(Phase::Mirror);
            }
            _ => {}
        }
    }

    fn enter_mirror(&mut self) {
        for (_, _, work) in self.order.guests_mut() {
            // The destination is trusted again. A resize that began without it stays without it.
            if matches!(work.stage, Stage::Waiting | Stage::Both { .. }) {
                work.source_only = false;
            }
        }
        self.set_phase(Phase::Mirror);
    }

    /// Flushes in the background; and when nothing is left, gives the destination its size, and
    /// flushes it once more.
    pub(super) fn finish_up(&mut self) {
        if !self.may_work() {
            return;
        }
        if self.phase == Phase::Mirror
            && self.map.done()
            && self.bitmap.count() == 0
            && self.order.copies() == 0
            && !self.set_size_is_near()
        {
            if !self.sizes_agree() {
                self.want_set_size();
            } else if !self.flushing.in_flight {
                self.flush(true);
            }
        } else if self.flushing.sent >= self.config.flush_every_bytes && !self.flushing.in_flight {
            self.flush(false);
        }
    }

    fn flush(&mut self, last: bool) {
        let op = self.new_op(OpKind::Flush { last });
        self.flushing.in_flight = true;
        self.flushing.sent = 0;
        if last {
            self.flushing.unsettled = false;
        }
        self.out.push(Output::FlushDestination { op });
    }

    pub(super) fn flush_ended(&mut self, last: bool, outcome: Outcome) {
        self.flushing.in_flight = false;
        match outcome {
            Outcome::Failed { error, .. } => {
                // What was written before a failed flush may be gone.
                self.destination_lost();
                self.destination_failed(error);
            }
            _ => {
                self.errors_in_a_row = 0;
                if last
                    && self.phase == Phase::Mirror
                    && !self.flushing.unsettled
                    && self.bitmap.count() == 0
                    && self.order.copies() == 0
                    && self.sizes_agree()
                {
                    self.set_phase(Phase::Synced);
                }
            }
        }
    }

    pub(super) fn set_size_is_near(&self) -> bool {
        self.order.iter().any(|(_, entry)| matches!(entry.work, Work::SetSize { .. }))
    }

    fn want_set_size(&mut self) {
        if self.sizes_agree() {
            return;
        }
        // Only what lies behind the new end can be harmed by it or harm it.
        let work = Work::SetSize { running: false, size: self.size, doubtful: false };
        let ticket = self.order.push(self.size..u64::MAX, work);
        if self.may_start(ticket) {
            self.start_set_size(ticket);
        }
    }

    pub(super) fn start_set_size(&mut self, ticket: Ticket) {
        let size = self.size;
        if self.sizes_agree() || size < self.order.get(ticket).span.start {
            self.order.remove(ticket);
            self.recheck = true;
            return;
        }
        self.order.get_mut(ticket).work = Work::SetSize { running: true, size, doubtful: false };
        let op = self.new_op(OpKind::SetSize(ticket));
        self.out.push(Output::ResizeDestination { op, size });
    }

    pub(super) fn set_size_ended(&mut self, ticket: Ticket, outcome: Outcome) {
        let Work::SetSize { size, doubtful, .. } = self.order.remove(ticket).work else {
            unreachable!("a resize's ticket")
        };
        self.recheck = true;
        match outcome {
            Outcome::Failed { error, .. } => {
                self.destination_size_sure = false;
                self.destination_size = self.destination_size.max(size);
                self.destination_failed(error);
            }
            _ if doubtful => self.destination_size = self.destination_size.max(size),
            _ => {
                self.destination_size = size;
                self.destination_size_sure = true;
                self.errors_in_a_row = 0;
            }
        }
    }

    /// The commit cannot be taken back, so neither is this refused: whatever is left of the work is
    /// dropped, and guests that wait go to the destination.
    pub(super) fn switched(&mut self) {
        self.give_up(Phase::Switched);
    }
}
