//! The daemon of a host: mount, moves, VMs, control API.
//!
//! [`command_line`] reads flags, [`config`] merges them with the file, [`daemon`] starts and stops
//! everything. [`api`] serves what [`control`] does with [`moves`] and [`vm`].

pub mod api;
pub mod command_line;
pub mod config;
pub mod control;
pub mod daemon;
pub mod moves;
mod rename_child;
mod run_dir;
pub mod vm;
