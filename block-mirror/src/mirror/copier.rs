//! The copying part of the mirror core: reading the source's map, choosing what to copy next,
//! and what follows from a copy's end.

use std::ops::Range;

use super::core::{MirrorCore, OpKind};
use super::messages::{FailReason, Outcome, Output, Phase, Side};
use super::order::{CopyWork, Stage, Ticket, Work, overlap};
use crate::{DiskError, Extent};

impl MirrorCore {
    /// Nothing new is sent to the destination while this is false.
    pub(super) fn may_work(&self) -> bool {
        !self.paused
            && self.now >= self.retry_at
            && matches!(self.phase, Phase::Bulk | Phase::Converge | Phase::Mirror | Phase::Synced)
    }

    fn resize_is_near(&self) -> bool {
        self.order
            .iter()
            .any(|(_, entry)| matches!(&entry.work, Work::Guest(_)) && entry.span == (0..u64::MAX))
    }

    pub(super) fn read_map(&mut self) {
        if self.map.done() || self.map.in_flight || !self.may_work() || self.resize_is_near() {
            return;
        }
        let offset = self.map.next;
        let op = self.new_op(OpKind::Map { offset });
        self.map.in_flight = true;
        self.out.push(Output::Map { op, offset, len: self.map.end - offset });
    }

    pub(super) fn map_ended(&mut self, offset: u64, outcome: Outcome) {
        self.map.in_flight = false;
        self.recheck = true;
        match outcome {
            Outcome::Failed { error, .. } => {
                self.map.attempts += 1;
                if self.map.attempts >= self.config.region_attempts || is_final(&error) {
                    self.fail(FailReason::Source(error));
                } else {
                    self.back_off(self.map.attempts);
                }
            }
            Outcome::Mapped { extents, upto } => {
                self.map.attempts = 0;
                for Extent { offset, len } in extents {
                    self.bitmap.set_range(self.regions(&(offset..offset.saturating_add(len))));
                }
                // A page asked for before the map was begun anew counts for its bits only.
                if offset == self.map.next {
                    self.map.next = if upto > offset { upto } else { self.map.end };
                }
            }
            other => unreachable!("a map ended with {other:?}"),
        }
    }

    /// Starts copies as far as depth and limit allow.
    pub(super) fn copy_more(&mut self) {
        if !self.may_work() || self.phase == Phase::Synced || self.set_size_is_near() {
            return;
        }
        let mut wrapped = false;
        while self.order.copies() < self.config.depth.max(1) && self.limiter.ready_at(self.now).is_none() {
            if let Some(span) = self.next_chunk() {
                self.cursor = span.end / self.granularity;
                self.copied_in_pass = true;
                let work = CopyWork { running: false, read_end: 0 };
                let ticket = self.order.push(span, Work::Copy(work));
                if self.may_start(ticket) {
                    self.start_copy(ticket);
                }
            } else if self.map.done() && !wrapped {
                wrapped = true;
                self.end_pass();
            } else {
                return;
            }
        }
    }

    /// The next dirty run that may be copied, or that a copy may wait for.
    fn next_chunk(&self) -> Option<Range<u64>> {
        let bytes = if self.strict() { self.config.mirror_chunk } else { self.config.bulk_chunk };
        let regions = (bytes / self.granularity).max(1);
        let mut from = self.cursor;
        loop {
            let run = self.bitmap.next_dirty_run(from, regions)?;
            // What the guest has just written behind the map's end must not end the pass before the
            // rest is known.
            if !self.map.done() && run.end * self.granularity > self.map.next {
                return None;
            }
            let span = run.start * self.granularity..run.end * self.granularity;
            let free = self.order.free_for_copy(span, self.granularity, self.strict());
            if !free.is_empty() {
                return Some(free);
            }
            from = free.start / self.granularity;
        }
    }

    fn end_pass(&mut self) {
        self.cursor = 0;
        let left = self.bitmap.count();
        if !self.copied_in_pass && left > 0 {
            return; // What is dirty is in use; that was no pass.
        }
        if self.copied_in_pass {
            self.stats.passes += 1;
        }
        self.copied_in_pass = false;
        if let Some(before) = self.left_by_last_pass {
            // Widened: the count can be 2^32.
            let gained =
                u128::from(left) * 100 <= u128::from(before) * u128::from(self.config.pass_gain_percent);
            self.passes_are_over |= !gained;
        }
        self.left_by_last_pass = Some(left);
        if self.phase == Phase::Bulk {
            self.set_phase(Phase::Converge);
        }
    }

    pub(super) fn start_copy(&mut self, ticket: Ticket) {
        let span = self.order.get(ticket).span.clone();
        let regions = self.regions(&span);
        if self.bitmap.next_dirty(regions.start).is_none_or(|dirty| dirty >= regions.end) {
            // Zeroed on both sides, or cut off, while this waited.
            self.order.remove(ticket);
            self.recheck = true;
            return;
        }
        self.bitmap.clear_range(regions.clone());
        for (_, guest_span, work) in self.order.guests_mut() {
            if work.stage == Stage::SourceOnly && overlap(guest_span, &span) {
                work.redirty = true;
            }
        }
        let fresh = self.touched.next_dirty(regions.start).is_none_or(|touched| touched >= regions.end);
        self.touched.set_range(regions);
        self.flushing.unsettled = true;
        self.limiter.take(span.end - span.start, self.now);
        let read_end = self.size.clamp(span.start, span.end);
        self.destination_may_reach(Some(read_end), false);
        if let Work::Copy(work) = &mut self.order.get_mut(ticket).work {
            work.running = true;
            work.read_end = read_end;
        }
        let op = self.new_op(OpKind::Copy(ticket));
        let (offset, len) = (span.start, span.end - span.start);
        self.out.push(Output::Copy { op, offset, len, read_len: read_end - span.start, fresh });
    }

    pub(super) fn copy_ended(&mut self, ticket: Ticket, outcome: Outcome) {
        let entry = self.order.remove(ticket);
        let Work::Copy(work) = entry.work else { unreachable!("a copy's ticket") };
        let (span, regions) = (entry.span.clone(), self.regions(&entry.span));
        self.recheck = true;
        match outcome {
            Outcome::Copied { written, zeroes } => {
                self.errors_in_a_row = 0;
                self.attempts.retain(|region, _| !regions.contains(region));
                self.flushing.sent += written;
                let copied = work.read_end - span.start;
                self.stats.copied += copied;
                self.stats.zeroes += zeroes;
                self.stats.copy_rate.add(copied, self.now);
            }
            Outcome::Failed { side, error } => {
                self.mark_dirty(&span);
                self.copy_failed(&span, side, error);
            }
            other => unreachable!("a copy ended with {other:?}"),
        }
    }

    fn copy_failed(&mut self, span: &Range<u64>, side: Side, error: DiskError) {
        let altered = matches!(error, DiskError::Digest { .. });
        if side == Side::Destination && !altered {
            return self.destination_failed(error);
        }
        if is_final(&error) {
            return self.fail(FailReason::Source(error));
        }
        let mut attempts = 0;
        for region in self.regions(span) {
            let failed = self.attempts.entry(region).or_default();
            *failed += 1;
            attempts = attempts.max(*failed);
        }
        if attempts >= self.config.region_attempts {
            let (offset, len) = (span.start, span.end - span.start);
            self.fail(FailReason::Region { offset, len, attempts, error });
        } else {
            self.back_off(attempts);
        }
    }
}

/// Errors that no repetition heals.
pub(super) fn is_final(error: &DiskError) -> bool {
    matches!(
        error,
        DiskError::NoSpace { .. } | DiskError::Fenced { .. } | DiskError::Stale { .. } | DiskError::Closed
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bitmap;
    use crate::mirror::MirrorConfig;
    use crate::mirror::core::MirrorCore;
    use crate::mirror::messages::{GuestId, Input, Mutation};

    #[test]
    fn a_write_before_the_map_is_known_does_not_end_the_first_pass() {
        const SIZE: u64 = 64 << 20;
        let bitmap = Bitmap::heap(SIZE >> 16).expect("memory");
        let mut core = MirrorCore::new(bitmap, MirrorConfig::default()).expect("memory");
        let mut outputs = Vec::new();
        core.step(0, Input::Start { size: SIZE }, &mut outputs);
        let map = outputs.iter().find_map(|o| if let Output::Map { op, .. } = o { Some(*op) } else { None });
        let size = outputs
            .iter()
            .find_map(|o| if let Output::ResizeDestination { op, .. } = o { Some(*op) } else { None })
            .expect("the destination gets its size");
        core.step(1, Input::Done { op: size, outcome: Outcome::Done }, &mut outputs);
        let write = Mutation::Write(SIZE - 4096..SIZE);
        core.step(1, Input::Guest { guest: GuestId(0), mutation: write }, &mut outputs);
        assert!(!outputs.iter().any(|o| matches!(o, Output::Copy { .. })), "nothing is known to copy yet");
        let all = vec![Extent { offset: 0, len: SIZE }];
        let done = Outcome::Mapped { extents: all, upto: SIZE };
        core.step(2, Input::Done { op: map.expect("the map is asked for"), outcome: done }, &mut outputs);
        assert_eq!(core.phase(), Phase::Bulk);
        let first = outputs
            .iter()
            .find_map(|o| if let Output::Copy { offset, .. } = o { Some(*offset) } else { None });
        assert_eq!(first, Some(0));
    }
}
