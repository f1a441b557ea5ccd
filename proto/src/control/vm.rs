//! VMs in the control API.

use serde::{Deserialize, Serialize};

/// Make a VM: its directory on a datastore with `vm.toml` and disks. It is not started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// The VM's name and that of its directory.
    pub name: String,
    /// Where its directory is made.
    pub datastore: String,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Its disks, in order.
    #[serde(default)]
    pub disks: Vec<NewDisk>,
    /// Its network cards, in order.
    #[serde(default)]
    pub nics: Vec<NewNic>,
    /// What to boot; nothing: the first disk.
    #[serde(default)]
    pub boot: NewBoot,
    /// QEMU's accelerator: `auto`, `kvm` or `tcg`.
    #[serde(default)]
    pub accel: Option<String>,
    /// A second serial port, connected to a unix socket in the host's run directory.
    #[serde(default)]
    pub serial_socket: bool,
    /// More arguments for QEMU, appended as they are.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// A disk to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewDisk {
    /// Size in bytes; may be left out with `from`, and is then that of the file.
    #[serde(default)]
    pub size: Option<u64>,
    /// A file on the host whose content the disk starts with.
    #[serde(default)]
    pub from: Option<String>,
    /// `raw` or `qcow2`; raw when left out. What `from` has is copied as it is.
    #[serde(default)]
    pub format: Option<String>,
}

/// A network card to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewNic {
    /// The bridge it is plugged into; none: QEMU's user-mode network.
    #[serde(default)]
    pub bridge: Option<String>,
    /// Its address; none: one is made up.
    #[serde(default)]
    pub mac: Option<String>,
}

/// What a VM boots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewBoot {
    /// A kernel file on the host.
    #[serde(default)]
    pub kernel: Option<String>,
    /// An initial RAM disk for it.
    #[serde(default)]
    pub initrd: Option<String>,
    /// Its command line.
    #[serde(default)]
    pub append: Option<String>,
}

/// Stop a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopVm {
    /// Switch it off without asking the guest.
    #[serde(default)]
    pub force: bool,
    /// Seconds the guest has to shut down after its power button was pressed; then it is left
    /// running and the call fails. None: the host's default.
    #[serde(default)]
    pub timeout_s: Option<u64>,
}

/// Whether and how a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// No QEMU.
    Stopped,
    /// The guest runs.
    Running,
    /// QEMU lives, the guest doesn't run.
    Paused,
    /// QEMU lives and can't do a disk's I/O; it goes on when that works again and it is resumed.
    IoError,
    /// QEMU lives and says something else, or nothing.
    Unknown,
}

/// A VM as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// Its name.
    pub name: String,
    /// The datastore of its directory.
    pub datastore: String,
    /// Its directory below the host's mount.
    pub directory: String,
    /// Whether it runs.
    pub state: VmState,
    /// Process id of its QEMU.
    pub pid: Option<u32>,
    /// Seconds since its QEMU started.
    pub uptime_s: Option<u64>,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Its disks.
    pub disks: Vec<DiskInfo>,
    /// Its network cards.
    #[serde(default)]
    pub nics: Vec<NicInfo>,
    /// Where its first serial port is logged.
    #[serde(default)]
    pub console: Option<String>,
    /// The socket of its second serial port.
    #[serde(default)]
    pub serial_socket: Option<String>,
}

/// A disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// Its name within the VM.
    pub name: String,
    /// The datastore it is on.
    pub datastore: String,
    /// Its file below the host's mount.
    pub path: String,
    /// `raw` or `qcow2`.
    pub format: String,
    /// Size of the file in bytes, when it can be read.
    pub size: Option<u64>,
    /// Bytes that it takes on the datastore.
    pub allocated: Option<u64>,
}

/// A network card of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicInfo {
    /// Its address.
    pub mac: String,
    /// The bridge it is plugged into; none: QEMU's user-mode network.
    pub bridge: Option<String>,
}
