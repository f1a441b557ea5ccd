//! The small Linux guest of `guest/`, and a VM that runs it.
//!
//! It writes numbered, checksummed records, each with fsync, to the ext4 on its disk, and on request
//! overwrites blocks of a second area as fast as it is told to. It answers on its second serial port.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::Lab;
use crate::process::{run, wait_for};

/// Where guest/build.sh put it.
pub fn directory() -> PathBuf {
    let dir = std::env::var_os("GODWIT_GUEST")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest"), PathBuf::from);
    assert!(dir.join("vmlinux").exists(), "no guest in {}: `make guest` builds it", dir.display());
    dir
}

/// A VM that runs the guest.
pub struct GuestVm {
    name: String,
    /// Process id of its QEMU.
    pub pid: u32,
    socket: String,
}

impl GuestVm {
    /// Make a VM on a datastore, with a disk of `size` that has `fill` in it, and boot it.
    pub fn boot(lab: &Lab, name: &str, datastore: &str, size: &str, fill: &str) -> GuestVm {
        let guest = directory();
        let disk = lab.root().join(format!("{name}.img"));
        let disk = disk.to_str().expect("a scratch path is UTF-8");
        let mkdisk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest/mkdisk.sh");
        run(mkdisk.to_str().expect("UTF-8"), &[disk, size, fill]);
        let file = |name: &str| guest.join(name).to_string_lossy().into_owned();
        let (kernel, initrd) = (file("vmlinux"), file("initrd.img"));
        let made = lab.dsctl(&[
            "vm",
            "create",
            name,
            "--datastore",
            datastore,
            "--memory",
            "192MiB",
            "--disk-from",
            disk,
            "--serial-socket",
            "--kernel",
            &kernel,
            "--initrd",
            &initrd,
            "--append",
            "console=ttyS0 quiet",
        ]);
        assert!(made.status.success(), "{made:?}");
        std::fs::remove_file(disk).expect("remove the pattern of the disk");
        let started = lab.dsctl(&["vm", "start", name]);
        assert!(started.status.success(), "{started:?}\n{}", lab.host_log());
        let mut vm = GuestVm { name: name.into(), pid: 0, socket: String::new() };
        let shown = vm.show(lab);
        vm.pid = shown["pid"].as_u64().expect("a running VM has a pid") as u32;
        vm.socket = shown["serial_socket"].as_str().expect("asked for at its creation").to_string();
        vm.ask("ping");
        vm
    }

    /// `dsctl vm show`.
    pub fn show(&self, lab: &Lab) -> serde_json::Value {
        let shown = lab.dsctl(&["--json", "vm", "show", &self.name]);
        serde_json::from_slice(&shown.stdout).unwrap_or_else(|e| panic!("{e}: {shown:?}"))
    }

    fn try_ask(&self, what: &str) -> Output {
        Command::new(directory().join("recorder"))
            .args(["--ask", &self.socket, "--timeout", "120"])
            .args(what.split(' '))
            .output()
            .expect("start the recorder")
    }

    /// Ask the guest; it must agree.
    pub fn ask(&self, what: &str) -> String {
        let output = self.try_ask(what);
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "the guest on {what:?}: {words}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        words
    }

    /// A figure of the guest's status: `acked`, `gap_us`, …
    pub fn figure(&self, key: &str) -> u64 {
        let status = self.ask("status");
        let found = status.split_whitespace().find_map(|word| word.strip_prefix(&format!("{key}=")));
        found.and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("no {key} in {status:?}"))
    }

    /// The disk as QEMU has it open.
    pub fn open_disk(&self) -> PathBuf {
        let links = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("QEMU runs");
        links
            .flatten()
            .filter_map(|link| std::fs::read_link(link.path()).ok())
            .find(|path| path.extension().is_some_and(|e| e == "raw"))
            .expect("QEMU has its disk open")
    }

    /// Whether its QEMU runs.
    pub fn runs(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
    }

    /// Switch it off, then look at its disk from outside: a clean file system, and every record up
    /// to the last one that the guest had acknowledged.
    pub fn power_off_and_check(&self) {
        let disk = self.open_disk();
        let last = self.ask("poweroff");
        let acked = last.split_whitespace().find_map(|w| w.strip_prefix("acked=")).unwrap_or("0").to_string();
        wait_for("QEMU to end", || !self.runs());
        let disk = disk.to_str().expect("UTF-8");
        run("/usr/sbin/e2fsck", &["-fn", disk]);
        let records = tempfile::NamedTempFile::new().expect("a scratch file");
        let records = records.path().to_str().expect("UTF-8");
        run("/usr/sbin/debugfs", &["-R", &format!("dump records {records}"), disk]);
        let recorder = directory().join("recorder");
        run(recorder.to_str().expect("UTF-8"), &["--check", records, "--acked", &acked]);
    }
}

/// A test that fails leaves no machine behind: QEMU outlives the dshost that started it.
impl Drop for GuestVm {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.pid as i32).filter(|_| self.runs()) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
