//! The manager with real QEMUs. A plain directory stands in for the mount.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use proto::control::ApiErrorCode;
use proto::control::vm::{CreateVm, NewBoot, NewDisk, NewNic, StopVm, VmState};
use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use super::config::VmConfig;
use super::error::VmError;
use super::manager::{Place, VmManager};
use super::process::{self, QemuProcess};
use super::qemu::{self, Engine, RunFiles};

const FORCE: StopVm = StopVm { force: true, timeout_s: None };
/// How long a test waits for something that should happen soon. Not a claim about speed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Datastores ds1 and ds2 and a run directory. QEMUs are killed when it is dropped.
struct Lab {
    mount: TempDir,
    run: TempDir,
}

impl Lab {
    fn new() -> Self {
        // Not /tmp: that may be a tmpfs without O_DIRECT.
        let mount = tempfile::tempdir_in("/var/tmp").unwrap();
        for datastore in ["ds1", "ds2"] {
            fs::create_dir(mount.path().join(datastore)).unwrap();
        }
        Self { mount, run: tempfile::tempdir().unwrap() }
    }

    fn manager(&self) -> VmManager {
        VmManager::new(self.run.path(), self.mount.path()).unwrap()
    }

    fn path(&self, below: &str) -> PathBuf {
        self.mount.path().join(below)
    }

    fn run_files(&self, name: &str) -> RunFiles {
        RunFiles { directory: self.run.path().join("vm").join(name) }
    }

    fn append(&self, file: &str, text: &str) {
        let old = fs::read_to_string(self.path(file)).unwrap();
        // Top-level keys go before the first table.
        fs::write(self.path(file), format!("{text}\n{old}")).unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Ok(entries) = fs::read_dir(self.run.path().join("vm")) else { return };
        for entry in entries.flatten() {
            let file = entry.path().join("pid");
            while let Ok(Some(pid)) = process::lock_holder(&file) {
                let _ = kill_process(pid, Signal::KILL);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn small(name: &str, datastore: &str) -> CreateVm {
    CreateVm {
        name: name.into(),
        datastore: datastore.into(),
        memory: 64 << 20,
        cpus: 1,
        disks: vec![NewDisk { size: Some(16 << 20), ..NewDisk::default() }],
        nics: vec![NewNic::default()],
        accel: Some("tcg".into()),
        serial_socket: true,
        ..CreateVm::default()
    }
}

async fn ended(process: &QemuProcess) {
    tokio::time::timeout(PATIENCE, process.ended()).await.expect("QEMU ends").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_made_started_moved_while_it_runs_stopped_and_deleted() {
    let lab = Lab::new();
    let manager = lab.manager();
    let made = manager.create(small("vm42", "ds1")).await.unwrap();
    assert_eq!((made.state, made.datastore.as_str(), made.pid), (VmState::Stopped, "ds1", None));
    assert_eq!((made.disks[0].size, made.disks[0].allocated), (Some(16 << 20), Some(0)));

    let started = manager.start("vm42").await.unwrap();
    let pid = started.pid.expect("it runs");
    assert_eq!(started.state, VmState::Running);
    assert!(started.uptime_s.is_some());
    assert!(PathBuf::from(started.serial_socket.unwrap()).exists());
    assert_eq!(manager.pid("vm42").unwrap(), Some(pid));
    let session = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session: u32 =
        session[session.rfind(')').unwrap() + 1..].split_whitespace().nth(3).unwrap().parse().unwrap();
    assert_eq!(session, pid, "QEMU leads a session of its own");

    let again = manager.start("vm42").await.unwrap_err();
    assert_eq!(again.to_string(), format!("VM vm42 already runs (pid {pid})"));
    assert_eq!(again.code(), ApiErrorCode::Conflict);
    assert!(matches!(manager.delete("vm42").await, Err(VmError::AlreadyRuns { .. })));

    fs::rename(lab.path("ds1/vm42"), lab.path("ds2/vm42")).unwrap();
    let place = Place { datastore: "ds2".into(), directory: "vm42".into() };
    assert_eq!(manager.locate("vm42").await.unwrap(), place);
    let moved = manager.show("vm42").await.unwrap();
    assert_eq!((moved.state, moved.pid, moved.datastore.as_str()), (VmState::Running, Some(pid), "ds2"));
    assert_eq!(moved.disks[0].path, lab.path("ds2/vm42/disk0.raw").to_string_lossy());

    // A guest without a system doesn't know its power button.
    let deaf = manager.stop("vm42", StopVm { force: false, timeout_s: Some(0) }).await.unwrap_err();
    assert!(matches!(deaf, VmError::StillRuns { .. }), "{deaf}");
    assert_eq!(manager.show("vm42").await.unwrap().state, VmState::Running);
    let stopped = manager.stop("vm42", FORCE).await.unwrap();
    assert_eq!((stopped.state, stopped.pid, stopped.datastore.as_str()), (VmState::Stopped, None, "ds2"));
    assert!(matches!(manager.stop("vm42", FORCE).await, Err(VmError::NotRunning(_))));

    manager.delete("vm42").await.unwrap();
    assert!(!lab.path("ds2/vm42").exists());
    assert!(!lab.run_files("vm42").directory.exists());
    assert_eq!(manager.list().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_manager_finds_what_runs() {
    let lab = Lab::new();
    let manager = lab.manager();
    for (name, datastore) in [("a", "ds1"), ("b", "ds2"), ("c", "ds2")] {
        manager.create(small(name, datastore)).await.unwrap();
    }
    let a = manager.start("a").await.unwrap().pid;
    let c = manager.start("c").await.unwrap().pid;
    drop(manager);

    let later = lab.manager();
    assert_eq!(later.adopt().await.unwrap(), [("a".to_string(), a.unwrap()), ("c".to_string(), c.unwrap())]);
    let list = later.list().await.unwrap();
    let seen: Vec<_> = list.iter().map(|vm| (vm.name.as_str(), vm.state, vm.pid)).collect();
    let expected = [("a", VmState::Running, a), ("b", VmState::Stopped, None), ("c", VmState::Running, c)];
    assert_eq!(seen, expected);
    assert!(matches!(later.start("a").await, Err(VmError::AlreadyRuns { .. })));

    // Its directory may be out of reach: it is listed all the same, and can be switched off.
    fs::rename(lab.path("ds1"), lab.path(".ds1")).unwrap();
    let lost = later.list().await.unwrap().remove(0);
    assert_eq!((lost.name.as_str(), lost.state, lost.datastore.as_str()), ("a", VmState::Running, ""));
    assert_eq!(later.stop("a", FORCE).await.unwrap().state, VmState::Stopped);
    assert_eq!(later.running().unwrap(), [("c".to_string(), c.unwrap())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_qemu_is_noticed_and_the_vm_starts_again() {
    let lab = Lab::new();
    let manager = lab.manager();
    manager.create(small("vm42", "ds1")).await.unwrap();
    let first = manager.start("vm42").await.unwrap().pid.unwrap();
    let process = QemuProcess::of(&lab.run_files("vm42").pid()).unwrap().unwrap();
    assert_eq!(process.pid(), first);
    let qmp = manager.qmp("vm42").await.unwrap();
    process.kill();
    ended(&process).await;
    tokio::time::timeout(PATIENCE, qmp.closed()).await.expect("the connection ends too");

    let shown = manager.show("vm42").await.unwrap();
    assert_eq!((shown.state, shown.pid), (VmState::Stopped, None));
    assert!(matches!(manager.qmp("vm42").await, Err(VmError::NotRunning(_))));
    let second = manager.start("vm42").await.unwrap();
    assert_eq!(second.state, VmState::Running);
    assert_ne!(second.pid, Some(first));
}

#[tokio::test(flavor = "multi_thread")]
async fn qemus_own_words_are_told() {
    let lab = Lab::new();
    let manager = lab.manager();
    manager.create(small("vm42", "ds1")).await.unwrap();
    let good = fs::read_to_string(lab.path("ds1/vm42/vm.toml")).unwrap();
    for (line, words) in [
        ("extra_args = [\"-frobnicate\"]", "-frobnicate: invalid option"),
        // Found late: the control socket is there by then.
        ("extra_args = [\"-device\", \"frob\"]", "-device frob: 'frob' is not a valid device model name"),
        ("machine = \"vax\"", "unsupported machine type"),
    ] {
        fs::write(lab.path("ds1/vm42/vm.toml"), &good).unwrap();
        lab.append("ds1/vm42/vm.toml", line);
        let error = manager.start("vm42").await.unwrap_err();
        let told = error.to_string();
        assert!(told.starts_with("VM vm42 did not start: QEMU: ") && told.contains(words), "{told}");
        assert!(!told.contains('\n'), "one line: {told:?}");
        assert_eq!(error.code(), ApiErrorCode::Failed);
        assert_eq!(manager.pid("vm42").unwrap(), None, "nothing is left running");
    }
    fs::write(lab.path("ds1/vm42/vm.toml"), &good).unwrap();
    assert_eq!(manager.start("vm42").await.unwrap().state, VmState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_use_is_refused_in_qemus_words() {
    let lab = Lab::new();
    let manager = lab.manager();
    manager.create(small("a", "ds1")).await.unwrap();
    manager.start("a").await.unwrap();
    let text = fs::read_to_string(lab.path("ds1/a/vm.toml")).unwrap();
    let text = text.replace("name = \"a\"", "name = \"b\"").replace("disk0.raw", "../a/disk0.raw");
    fs::create_dir(lab.path("ds1/b")).unwrap();
    fs::write(lab.path("ds1/b/vm.toml"), &text).unwrap();
    let error = manager.start("b").await.unwrap_err();
    assert_eq!(error.to_string(), "ds1/b/vm.toml: disk[0].file: must stay inside the VM directory");

    let text = text.replace("file = \"../a/disk0.raw\"", "datastore = \"ds1\"\nfile = \"a/disk0.raw\"");
    fs::write(lab.path("ds1/b/vm.toml"), text).unwrap();
    let error = manager.start("b").await.unwrap_err().to_string();
    assert!(error.contains("lock"), "{error}");
    assert_eq!(manager.show("a").await.unwrap().state, VmState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_taken_once_on_all_datastores() {
    let lab = Lab::new();
    let manager = lab.manager();
    manager.create(small("vm42", "ds1")).await.unwrap();
    let taken = manager.create(small("vm42", "ds2")).await.unwrap_err();
    assert_eq!(taken.to_string(), "a VM named vm42 exists already: ds1/vm42");
    let nowhere = manager.create(small("vm43", "ds9")).await.unwrap_err();
    assert_eq!(nowhere.to_string(), "this host has no datastore ds9");
    assert_eq!(nowhere.hint().unwrap(), "it has: ds1, ds2");
    for name in ["../vm42", "", "a/b", ".hidden"] {
        assert!(matches!(manager.show(name).await, Err(VmError::Usage(_))), "{name}");
        assert!(matches!(manager.start(name).await, Err(VmError::Usage(_))), "{name}");
    }
    assert_eq!(fs::read_dir(lab.path("ds2")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_copies_the_running_one_is_meant() {
    let lab = Lab::new();
    let manager = lab.manager();
    manager.create(small("vm42", "ds1")).await.unwrap();
    fs::create_dir(lab.path("ds2/vm42")).unwrap();
    fs::copy(lab.path("ds1/vm42/vm.toml"), lab.path("ds2/vm42/vm.toml")).unwrap();
    let both = manager.start("vm42").await.unwrap_err();
    assert_eq!(both.to_string(), "there is more than one VM named vm42: ds1/vm42, ds2/vm42");

    fs::rename(lab.path("ds2/vm42"), lab.path("ds2/.vm42")).unwrap();
    manager.start("vm42").await.unwrap();
    fs::rename(lab.path("ds2/.vm42"), lab.path("ds2/vm42")).unwrap();
    assert_eq!(manager.locate("vm42").await.unwrap().datastore, "ds1");
    let states: Vec<_> =
        manager.list().await.unwrap().iter().map(|vm| (vm.datastore.clone(), vm.state)).collect();
    assert_eq!(states, [("ds1".to_string(), VmState::Running), ("ds2".to_string(), VmState::Stopped)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_said_before_qemu_is_tried() {
    let lab = Lab::new();
    let manager = lab.manager();
    manager.create(small("vm42", "ds1")).await.unwrap();
    let disk = lab.path("ds1/vm42/disk0.raw");
    fs::remove_file(&disk).unwrap();
    let error = manager.start("vm42").await.unwrap_err();
    assert_eq!(error.to_string(), format!("VM vm42: disk disk0: {} does not exist", disk.display()));
    assert_eq!(error.code(), ApiErrorCode::Precheck);

    let nic = NewNic { bridge: Some("gw-no-such-br".into()), mac: None };
    manager.create(CreateVm { nics: vec![nic], ..small("bridged", "ds1") }).await.unwrap();
    let error = manager.start("bridged").await.unwrap_err();
    assert_eq!(error.to_string(), "VM bridged: this host has no bridge gw-no-such-br");
    assert!(!lab.run_files("bridged").directory.exists());
}

/// The guest's files, made by `make guest`.
fn guest(file: &str) -> String {
    let folder = std::env::var_os("GODWIT_GUEST").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guest")),
        PathBuf::from,
    );
    let path = folder.join(file);
    let path =
        path.canonicalize().unwrap_or_else(|e| panic!("{}: {e}; `make guest` makes it", path.display()));
    path.to_string_lossy().into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_shuts_down_by_its_power_button() {
    let lab = Lab::new();
    let manager = lab.manager();
    let image = lab.path("disk.raw");
    let made = std::process::Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../guest/mkdisk.sh"))
        .arg(&image)
        .arg("512M")
        .status();
    assert!(made.unwrap().success());
    let boot = NewBoot {
        kernel: Some(guest("vmlinux")),
        initrd: Some(guest("initrd.img")),
        append: Some("console=ttyS0 quiet".into()),
    };
    let disk = NewDisk { from: Some(image.to_string_lossy().into_owned()), ..NewDisk::default() };
    let request = CreateVm { memory: 256 << 20, boot, disks: vec![disk], ..small("vm42", "ds1") };
    let made = manager.create(request).await.unwrap();
    assert_eq!(made.disks[0].size, Some(512 << 20));
    let started = manager.start("vm42").await.unwrap();
    let console = PathBuf::from(started.console.unwrap());
    let ready = async {
        while !fs::read_to_string(&console).unwrap_or_default().contains("READY") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(2 * PATIENCE, ready).await.expect("the guest boots");
    let stopped = manager.stop("vm42", StopVm { force: false, timeout_s: Some(120) }).await.unwrap();
    assert_eq!((stopped.state, stopped.pid), (VmState::Stopped, None));
}

/// A bridge of the host that goes away when it is dropped.
struct Bridge(String);

impl Bridge {
    fn new() -> Self {
        let bridge = Self(format!("gwt{}", std::process::id()));
        assert!(bridge.ip(&["link", "add", &bridge.0, "type", "bridge"]), "make a bridge");
        bridge
    }

    fn ip(&self, args: &[&str]) -> bool {
        std::process::Command::new("ip").args(args).status().expect("run ip").success()
    }

    fn ports(&self) -> Vec<String> {
        let ports = fs::read_dir(format!("/sys/class/net/{}/brif", self.0)).unwrap();
        ports.map(|port| port.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.ip(&["link", "del", &self.0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_is_plugged_into_its_bridge_and_goes_away_with_the_vm() {
    let (lab, bridge) = (Lab::new(), Bridge::new());
    let manager = lab.manager();
    let nic = NewNic { bridge: Some(bridge.0.clone()), mac: None };
    let made = manager.create(CreateVm { nics: vec![nic], ..small("vm42", "ds1") }).await.unwrap();
    manager.start("vm42").await.unwrap();
    let tap = format!("gw{}", made.nics[0].mac.replace(':', ""));
    assert_eq!(bridge.ports(), std::slice::from_ref(&tap));
    let flags = fs::read_to_string(format!("/sys/class/net/{tap}/flags")).unwrap();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap();
    assert_eq!(flags & 1, 1, "it is up");
    manager.stop("vm42", FORCE).await.unwrap();
    assert_eq!(bridge.ports(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_thing_at_a_time_and_to_its_end() {
    let lab = Lab::new();
    let manager = lab.manager();
    manager.create(small("vm42", "ds1")).await.unwrap();
    let (first, second) = tokio::join!(manager.start("vm42"), manager.start("vm42"));
    assert_eq!(first.unwrap().state, VmState::Running);
    assert_eq!(second.unwrap_err().to_string(), "VM vm42: a start is under way");
    manager.stop("vm42", FORCE).await.unwrap();

    // A caller that goes away leaves nothing half done.
    let mut call = Box::pin(manager.start("vm42"));
    assert!(futures::poll!(&mut call).is_pending());
    drop(call);
    assert!(matches!(manager.stop("vm42", FORCE).await, Err(VmError::Busy { .. })));
    let running = async {
        while manager.show("vm42").await.unwrap().state != VmState::Running {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, running).await.expect("the start goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_a_dead_daemon_left_half_done_is_finished() {
    let lab = Lab::new();
    let manager = lab.manager();
    manager.create(small("vm42", "ds1")).await.unwrap();
    let home = lab.path("ds1/vm42");
    let config = VmConfig::parse(&fs::read_to_string(home.join("vm.toml")).unwrap()).unwrap();
    let run = lab.run_files("vm42");
    fs::create_dir_all(&run.directory).unwrap();
    let args = qemu::arguments(&config, lab.mount.path(), &home, &run, Engine::Tcg);
    let mut child = process::spawn(qemu::PROGRAM, &args, &run.log()).unwrap();
    let up = async {
        // Known by its lock before it answers.
        while manager.show("vm42").await.unwrap().state != VmState::Paused {
            assert!(child.try_wait().unwrap().is_none(), "{:?}", process::last_words(&run.log()));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, up).await.expect("QEMU comes up");
    let started = manager.start("vm42").await.unwrap();
    assert_eq!((started.state, started.pid), (VmState::Running, child.id()));
    manager.stop("vm42", FORCE).await.unwrap();
    child.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_qemu_is_listed_and_can_be_switched_off() {
    let lab = Lab::new();
    let manager = lab.manager();
    manager.create(small("vm42", "ds1")).await.unwrap();
    let pid = manager.start("vm42").await.unwrap().pid.unwrap();
    let raw = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    kill_process(raw, Signal::STOP).unwrap();
    let shown = manager.show("vm42").await.unwrap();
    assert_eq!((shown.state, shown.pid), (VmState::Unknown, Some(pid)));
    assert_eq!(manager.stop("vm42", FORCE).await.unwrap().state, VmState::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn qcow2_disks_are_made_and_run() {
    let lab = Lab::new();
    let manager = lab.manager();
    let disk = NewDisk { size: Some(16 << 20), format: Some("qcow2".into()), from: None };
    manager.create(CreateVm { disks: vec![disk], ..small("vm42", "ds1") }).await.unwrap();
    let image = lab.path("ds1/vm42/disk0.qcow2");
    assert_eq!(&fs::read(&image).unwrap()[..4], b"QFI\xfb");
    assert_eq!(manager.start("vm42").await.unwrap().state, VmState::Running);

    let from = image.to_string_lossy().into_owned();
    let disk = NewDisk { size: None, format: None, from: Some(from) };
    let error = manager.create(CreateVm { disks: vec![disk], ..small("copy", "ds2") }).await.unwrap_err();
    assert!(error.to_string().ends_with("is qcow2, and the disk shall be raw"), "{error}");
    assert!(!lab.path("ds2/copy").exists());
}
