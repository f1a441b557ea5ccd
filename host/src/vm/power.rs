//! Start and stop.

use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::Duration;

use proto::control::vm::StopVm;
use serde_json::json;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};

use super::catalog::{FileState, Home};
use super::config::{Accel, VmConfig};
use super::error::VmError;
use super::manager::Inner;
use super::process::{self, QemuProcess};
use super::qemu::{self, Engine, RunFiles};
use super::qmp::{COMMAND_TIMEOUT, Qmp, QmpError};
use super::{accel, bridge, report};

/// How long QEMU has to come up. It opens the disks meanwhile.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a guest has to shut down when the request doesn't say.
const POWERDOWN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long QEMU has to end by itself before it is killed.
const QUIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the kernel has to end a killed QEMU.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often QEMU's coming up is looked at.
const POLL: Duration = Duration::from_millis(20);

impl Inner {
    /// Run the VM; returns once its guest runs.
    pub(super) async fn start(&self, name: &str) -> Result<(), VmError> {
        let home = self.home(name).await?;
        let config = home.config()?;
        bridge::check(config)?;
        let run = self.run_files(name);
        if let Some(process) = self.process(name)? {
            // An earlier daemon may have died between QEMU's start and the guest's.
            let qmp = self.qmp(name, &process).await?;
            let status = qmp.status(COMMAND_TIMEOUT).await.map_err(|e| of(name, e))?;
            if status != "prelaunch" {
                return Err(VmError::AlreadyRuns { name: name.into(), pid: process.pid() });
            }
            return self.release_guest(config, &run, &process, &qmp).await;
        }
        self.check_disks(&home, config).await?;
        prepare_run_files(&run)?;
        let kvm = config.accel == Accel::Auto && accel::kvm_usable();
        let engine = Engine::choose(config.accel, kvm);
        let args = qemu::arguments(config, self.catalog.mount(), &home.path, &run, engine);
        tracing::info!(vm = name, ?engine, directory = %home.label(), "start QEMU");
        let mut child = process::spawn(qemu::PROGRAM, &args, &run.log())
            .map_err(|source| VmError::NoProgram { program: qemu::PROGRAM.into(), source })?;
        let (process, qmp) = match self.wait_for_qemu(name, &run, &mut child).await {
            Ok(up) => up,
            Err(error) => {
                // Kills and reaps; an error means that it has ended already.
                let _ = child.kill().await;
                return Err(error);
            }
        };
        reap(name.to_string(), child);
        self.release_guest(config, &run, &process, &qmp).await
    }

    async fn check_disks(&self, home: &Home, config: &VmConfig) -> Result<(), VmError> {
        let files = report::disk_files(home, config, self.catalog.mount());
        let states = self.catalog.file_states(&files).await;
        for ((disk, (datastore, path)), state) in config.disks.iter().zip(files).zip(states) {
            match state {
                FileState::Is { .. } => {}
                FileState::Missing => {
                    return Err(VmError::NoDisk { name: config.name.clone(), disk: disk.id.clone(), path });
                }
                FileState::Silent => return Err(VmError::DatastoreSilent(datastore)),
            }
        }
        Ok(())
    }

    /// Wait until QEMU answers on its control socket, or has ended and left its reasons.
    async fn wait_for_qemu(
        &self,
        name: &str,
        run: &RunFiles,
        child: &mut Child,
    ) -> Result<(QemuProcess, Arc<Qmp>), VmError> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let ended = child.try_wait().map_err(VmError::io(format!("wait for QEMU of {name}")))?;
            if let Some(status) = ended {
                let words = process::last_words(&run.log())
                    .unwrap_or_else(|| format!("it ended without a word ({status})"));
                return Err(VmError::QemuFailed { name: name.into(), words });
            }
            // Only our own child: the pid file's lock may still be that of one that is ending.
            if let Some(process) = self.process(name)?
                && child.id() == Some(process.pid())
                && let Ok(qmp) = self.qmp(name, &process).await
            {
                return Ok((process, qmp));
            }
            if Instant::now() >= deadline {
                return Err(VmError::QemuStuck { name: name.into(), after: START_TIMEOUT, log: run.log() });
            }
            sleep(POLL).await;
        }
    }

    /// From "QEMU is up" to "the guest runs". On an error there is no QEMU any more.
    async fn release_guest(
        &self,
        config: &VmConfig,
        run: &RunFiles,
        process: &QemuProcess,
        qmp: &Qmp,
    ) -> Result<(), VmError> {
        let name = &config.name;
        let go = async {
            bridge::plug(config).await?;
            qmp.execute("cont", json!({})).await.map_err(|e| of(name, e))?;
            match qmp.status(COMMAND_TIMEOUT).await {
                Ok(status) if status == "running" => Ok(()),
                Ok(status) => Err(VmError::Halted { name: name.clone(), status, log: run.log() }),
                // The guest ran, and was quick to switch itself off.
                Err(QmpError::Closed) => Ok(()),
                Err(e) => Err(of(name, e)),
            }
        };
        let result = go.await;
        if result.is_err() {
            process.kill();
            // Should it not end, the error at hand is still the better one to tell.
            ends_within(process, KILL_TIMEOUT).await;
        }
        result
    }

    /// Stop the VM; returns once its QEMU has ended.
    pub(super) async fn stop(&self, name: &str, how: StopVm) -> Result<(), VmError> {
        let process = self.process(name)?.ok_or_else(|| VmError::NotRunning(name.into()))?;
        if how.force {
            self.switch_off(name, &process).await
        } else {
            self.power_down(name, &process, how).await
        }
    }

    async fn power_down(&self, name: &str, process: &QemuProcess, how: StopVm) -> Result<(), VmError> {
        let qmp = self.qmp(name, process).await?;
        let status = qmp.status(COMMAND_TIMEOUT).await.map_err(|e| of(name, e))?;
        if status == "prelaunch" {
            // No instruction of the guest was run: nothing can be lost.
            return self.switch_off(name, process).await;
        }
        match qmp.execute("system_powerdown", json!({})).await {
            Ok(_) | Err(QmpError::Closed) => {}
            Err(e) => return Err(of(name, e)),
        }
        let after = how.timeout_s.map_or(POWERDOWN_TIMEOUT, Duration::from_secs);
        if ends_within(process, after).await {
            return Ok(());
        }
        Err(VmError::StillRuns { name: name.into(), after })
    }

    /// Without asking the guest. QEMU gets the chance to finish I/O that was admitted.
    async fn switch_off(&self, name: &str, process: &QemuProcess) -> Result<(), VmError> {
        let quit = async {
            if let Ok(qmp) = self.qmp(name, process).await {
                // It may be gone before it answers.
                let _ = qmp.execute("quit", json!({})).await;
            }
        };
        let _ = timeout(QUIT_TIMEOUT, quit).await;
        if ends_within(process, QUIT_TIMEOUT).await {
            return Ok(());
        }
        tracing::warn!(vm = name, pid = process.pid(), "QEMU does not quit, kill it");
        process.kill();
        if ends_within(process, KILL_TIMEOUT).await {
            return Ok(());
        }
        Err(VmError::Undead { name: name.into(), pid: process.pid() })
    }
}

async fn ends_within(process: &QemuProcess, limit: Duration) -> bool {
    matches!(timeout(limit, process.ended()).await, Ok(Ok(())))
}

fn of(name: &str, source: QmpError) -> VmError {
    VmError::Qmp { name: name.into(), source }
}

fn prepare_run_files(run: &RunFiles) -> Result<(), VmError> {
    for socket in [run.qmp(), run.serial()] {
        let length = socket.as_os_str().len();
        if length > qemu::MAX_SOCKET_PATH {
            return Err(VmError::Usage(format!(
                "{}: {length} bytes are too long for a socket's path; give dshost a shorter --run directory",
                socket.display()
            )));
        }
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&run.directory)
        .map_err(VmError::io(format!("create {}", run.directory.display())))
}

/// Take QEMU's exit status when it comes, so that it leaves no zombie.
fn reap(vm: String, mut child: Child) {
    tokio::spawn(async move {
        match child.wait().await {
            Ok(status) => tracing::info!(vm, %status, "QEMU has ended"),
            Err(error) => tracing::warn!(vm, %error, "wait for QEMU"),
        }
    });
}
