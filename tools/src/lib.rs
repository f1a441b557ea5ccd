//! dsmove and dsctl: the command lines of Godwit, clients of dshost's control API.
//!
//! The binaries are thin; everything is here. Both tools talk JSON over dshost's unix socket
//! ([`proto::control`]) and could be replaced by `curl --unix-socket`.
#![forbid(unsafe_code)]

pub mod client;
pub mod dsctl;
pub mod dsmove;
pub mod exit;
pub mod follow;
pub mod interrupts;
pub mod progress;
pub mod quantity;
pub mod result_line;
pub mod table;
