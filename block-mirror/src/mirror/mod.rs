//! The mirror: makes a destination disk equal to a source disk that is in use, and keeps it so
//! until the switchover. [`MirrorCore`] decides, [`Mirror`] does.

mod config;
mod copier;
mod core;
mod driver;
mod guest;
mod hashers;
mod limiter;
mod messages;
mod order;
mod phases;
mod retreat;
mod stats;
mod timer;
mod transfer;

pub use config::{MirrorConfig, Mode};
pub use core::MirrorCore;
pub use driver::Mirror;
pub use messages::{FailReason, GuestId, Input, Mutation, OpId, Outcome, Output, Phase, Side};
pub use stats::Progress;
