//! Extended attributes. POSIX ACLs are not kept: mode bits alone decide.

use proto::FileId;
use proto::ops::names::{GetXattr, ListXattr, Name, RemoveXattr, SetXattr};

use super::view::{Outcome, View, errno};

impl View {
    pub async fn getxattr(&self, file: FileId, name: Name) -> Outcome<Vec<u8>> {
        if is_acl(&name) {
            return Err(libc::EOPNOTSUPP);
        }
        if file == FileId::MOUNT_ROOT {
            return Err(libc::ENODATA);
        }
        let node = self.node(file)?;
        let _ticket = self.enter(&[file]).await;
        Ok(node.call(GetXattr { file, name }).await.map_err(errno)?.value.0)
    }

    pub async fn setxattr(&self, file: FileId, name: Name, value: Vec<u8>, flags: i32) -> Outcome<()> {
        if is_acl(&name) {
            return Err(libc::EOPNOTSUPP);
        }
        self.writable_directory(file)?;
        let node = self.node(file)?;
        let ticket = self.enter(&[file]).await;
        let (create, replace) = (flags & libc::XATTR_CREATE != 0, flags & libc::XATTR_REPLACE != 0);
        node.call(SetXattr { file, name, value: Name(value), create, replace }).await.map_err(errno)?;
        ticket.changed(&[file], &[]);
        Ok(())
    }

    /// The names, each ended by a zero byte.
    pub async fn listxattr(&self, file: FileId) -> Outcome<Vec<u8>> {
        if file == FileId::MOUNT_ROOT {
            return Ok(Vec::new());
        }
        let node = self.node(file)?;
        let _ticket = self.enter(&[file]).await;
        let names = node.call(ListXattr { file }).await.map_err(errno)?.names;
        Ok(names.into_iter().flat_map(|name| name.0.into_iter().chain([0])).collect())
    }

    pub async fn removexattr(&self, file: FileId, name: Name) -> Outcome<()> {
        if is_acl(&name) {
            return Err(libc::EOPNOTSUPP);
        }
        self.writable_directory(file)?;
        let node = self.node(file)?;
        let ticket = self.enter(&[file]).await;
        node.call(RemoveXattr { file, name }).await.map_err(errno)?;
        ticket.changed(&[file], &[]);
        Ok(())
    }
}

fn is_acl(name: &Name) -> bool {
    name.0.starts_with(b"system.posix_acl_")
}
