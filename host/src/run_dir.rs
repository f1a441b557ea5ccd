//! The run directory: sockets and volatile state of one dshost, and of one only.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The lock's name in the run directory.
const LOCK: &str = "dshost.lock";

/// Why a run directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// Another dshost has it.
    #[error("run directory {} is used by another dshost{}", path.display(), pid.map(|p| format!(" (pid {p})")).unwrap_or_default())]
    Taken {
        /// The directory.
        path: PathBuf,
        /// The other one's process id, when it says it.
        pid: Option<u32>,
    },
    /// Others could put files into it.
    #[error("run directory {} is writable by other users", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
    },
    /// It is something else.
    #[error("run directory {}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl RunDirError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            RunDirError::Taken { .. } => {
                Some("stop that one, or give this one another directory: --run DIR".into())
            }
            RunDirError::Open { path } => {
                Some(format!("`chmod go-w {}`, or another --run DIR", path.display()))
            }
            RunDirError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run dshost as root, or give it a directory of its own: --run DIR".into())
            }
            RunDirError::Io { .. } => None,
        }
    }
}

/// A run directory that is ours until dropped.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    // The kernel lets go of the lock when the process ends, however it ends.
    _lock: File,
}

impl RunDir {
    /// Make the directory (for its owner only) if it isn't there, and lock it.
    pub fn take(path: &Path) -> Result<Self, RunDirError> {
        let failed = |source| RunDirError::Io { path: path.into(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let mode = std::fs::metadata(path).map_err(failed)?.mode();
        if mode & 0o022 != 0 {
            return Err(RunDirError::Open { path: path.into() });
        }
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(LOCK))
            .map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = lock.read_to_string(&mut text);
                return Err(RunDirError::Taken { path: path.into(), pid: text.trim().parse().ok() });
            }
            Err(e) => return Err(failed(e.into())),
        }
        lock.set_len(0).map_err(failed)?;
        writeln!(lock, "{}", std::process::id()).map_err(failed)?;
        Ok(RunDir { path: path.into(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn one_dshost_at_a_time() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/run");
        let first = RunDir::take(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let error = RunDir::take(&path).unwrap_err();
        let pid = std::process::id();
        assert_eq!(
            error.to_string(),
            format!("run directory {} is used by another dshost (pid {pid})", path.display())
        );
        assert!(error.hint().is_some());
        drop(first);
        assert_eq!(RunDir::take(&path).unwrap().path(), path);
    }

    #[test]
    fn what_others_can_write_to_is_refused() {
        let base = tempfile::tempdir().unwrap();
        std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(RunDir::take(base.path()), Err(RunDirError::Open { .. })));
        std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(RunDir::take(base.path()).is_ok());
        std::fs::write(base.path().join("file"), "").unwrap();
        assert!(matches!(RunDir::take(&base.path().join("file")), Err(RunDirError::Io { .. })));
    }
}
