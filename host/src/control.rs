//! What the control API shows and does: the host's parts behind [`Backend`].

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fs_client::{Datastore, Files};
use futures::future::join_all;
use proto::MoveId;
use proto::control::vm::{CreateVm, StopVm, VmInfo};
use proto::control::{
    ApiError, ApiErrorCode, DatastoreStatus, HostStatus, MovePlan, MoveRequest, MoveStatus,
};
use proto::ops::names::StatFs;
use tokio::sync::watch;

use crate::api::Backend;
use crate::moves::MoveManager;
use crate::vm::VmManager;

/// How long a datastore has to say how much space it has.
const SPACE_TIMEOUT: Duration = Duration::from_secs(2);

/// The parts of a running dshost. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    /// The host's name.
    pub host: String,
    /// Mount point.
    pub mount: PathBuf,
    /// Datastores and nodes.
    pub files: Arc<Files>,
    /// Moves.
    pub moves: Arc<MoveManager>,
    /// VMs.
    pub vms: VmManager,
    /// When dshost was started.
    pub started: Instant,
    /// Set when dshost is about to end: nothing new is started any more.
    pub stopping: Arc<AtomicBool>,
}

impl Control {
    fn unless_stopping(&self) -> Result<(), ApiError> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(ApiError {
                code: ApiErrorCode::Conflict,
                message: format!("dshost {} is being stopped", self.host),
                hint: Some("try again when it runs".into()),
            });
        }
        Ok(())
    }
}

impl Backend for Control {
    async fn status(&self) -> HostStatus {
        let datastores = join_all(self.files.datastores().iter().map(|d| datastore_status(d))).await;
        let moves = self.moves.list().iter().filter(|m| !m.phase.is_final()).count();
        HostStatus {
            host: self.host.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            mount: self.mount.display().to_string(),
            uptime_s: self.started.elapsed().as_secs(),
            datastores,
            moves: moves as u32,
        }
    }

    async fn plan_move(&self, request: &MoveRequest) -> Result<MovePlan, ApiError> {
        self.moves.plan(request).await
    }

    async fn start_move(&self, request: MoveRequest) -> Result<MoveStatus, ApiError> {
        self.unless_stopping()?;
        // A task of its own: a client that goes away must not leave a move half begun.
        let moves = self.moves.clone();
        tokio::spawn(async move { moves.start(request).await }).await.unwrap_or_else(|e| {
            Err(ApiError { code: ApiErrorCode::Failed, message: format!("start the move: {e}"), hint: None })
        })
    }

    fn moves(&self) -> Vec<MoveStatus> {
        self.moves.list()
    }

    fn watch_move(&self, id: MoveId) -> Option<watch::Receiver<MoveStatus>> {
        self.moves.watch(id)
    }

    async fn cancel_move(&self, id: MoveId) -> Result<MoveStatus, ApiError> {
        self.moves.cancel(id).await
    }

    async fn pause_move(&self, id: MoveId) -> Result<MoveStatus, ApiError> {
        self.moves.pause(id).await
    }

    async fn resume_move(&self, id: MoveId) -> Result<MoveStatus, ApiError> {
        self.moves.resume(id).await
    }

    async fn limit_move(&self, id: MoveId, limit: Option<u64>) -> Result<MoveStatus, ApiError> {
        self.moves.set_limit(id, limit).await
    }

    async fn vms(&self) -> Result<Vec<VmInfo>, ApiError> {
        Ok(self.vms.list().await?)
    }

    async fn vm(&self, name: &str) -> Result<VmInfo, ApiError> {
        Ok(self.vms.show(name).await?)
    }

    async fn create_vm(&self, vm: CreateVm) -> Result<VmInfo, ApiError> {
        self.unless_stopping()?;
        Ok(self.vms.create(vm).await?)
    }

    async fn start_vm(&self, name: &str) -> Result<VmInfo, ApiError> {
        self.unless_stopping()?;
        Ok(self.vms.start(name).await?)
    }

    async fn stop_vm(&self, name: &str, how: StopVm) -> Result<VmInfo, ApiError> {
        Ok(self.vms.stop(name, how).await?)
    }

    async fn delete_vm(&self, name: &str) -> Result<(), ApiError> {
        self.unless_stopping()?;
        Ok(self.vms.delete(name).await?)
    }
}

async fn datastore_status(datastore: &Datastore) -> DatastoreStatus {
    let state = datastore.state();
    let space = match state.connected {
        true => {
            tokio::time::timeout(SPACE_TIMEOUT, datastore.call(StatFs {})).await.ok().and_then(Result::ok)
        }
        false => None,
    };
    DatastoreStatus {
        name: datastore.name().into(),
        address: datastore.address().into(),
        connected: state.connected,
        error: state.error,
        session: datastore.info().map_or(0, |info| info.session.0),
        capacity: space.map(|s| s.capacity),
        free: space.map(|s| s.free),
    }
}
