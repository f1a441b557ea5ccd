//! The JSON of the control API that `dshost` serves and the tools (or `curl`) use.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | GET /v1/status | | [`HostStatus`] |
//! | POST /v1/moves | [`MoveRequest`] | 201 [`MoveStatus`]; with `dry_run` 200 [`MovePlan`] |
//! | GET /v1/moves | | list of [`MoveStatus`], running and finished ones of this dshost |
//! | GET /v1/moves/ID | | [`MoveStatus`] |
//! | GET /v1/moves/ID/events | | server-sent events, each a [`MoveStatus`]; ends after the final one |
//! | POST /v1/moves/ID/cancel, /pause, /resume | | [`MoveStatus`] |
//! | POST /v1/moves/ID/limit | [`LimitRequest`] | [`MoveStatus`] |
//! | GET /v1/vms | | list of [`vm::VmInfo`] |
//! | POST /v1/vms | [`vm::CreateVm`] | 201 [`vm::VmInfo`] |
//! | GET /v1/vms/NAME | | [`vm::VmInfo`] |
//! | DELETE /v1/vms/NAME | | 204 |
//! | POST /v1/vms/NAME/start | | [`vm::VmInfo`], once it runs |
//! | POST /v1/vms/NAME/stop | [`vm::StopVm`] or nothing | [`vm::VmInfo`], once it has stopped |
//! | GET /metrics | | Prometheus text |
//!
//! Errors have status 4xx or 5xx and an [`ApiError`] as body.

use serde::{Deserialize, Serialize};

use crate::ids::MoveId;

pub mod vm;

/// Why a call was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind, for programs.
    pub code: ApiErrorCode,
    /// One line: what, which object.
    pub message: String,
    /// What to do about it, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Kinds of errors. The tools' exit codes follow from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiErrorCode {
    /// The request makes no sense (exit 2).
    Usage,
    /// A check before anything was started says no (exit 3).
    Precheck,
    /// No such object (exit 3).
    NotFound,
    /// The object is in a state that forbids it (exit 3).
    Conflict,
    /// Started, failed, rolled back (exit 1).
    Failed,
    /// Cancelled (exit 4).
    Cancelled,
}

/// Ask for a move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveRequest {
    /// A VM's name, or `datastore/path` of a file or directory.
    pub what: String,
    /// The datastore it shall go to.
    pub to: String,
    /// Bytes per second that copying may use; none: no limit.
    #[serde(default)]
    pub limit: Option<u64>,
    /// How writes reach the destination before the switchover.
    #[serde(default)]
    pub mode: MirrorMode,
    /// Seconds after which a move that has not committed is cancelled.
    #[serde(default)]
    pub timeout_s: Option<u64>,
    /// Check everything, change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// How writes reach the destination before the switchover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MirrorMode {
    /// The engine decides from measured rates.
    #[default]
    Auto,
    /// Copy passes as long as they make progress.
    Background,
    /// Mirror as soon as possible.
    Mirror,
}

/// What a move would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovePlan {
    /// `ds1/vm42`.
    pub from: String,
    /// `ds2/vm42`.
    pub to: String,
    /// Files and directories.
    pub entries: u64,
    /// Allocated bytes that will be copied.
    pub bytes: u64,
    /// Bytes free on the destination.
    pub free: u64,
}

/// Where a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MovePhase {
    /// Checking and writing the records.
    Preparing,
    /// First copy of everything allocated.
    Bulk,
    /// Passes over what became dirty.
    Converge,
    /// Writes go to both sides.
    Mirror,
    /// Nothing is dirty.
    Synced,
    /// I/O is held, the commit is being made.
    Switchover,
    /// Committed; the source is being cleaned up.
    Finishing,
    /// Done.
    Done,
    /// Failed and rolled back.
    Failed,
    /// Cancelled and rolled back.
    Cancelled,
}

impl MovePhase {
    /// Whether nothing will happen any more.
    pub fn is_final(self) -> bool {
        matches!(self, MovePhase::Done | MovePhase::Failed | MovePhase::Cancelled)
    }
}

/// A move as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoveStatus {
    /// Which move.
    pub id: MoveId,
    /// What was asked for: VM name or path.
    pub what: String,
    /// `ds1/vm42`.
    pub from: String,
    /// `ds2/vm42`.
    pub to: String,
    /// Where it is.
    pub phase: MovePhase,
    /// Whether copying is paused by request.
    pub paused: bool,
    /// Bytes that the first copy will have to carry, as known so far.
    pub bytes_total: u64,
    /// Bytes copied, repeated passes included.
    pub bytes_copied: u64,
    /// Guest bytes that were written to both sides.
    pub bytes_mirrored: u64,
    /// Bytes that are still dirty.
    pub bytes_dirty: u64,
    /// Copy rate, bytes per second.
    pub rate: u64,
    /// Rate at which the guest dirties, bytes per second.
    pub dirty_rate: u64,
    /// Estimated seconds left; none when unknown.
    pub eta_s: Option<u64>,
    /// Limit in bytes per second.
    pub limit: Option<u64>,
    /// Seconds since it started.
    pub seconds: f64,
    /// Longest time that guest I/O was held at the switchover, in milliseconds.
    pub pause_ms: Option<f64>,
    /// Seconds spent in each phase so far, in order.
    pub phases: Vec<(MovePhase, f64)>,
    /// How the data was verified: "digest" (BLAKE3 per chunk, checked by the destination).
    pub verified: Option<String>,
    /// Why it failed or was cancelled.
    pub error: Option<ApiError>,
}

/// Change the limit of a running move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitRequest {
    /// Bytes per second; none: no limit.
    pub limit: Option<u64>,
}

/// A dshost as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// The host's name.
    pub host: String,
    /// Program version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Mount point.
    pub mount: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Its datastores.
    pub datastores: Vec<DatastoreStatus>,
    /// Moves under way.
    pub moves: u32,
}

/// A datastore as a host sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatastoreStatus {
    /// Its name.
    pub name: String,
    /// Where its server listens.
    pub address: String,
    /// Whether the server answers now.
    pub connected: bool,
    /// What is wrong, when it isn't connected.
    pub error: Option<String>,
    /// The session's generation.
    pub session: u64,
    /// Bytes that may be used, when connected.
    pub capacity: Option<u64>,
    /// Free bytes, when connected.
    pub free: Option<u64>,
}
