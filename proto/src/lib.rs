//! Every byte between Godwit's own programs: ids, frames, handshake, requests, errors, and the
//! JSON of the control API. No I/O, no clock.
//!
//! docs/PROTOCOL.md describes the wire; the golden-byte tests here freeze it.
#![forbid(unsafe_code)]

pub mod control;
pub mod error;
pub mod frame;
pub mod handshake;
pub mod ids;
pub mod ops;

pub use error::WireError;
pub use ids::{DatastoreId, Epoch, FileId, Generation, InstanceId, MoveId, Position, RequestId};
