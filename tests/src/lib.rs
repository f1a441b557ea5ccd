//! Support for Godwit's integration tests: processes, a lab of servers and hosts, real programs.

pub mod cluster;
pub mod guest;
pub mod lab;
pub mod process;
