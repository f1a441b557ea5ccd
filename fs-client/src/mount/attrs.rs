//! Attributes and space.

use block_mirror::Request;
use proto::FileId;
use proto::ops::names::{Attr, GetAttr, SetAttr, Space, StatFs};

use super::data::{disk_errno, through_slot};
use super::view::{Outcome, View, errno};

impl View {
    pub async fn getattr(&self, file: FileId) -> Outcome<Attr> {
        if file == FileId::MOUNT_ROOT {
            return Ok(self.root_attr());
        }
        let node = self.node(file)?;
        let _ticket = self.enter(&[file]).await;
        node.call(GetAttr { file }).await.map_err(errno)
    }

    /// Change attributes, the size first.
    pub async fn setattr(&self, change: SetAttr, size: Option<u64>) -> Outcome<Attr> {
        let file = change.file;
        self.writable_directory(file)?;
        let node = self.node(file)?;
        if let Some(size) = size {
            // Outside of the gate: a switchover drains slots and gate one after the other.
            through_slot(&node, Request::Resize { size }).await.map_err(disk_errno)?;
        }
        let ticket = self.enter(&[file]).await;
        let only_size = SetAttr { file, mode: None, uid: None, gid: None, atime: None, mtime: None };
        if change == only_size {
            return node.call(GetAttr { file }).await.map_err(errno);
        }
        let attr = node.call(change).await.map_err(errno)?;
        node.seen(&attr);
        ticket.changed(&[file], &[]);
        Ok(attr)
    }

    /// Before a write by an ordinary user: the set-user-id bit goes, and the set-group-id bit of
    /// what a group may execute.
    pub async fn drop_privileges(&self, file: FileId) -> Outcome<()> {
        let mode = self.getattr(file).await?.mode;
        let set_group_id = if mode & 0o010 != 0 { 0o2000 } else { 0 };
        let mode = Some(mode & !(0o4000 | set_group_id));
        let change = SetAttr { file, mode, uid: None, gid: None, atime: None, mtime: None };
        self.setattr(change, None).await.map(drop)
    }

    /// Space of the datastore that keeps `file`; for the mount's root, of all that can be reached.
    pub async fn space(&self, file: FileId) -> Outcome<Space> {
        if file != FileId::MOUNT_ROOT {
            return self.node(file)?.call(StatFs {}).await.map_err(errno);
        }
        let mut sum = Space { capacity: 0, free: 0, files: 0 };
        for datastore in self.files.datastores().iter().filter(|d| d.state().connected) {
            if let Ok(space) = datastore.call(StatFs {}).await {
                sum.capacity += space.capacity;
                sum.free += space.free;
                sum.files += space.files;
            }
        }
        Ok(sum)
    }
}
