//! A host's view of datastores: sessions, files, the FUSE mount.
//!
//! [`Datastore`] is a session with one server and heals itself; [`Files`] knows the nodes that are in
//! use on this host and through which [`block_mirror::DiskSlot`] their I/O goes; [`Gate`] keeps
//! names still while a tree changes its datastore; [`Mount`] shows it all to the kernel.

mod datastore;
mod error;
mod file;
mod gate;
mod mount;
mod nodes;
mod transport;

pub use datastore::{Datastore, DatastoreConfig};
pub use error::CallError;
pub use gate::{Gate, MovingSet};
pub use mount::{Mount, MountConfig};
pub use nodes::{Files, Node, Pinned, PreparedRename, RenameHook};
pub use transport::{Channel, Done, LinkState};
