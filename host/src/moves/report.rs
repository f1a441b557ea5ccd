//! What is shown of a move: its status, kept up to date for whoever watches.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use proto::MoveId;
use proto::control::{ApiError, ApiErrorCode, MovePhase, MoveRequest, MoveStatus};
use tokio::sync::watch;

use super::copies::CopyProgress;
use super::job::Wishes;
use super::target::Target;

/// A move's status and the clock readings behind it.
pub struct Report {
    status: watch::Sender<MoveStatus>,
    clock: Mutex<Clock>,
}

struct Clock {
    started: Instant,
    entered: Instant,
}

impl Report {
    /// The report of a move that has not begun.
    pub fn new(id: MoveId, request: &MoveRequest, target: &Target) -> Report {
        let status = MoveStatus {
            id,
            what: request.what.clone(),
            from: target.source_label(),
            to: target.destination_label(),
            phase: MovePhase::Preparing,
            paused: false,
            bytes_total: 0,
            bytes_copied: 0,
            bytes_mirrored: 0,
            bytes_dirty: 0,
            rate: 0,
            dirty_rate: 0,
            eta_s: None,
            limit: request.limit,
            seconds: 0.0,
            pause_ms: None,
            phases: vec![(MovePhase::Preparing, 0.0)],
            verified: None,
            error: None,
        };
        let now = Instant::now();
        let clock = Clock { started: now, entered: now };
        Report { status: watch::Sender::new(status), clock: Mutex::new(clock) }
    }

    /// The status now.
    pub fn now(&self) -> MoveStatus {
        self.status.borrow().clone()
    }

    /// Follow the status.
    pub fn watch(&self) -> watch::Receiver<MoveStatus> {
        self.status.subscribe()
    }

    /// The move is in `phase` from now on.
    pub fn enter(&self, phase: MovePhase) {
        let mut clock = self.clock.lock();
        self.status.send_modify(|status| {
            advance(status, &mut clock);
            if status.phase != phase {
                status.phase = phase;
                status.phases.push((phase, 0.0));
                clock.entered = Instant::now();
            }
            if phase == MovePhase::Done {
                status.bytes_dirty = 0;
                status.eta_s = Some(0);
                status.verified = Some("digest".into());
            }
        });
    }

    /// The switchover was put off.
    pub fn back_from_switchover(&self) {
        self.enter(MovePhase::Converge);
    }

    /// Guest I/O was held for `pause`.
    pub fn paused_for(&self, pause: Duration) {
        self.status.send_modify(|status| {
            let ms = pause.as_secs_f64() * 1000.0;
            status.pause_ms = Some(status.pause_ms.map_or(ms, |longest| longest.max(ms)));
        });
    }

    /// The move has ended without being done.
    pub fn fail(&self, error: ApiError) {
        let phase = match error.code {
            ApiErrorCode::Cancelled => MovePhase::Cancelled,
            _ => MovePhase::Failed,
        };
        self.status.send_modify(|status| status.error = Some(error));
        self.enter(phase);
    }

    /// The copies have come this far.
    pub fn progress(&self, progress: &CopyProgress, wishes: &Wishes) {
        self.enter(progress.phase.unwrap_or(MovePhase::Synced));
        let mut clock = self.clock.lock();
        self.status.send_modify(|status| {
            advance(status, &mut clock);
            status.paused = wishes.paused;
            status.limit = wishes.limit;
            status.bytes_total = progress.bytes_total;
            status.bytes_copied = progress.bytes_copied;
            status.bytes_mirrored = progress.bytes_mirrored;
            status.bytes_dirty = progress.bytes_dirty;
            status.rate = progress.rate;
            status.dirty_rate = progress.dirty_rate;
            status.eta_s = eta(progress.bytes_dirty, progress.rate, progress.dirty_rate);
        });
    }
}

fn advance(status: &mut MoveStatus, clock: &mut Clock) {
    status.seconds = clock.started.elapsed().as_secs_f64();
    if let Some((_, seconds)) = status.phases.last_mut() {
        *seconds = clock.entered.elapsed().as_secs_f64();
    }
}

/// Seconds until nothing is dirty; unknown while the guest dirties faster than is copied.
fn eta(dirty: u64, rate: u64, dirty_rate: u64) -> Option<u64> {
    let net = rate.checked_sub(dirty_rate).filter(|net| *net > 0)?;
    Some(dirty.div_ceil(net))
}

#[cfg(test)]
mod tests {
    use super::eta;

    #[test]
    fn eta_is_unknown_when_the_guest_is_faster() {
        assert_eq!(eta(100, 10, 10), None);
        assert_eq!(eta(100, 10, 20), None);
        assert_eq!(eta(100, 10, 0), Some(10));
        assert_eq!(eta(101, 15, 5), Some(11));
        assert_eq!(eta(0, 15, 5), Some(0));
    }
}
