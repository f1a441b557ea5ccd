//! Listing directories.
//!
//! The kernel goes on behind an offset that each entry carries: 1 and 2 are "." and "..", entry
//! with the server's cookie c is c + 2. Cookies stay while the entry lives, so a listing that takes
//! many calls misses and doubles nothing that is there all the time. It ends where the directory
//! ended when it began (or was rewound), so that it ends at all while entries are being made.

use proto::FileId;
use proto::ops::names::{Attr, FileKind, Name, ReadDir};

use super::convert;
use super::view::{Outcome, View, errno};

/// Offset of ".", "..", and what is added to the server's cookies.
const SELF_OFFSET: u64 = 1;
const PARENT_OFFSET: u64 = 2;

/// An entry on its way to the kernel.
pub struct Listed {
    pub offset: u64,
    pub name: Name,
    pub id: FileId,
    pub kind: FileKind,
    /// For readdirplus; none for "." and "..", which the kernel does not look up.
    pub attr: Option<Attr>,
}

impl View {
    /// Entries behind `offset`, at most about `max` of them; none at the end.
    pub async fn list(&self, directory: FileId, handle: u64, offset: u64, max: u32) -> Outcome<Vec<Listed>> {
        if directory == FileId::MOUNT_ROOT {
            return Ok(self.list_root(offset));
        }
        let node = self.node(directory)?;
        let _ticket = self.enter(&[directory]).await;
        let after = offset.saturating_sub(PARENT_OFFSET);
        let page = node.call(ReadDir { dir: directory, after, max }).await.map_err(errno)?;
        // The server knows nothing above its own root.
        let parent = if page.parent == directory { FileId::MOUNT_ROOT } else { page.parent };
        if offset == 0 {
            self.listings.insert(handle, page.next_cookie + PARENT_OFFSET);
        }
        // A successor of the process that began the listing goes on without an end.
        let limit = self.listings.get(&handle).map_or(u64::MAX, |limit| *limit);
        let listed = page.entries.into_iter().take_while(|entry| entry.cookie + PARENT_OFFSET < limit);
        let entries = listed.map(|entry| Listed {
            offset: entry.cookie + PARENT_OFFSET,
            name: entry.name,
            id: entry.attr.file,
            kind: entry.attr.kind,
            attr: Some(entry.attr),
        });
        Ok(dots(directory, parent, offset).chain(entries).collect())
    }

    fn list_root(&self, offset: u64) -> Vec<Listed> {
        let datastores = self.files.datastores().iter().enumerate().map(|(position, datastore)| Listed {
            offset: PARENT_OFFSET + 1 + position as u64,
            name: datastore.name().into(),
            id: self.listed_as(position, datastore),
            kind: FileKind::Directory,
            attr: None,
        });
        dots(FileId::MOUNT_ROOT, FileId::MOUNT_ROOT, offset)
            .chain(datastores.filter(|entry| entry.offset > offset))
            .collect()
    }

    /// Before an entry with attributes is handed to the kernel: it counts as looked up.
    pub fn remember_listed(&self, directory: FileId, attr: &Attr) -> Outcome<()> {
        self.files.remember(attr, &self.node(directory)?.home());
        Ok(())
    }

    /// The entry was not handed over after all.
    pub fn forget_listed(&self, attr: &Attr) {
        self.files.forget(attr.file, 1);
    }
}

fn dots(directory: FileId, parent: FileId, offset: u64) -> impl Iterator<Item = Listed> {
    [(SELF_OFFSET, ".", directory), (PARENT_OFFSET, "..", parent)]
        .into_iter()
        .filter(move |(at, ..)| *at > offset)
        .map(|(at, name, id)| Listed {
            offset: at,
            name: name.into(),
            id,
            kind: FileKind::Directory,
            attr: None,
        })
}

impl Listed {
    /// Attributes for an entry that the kernel takes without looking it up.
    pub fn bare_attr(&self, like: &Attr) -> fuser::FileAttr {
        convert::file_attr(&Attr { file: self.id, kind: self.kind, ..*like })
    }
}
