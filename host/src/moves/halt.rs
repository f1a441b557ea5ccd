//! Named halt points for crash tests.
//!
//! `GODWIT_HALT_AT=move-after-seal dshost run …` stops the process (SIGSTOP) the first time a move
//! reaches that step, so that a test can kill what it likes at exactly that moment and look at the
//! outcome. Without the variable a halt point costs one comparison.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The steps of a move, in their order.
pub const STEPS: &[&str] = &[
    "move-after-begin",
    "move-after-reserve",
    "move-after-put",
    "move-while-copying",
    "move-after-synced",
    "move-after-hold",
    "move-after-flush",
    "move-after-seal",
    "move-after-commit",
    "move-after-publish",
    "move-after-swap",
    "move-before-finish",
    "move-after-finish",
];

/// Stop the process here if `GODWIT_HALT_AT` names this step and it has not stopped before.
pub fn halt_at(step: &'static str) {
    static WANTED: OnceLock<Option<String>> = OnceLock::new();
    static STOPPED: AtomicBool = AtomicBool::new(false);
    debug_assert!(STEPS.contains(&step));
    let wanted = WANTED.get_or_init(|| std::env::var("GODWIT_HALT_AT").ok());
    if wanted.as_deref() == Some(step) && !STOPPED.swap(true, Ordering::SeqCst) {
        tracing::warn!(step, "halting as GODWIT_HALT_AT asks");
        // To this thread: it must not get a step further before the process stands still.
        let _ = signal_hook::low_level::raise(libc::SIGSTOP);
    }
}
