//! Disk trait, dirty bitmap, mirror engine and switchover. Knows nothing of datastores.

mod bitmap;
mod disk;
pub mod memory_disk;
mod mirror;
mod slot;

pub use bitmap::{Bitmap, BitmapError, DEFAULT_GRANULARITY, MAX_BITS};
pub use disk::*;
pub use memory_disk::MemoryDisk;
pub use mirror::{
    FailReason, GuestId, Input, Mirror, MirrorConfig, MirrorCore, Mode, Mutation, OpId, Outcome, Output,
    Phase, Progress, Side,
};
pub use slot::DiskSlot;
