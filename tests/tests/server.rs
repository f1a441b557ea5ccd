//! The real dsserver, spoken to over a plain socket: sessions, sending again, kills, space, moves, bad bytes.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod server {
    mod burial;
    mod data;
    mod frames;
    mod greeting;
    mod incoming;
    mod moves;
    mod once;
    mod opens;
    mod sessions;
    mod site;
    mod space;
    mod storm;
    mod wire;
}
