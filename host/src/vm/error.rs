//! What can go wrong with a VM, and the control API's form of it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use proto::control::{ApiError, ApiErrorCode};

use super::config::ConfigError;
use super::qmp::QmpError;

/// Why something with a VM was refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// The request makes no sense.
    #[error("{0}")]
    Usage(String),
    /// What was asked for would make a bad `vm.toml`.
    #[error("{0}")]
    Request(ConfigError),
    /// A `vm.toml` is wrong.
    #[error("{file}: {source}")]
    Config {
        /// `ds1/vm42/vm.toml`.
        file: String,
        /// Where and why.
        source: ConfigError,
    },
    /// No datastore has the VM.
    #[error("no VM named {name} on any datastore of this host{}", silent_note(.silent))]
    NotFound {
        /// The VM.
        name: String,
        /// Datastores that did not answer.
        silent: Vec<String>,
    },
    /// Several directories say they are the VM.
    #[error("there is more than one VM named {name}: {}", .places.join(", "))]
    Ambiguous {
        /// The VM.
        name: String,
        /// `ds1/vm42`.
        places: Vec<String>,
    },
    /// The name is taken.
    #[error("a VM named {name} exists already: {place}")]
    Exists {
        /// The VM.
        name: String,
        /// `ds1/vm42`, or what has the name.
        place: String,
    },
    /// The directory is there without being a VM.
    #[error("{place} exists already and is not a VM")]
    DirectoryTaken {
        /// `ds1/vm42`.
        place: String,
    },
    /// The mount has no such datastore.
    #[error("this host has no datastore {name}")]
    NoDatastore {
        /// The datastore.
        name: String,
        /// Those it has.
        known: Vec<String>,
    },
    /// The datastore is there and doesn't answer.
    #[error("datastore {0} does not answer")]
    DatastoreSilent(String),
    /// It must be stopped for this.
    #[error("VM {name} already runs (pid {pid})")]
    AlreadyRuns {
        /// The VM.
        name: String,
        /// Its QEMU.
        pid: u32,
    },
    /// It must run for this.
    #[error("VM {0} is not running")]
    NotRunning(String),
    /// Something else is being done to it.
    #[error("VM {name}: a {doing} is under way")]
    Busy {
        /// The VM.
        name: String,
        /// `start`.
        doing: &'static str,
    },
    /// A disk's file isn't there.
    #[error("VM {name}: disk {disk}: {path} does not exist")]
    NoDisk {
        /// The VM.
        name: String,
        /// The disk's id.
        disk: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// A bridge isn't there.
    #[error("VM {name}: this host has no bridge {bridge}")]
    NoBridge {
        /// The VM.
        name: String,
        /// The bridge.
        bridge: String,
    },
    /// The VM could not be plugged into its bridge.
    #[error("VM {name}: bridge {bridge}: {words}")]
    Bridge {
        /// The VM.
        name: String,
        /// The bridge.
        bridge: String,
        /// What `ip` said.
        words: String,
    },
    /// A program that is needed can't be run.
    #[error("can't run {program}: {source}")]
    NoProgram {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// QEMU ended instead of running the VM.
    #[error("VM {name} did not start: QEMU: {words}")]
    QemuFailed {
        /// The VM.
        name: String,
        /// QEMU's own words.
        words: String,
    },
    /// QEMU lives but doesn't get to run the VM.
    #[error("VM {name}: QEMU did not come up within {} s", .after.as_secs())]
    QemuStuck {
        /// The VM.
        name: String,
        /// How long it had.
        after: Duration,
        /// Where it writes.
        log: PathBuf,
    },
    /// The guest was started and doesn't run.
    #[error("VM {name} was started and is now in state {status}")]
    Halted {
        /// The VM.
        name: String,
        /// QEMU's word for the state, `io-error`.
        status: String,
        /// Where QEMU writes.
        log: PathBuf,
    },
    /// The guest didn't react to its power button.
    #[error("VM {name} still runs {} s after its power button was pressed", .after.as_secs())]
    StillRuns {
        /// The VM.
        name: String,
        /// How long it had.
        after: Duration,
    },
    /// QEMU doesn't even die.
    #[error("VM {name}: QEMU (pid {pid}) does not end")]
    Undead {
        /// The VM.
        name: String,
        /// Its QEMU.
        pid: u32,
    },
    /// QEMU's control socket.
    #[error("VM {name}: {source}")]
    Qmp {
        /// The VM.
        name: String,
        /// What.
        source: QmpError,
    },
    /// A file operation.
    #[error("{what}: {source}")]
    Io {
        /// `create ds1/vm42/disk0.raw`.
        what: String,
        /// Why.
        source: io::Error,
    },
}

fn silent_note(silent: &[String]) -> String {
    match silent {
        [] => String::new(),
        silent => format!(" ({} did not answer)", silent.join(", ")),
    }
}

impl VmError {
    /// An [`VmError::Io`] maker: `.map_err(VmError::io("open …"))`.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> VmError {
        move |source| VmError::Io { what: what.into(), source }
    }

    /// The kind, for HTTP status and exit codes.
    pub fn code(&self) -> ApiErrorCode {
        match self {
            VmError::Usage(_) | VmError::Request(_) => ApiErrorCode::Usage,
            VmError::NotFound { .. } | VmError::NoDatastore { .. } => ApiErrorCode::NotFound,
            VmError::Ambiguous { .. }
            | VmError::Exists { .. }
            | VmError::DirectoryTaken { .. }
            | VmError::AlreadyRuns { .. }
            | VmError::NotRunning(_)
            | VmError::Busy { .. } => ApiErrorCode::Conflict,
            VmError::Config { .. }
            | VmError::DatastoreSilent(_)
            | VmError::NoDisk { .. }
            | VmError::NoBridge { .. }
            | VmError::NoProgram { .. } => ApiErrorCode::Precheck,
            VmError::Bridge { .. }
            | VmError::QemuFailed { .. }
            | VmError::QemuStuck { .. }
            | VmError::Halted { .. }
            | VmError::StillRuns { .. }
            | VmError::Undead { .. }
            | VmError::Qmp { .. }
            | VmError::Io { .. } => ApiErrorCode::Failed,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            VmError::Config { source, .. } | VmError::Request(source) => return source.hint.clone(),
            VmError::NotFound { silent, .. } if !silent.is_empty() => {
                format!("`dsctl status` shows what is wrong with {}", silent.join(", "))
            }
            VmError::NotFound { .. } => "`dsctl vm list` shows the VMs".into(),
            VmError::Ambiguous { .. } => {
                "give one of them another `name` in its vm.toml, or remove it".into()
            }
            VmError::Exists { .. } => "choose another name".into(),
            VmError::DirectoryTaken { .. } => "choose another name, or move the directory away".into(),
            VmError::NoDatastore { known, .. } if known.is_empty() => {
                "is the mount there? see `dsctl status`".into()
            }
            VmError::NoDatastore { known, .. } => format!("it has: {}", known.join(", ")),
            VmError::DatastoreSilent(name) => format!("check the dsserver of {name} and the network"),
            VmError::AlreadyRuns { name, .. } => format!("`dsctl vm stop {name}` stops it"),
            VmError::NotRunning(name) => format!("`dsctl vm start {name}` starts it"),
            VmError::Busy { .. } => "wait for it and try again".into(),
            VmError::NoDisk { .. } => "correct the disk's `file` in vm.toml, or make the file".into(),
            VmError::NoBridge { bridge, .. } => {
                format!("make it (`ip link add {bridge} type bridge`), or leave `bridge` out for user mode")
            }
            VmError::NoProgram { program, .. } if program.starts_with("qemu") => {
                "install QEMU (Debian: apt-get install qemu-system-x86 qemu-utils)".into()
            }
            VmError::QemuStuck { log, .. } | VmError::Halted { log, .. } => format!("see {}", log.display()),
            VmError::StillRuns { name, .. } => {
                format!("wait longer, or `dsctl vm stop {name} --force` switches it off")
            }
            VmError::Undead { .. } => "it hangs in the kernel, likely on storage that doesn't answer".into(),
            VmError::Qmp { name, source: QmpError::Timeout { .. } } => {
                format!(
                    "QEMU hangs or another program holds its socket; `dsctl vm stop {name} --force` ends it"
                )
            }
            VmError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free space there, or choose another datastore".into()
            }
            _ => return None,
        })
    }
}

impl From<VmError> for ApiError {
    fn from(error: VmError) -> Self {
        ApiError { code: error.code(), message: error.to_string(), hint: error.hint() }
    }
}
