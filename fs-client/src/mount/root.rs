//! The mount's own root: a directory that no datastore keeps, with the datastores in it.
//!
//! Nothing can be created, renamed or removed here.

use std::sync::Arc;

use proto::FileId;
use proto::ops::names::{Attr, FileKind, GetAttr, Name};
use tracing::error;

use super::convert;
use super::view::{Outcome, View, errno};
use crate::datastore::Datastore;

impl View {
    /// The root's attributes.
    pub fn root_attr(&self) -> Attr {
        let born = convert::time(self.born);
        Attr {
            file: FileId::MOUNT_ROOT,
            kind: FileKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            nlink: 2 + self.files.datastores().len() as u32,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: born,
            mtime: born,
            ctime: born,
            btime: born,
        }
    }

    /// Look a datastore up by its name.
    pub async fn root_lookup(&self, name: &Name) -> Outcome<Attr> {
        let datastore = std::str::from_utf8(&name.0).ok().and_then(|name| self.files.datastore(name));
        let attr = self.datastore_root(&datastore.ok_or(libc::ENOENT)?).await?;
        Ok(attr)
    }

    /// A datastore's root directory, remembered as known to the kernel.
    pub async fn datastore_root(&self, datastore: &Arc<Datastore>) -> Outcome<Attr> {
        let root = datastore.root().ok_or(libc::EHOSTDOWN)?;
        if let Some(twin) = self.files.twin_of(datastore) {
            error!(
                "datastores {} ({}) and {} ({}) are the same or give the same ids to their files: neither can be used",
                datastore.name(),
                datastore.address(),
                twin.name(),
                twin.address()
            );
            return Err(libc::EIO);
        }
        let attr = datastore.call(GetAttr { file: root }).await.map_err(errno)?;
        self.files.remember(&attr, datastore);
        Ok(attr)
    }

    /// A datastore's number in a listing of the root.
    pub fn listed_as(&self, position: usize, datastore: &Datastore) -> FileId {
        // Before its first attach the real one is not known; prefix 0 is the mount's own.
        datastore.root().unwrap_or(FileId(2 + position as u64))
    }

    /// Whether a directory is one that a datastore keeps; the mount's root is read-only.
    pub fn writable_directory(&self, directory: FileId) -> Outcome<()> {
        if directory == FileId::MOUNT_ROOT { Err(libc::EPERM) } else { Ok(()) }
    }
}
