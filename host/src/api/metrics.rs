//! `/metrics`: the host's state as Prometheus text.
//!
//! Values are taken from the host at each scrape. Sums over moves grow by what the moves listed now
//! have gained since the scrape before, because the list forgets old moves.

use std::collections::HashMap;

use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use parking_lot::Mutex;
use proto::MoveId;
use proto::control::{HostStatus, MovePhase, MoveStatus};

/// The host's metrics.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// The listed moves as of the last scrape.
    counted: Mutex<HashMap<MoveId, Counted>>,
}

/// What of a move is in the sums already.
#[derive(Clone, Copy, Default)]
struct Counted {
    copied: u64,
    mirrored: u64,
    ended: bool,
}

impl Metrics {
    /// All described, none set.
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe_gauge!("godwit_info", "1; the labels say which dshost this is");
            describe_gauge!("godwit_uptime_seconds", "Seconds since dshost was started");
            describe_gauge!("godwit_datastore_up", "1 when the datastore's server answers");
            describe_gauge!("godwit_datastore_capacity_bytes", "Bytes that may be used");
            describe_gauge!("godwit_datastore_free_bytes", "Free bytes");
            describe_gauge!("godwit_moves_running", "Moves under way");
            describe_gauge!("godwit_move_dirty_bytes", "Bytes that running moves still have to copy");
            describe_gauge!("godwit_move_rate_bytes_per_second", "Copy rate of running moves");
            describe_counter!("godwit_move_copied_bytes_total", "Bytes copied by moves");
            describe_counter!("godwit_move_mirrored_bytes_total", "Guest bytes written to both sides");
            describe_counter!("godwit_moves_finished_total", "Moves that have ended, by outcome");
            describe_gauge!("godwit_move_pause_max_seconds", "Longest hold of guest I/O at a switchover");
        });
        Metrics { recorder, handle, counted: Mutex::default() }
    }

    /// The text for a host in this state.
    pub fn render(&self, status: &HostStatus, moves: &[MoveStatus]) -> String {
        metrics::with_local_recorder(&self.recorder, || {
            set_host(status);
            set_moves(moves);
            self.count(moves);
        });
        self.handle.render()
    }

    fn count(&self, moves: &[MoveStatus]) {
        let (copied, mirrored) =
            (counter!("godwit_move_copied_bytes_total"), counter!("godwit_move_mirrored_bytes_total"));
        let mut counted = self.counted.lock();
        counted.retain(|id, _| moves.iter().any(|m| m.id == *id));
        // Counters that stand at zero shall be there, too.
        for outcome in OUTCOMES {
            counter!("godwit_moves_finished_total", "outcome" => phase_label(outcome)).increment(0);
        }
        for m in moves {
            let before = counted.entry(m.id).or_default();
            copied.increment(m.bytes_copied.saturating_sub(before.copied));
            mirrored.increment(m.bytes_mirrored.saturating_sub(before.mirrored));
            if m.phase.is_final() && !before.ended {
                counter!("godwit_moves_finished_total", "outcome" => phase_label(m.phase)).increment(1);
            }
            *before =
                Counted { copied: m.bytes_copied, mirrored: m.bytes_mirrored, ended: m.phase.is_final() };
        }
    }
}

const OUTCOMES: [MovePhase; 3] = [MovePhase::Done, MovePhase::Failed, MovePhase::Cancelled];

fn phase_label(phase: MovePhase) -> &'static str {
    match phase {
        MovePhase::Done => "done",
        MovePhase::Failed => "failed",
        MovePhase::Cancelled => "cancelled",
        _ => "running",
    }
}

fn set_host(status: &HostStatus) {
    gauge!("godwit_info", "host" => status.host.clone(), "version" => status.version.clone()).set(1.0);
    gauge!("godwit_uptime_seconds").set(status.uptime_s as f64);
    for datastore in &status.datastores {
        let label = [("datastore", datastore.name.clone())];
        gauge!("godwit_datastore_up", &label).set(f64::from(u8::from(datastore.connected)));
        // A server that is away keeps the last figures known of it.
        if let Some(capacity) = datastore.capacity {
            gauge!("godwit_datastore_capacity_bytes", &label).set(capacity as f64);
        }
        if let Some(free) = datastore.free {
            gauge!("godwit_datastore_free_bytes", &label).set(free as f64);
        }
    }
}

fn set_moves(moves: &[MoveStatus]) {
    let running = || moves.iter().filter(|m| !m.phase.is_final());
    gauge!("godwit_moves_running").set(running().count() as f64);
    gauge!("godwit_move_dirty_bytes").set(running().map(|m| m.bytes_dirty).sum::<u64>() as f64);
    gauge!("godwit_move_rate_bytes_per_second").set(running().map(|m| m.rate).sum::<u64>() as f64);
    let longest = moves.iter().filter_map(|m| m.pause_ms).fold(0.0, f64::max);
    gauge!("godwit_move_pause_max_seconds").set(longest / 1000.0);
}
