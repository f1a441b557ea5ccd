//! How a move's progress is shown: a bar on a terminal, plain lines elsewhere, JSON for programs.
//!
//! No clock: plain lines are spaced by the move's own time.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::control::{MovePhase, MoveStatus};
use serde_json::json;

use crate::quantity::{clock, rate, size};

/// Seconds between two plain lines of the same phase.
const LINE_EVERY_S: f64 = 3.0;

/// Characters of what is moved that are shown before a bar.
const ROUTE_WIDTH: usize = 24;

/// One way to show progress.
pub trait View {
    /// The move stands like this.
    fn show(&mut self, status: &MoveStatus);
    /// Something happened that is worth a line.
    fn note(&mut self, text: &str);
    /// Make room for a question on the terminal, or take it back.
    fn hide(&mut self, _hidden: bool) {}
    /// Nothing more comes.
    fn end(&mut self) {}
}

/// A phase as people read it.
pub fn phase_name(phase: MovePhase) -> &'static str {
    match phase {
        MovePhase::Preparing => "preparing",
        MovePhase::Bulk => "bulk",
        MovePhase::Converge => "converge",
        MovePhase::Mirror => "mirror",
        MovePhase::Synced => "synced",
        MovePhase::Switchover => "switchover",
        MovePhase::Finishing => "finishing",
        MovePhase::Done => "done",
        MovePhase::Failed => "failed",
        MovePhase::Cancelled => "cancelled",
    }
}

/// Bytes that are the same on both sides: what has to be copied without what is still dirty.
pub fn clean_bytes(status: &MoveStatus) -> u64 {
    match status.phase {
        MovePhase::Preparing => 0,
        MovePhase::Synced | MovePhase::Switchover | MovePhase::Finishing | MovePhase::Done => {
            status.bytes_total
        }
        _ => status.bytes_total.saturating_sub(status.bytes_dirty),
    }
}

/// `1.2 GiB of 4.0 GiB, 98.0 MiB/s, ETA 0:29, dirty 3.1 MiB/s`
pub fn figures(status: &MoveStatus) -> String {
    let mut parts = vec![format!("{} of {}", size(clean_bytes(status)), size(status.bytes_total))];
    if status.paused {
        parts.push("paused".into());
    } else {
        parts.push(rate(status.rate));
        parts.push(match status.eta_s {
            Some(seconds) => format!("ETA {}", clock(seconds)),
            None => "ETA unknown".into(),
        });
    }
    parts.push(format!("dirty {}", rate(status.dirty_rate)));
    if let Some(limit) = status.limit {
        parts.push(format!("limit {}", rate(limit)));
    }
    parts.join(", ")
}

/// Whole percent of [`clean_bytes`].
pub fn percent(status: &MoveStatus) -> u64 {
    match status.bytes_total {
        0 => u64::from(status.phase > MovePhase::Bulk) * 100,
        total => (clean_bytes(status) as u128 * 100 / total as u128) as u64,
    }
}

/// A bar on stderr and the figures below it, redrawn in place.
pub struct BarView {
    bar: ProgressBar,
}

impl BarView {
    /// Nothing is drawn before the first state.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("{prefix} [{wide_bar}] {percent:>3}%\n{wide_msg}")
            .expect("the template above is well-formed")
            .progress_chars("=> ");
        bar.set_style(style);
        BarView { bar }
    }

    fn draw(&self) {
        if self.bar.is_hidden() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        }
        self.bar.tick();
    }
}

impl Default for BarView {
    fn default() -> Self {
        Self::new()
    }
}

impl View for BarView {
    fn show(&mut self, status: &MoveStatus) {
        self.bar.set_prefix(format!("{}: {:<10}", route(status), phase_name(status.phase)));
        self.bar.set_message(figures(status));
        // A bar of length 0 would count as full.
        self.bar.set_length(status.bytes_total.max(1));
        self.bar.set_position(if status.bytes_total == 0 {
            percent(status) / 100
        } else {
            clean_bytes(status)
        });
        self.draw();
    }

    fn note(&mut self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    fn hide(&mut self, hidden: bool) {
        if hidden {
            // The ^C that the terminal has echoed stays on a line of its own.
            self.bar.suspend(|| eprintln!());
            self.bar.set_draw_target(ProgressDrawTarget::hidden());
        } else {
            self.draw();
        }
    }

    fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// `vm42 from ds1 to ds2`, short enough to leave room for a bar.
fn route(status: &MoveStatus) -> String {
    let datastore = |label: &str| label.split('/').next().unwrap_or_default().to_string();
    let mut what = status.what.clone();
    if what.chars().count() > ROUTE_WIDTH {
        let tail: String = what.chars().rev().take(ROUTE_WIDTH - 1).collect();
        what = format!("…{}", tail.chars().rev().collect::<String>());
    }
    format!("{what} from {} to {}", datastore(&status.from), datastore(&status.to))
}

/// Lines on stderr: one for each new phase and one every few seconds.
#[derive(Default)]
pub struct LineView {
    last: Option<(MovePhase, bool, f64)>,
}

impl LineView {
    /// The line to print now, if one is due.
    pub fn line(&mut self, status: &MoveStatus) -> Option<String> {
        if let Some((phase, paused, seconds)) = self.last {
            let same = (phase, paused) == (status.phase, status.paused);
            if same && status.seconds < seconds + LINE_EVERY_S {
                return None;
            }
        }
        self.last = Some((status.phase, status.paused, status.seconds));
        if status.phase.is_final() {
            return None;
        }
        Some(format!(
            "{} {:<10} {:>3}%  {}",
            status.what,
            phase_name(status.phase),
            percent(status),
            figures(status)
        ))
    }
}

impl View for LineView {
    fn show(&mut self, status: &MoveStatus) {
        if let Some(line) = self.line(status) {
            eprintln!("{line}");
        }
    }

    fn note(&mut self, text: &str) {
        eprintln!("{text}");
    }
}

/// One JSON object per line on stdout.
pub struct JsonView;

impl JsonView {
    /// The line for a state.
    pub fn line(status: &MoveStatus) -> String {
        json!({
            "event": "progress",
            "id": status.id,
            "what": status.what,
            "from": status.from,
            "to": status.to,
            "phase": status.phase,
            "paused": status.paused,
            "bytes_total": status.bytes_total,
            "bytes_copied": status.bytes_copied,
            "bytes_mirrored": status.bytes_mirrored,
            "bytes_dirty": status.bytes_dirty,
            "rate": status.rate,
            "dirty_rate": status.dirty_rate,
            "eta_s": status.eta_s,
            "limit": status.limit,
            "seconds": status.seconds,
        })
        .to_string()
    }
}

impl View for JsonView {
    fn show(&mut self, status: &MoveStatus) {
        println!("{}", Self::line(status));
    }

    fn note(&mut self, text: &str) {
        println!("{}", json!({ "event": "note", "text": text }));
    }
}
