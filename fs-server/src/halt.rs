//! Named halt points for crash tests: `GODWIT_HALT_AT=NAME dsserver run …` stops the process (SIGSTOP)
//! the first time it gets there.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// All halt points.
pub const POINTS: &[&str] = &[
    "commit-before-durable",
    "commit-after-durable",
    "publish-before-durable",
    "publish-after-durable",
    "seal-after-durable",
    "finish-mid",
];

/// Stop here if asked to.
pub fn halt_at(point: &'static str) {
    static WANTED: OnceLock<Option<String>> = OnceLock::new();
    static STOPPED: AtomicBool = AtomicBool::new(false);
    debug_assert!(POINTS.contains(&point));
    let wanted = WANTED.get_or_init(|| std::env::var("GODWIT_HALT_AT").ok());
    if wanted.as_deref() == Some(point) && !STOPPED.swap(true, Ordering::SeqCst) {
        tracing::warn!(point, "halting as GODWIT_HALT_AT asks");
        // To this thread: it must not get a step further before the process stands still.
        let _ = signal_hook::low_level::raise(libc::SIGSTOP);
    }
}
