//! Between the wire's words and the kernel's.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use proto::FileId;
use proto::ops::names::{Attr, FileKind, Name, SetTime, Time};

const BLOCK_SIZE: u32 = 4096;

pub fn name(raw: &OsStr) -> Name {
    Name(raw.as_bytes().to_vec())
}

pub fn os_str(name: &Name) -> &OsStr {
    OsStr::from_bytes(&name.0)
}

pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind in a mode of mknod(2); none when there is no such kind.
pub fn kind_of_mode(mode: u32) -> Option<FileKind> {
    Some(match mode & libc::S_IFMT {
        0 | libc::S_IFREG => FileKind::File,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        _ => return None,
    })
}

pub fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

pub fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let start = if time.seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
    start + Duration::from_nanos(time.nanos.into())
}

pub fn time(at: SystemTime) -> Time {
    match at.duration_since(UNIX_EPOCH) {
        Ok(since) => Time { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() },
        Err(before) => {
            let (seconds, nanos) = (before.duration().as_secs() as i64, before.duration().subsec_nanos());
            match nanos {
                0 => Time { seconds: -seconds, nanos: 0 },
                _ => Time { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos },
            }
        }
    }
}

pub fn set_time(wanted: TimeOrNow) -> SetTime {
    match wanted {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => SetTime::At(time(at)),
    }
}

pub fn inode(id: FileId) -> INodeNo {
    INodeNo(id.0)
}

pub fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: inode(attr.file),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn times_survive(seconds in -10_000_000_000i64..10_000_000_000, nanos in 0u32..1_000_000_000) {
            let at = Time { seconds, nanos };
            prop_assert_eq!(time(system_time(at)), at);
        }
    }
}
