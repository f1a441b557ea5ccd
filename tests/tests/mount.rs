//! The mount with real servers behind it, used by real programs.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod mount {
    mod data;
    mod faults;
    mod hosts;
    mod names;
    mod programs;
    mod stale;
}
