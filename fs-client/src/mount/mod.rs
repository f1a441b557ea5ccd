//! The FUSE mount: one directory with a directory per datastore in it.
//!
//! An adapter and no more: `adapter` decodes what the kernel asks, the other modules carry it out
//! on [`Files`], one subject each. Data goes from the FUSE thread that read the request straight
//! into the file's slot, and is answered from wherever the slot's completion runs; names and
//! attributes are tasks of a small runtime. No FUSE thread ever waits.

mod adapter;
mod answers;
mod attrs;
mod convert;
mod data;
mod dirs;
mod names;
mod root;
mod view;
mod xattrs;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::mount::{UnmountFlags, unmount};
use tokio::runtime::Runtime;
use tracing::{info, warn};

use self::adapter::Adapter;
use self::view::View;
use crate::nodes::Files;

/// Threads of the runtime that names and attributes are looked after by.
const NAME_WORKERS: usize = 2;
/// What the kernel shows as the source of the mount.
const FS_NAME: &str = "godwit";

/// Where and how to mount.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// An existing directory.
    pub path: PathBuf,
    /// Threads that read requests from the kernel; at least one.
    pub threads: usize,
}

impl MountConfig {
    /// A mount at `path` with the usual number of threads.
    pub fn at(path: impl Into<PathBuf>) -> MountConfig {
        MountConfig { path: path.into(), threads: 4 }
    }
}

/// A live mount. Dropping it unmounts.
pub struct Mount {
    path: PathBuf,
    session: Option<BackgroundSession>,
    runtime: Option<Runtime>,
}

impl Mount {
    /// Mount. Fails with a reason and a `hint:` when the path is unfit, above all when a mount of
    /// a process that was killed is still there.
    pub fn start(files: Arc<Files>, config: MountConfig) -> io::Result<Mount> {
        check_path(&config.path)?;
        let path = config.path.canonicalize()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(NAME_WORKERS)
            .thread_name("names")
            .enable_time()
            .build()?;
        let adapter = Adapter::new(View::new(files), runtime.handle().clone());
        let mut options = Config::default();
        options.mount_options = vec![MountOption::FSName(FS_NAME.into()), MountOption::DefaultPermissions];
        options.acl = SessionACL::All;
        options.n_threads = Some(config.threads.max(1));
        let session = Session::new(adapter, &path, &options)?.spawn()?;
        info!(path = %path.display(), "mounted");
        Ok(Mount { path, session: Some(session), runtime: Some(runtime) })
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmount. While programs still use files of it, it only disappears from the tree of names,
    /// and ends when they let go or this process ends.
    pub fn unmount(mut self) -> io::Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        match unmount(&self.path, UnmountFlags::empty()) {
            Ok(()) => session.join(),
            Err(rustix::io::Errno::BUSY) => {
                warn!(path = %self.path.display(), "still in use: detached, it ends with its last user");
                // fuser would unmount whatever is at this path by then.
                std::mem::forget(session);
                unmount(&self.path, UnmountFlags::DETACH).map_err(Into::into)
            }
            Err(rustix::io::Errno::INVAL) => {
                info!(path = %self.path.display(), "somebody else has unmounted it");
                session.join()
            }
            Err(e) => Err(e.into()),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(e) = self.take_down() {
            warn!(path = %self.path.display(), "unmount: {e}");
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn check_path(path: &Path) -> io::Result<()> {
    let shown = path.display();
    let explain = |kind, text: String| Err(io::Error::new(kind, text));
    match path.metadata() {
        Ok(m) if !m.is_dir() => explain(io::ErrorKind::NotADirectory, format!("{shown} is not a directory")),
        Ok(_) if is_ours(path) => explain(
            io::ErrorKind::AddrInUse,
            format!(
                "another dshost has mounted its datastores at {shown}\nhint: stop that one, or choose another mount point"
            ),
        ),
        Ok(_) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => explain(
            io::ErrorKind::NotConnected,
            format!(
                "{shown} is a stale mount: the process behind it is gone\nhint: fusermount3 -u {shown} (or umount -l {shown}), then start again"
            ),
        ),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            explain(e.kind(), format!("the mount point {shown} does not exist\nhint: mkdir -p {shown}"))
        }
        Err(e) => explain(e.kind(), format!("mount point {shown}: {e}")),
    }
}

/// Whether the topmost mount at `path` is one of ours.
fn is_ours(path: &Path) -> bool {
    let (Ok(path), Ok(mounts)) = (path.canonicalize(), std::fs::read_to_string("/proc/self/mounts")) else {
        return false;
    };
    let top = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (source, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
            Some((at, source == FS_NAME && kind.starts_with("fuse")))
        })
        .rfind(|(at, _)| unescape(at) == path.as_os_str().as_encoded_bytes());
    top.is_some_and(|(_, ours)| ours)
}

/// Undo the octal escapes of /proc/self/mounts.
fn unescape(field: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), field.as_bytes());
    while let [first, tail @ ..] = rest {
        match tail {
            [a, b, c, behind @ ..] if *first == b'\\' => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = behind;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfit_paths_are_refused_with_words() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(check_path(&file).unwrap_err().to_string().contains("not a directory"));
        let missing = check_path(&dir.path().join("missing")).unwrap_err();
        assert!(missing.to_string().contains("hint: mkdir -p"), "{missing}");
        check_path(dir.path()).unwrap();
    }

    #[test]
    fn mount_paths_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\134c"), b"/a b\\c");
    }
}
