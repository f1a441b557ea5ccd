//! What is shown of a VM. No I/O.

use std::path::{Path, PathBuf};

use proto::control::vm::{DiskInfo, NicInfo, VmInfo, VmState};

use super::catalog::{FileState, Home};
use super::config::VmConfig;
use super::qemu::console_log;

/// A VM's QEMU.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: Option<u64>,
    /// What it says of the guest.
    pub state: VmState,
    /// Where its second serial port would be.
    pub serial: PathBuf,
}

/// What QEMU's word for its state means; versions to come may have more of them.
pub fn state_of(status: &str) -> VmState {
    match status {
        "running" => VmState::Running,
        "io-error" => VmState::IoError,
        "paused" | "prelaunch" | "inmigrate" | "postmigrate" | "finish-migrate" | "save-vm"
        | "restore-vm" | "suspended" | "debug" | "colo" => VmState::Paused,
        _ => VmState::Unknown,
    }
}

/// The disks' files, each with its datastore.
pub fn disk_files(home: &Home, config: &VmConfig, mount: &Path) -> Vec<(String, PathBuf)> {
    config
        .disks
        .iter()
        .map(|disk| {
            let datastore = disk.datastore.as_ref().unwrap_or(&home.datastore);
            (datastore.clone(), disk.path(mount, &home.path))
        })
        .collect()
}

/// All of a VM. `disks` are the states of [`disk_files`], in its order.
pub fn describe(home: &Home, mount: &Path, running: Option<Running>, disks: &[FileState]) -> VmInfo {
    let mut info = skeleton(home.name(), running.as_ref());
    info.datastore.clone_from(&home.datastore);
    info.directory = text(&home.path);
    info.console = Some(text(&console_log(&home.path)));
    let Ok(config) = &home.config else {
        // Listed, so that it is seen; `show` says what is wrong with it.
        if running.is_none() {
            info.state = VmState::Unknown;
        }
        return info;
    };
    info.memory = config.memory.0;
    info.cpus = config.cpus;
    info.serial_socket = running.filter(|_| config.serial_socket).map(|r| text(&r.serial));
    info.nics =
        config.nics.iter().map(|n| NicInfo { mac: n.mac.clone(), bridge: n.bridge.clone() }).collect();
    let files = disk_files(home, config, mount);
    info.disks = config
        .disks
        .iter()
        .zip(files)
        .zip(disks)
        .map(|((disk, (datastore, path)), state)| {
            let (size, allocated) = match *state {
                FileState::Is { size, allocated } => (Some(size), Some(allocated)),
                FileState::Missing | FileState::Silent => (None, None),
            };
            let format = disk.format.as_str().into();
            DiskInfo { name: disk.id.clone(), datastore, path: text(&path), format, size, allocated }
        })
        .collect();
    info
}

/// What is known of a running VM whose datastore doesn't answer.
pub fn skeleton(name: &str, running: Option<&Running>) -> VmInfo {
    VmInfo {
        name: name.into(),
        datastore: String::new(),
        directory: String::new(),
        state: running.map_or(VmState::Stopped, |r| r.state),
        pid: running.map(|r| r.pid),
        uptime_s: running.and_then(|r| r.uptime_s),
        memory: 0,
        cpus: 0,
        disks: Vec::new(),
        nics: Vec::new(),
        console: None,
        serial_socket: None,
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(config: &str) -> Home {
        Home {
            datastore: "ds1".into(),
            directory: "vm42".into(),
            path: "/vmfs/ds1/vm42".into(),
            config: VmConfig::parse(config),
        }
    }

    #[test]
    fn words_of_versions_to_come_are_unknown_and_no_error() {
        assert_eq!(state_of("running"), VmState::Running);
        assert_eq!(state_of("io-error"), VmState::IoError);
        assert_eq!(state_of("inmigrate"), VmState::Paused);
        assert_eq!(state_of("hibernating-2031"), VmState::Unknown);
    }

    #[test]
    fn disks_show_where_they_are() {
        let home = home(
            "name = \"vm42\"\nmemory = \"1GiB\"\nserial_socket = true\n[[disk]]\nfile = \"a.raw\"\n\
             [[disk]]\ndatastore = \"ds3\"\nfile = \"x/b.raw\"\n",
        );
        let states = [FileState::Is { size: 10, allocated: 5 }, FileState::Silent];
        let info = describe(&home, Path::new("/vmfs"), None, &states);
        let places: Vec<_> =
            info.disks.iter().map(|d| (d.datastore.as_str(), d.path.as_str(), d.size)).collect();
        assert_eq!(places, [("ds1", "/vmfs/ds1/vm42/a.raw", Some(10)), ("ds3", "/vmfs/ds3/x/b.raw", None)]);
        assert_eq!((info.state, info.serial_socket), (VmState::Stopped, None));

        let qemu = Running { pid: 7, uptime_s: Some(3), state: VmState::Paused, serial: "/run/s".into() };
        let info = describe(&home, Path::new("/vmfs"), Some(qemu), &states);
        assert_eq!(
            (info.state, info.pid, info.serial_socket.as_deref()),
            (VmState::Paused, Some(7), Some("/run/s"))
        );
    }

    #[test]
    fn a_bad_file_is_listed_under_its_directory() {
        let info = describe(&home("nonsense"), Path::new("/vmfs"), None, &[]);
        assert_eq!((info.name.as_str(), info.state), ("vm42", VmState::Unknown));
    }
}
