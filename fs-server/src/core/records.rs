//! What the tables hold: inodes, entries, sessions, and the keys that order them.

use proto::ops::names::{Attr, FileKind, Name, Time};
use proto::{DatastoreId, FileId, Generation, InstanceId, MoveId, RequestId, WireError};
use serde::{Deserialize, Serialize};

use super::tables::{Table, Tables, Txn, decode};

/// An inode. Size, space and mtime of a regular file are those of its data file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names; for a directory 2 + subdirectories.
    pub nlink: u32,
    /// Device number.
    pub rdev: u32,
    /// Last read.
    pub atime: Time,
    /// Last change of entries (directories) or of the target (symlinks).
    pub mtime: Time,
    /// Last change of anything but data.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
    /// A symlink's target.
    pub target: Option<Name>,
    /// A directory's own directory.
    pub parent: FileId,
    /// Entries of a directory.
    pub entries: u64,
    /// Cookie of the directory's next entry.
    pub next_cookie: u64,
    /// Its name matches the datastore's patterns of files with one writer.
    pub exclusive: bool,
    /// The move that owns it, while it is invisible.
    pub incoming: Option<MoveId>,
}

impl Inode {
    /// Attributes without a data file's share.
    pub fn attr(&self, file: FileId) -> Attr {
        let size = match self.kind {
            FileKind::Directory => self.entries * 32,
            FileKind::Symlink => self.target.as_ref().map_or(0, |t| t.0.len() as u64),
            _ => 0,
        };
        Attr {
            file,
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink,
            rdev: self.rdev,
            size,
            blocks: 0,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
        }
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The inode.
    pub file: FileId,
    /// Place in the directory's list.
    pub cookie: u64,
}

/// A host's session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The host.
    pub host: String,
    /// The run of dshost that owns it.
    pub instance: InstanceId,
    /// Fencing token.
    pub generation: Generation,
    /// Replies below this request id are forgotten.
    pub settled_below: RequestId,
}

/// Where a file went that is not here any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// The datastore that has it.
    pub to: DatastoreId,
    /// Its name then.
    pub name: String,
}

/// Key of an inode.
pub fn file_key(file: FileId) -> Vec<u8> {
    file.0.to_be_bytes().to_vec()
}

/// Key of a directory's entry, of an inode's xattr, of a reserved name.
pub fn name_key(file: FileId, name: &Name) -> Vec<u8> {
    let mut key = file_key(file);
    key.extend_from_slice(&name.0);
    key
}

/// Key of a directory's cookie.
pub fn cookie_key(dir: FileId, cookie: u64) -> Vec<u8> {
    let mut key = file_key(dir);
    key.extend_from_slice(&cookie.to_be_bytes());
    key
}

/// Key of one of an inode's names.
pub fn names_key(file: FileId, dir: FileId, name: &Name) -> Vec<u8> {
    let mut key = file_key(file);
    key.extend_from_slice(&dir.0.to_be_bytes());
    key.extend_from_slice(&name.0);
    key
}

/// Key of a kept reply.
pub fn reply_key(session: Generation, request: RequestId) -> Vec<u8> {
    let mut key = session.0.to_be_bytes().to_vec();
    key.extend_from_slice(&request.0.to_be_bytes());
    key
}

/// The FileId at the start of a key.
pub fn key_file(key: &[u8]) -> Option<FileId> {
    Some(FileId(u64::from_be_bytes(key.get(..8)?.try_into().ok()?)))
}

const ENOENT: i32 = 2;

/// Typed reads over any tables.
pub trait Records: Tables {
    /// An inode, visible or not.
    fn find_inode(&self, file: FileId) -> Result<Option<Inode>, WireError> {
        self.get(Table::Inodes, &file_key(file))?.map(|b| decode(&b)).transpose()
    }

    /// An inode that a host may see; else where it went, or ENOENT.
    fn inode(&self, file: FileId) -> Result<Inode, WireError> {
        match self.find_inode(file)? {
            Some(inode) if inode.incoming.is_none() => Ok(inode),
            _ => match self.get(Table::Forwards, &file_key(file))? {
                Some(bytes) => {
                    let forward: Forward = decode(&bytes)?;
                    Err(WireError::Moved { to: forward.to, name: forward.name })
                }
                None => Err(WireError::posix(ENOENT, format!("file {file}"))),
            },
        }
    }

    /// One of an inode's names: its directory and the name there. A directory has only one.
    fn a_name(&self, file: FileId) -> Result<Option<(FileId, Name)>, WireError> {
        let prefix = file_key(file);
        let rows = self.scan(Table::Names, &prefix, &prefix, false, 1)?;
        Ok(rows.first().and_then(|(key, _)| Some((key_file(key.get(8..)?)?, Name(key.get(16..)?.to_vec())))))
    }

    /// A directory's entry.
    fn entry(&self, dir: FileId, name: &Name) -> Result<Option<Entry>, WireError> {
        self.get(Table::Entries, &name_key(dir, name))?.map(|b| decode(&b)).transpose()
    }
}

impl<T: Tables + ?Sized> Records for T {}

impl Txn<'_> {
    /// Store an inode.
    pub fn put_inode(&mut self, file: FileId, inode: &Inode) {
        self.write(Table::Inodes, file_key(file), inode);
    }
}
