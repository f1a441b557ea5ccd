//! All VMs of a host; what the control API calls.

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use proto::control::vm::{CreateVm, StopVm, VmInfo, VmState};

use super::catalog::{Catalog, FileState, Home};
use super::config;
use super::create;
use super::error::VmError;
use super::links::Links;
use super::process::{self, QemuProcess};
use super::qemu::RunFiles;
use super::qmp::Qmp;
use super::report::{self, Running};

/// How long a listing waits for one QEMU.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a VM's directory is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The datastore.
    pub datastore: String,
    /// The directory's name on it.
    pub directory: String,
}

/// All VMs of a host. Cheap to clone; must be used on a tokio runtime.
///
/// Remembers nothing that a restart would lose: VMs are found on the datastores, and running ones
/// by the locks that their QEMUs hold in the run directory.
#[derive(Clone)]
pub struct VmManager {
    inner: Arc<Inner>,
}

/// What start, stop and the rest share.
pub(super) struct Inner {
    /// `RUN/vm`.
    run: PathBuf,
    pub(super) catalog: Catalog,
    links: Links,
    /// What is being done to which VM; one thing at a time.
    busy: Mutex<HashMap<String, &'static str>>,
}

/// The right to do something to a VM.
struct Turn {
    inner: Arc<Inner>,
    name: String,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.inner.busy.lock().remove(&self.name);
    }
}

impl VmManager {
    /// The VMs below `mount`, with the state of running ones in `run_dir` (which must be on a
    /// local file system). Both must be absolute.
    pub fn new(run_dir: &Path, mount: &Path) -> Result<Self, VmError> {
        for path in [run_dir, mount] {
            if !path.is_absolute() || path.to_str().is_none() {
                return Err(VmError::Usage(format!("{} must be an absolute path in UTF-8", path.display())));
            }
        }
        let run = run_dir.join("vm");
        fs::create_dir_all(&run).map_err(VmError::io(format!("create {}", run.display())))?;
        let (catalog, links) = (Catalog::new(mount.into()), Links::default());
        Ok(Self { inner: Arc::new(Inner { run, catalog, links, busy: Mutex::default() }) })
    }

    /// Connect to the QEMUs that an earlier daemon started, so that their events are seen from now
    /// on. Nothing depends on it: every call finds a running QEMU by itself. Returns names and pids.
    pub async fn adopt(&self) -> Result<Vec<(String, u32)>, VmError> {
        let running = self.inner.running_names()?;
        join_all(running.iter().map(|(name, pid)| async move {
            match self.qmp(name).await {
                Ok(qmp) => tracing::info!(vm = name, pid, qemu = qmp.version(), "found running"),
                Err(error) => tracing::warn!(vm = name, pid, %error, "found running, without an answer"),
            }
        }))
        .await;
        Ok(running)
    }

    /// Make a VM: its directory with `vm.toml` and disks. It is not started. On an error nothing
    /// is left behind.
    pub async fn create(&self, request: CreateVm) -> Result<VmInfo, VmError> {
        let config = create::configuration(&request)?;
        let turn = self.turn(&config.name, "create")?;
        let inner = self.inner.clone();
        undisturbed(async move {
            inner.check_new(&config.name, &request.datastore).await?;
            let name = config.name.clone();
            let mount = inner.catalog.mount().to_path_buf();
            // Without the catalog's patience: copying a disk takes its time.
            let build = move || {
                let _turn = turn;
                create::build(&mount, &request.datastore, &config, &request.disks)
            };
            blocking(build).await?;
            inner.show(&name).await
        })
        .await
    }

    /// Run a VM; returns once its guest runs.
    pub async fn start(&self, name: &str) -> Result<VmInfo, VmError> {
        let turn = self.turn(name, "start")?;
        undisturbed(async move {
            turn.inner.start(&turn.name).await?;
            turn.inner.show(&turn.name).await
        })
        .await
    }

    /// Stop a VM; returns once its QEMU has ended.
    pub async fn stop(&self, name: &str, how: StopVm) -> Result<VmInfo, VmError> {
        let turn = self.turn(name, "stop")?;
        undisturbed(async move {
            turn.inner.stop(&turn.name, how).await?;
            match turn.inner.show(&turn.name).await {
                // Its datastore doesn't answer; that is no failure of the stop.
                Err(VmError::NotFound { .. }) => Ok(report::skeleton(&turn.name, None)),
                shown => shown,
            }
        })
        .await
    }

    /// Remove a stopped VM with its disks.
    pub async fn delete(&self, name: &str) -> Result<(), VmError> {
        let turn = self.turn(name, "delete")?;
        undisturbed(async move {
            let inner = turn.inner.clone();
            let home = inner.home(&turn.name).await?;
            let config = home.config()?.clone();
            if let Some(process) = inner.process(&turn.name)? {
                return Err(VmError::AlreadyRuns { name: turn.name.clone(), pid: process.pid() });
            }
            let mount = inner.catalog.mount().to_path_buf();
            blocking(move || create::remove(&mount, &home.path, &config)).await?;
            inner.links.forget(&turn.name);
            let run = inner.run_files(&turn.name).directory;
            match fs::remove_dir_all(&run) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(VmError::io(format!("remove {}", run.display()))(e))
                }
                _ => Ok(()),
            }
        })
        .await
    }

    /// All VMs on the datastores that answer, and all that run.
    pub async fn list(&self) -> Result<Vec<VmInfo>, VmError> {
        self.inner.list().await
    }

    /// One VM.
    pub async fn show(&self, name: &str) -> Result<VmInfo, VmError> {
        check_name(name)?;
        self.inner.show(name).await
    }

    /// Where a VM's directory is now.
    pub async fn locate(&self, name: &str) -> Result<Place, VmError> {
        check_name(name)?;
        let home = self.inner.home(name).await?;
        Ok(Place { datastore: home.datastore, directory: home.directory })
    }

    /// The process id of a VM's QEMU; none when it isn't running. Asks no datastore.
    pub fn pid(&self, name: &str) -> Result<Option<u32>, VmError> {
        check_name(name)?;
        Ok(self.inner.process(name)?.map(|p| p.pid()))
    }

    /// Names and process ids of all VMs that run. Asks no datastore.
    pub fn running(&self) -> Result<Vec<(String, u32)>, VmError> {
        self.inner.running_names()
    }

    /// The control connection of a running VM, shared with everybody in this process.
    pub async fn qmp(&self, name: &str) -> Result<Arc<Qmp>, VmError> {
        check_name(name)?;
        let process = self.inner.process(name)?.ok_or_else(|| VmError::NotRunning(name.into()))?;
        self.inner.qmp(name, &process).await
    }

    fn turn(&self, name: &str, doing: &'static str) -> Result<Turn, VmError> {
        check_name(name)?;
        let mut busy = self.inner.busy.lock();
        if let Some(doing) = busy.get(name) {
            return Err(VmError::Busy { name: name.into(), doing });
        }
        busy.insert(name.into(), doing);
        Ok(Turn { inner: self.inner.clone(), name: name.into() })
    }
}

impl Inner {
    pub(super) fn run_files(&self, name: &str) -> RunFiles {
        RunFiles { directory: self.run.join(name) }
    }

    /// The VM's QEMU, if it runs.
    pub(super) fn process(&self, name: &str) -> Result<Option<QemuProcess>, VmError> {
        let file = self.run_files(name).pid();
        QemuProcess::of(&file).map_err(VmError::io(format!("look at {}", file.display())))
    }

    pub(super) async fn qmp(&self, name: &str, process: &QemuProcess) -> Result<Arc<Qmp>, VmError> {
        let socket = self.run_files(name).qmp();
        self.links
            .get(name, process.pid(), &socket)
            .await
            .map_err(|source| VmError::Qmp { name: name.into(), source })
    }

    /// The VM's directory, wherever it is now.
    pub(super) async fn home(&self, name: &str) -> Result<Home, VmError> {
        let mut places = Vec::new();
        // Twice: a VM that is being moved may be seen at both of its places.
        for _ in 0..2 {
            let mut homes = self.catalog.find(name).await?;
            if homes.len() > 1
                && let Some(process) = self.process(name)?
            {
                // While somebody has copied it, the running one is meant.
                let open: Vec<_> =
                    homes.iter().filter(|h| process::has_open_in(process.pid(), &h.path)).cloned().collect();
                if !open.is_empty() {
                    homes = open;
                }
            }
            match <[Home; 1]>::try_from(homes) {
                Ok([home]) => return Ok(home),
                Err(homes) => places = homes.iter().map(Home::label).collect(),
            }
        }
        Err(VmError::Ambiguous { name: name.into(), places })
    }

    /// Refuse a name or datastore that a new VM can't have.
    async fn check_new(&self, name: &str, datastore: &str) -> Result<(), VmError> {
        let known = self.catalog.datastores().await?;
        if !known.iter().any(|k| k == datastore) {
            return Err(VmError::NoDatastore { name: datastore.into(), known });
        }
        match self.catalog.find(name).await {
            Ok(homes) => {
                let place = homes.iter().map(Home::label).collect::<Vec<_>>().join(", ");
                return Err(VmError::Exists { name: name.into(), place });
            }
            Err(VmError::NotFound { silent, .. }) if silent.iter().any(|s| s == datastore) => {
                return Err(VmError::DatastoreSilent(datastore.into()));
            }
            Err(VmError::NotFound { silent, .. }) => {
                if !silent.is_empty() {
                    tracing::warn!(
                        vm = name,
                        ?silent,
                        "could not look there whether the new VM's name is taken"
                    );
                }
            }
            Err(other) => return Err(other),
        }
        match self.process(name)? {
            Some(process) => Err(VmError::AlreadyRuns { name: name.into(), pid: process.pid() }),
            None => Ok(()),
        }
    }

    /// Names and pids of all QEMUs that run.
    fn running_names(&self) -> Result<Vec<(String, u32)>, VmError> {
        let list = || VmError::io(format!("list {}", self.run.display()));
        let mut running = Vec::new();
        for entry in fs::read_dir(&self.run).map_err(list())? {
            let Ok(name) = entry.map_err(list())?.file_name().into_string() else { continue };
            if config::check_name(&name).is_ok()
                && let Some(process) = self.process(&name)?
            {
                running.push((name, process.pid()));
            }
        }
        running.sort();
        Ok(running)
    }

    async fn running(&self, name: &str, pid: u32) -> Running {
        let status = async {
            let process = self.process(name).ok()??;
            self.qmp(name, &process).await.ok()?.status(STATUS_TIMEOUT).await.ok()
        };
        let state = match tokio::time::timeout(STATUS_TIMEOUT, status).await {
            Ok(Some(status)) => report::state_of(&status),
            _ => VmState::Unknown,
        };
        Running { pid, uptime_s: process::uptime_s(pid), state, serial: self.run_files(name).serial() }
    }

    async fn list(&self) -> Result<Vec<VmInfo>, VmError> {
        let scan = self.catalog.scan().await?;
        let mut running: HashMap<String, Running> = join_all(
            self.running_names()?
                .into_iter()
                .map(|(name, pid)| async move { (name.clone(), self.running(&name, pid).await) }),
        )
        .await
        .into_iter()
        .collect();

        let mut homes: Vec<(Home, Option<Running>)> = Vec::new();
        let shared = |name: &str| scan.homes.iter().filter(|h| h.name() == name).count() > 1;
        for home in &scan.homes {
            let runs_here = running
                .get(home.name())
                .is_some_and(|r| !shared(home.name()) || process::has_open_in(r.pid, &home.path));
            let qemu = if runs_here { running.remove(home.name()) } else { None };
            homes.push((home.clone(), qemu));
        }
        let mut infos = self.describe(homes).await;
        infos.extend(running.iter().map(|(name, qemu)| report::skeleton(name, Some(qemu))));
        infos.sort_by(|a, b| (&a.name, &a.datastore).cmp(&(&b.name, &b.datastore)));
        Ok(infos)
    }

    pub(super) async fn show(&self, name: &str) -> Result<VmInfo, VmError> {
        let running = match self.process(name)? {
            Some(process) => Some(self.running(name, process.pid()).await),
            None => None,
        };
        let home = match self.home(name).await {
            Ok(home) => home,
            Err(VmError::NotFound { .. }) if running.is_some() => {
                return Ok(report::skeleton(name, running.as_ref()));
            }
            Err(error) => return Err(error),
        };
        home.config()?;
        Ok(self.describe(vec![(home, running)]).await.remove(0))
    }

    async fn describe(&self, homes: Vec<(Home, Option<Running>)>) -> Vec<VmInfo> {
        let mount = self.catalog.mount();
        let files_of = |home: &Home| match &home.config {
            Ok(config) => report::disk_files(home, config, mount),
            Err(_) => Vec::new(),
        };
        let files: Vec<_> = homes.iter().flat_map(|(home, _)| files_of(home)).collect();
        let states = self.catalog.file_states(&files).await;
        let mut rest: &[FileState] = &states;
        let mut infos = Vec::new();
        for (home, running) in homes {
            let (own, others) = rest.split_at(files_of(&home).len());
            rest = others;
            infos.push(report::describe(&home, mount, running, own));
        }
        infos
    }
}

fn check_name(name: &str) -> Result<(), VmError> {
    config::check_name(name).map_err(|problem| VmError::Usage(format!("VM name {problem}")))
}

/// Run to the end even when the caller goes away (an HTTP client that disconnects): half a start
/// or stop helps nobody.
async fn undisturbed<T: Send + 'static>(
    work: impl Future<Output = Result<T, VmError>> + Send + 'static,
) -> Result<T, VmError> {
    tokio::spawn(work).await.unwrap_or_else(|e| Err(ended_early(e)))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VmError> + Send + 'static,
) -> Result<T, VmError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(ended_early(e)))
}

fn ended_early(error: tokio::task::JoinError) -> VmError {
    VmError::io("run to the end")(std::io::Error::other(error))
}
