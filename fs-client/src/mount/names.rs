//! Names: look up, create, link, rename, remove.

use std::sync::Arc;

use proto::FileId;
use proto::ops::names::{
    Attr, Create, Created, FileKind, Link, Lookup, Name, NewNode, ReadLink, Rename, Rmdir, Unlink,
};
use proto::ops::session::OpenMode;

use super::view::{Outcome, View, errno};
use crate::nodes::{Access, Node, PreparedRename};

/// Who creates something, and with which permissions.
#[derive(Clone, Copy, Debug)]
pub struct Maker {
    pub uid: u32,
    pub gid: u32,
    pub mode: u16,
}

/// The two names of a rename.
#[derive(Clone, Debug)]
pub struct RenamePair {
    pub parent: FileId,
    pub name: Name,
    pub new_parent: FileId,
    pub new_name: Name,
    pub no_replace: bool,
    pub exchange: bool,
}

impl View {
    pub async fn lookup(&self, parent: FileId, name: Name) -> Outcome<Attr> {
        if parent == FileId::MOUNT_ROOT {
            return self.root_lookup(&name).await;
        }
        let node = self.node(parent)?;
        let _ticket = self.enter(&[parent]).await;
        let attr = node.call(Lookup { parent, name }).await.map_err(errno)?;
        self.files.remember(&attr, &node.home());
        Ok(attr)
    }

    /// Create anything but an open file. The answer is remembered as known to the kernel.
    pub async fn make(&self, parent: FileId, name: Name, node: NewNode, maker: Maker) -> Outcome<Attr> {
        let create = create_request(parent, name, node, maker, true, OpenMode::Closed);
        Ok(self.create_node(create).await?.0.attr)
    }

    /// Create a file, or find it where `exclusive` is not asked for, and open it.
    pub async fn create_open(
        &self,
        parent: FileId,
        name: Name,
        maker: Maker,
        exclusive: bool,
        access: Access,
    ) -> Outcome<Attr> {
        let create = create_request(parent, name, NewNode::File, maker, exclusive, access.mode());
        let (created, node, same_server) = self.create_node(create).await?;
        if created.attr.kind != FileKind::File {
            self.files.forget(created.attr.file, 1);
            return Err(libc::EEXIST);
        }
        // A server that was restarted in between may have given the answer from its memory of
        // the request, which does not hold what is open.
        if created.existed || !same_server {
            let _ticket = self.enter(&[created.attr.file]).await;
            if let Err(e) = node.open(access).await {
                self.files.forget(created.attr.file, 1);
                return Err(errno(e));
            }
        } else {
            node.opened_by_create(access);
        }
        Ok(created.attr)
    }

    async fn create_node(&self, create: Create) -> Outcome<(Created, Arc<Node>, bool)> {
        self.writable_directory(create.parent)?;
        let directory = self.node(create.parent)?;
        let ticket = self.enter(&[create.parent]).await;
        let parent = create.parent;
        let run = |node: &Node| node.home().info().map(|i| i.server);
        let before = run(&directory);
        let created = directory.call(create).await.map_err(errno)?;
        let same_server = before == run(&directory);
        ticket.changed(&[parent], &[created.attr.file]);
        let node = self.files.remember(&created.attr, &directory.home());
        Ok((created, node, same_server))
    }

    pub async fn unlink(&self, parent: FileId, name: Name) -> Outcome<()> {
        self.writable_directory(parent)?;
        let directory = self.node(parent)?;
        let ticket = self.enter(&[parent]).await;
        directory.call(Unlink { parent, name }).await.map_err(errno)?;
        ticket.changed(&[parent], &[]);
        Ok(())
    }

    pub async fn rmdir(&self, parent: FileId, name: Name) -> Outcome<()> {
        self.writable_directory(parent)?;
        let directory = self.node(parent)?;
        let ticket = self.enter(&[parent]).await;
        directory.call(Rmdir { parent, name }).await.map_err(errno)?;
        ticket.changed(&[parent], &[]);
        Ok(())
    }

    pub async fn link(&self, file: FileId, new_parent: FileId, new_name: Name) -> Outcome<Attr> {
        self.writable_directory(new_parent)?;
        let (directory, node) = (self.node(new_parent)?, self.node(file)?);
        let ticket = self.enter(&[file, new_parent]).await;
        if !Arc::ptr_eq(&directory.home(), &node.home()) {
            return Err(libc::EXDEV);
        }
        if self.files.gate().divides(file, new_parent) {
            return Err(libc::EBUSY);
        }
        let attr = directory.call(Link { file, new_parent, new_name }).await.map_err(errno)?;
        ticket.changed(&[file, new_parent], &[file]);
        self.files.remember(&attr, &directory.home());
        Ok(attr)
    }

    pub async fn readlink(&self, file: FileId) -> Outcome<Name> {
        let node = self.node(file)?;
        let _ticket = self.enter(&[file]).await;
        Ok(node.call(ReadLink { file }).await.map_err(errno)?.target)
    }

    /// What a move has prepared for a rename between datastores. `Ok(None)`: the rename stays
    /// within one datastore.
    pub fn prepared_rename(&self, pair: &RenamePair) -> Outcome<Option<PreparedRename>> {
        self.writable_directory(pair.parent)?;
        self.writable_directory(pair.new_parent)?;
        let (old, new) = (self.node(pair.parent)?, self.node(pair.new_parent)?);
        if Arc::ptr_eq(&old.home(), &new.home()) {
            return Ok(None);
        }
        if pair.exchange {
            return Err(libc::EXDEV);
        }
        let hook = self.files.rename_hook().ok_or(libc::EXDEV)?;
        hook.prepared(pair.parent, &pair.name, pair.new_parent, &pair.new_name).ok_or(libc::EXDEV).map(Some)
    }

    /// Rename within one datastore.
    pub async fn rename(&self, pair: RenamePair) -> Outcome<()> {
        let directory = self.node(pair.parent)?;
        let ticket = self.enter(&[pair.parent, pair.new_parent]).await;
        let mover = self.crossing_node(&directory, &pair).await?;
        let (parent, new_parent) = (pair.parent, pair.new_parent);
        let RenamePair { name, new_name, no_replace, exchange, .. } = pair;
        directory
            .call(Rename { parent, name, new_parent, new_name, no_replace, exchange })
            .await
            .map_err(errno)?;
        ticket.changed(&[parent], &[]);
        if parent != new_parent {
            ticket.changed(&[new_parent], mover.as_slice());
        }
        Ok(())
    }

    /// The node that a rename would carry over the border of a tree that is on the move; only
    /// files may cross it, as a directory would have to be taken apart.
    async fn crossing_node(&self, directory: &Node, pair: &RenamePair) -> Outcome<Option<FileId>> {
        let gate = self.files.gate();
        if !gate.is_watched() || !gate.divides(pair.parent, pair.new_parent) {
            return Ok(None);
        }
        if pair.exchange {
            return Err(libc::EBUSY);
        }
        let lookup = Lookup { parent: pair.parent, name: pair.name.clone() };
        let attr = directory.call(lookup).await.map_err(errno)?;
        if attr.kind == FileKind::Directory { Err(libc::EBUSY) } else { Ok(Some(attr.file)) }
    }
}

fn create_request(
    parent: FileId,
    name: Name,
    node: NewNode,
    maker: Maker,
    exclusive: bool,
    open: OpenMode,
) -> Create {
    Create { parent, name, node, mode: maker.mode, uid: maker.uid, gid: maker.gid, exclusive, open }
}
