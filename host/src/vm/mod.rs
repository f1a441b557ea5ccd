//! VMs: a directory with a `vm.toml`, and a QEMU that runs it.
//!
//! | file | subject |
//! |---|---|
//! | `manager` | what the control API calls |
//! | `config` | `vm.toml`: keys, defaults, checks |
//! | `edit` | changing one key of a `vm.toml` and nothing else |
//! | `size` | byte counts as people write them |
//! | `identity` | addresses and UUIDs that follow from a VM's name |
//! | `catalog` | finding VMs on the datastores, also when one of them doesn't answer |
//! | `create` | a new VM's directory, and its removal |
//! | `disk_image` | a new disk: empty, or a copy that keeps its holes |
//! | `qemu` | QEMU's command line |
//! | `accel` | whether KVM can be used |
//! | `bridge` | plugging a VM into a bridge |
//! | `process` | starting QEMU so that it outlives this daemon, and finding it again |
//! | `qmp` | the client of QEMU's control socket |
//! | `links` | one QMP connection per running VM |
//! | `power` | start and stop |
//! | `report` | what is shown of a VM |
//! | `error` | what can go wrong, and the control API's form of it |
//!
//! A running VM's directory may move from one datastore to another at any moment, so it is looked
//! up at each call and never remembered. What belongs to a running QEMU (sockets, pid file, its
//! messages) is in the host's run directory and does not move.
//!
//! The mount is served by this very process: the file system is only ever touched from blocking
//! threads, never from the runtime's workers.

mod accel;
mod bridge;
mod catalog;
pub mod config;
mod create;
mod disk_image;
pub mod edit;
mod error;
mod identity;
mod links;
mod manager;
mod power;
mod process;
mod qemu;
pub mod qmp;
#[cfg(test)]
mod real_qemu_tests;
mod report;
mod size;

pub use config::{ConfigError, VmConfig};
pub use error::VmError;
pub use manager::{Place, VmManager};
pub use qmp::{Qmp, QmpError, QmpEvent};
