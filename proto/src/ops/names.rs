//! Names and attributes.

use serde::{Deserialize, Serialize};

use crate::ids::FileId;

/// Longest name of a directory entry in bytes.
pub const MAX_NAME: usize = 255;
/// Longest symlink target in bytes.
pub const MAX_TARGET: usize = 4095;
/// Longest value of an extended attribute in bytes.
pub const MAX_XATTR: usize = 65536;

/// A directory entry's name or any other string of the file system: bytes, not text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Name(#[serde(with = "serde_byte_vec")] pub Vec<u8>);

mod serde_byte_vec {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        bytes::Bytes::deserialize(from).map(Vec::from)
    }
}

impl Name {
    /// As text for messages.
    pub fn lossy(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Name(text.as_bytes().to_vec())
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.lossy())
    }
}

/// Seconds since 1970 and nanoseconds below one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time {
    /// Seconds; negative before 1970.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

/// Attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Which inode.
    pub file: FileId,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits (07777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that it has.
    pub nlink: u32,
    /// Device number of device nodes.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    /// Last read.
    pub atime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
}

/// Find a name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    /// The directory.
    pub parent: FileId,
    /// The name; never "." or "..".
    pub name: Name,
}

/// Attributes of an inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetAttr {
    /// Which.
    pub file: FileId,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The server's time now.
    Now,
    /// This time.
    At(Time),
}

/// Change attributes; absent ones stay. Sizes change by [`super::data::Resize`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    /// Which inode.
    pub file: FileId,
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last change of the data.
    pub mtime: Option<SetTime>,
}

/// A part of a directory's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadDir {
    /// The directory.
    pub dir: FileId,
    /// Only entries behind this cookie; 0 for all.
    pub after: u64,
    /// At most this many.
    pub max: u32,
}

/// Answer to [`ReadDir`]; without "." and "..".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirPage {
    /// Entries in the order of their cookies.
    pub entries: Vec<DirEntry>,
    /// Whether that was the last.
    pub end: bool,
    /// The directory's own parent (itself for the root).
    pub parent: FileId,
    /// What the next new entry will have as its cookie: a listing that stops there ends even when
    /// entries are made faster than they are listed.
    pub next_cookie: u64,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Its name.
    pub name: Name,
    /// Its place in the directory: stays the same while the entry lives, is never used again, above 0.
    pub cookie: u64,
    /// Attributes of what it names.
    pub attr: Attr,
}

/// What to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewNode {
    /// An empty file.
    File,
    /// An empty directory.
    Directory,
    /// A symlink with this target.
    Symlink(Name),
    /// A fifo, socket or device node.
    Special {
        /// Which kind.
        kind: FileKind,
        /// Device number.
        rdev: u32,
    },
}

/// Create a name with a new inode behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// The directory.
    pub parent: FileId,
    /// The new name.
    pub name: Name,
    /// What it shall be.
    pub node: NewNode,
    /// Permission bits, umask already applied.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group; the directory's where that has the setgid bit.
    pub gid: u32,
    /// Refuse with EEXIST when the name is there; otherwise an existing file is the answer.
    pub exclusive: bool,
    /// Declare the new file open in this mode at once.
    pub open: super::session::OpenMode,
}

/// Answer to [`Create`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// The inode.
    pub attr: Attr,
    /// Whether it was there before.
    pub existed: bool,
}

/// Remove a name that is no directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlink {
    /// The directory.
    pub parent: FileId,
    /// The name.
    pub name: Name,
}

/// Remove an empty directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rmdir {
    /// The directory above.
    pub parent: FileId,
    /// The name.
    pub name: Name,
}

/// Rename within the datastore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    /// Directory of the old name.
    pub parent: FileId,
    /// Old name.
    pub name: Name,
    /// Directory of the new name.
    pub new_parent: FileId,
    /// New name.
    pub new_name: Name,
    /// Fail with EEXIST when the new name is there (RENAME_NOREPLACE).
    pub no_replace: bool,
    /// Swap the two names (RENAME_EXCHANGE).
    pub exchange: bool,
}

/// Give a file another name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The file.
    pub file: FileId,
    /// Directory of the new name.
    pub new_parent: FileId,
    /// The new name.
    pub new_name: Name,
}

/// Read a symlink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadLink {
    /// The symlink.
    pub file: FileId,
}

/// Where a symlink points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its text.
    pub target: Name,
}

/// Read an extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetXattr {
    /// Which inode.
    pub file: FileId,
    /// Which attribute.
    pub name: Name,
}

/// An extended attribute's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XattrValue {
    /// Its bytes.
    pub value: Name,
}

/// Set an extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetXattr {
    /// Which inode.
    pub file: FileId,
    /// Which attribute.
    pub name: Name,
    /// Its bytes.
    pub value: Name,
    /// It must not exist (XATTR_CREATE).
    pub create: bool,
    /// It must exist (XATTR_REPLACE).
    pub replace: bool,
}

/// List extended attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListXattr {
    /// Which inode.
    pub file: FileId,
}

/// Names of extended attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XattrNames {
    /// In order.
    pub names: Vec<Name>,
}

/// Remove an extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveXattr {
    /// Which inode.
    pub file: FileId,
    /// Which attribute.
    pub name: Name,
}

/// Ask for space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatFs {}

/// Space of the datastore in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// What may be used in all.
    pub capacity: u64,
    /// What is free.
    pub free: u64,
    /// Inodes in use.
    pub files: u64,
}

/// Walk a tree from its root, parents before children.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeList {
    /// Root of the tree; a file is a tree of one.
    pub root: FileId,
    /// Where the last page ended; `None` at first.
    pub after: Option<TreeCursor>,
    /// At most this many.
    pub max: u32,
}

/// A place in the walk of a tree. Only the server that made it understands it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeCursor {
    /// Directories still to be listed, the next one last, each with the cookie to go on behind.
    pub pending: Vec<(FileId, u64)>,
}

/// Answer to [`TreeList`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreePage {
    /// Entries, parents before children. The first of the first page is the root itself, with its
    /// own parent and name.
    pub entries: Vec<TreeEntry>,
    /// Where to go on; `None` at the end.
    pub next: Option<TreeCursor>,
}

/// One name of a tree and all about the inode behind it. An inode with two names in the tree comes twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeEntry {
    /// Its directory.
    pub parent: FileId,
    /// Its name there.
    pub name: Name,
    /// Attributes.
    pub attr: Attr,
    /// A symlink's target.
    pub target: Option<Name>,
    /// Extended attributes with their values.
    pub xattrs: Vec<(Name, Name)>,
}
