//! dshost from start to end: what comes up in which order, and goes down in the other.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fs_client::{Datastore, DatastoreConfig, Files, Mount, MountConfig};
use futures::future::join_all;
use proto::InstanceId;
use proto::ops::names::Name;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::api;
use crate::config::Config;
use crate::control::Control;
use crate::moves::{Armed, MoveManager, Surroundings, VmLocator};
use crate::run_dir::{RunDir, RunDirError};
use crate::vm::{VmError, VmManager};

/// How long the start waits for datastores before it goes on without them.
const ATTACH_PATIENCE: Duration = Duration::from_secs(3);
/// How long moves may take to be undone when dshost ends.
const MOVES_PATIENCE: Duration = Duration::from_secs(15);
/// How long unmounting may take.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(10);
/// How long a datastore has to answer the farewell.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(1);

/// Why dshost could not start, or did not end in order.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The run directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// Runtime or signals.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The VMs' part of the run directory.
    #[error(transparent)]
    Vms(#[from] VmError),
    /// The mount; the reason has a hint of its own.
    #[error("{0}")]
    Mount(io::Error),
    /// The mount at the end.
    #[error("unmount {}: {reason}", path.display())]
    Unmount {
        /// Mount point.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The control socket.
    #[error("control socket in {}: {source}", run.display())]
    Socket {
        /// Run directory.
        run: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl DaemonError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            DaemonError::RunDir(e) => e.hint(),
            DaemonError::Vms(e) => e.hint(),
            DaemonError::Unmount { path, .. } => Some(format!("umount -l {}", path.display())),
            DaemonError::Mount(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                Some("run dshost as root".into())
            }
            DaemonError::Socket { source, .. } if source.kind() == io::ErrorKind::InvalidInput => {
                Some("give dshost a shorter --run DIR".into())
            }
            _ => None,
        }
    }
}

/// Run until SIGTERM or SIGINT.
pub fn run(config: Config) -> Result<(), DaemonError> {
    let runtime =
        Runtime::new().map_err(|source| DaemonError::System { what: "start the runtime", source })?;
    let result = runtime.block_on(async {
        let mut stop = Stop::catch()?;
        let run_dir = RunDir::take(&config.run)?;
        let daemon = Daemon::start(&config, &run_dir).await?;
        let listener = api::Listener::bind(run_dir.path())
            .map_err(|source| DaemonError::Socket { run: run_dir.path().into(), source });
        match listener {
            Ok(listener) => daemon.serve(listener, &mut stop).await,
            Err(e) => daemon.end(&mut stop).await.and(Err(e)),
        }
    });
    // A thread that waits for a datastore must not keep dshost from ending.
    runtime.shutdown_background();
    result
}

/// Everything that runs.
struct Daemon {
    control: Control,
    run: PathBuf,
    mount: Mount,
    recovery: tokio::task::JoinHandle<()>,
}

impl Daemon {
    async fn start(config: &Config, run_dir: &RunDir) -> Result<Daemon, DaemonError> {
        let started = Instant::now();
        let vms = VmManager::new(run_dir.path(), &config.mount)?;
        let instance = InstanceId::new();
        let datastore = |(name, address): &(String, String)| {
            Datastore::start(DatastoreConfig {
                name: name.clone(),
                address: address.clone(),
                host: config.name.clone(),
                instance,
            })
        };
        let files = Files::new(config.datastores.iter().map(datastore).collect());
        let around = Surroundings {
            files: files.clone(),
            armed: Arc::new(Armed::default()),
            mount: config.mount.clone(),
            run: run_dir.path().into(),
        };
        let moves = MoveManager::new(config.name.clone(), around, vm_locator(vms.clone()));
        let mount = mount(&files, config).await?;
        wait_for_datastores(&files).await;
        let left = moves.recover_once().await;
        if left > 0 {
            warn!("{left} moves of an earlier run wait for their datastores");
        }
        if let Err(e) = vms.adopt().await {
            warn!("look for running VMs: {e}");
        }
        let recovery = tokio::spawn(moves.clone().keep_recovering());
        let control = Control {
            host: config.name.clone(),
            mount: config.mount.clone(),
            files,
            moves,
            vms,
            started,
            stopping: Arc::new(AtomicBool::new(false)),
        };
        Ok(Daemon { control, run: run_dir.path().into(), mount, recovery })
    }

    /// Serve the control API until told to stop, then end in order.
    async fn serve(self, listener: api::Listener, stop: &mut Stop) -> Result<(), DaemonError> {
        info!(
            "dshost {}: {} is mounted, control socket {}",
            self.control.host,
            self.control.mount.display(),
            listener.path().display()
        );
        let (end, ended) = oneshot::channel();
        let serving = tokio::spawn(api::serve(listener, api::router(self.control.clone()), async {
            // A sender that was dropped says the same.
            let _ = ended.await;
        }));
        let name = stop.asked().await;
        info!("{name}: stopping");
        self.control.stopping.store(true, Ordering::SeqCst);
        // The API lives until the moves are undone, so that their watchers hear of it.
        self.cancel_moves(stop).await;
        let _ = end.send(());
        let _ = serving.await;
        self.end(stop).await
    }

    async fn cancel_moves(&self, stop: &mut Stop) {
        tokio::select! {
            () = self.control.moves.shutdown() => {}
            () = tokio::time::sleep(MOVES_PATIENCE) => {
                warn!("moves are not undone yet; the next start goes on with it");
            }
            name = stop.asked() => warn!("{name} again: not waiting for moves; the next start undoes them"),
        }
    }

    /// Let go of everything.
    async fn end(self, stop: &mut Stop) -> Result<(), DaemonError> {
        self.recovery.abort();
        for (vm, pid) in running_vms(&self.run, &self.control.vms) {
            warn!(vm, pid, "still runs; its disks go away with the mount");
        }
        let path = self.control.mount.clone();
        let mount = self.mount;
        let unmounting = tokio::task::spawn_blocking(move || mount.unmount());
        let unmounted = tokio::select! {
            joined = unmounting => match joined {
                Ok(result) => result.map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            },
            () = tokio::time::sleep(UNMOUNT_PATIENCE) => Err("it does not end".into()),
            name = stop.asked() => Err(format!("{name} again")),
        };
        let farewells = self.control.files.datastores().iter().map(|d| d.shutdown(FAREWELL_PATIENCE));
        join_all(farewells).await;
        info!("dshost {} ends", self.control.host);
        unmounted.map_err(|reason| DaemonError::Unmount { path, reason })
    }
}

async fn mount(files: &Arc<Files>, config: &Config) -> Result<Mount, DaemonError> {
    let (files, config) =
        (files.clone(), MountConfig { path: config.mount.clone(), threads: config.threads });
    tokio::task::spawn_blocking(move || Mount::start(files, config))
        .await
        .map_err(|e| DaemonError::Mount(io::Error::other(e)))?
        .map_err(DaemonError::Mount)
}

async fn wait_for_datastores(files: &Files) {
    let waiting = files.datastores().iter().map(|d| async move {
        if d.wait_attached(ATTACH_PATIENCE).await.is_none() {
            let why = d.state().error.unwrap_or_else(|| "no answer yet".into());
            warn!("datastore {} at {} is away: {why}; still trying", d.name(), d.address());
        }
    });
    join_all(waiting).await;
}

/// Finds VMs for the move manager, which asks from a task of this runtime.
fn vm_locator(vms: VmManager) -> Box<VmLocator> {
    Box::new(move |name| {
        let place = tokio::task::block_in_place(|| Handle::current().block_on(vms.locate(name)));
        match place {
            Ok(place) => Ok(Some((place.datastore, vec![Name::from(place.directory.as_str())]))),
            Err(VmError::NotFound { silent, .. }) if silent.is_empty() => Ok(None),
            Err(e) => Err(e.into()),
        }
    })
}

/// Names and process ids of VMs that run. Asks no datastore.
fn running_vms(run: &Path, vms: &VmManager) -> Vec<(String, u32)> {
    let Ok(entries) = std::fs::read_dir(run.join("vm")) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| vms.pid(&name).ok().flatten().map(|pid| (name, pid)))
        .collect()
}

/// SIGTERM and SIGINT.
struct Stop {
    term: Signal,
    int: Signal,
}

impl Stop {
    fn catch() -> Result<Stop, DaemonError> {
        let catch =
            |kind| signal(kind).map_err(|source| DaemonError::System { what: "catch signals", source });
        Ok(Stop { term: catch(SignalKind::terminate())?, int: catch(SignalKind::interrupt())? })
    }

    /// Wait for the next one; returns its name.
    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}
