//! A new VM's directory, and its removal. Blocking; not for the runtime's workers.
//!
//! `vm.toml` is written last and removed last: a directory without it is not a VM, so what is half
//! made is never started, and what is half removed can be removed again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use proto::control::vm::{CreateVm, NewBoot, NewDisk, NewNic};
use uuid::Uuid;

use super::config::{self, Accel, Attach, Boot, Cache, ConfigError, Disk, Format, Nic, VmConfig};
use super::error::VmError;
use super::size::Size;
use super::{disk_image, identity};

/// The `vm.toml` that a request means.
pub fn configuration(request: &CreateVm) -> Result<VmConfig, VmError> {
    let wrong = |place: String, problem: String| VmError::Request(ConfigError { place, problem, hint: None });
    let mut disks = Vec::new();
    for (i, new) in request.disks.iter().enumerate() {
        if new.from.is_none() && new.size.is_none() {
            return Err(wrong(format!("disk[{i}]"), "needs a size, or a file to copy".into()));
        }
        if let Some(from) = &new.from {
            absolute(from).map_err(|p| wrong(format!("disk[{i}].from"), p))?;
        }
        disks.push(disk(i, new).map_err(|p| wrong(format!("disk[{i}].format"), p))?);
    }
    let NewBoot { kernel, initrd, append } = request.boot.clone();
    for (key, path) in [("boot.kernel", &kernel), ("boot.initrd", &initrd)] {
        if let Some(path) = path {
            absolute(path).map_err(|p| wrong(key.into(), p))?;
        }
    }
    let accel = match request.accel.as_deref() {
        None | Some("auto") => Accel::Auto,
        Some("kvm") => Accel::Kvm,
        Some("tcg") => Accel::Tcg,
        Some(other) => {
            return Err(wrong("accel".into(), format!("{other:?} is none of \"auto\", \"kvm\" and \"tcg\"")));
        }
    };
    let config = VmConfig {
        name: request.name.clone(),
        uuid: Some(Uuid::new_v4()),
        memory: Size(request.memory),
        cpus: request.cpus,
        machine: "q35".into(),
        cpu: None,
        accel,
        firmware: None,
        serial_socket: request.serial_socket,
        extra_args: request.extra_args.clone(),
        boot: Boot { kernel, initrd, append, disk: None },
        disks,
        nics: request.nics.iter().map(nic).collect(),
    };
    config.check().map_err(VmError::Request)?;
    Ok(config)
}

fn disk(index: usize, new: &NewDisk) -> Result<Disk, String> {
    let format = match new.format.as_deref() {
        None | Some("raw") => Format::Raw,
        Some("qcow2") => Format::Qcow2,
        Some(other) => return Err(format!("{other:?} is neither \"raw\" nor \"qcow2\"")),
    };
    let id = format!("disk{index}");
    Ok(Disk {
        file: format!("{id}.{}", format.as_str()),
        id,
        datastore: None,
        format,
        size: None,
        attach: Attach::File,
        readonly: false,
        cache: Cache::None,
    })
}

fn nic(new: &NewNic) -> Nic {
    Nic { mac: new.mac.clone().unwrap_or_else(identity::random_mac), mode: None, bridge: new.bridge.clone() }
}

fn absolute(path: &str) -> Result<(), String> {
    if path.starts_with('/') { Ok(()) } else { Err(format!("{path:?} is not an absolute path")) }
}

/// A directory that goes away again unless the VM gets finished.
struct Unfinished {
    path: PathBuf,
    finished: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "remove what is left of a VM that could not be made");
        }
    }
}

/// Make the directory, the disks and the `vm.toml`. On an error nothing is left behind.
pub fn build(mount: &Path, datastore: &str, config: &VmConfig, disks: &[NewDisk]) -> Result<(), VmError> {
    let place = format!("{datastore}/{}", config.name);
    let home = mount.join(datastore).join(&config.name);
    match fs::create_dir(&home) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && home.join(config::FILE_NAME).exists() => {
            return Err(VmError::Exists { name: config.name.clone(), place });
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(VmError::DirectoryTaken { place }),
        Err(e) => return Err(VmError::io(format!("create {place}"))(e)),
    }
    let mut unfinished = Unfinished { path: home.clone(), finished: false };
    for (disk, new) in config.disks.iter().zip(disks) {
        let path = disk.path(mount, &home);
        match (&new.from, new.size) {
            (Some(from), size) => disk_image::make_copy(&path, Path::new(from), disk.format, size)?,
            (None, Some(size)) => disk_image::make_empty(&path, disk.format, size)?,
            (None, None) => return Err(VmError::Usage(format!("disk {} has no size", disk.id))),
        }
    }
    write_config(&home, &config.to_toml())
        .map_err(VmError::io(format!("write {place}/{}", config::FILE_NAME)))?;
    unfinished.finished = true;
    Ok(())
}

/// Whole or not at all, also when this process dies meanwhile.
fn write_config(home: &Path, text: &str) -> io::Result<()> {
    let new = home.join(".vm.toml.new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, home.join(config::FILE_NAME))
}

/// Remove a VM: disks on other datastores, its directory, `vm.toml` last.
pub fn remove(mount: &Path, home: &Path, config: &VmConfig) -> Result<(), VmError> {
    let gone = |path: &Path, result: io::Result<()>| match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(VmError::io(format!("remove {}", path.display()))(e))
        }
        _ => Ok(()),
    };
    for disk in config.disks.iter().filter(|d| d.datastore.is_some()) {
        let path = disk.path(mount, home);
        gone(&path, fs::remove_file(&path))?;
    }
    let list = || VmError::io(format!("list {}", home.display()));
    for entry in fs::read_dir(home).map_err(list())? {
        let entry = entry.map_err(list())?;
        let path = entry.path();
        if entry.file_name() == config::FILE_NAME {
            continue;
        }
        let is_dir = entry.file_type().map_err(list())?.is_dir();
        gone(&path, if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) })?;
    }
    let file = home.join(config::FILE_NAME);
    gone(&file, fs::remove_file(&file))?;
    gone(home, fs::remove_dir(home))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> CreateVm {
        CreateVm {
            name: "vm42".into(),
            datastore: "ds1".into(),
            memory: 256 << 20,
            cpus: 1,
            disks: vec![
                NewDisk { size: Some(1 << 20), ..NewDisk::default() },
                NewDisk { size: Some(2 << 20), ..NewDisk::default() },
            ],
            nics: vec![NewNic::default()],
            ..CreateVm::default()
        }
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut CreateVm), message: &str) {
        let mut request = request();
        change(&mut request);
        assert_eq!(configuration(&request).unwrap_err().to_string(), message);
    }

    #[test]
    fn a_request_becomes_a_config_that_reads_back() {
        let config = configuration(&request()).unwrap();
        assert!(config.uuid.is_some() && !config.nics[0].mac.is_empty(), "identity is written down");
        assert_eq!(config.disks[1].file, "disk1.raw");
        assert_eq!(VmConfig::parse(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn bad_requests_name_what_is_bad() {
        refused(
            |r| r.name = "../x".into(),
            "name: \"../x\" contains '/'; letters, digits, '-', '_' and '.' are allowed",
        );
        refused(|r| r.memory = 1000, "memory: 1000 is not a whole number of MiB");
        refused(|r| r.disks[1].size = None, "disk[1]: needs a size, or a file to copy");
        refused(
            |r| r.disks[0].from = Some("a.raw".into()),
            "disk[0].from: \"a.raw\" is not an absolute path",
        );
        refused(
            |r| r.disks[0].format = Some("vmdk".into()),
            "disk[0].format: \"vmdk\" is neither \"raw\" nor \"qcow2\"",
        );
        refused(
            |r| r.boot.kernel = Some("vmlinux".into()),
            "boot.kernel: \"vmlinux\" is not an absolute path",
        );
        refused(|r| r.boot.append = Some("quiet".into()), "boot.append: has no meaning without boot.kernel");
        refused(|r| r.accel = Some("xen".into()), "accel: \"xen\" is none of \"auto\", \"kvm\" and \"tcg\"");
    }

    fn datastores() -> tempfile::TempDir {
        let mount = tempfile::tempdir().unwrap();
        for name in ["ds1", "ds2"] {
            fs::create_dir(mount.path().join(name)).unwrap();
        }
        mount
    }

    #[test]
    fn what_fails_half_way_leaves_nothing() {
        let mount = datastores();
        let mut request = request();
        request.disks[1].from = Some("/nonexistent/image.raw".into());
        let config = configuration(&request).unwrap();
        let error = build(mount.path(), "ds1", &config, &request.disks).unwrap_err();
        assert!(error.to_string().starts_with("read /nonexistent/image.raw: "), "{error}");
        assert_eq!(fs::read_dir(mount.path().join("ds1")).unwrap().count(), 0);
    }

    #[test]
    fn what_has_the_name_is_left_alone() {
        let mount = datastores();
        let request = request();
        let config = configuration(&request).unwrap();
        fs::create_dir(mount.path().join("ds1/vm42")).unwrap();
        fs::write(mount.path().join("ds1/vm42/notes"), "mine").unwrap();
        let error = build(mount.path(), "ds1", &config, &request.disks).unwrap_err();
        assert_eq!(error.to_string(), "ds1/vm42 exists already and is not a VM");
        assert_eq!(fs::read_to_string(mount.path().join("ds1/vm42/notes")).unwrap(), "mine");
    }

    #[test]
    fn disks_elsewhere_go_too_and_other_files_there_stay() {
        let mount = datastores();
        let request = request();
        let mut config = configuration(&request).unwrap();
        build(mount.path(), "ds1", &config, &request.disks).unwrap();
        let home = mount.path().join("ds1/vm42");
        let elsewhere = mount.path().join("ds2/data.raw");
        fs::rename(home.join("disk1.raw"), &elsewhere).unwrap();
        fs::write(mount.path().join("ds2/other"), "").unwrap();
        fs::create_dir(home.join("notes")).unwrap();
        config.disks[1].datastore = Some("ds2".into());
        config.disks[1].file = "data.raw".into();
        remove(mount.path(), &home, &config).unwrap();
        assert!(!home.exists() && !elsewhere.exists());
        assert!(mount.path().join("ds2/other").exists());
        remove(mount.path(), &home, &config).unwrap_err();
    }
}
