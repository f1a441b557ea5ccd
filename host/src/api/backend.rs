//! What the API's handlers need of the host.
//!
//! A trait, so that the routes can be tested without datastores and a mount.

use std::future::Future;

use proto::MoveId;
use proto::control::vm::{CreateVm, StopVm, VmInfo};
use proto::control::{ApiError, HostStatus, MovePlan, MoveRequest, MoveStatus};
use tokio::sync::watch;

type Result<T> = std::result::Result<T, ApiError>;

/// The host behind the API.
pub trait Backend: Send + Sync + 'static {
    /// How the host stands.
    fn status(&self) -> impl Future<Output = HostStatus> + Send;

    /// Say what a move would do.
    fn plan_move(&self, request: &MoveRequest) -> impl Future<Output = Result<MovePlan>> + Send;
    /// Start a move.
    fn start_move(&self, request: MoveRequest) -> impl Future<Output = Result<MoveStatus>> + Send;
    /// Moves running and finished, oldest first.
    fn moves(&self) -> Vec<MoveStatus>;
    /// Follow a move; none when there is no such move.
    fn watch_move(&self, id: MoveId) -> Option<watch::Receiver<MoveStatus>>;
    /// End a move that has not committed.
    fn cancel_move(&self, id: MoveId) -> impl Future<Output = Result<MoveStatus>> + Send;
    /// Stop copying until resumed.
    fn pause_move(&self, id: MoveId) -> impl Future<Output = Result<MoveStatus>> + Send;
    /// Go on copying.
    fn resume_move(&self, id: MoveId) -> impl Future<Output = Result<MoveStatus>> + Send;
    /// Change the limit in bytes per second.
    fn limit_move(&self, id: MoveId, limit: Option<u64>) -> impl Future<Output = Result<MoveStatus>> + Send;

    /// All VMs on the host's datastores.
    fn vms(&self) -> impl Future<Output = Result<Vec<VmInfo>>> + Send;
    /// One VM.
    fn vm(&self, name: &str) -> impl Future<Output = Result<VmInfo>> + Send;
    /// Make a VM.
    fn create_vm(&self, vm: CreateVm) -> impl Future<Output = Result<VmInfo>> + Send;
    /// Start a VM and wait until it runs.
    fn start_vm(&self, name: &str) -> impl Future<Output = Result<VmInfo>> + Send;
    /// Stop a VM and wait until it has stopped.
    fn stop_vm(&self, name: &str, how: StopVm) -> impl Future<Output = Result<VmInfo>> + Send;
    /// Delete a stopped VM with its disks.
    fn delete_vm(&self, name: &str) -> impl Future<Output = Result<()>> + Send;
}
