//! The mount with real servers behind it, used by real programs.

mod mount {
    mod data;
    mod faults;
    mod hosts;
    mod names;
    mod programs;
    mod stale;
}
