//! What lies on disk: metadata in redb, file data in one sparse file per inode.

pub mod allocated;
pub mod data;
pub mod meta;

pub use data::{DataFile, DataStore, Store};
pub use meta::{MetaStore, Snapshot};
