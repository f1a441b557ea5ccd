//! What the kernel asks, decoded, carried out by [`View`], and answered.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use block_mirror::Request as DiskRequest;
use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use proto::FileId;
use proto::ops::names::{FileKind, MAX_NAME, Name, NewNode, SetAttr};
use tokio::runtime::Handle;
use tracing::warn;

use super::answers::{GENERATION, TTL, answer_attr, answer_empty, answer_entry, answer_xattr, refuse};
use super::convert;
use super::data::fallocate_request;
use super::names::{Maker, RenamePair};
use super::view::{Outcome, View};
use crate::nodes::{Access, handle_access, new_handle};

/// Longest read or write that the kernel sends.
const MAX_IO: u32 = 1 << 20;
/// Asynchronous requests that the kernel keeps in flight.
const MAX_BACKGROUND: u16 = 512;
/// Entries asked of the server for one call of the kernel.
const LIST_BATCH: u32 = 256;
const LIST_PLUS_BATCH: u32 = 64;

pub struct Adapter {
    view: Arc<View>,
    runtime: Handle,
}

fn id(ino: INodeNo) -> FileId {
    FileId(ino.0)
}

fn maker(request: &Request, mode: u32) -> Maker {
    Maker { uid: request.uid(), gid: request.gid(), mode: convert::permissions(mode) }
}

/// How regular files are opened: past the page cache, writes to one file in parallel, and without
/// a message at each close.
fn file_flags() -> FopenFlags {
    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES | FopenFlags::FOPEN_NOFLUSH
}

impl Adapter {
    pub fn new(view: Arc<View>, runtime: Handle) -> Self {
        Self { view, runtime }
    }

    /// Carry out what takes time.
    fn task<F, T>(&self, work: impl FnOnce(Arc<View>) -> F, answer: impl FnOnce(T) + Send + 'static)
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let work = work(self.view.clone());
        self.runtime.spawn(async move { answer(work.await) });
    }

    fn make(&self, parent: INodeNo, name: &OsStr, node: NewNode, maker: Maker, reply: ReplyEntry) {
        let name = match checked(name) {
            Ok(name) => name,
            Err(e) => return reply.error(refuse(e)),
        };
        self.task(
            move |view| async move { view.make(id(parent), name, node, maker).await },
            move |outcome| answer_entry(reply, outcome),
        );
    }
}

fn checked(name: &OsStr) -> Outcome<Name> {
    if name.len() > MAX_NAME { Err(libc::ENAMETOOLONG) } else { Ok(convert::name(name)) }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                warn!("this kernel's FUSE lacks {flag:?}");
            }
        }
        // The nearest value that is possible is used where these are not.
        let _ = config.set_max_write(MAX_IO);
        let _ = config.set_max_background(MAX_BACKGROUND);
        if let Err(most) = config.set_max_readahead(MAX_IO) {
            let _ = config.set_max_readahead(most);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = match checked(name) {
            Ok(name) => name,
            Err(e) => return reply.error(refuse(e)),
        };
        self.task(
            move |view| async move { view.lookup(id(parent), name).await },
            move |outcome| answer_entry(reply, outcome),
        );
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        self.view.files.forget(id(ino), nlookup);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.task(
            move |view| async move { view.getattr(id(ino)).await },
            move |outcome| answer_attr(reply, outcome),
        );
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = SetAttr {
            file: id(ino),
            mode: mode.map(convert::permissions),
            uid,
            gid,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
        };
        self.task(
            move |view| async move { view.setattr(change, size).await },
            move |outcome| answer_attr(reply, outcome),
        );
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.task(
            move |view| async move { view.readlink(id(ino)).await },
            move |outcome| match outcome {
                Ok(target) => reply.data(&target.0),
                Err(e) => reply.error(refuse(e)),
            },
        );
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let node = match convert::kind_of_mode(mode) {
            Some(FileKind::File) => NewNode::File,
            Some(kind) => NewNode::Special { kind, rdev },
            None => return reply.error(Errno::EINVAL),
        };
        self.make(parent, name, node, maker(request, mode), reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        self.make(parent, name, NewNode::Directory, maker(request, mode), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let node = NewNode::Symlink(convert::name(target.as_os_str()));
        self.make(parent, name, node, maker(request, 0o777), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = convert::name(name);
        self.task(
            move |view| async move { view.unlink(id(parent), name).await },
            move |outcome| answer_empty(reply, outcome),
        );
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = convert::name(name);
        self.task(
            move |view| async move { view.rmdir(id(parent), name).await },
            move |outcome| answer_empty(reply, outcome),
        );
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let new_name = match checked(newname) {
            Ok(name) => name,
            Err(e) => return reply.error(refuse(e)),
        };
        if !(RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE).contains(flags) {
            return reply.error(Errno::EINVAL);
        }
        let pair = RenamePair {
            parent: id(parent),
            name: convert::name(name),
            new_parent: id(newparent),
            new_name,
            no_replace: flags.contains(RenameFlags::RENAME_NOREPLACE),
            exchange: flags.contains(RenameFlags::RENAME_EXCHANGE),
        };
        match self.view.prepared_rename(&pair) {
            Ok(Some(run)) => run(Box::new(move |outcome| answer_empty(reply, outcome))),
            Ok(None) => self.task(
                move |view| async move { view.rename(pair).await },
                move |outcome| answer_empty(reply, outcome),
            ),
            Err(e) => reply.error(refuse(e)),
        }
    }

    fn link(&self, _: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let name = match checked(newname) {
            Ok(name) => name,
            Err(e) => return reply.error(refuse(e)),
        };
        self.task(
            move |view| async move { view.link(id(ino), id(newparent), name).await },
            move |outcome| answer_entry(reply, outcome),
        );
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let access = Access::of_flags(flags.0);
        self.task(
            move |view| async move { view.open(id(ino), access).await },
            move |outcome| match outcome {
                Ok(()) => reply.opened(FileHandle(new_handle(access)), file_flags()),
                Err(e) => reply.error(refuse(e)),
            },
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = match checked(name) {
            Ok(name) => name,
            Err(e) => return reply.error(refuse(e)),
        };
        let (maker, access) = (maker(request, mode), Access::of_flags(flags));
        let exclusive = flags & libc::O_EXCL != 0;
        self.task(
            move |view| async move { view.create_open(id(parent), name, maker, exclusive, access).await },
            move |outcome| match outcome {
                Ok(attr) => reply.created(
                    &TTL,
                    &convert::file_attr(&attr),
                    GENERATION,
                    FileHandle(new_handle(access)),
                    file_flags(),
                ),
                Err(e) => reply.error(refuse(e)),
            },
        );
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.view.read(id(ino), offset, size, reply);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (file, data) = (id(ino), Bytes::copy_from_slice(data));
        let privileged = || self.view.node(file).is_ok_and(|node| node.is_privileged());
        if !flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) || !privileged() {
            return self.view.write(file, offset, data, reply);
        }
        let view = self.view.clone();
        self.task(
            move |view| async move { view.drop_privileges(file).await },
            move |outcome| match outcome {
                Ok(()) => view.write(file, offset, data, reply),
                Err(e) => reply.error(refuse(e)),
            },
        );
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Nothing is kept back that a close would have to wait for.
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if let Ok(node) = self.view.node(id(ino)) {
            let access = handle_access(fh.0);
            self.task(move |view| async move { view.release(node, access).await }, |()| {});
        }
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.view.change(id(ino), DiskRequest::Flush, reply);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(new_handle(Access::Read)), FopenFlags::empty());
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.view.listings.remove(&fh.0);
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.task(
            move |view| async move { view.list(id(ino), fh.0, offset, LIST_BATCH).await },
            move |outcome| {
                let entries = match outcome {
                    Ok(entries) => entries,
                    Err(e) => return reply.error(refuse(e)),
                };
                for entry in entries {
                    let kind = convert::file_type(entry.kind);
                    if reply.add(convert::inode(entry.id), entry.offset, kind, convert::os_str(&entry.name)) {
                        break;
                    }
                }
                reply.ok();
            },
        );
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let view = self.view.clone();
        self.task(
            move |view| async move { view.list(id(ino), fh.0, offset, LIST_PLUS_BATCH).await },
            move |outcome| {
                let entries = match outcome {
                    Ok(entries) => entries,
                    Err(e) => return reply.error(refuse(e)),
                };
                for entry in entries {
                    let name = convert::os_str(&entry.name);
                    let Some(attr) = &entry.attr else {
                        // Number 0: not looked up by being listed.
                        let bare = entry.bare_attr(&view.root_attr());
                        if reply.add(INodeNo(0), entry.offset, name, &TTL, &bare, GENERATION) {
                            break;
                        }
                        continue;
                    };
                    if view.remember_listed(id(ino), attr).is_err() {
                        break;
                    }
                    let shown = convert::file_attr(attr);
                    if reply.add(shown.ino, entry.offset, name, &TTL, &shown, GENERATION) {
                        view.forget_listed(attr);
                        break;
                    }
                }
                reply.ok();
            },
        );
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        // Names are durable when they are answered.
        reply.ok();
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u32 = 4096;
        self.task(
            move |view| async move { view.space(id(ino)).await },
            move |outcome| match outcome {
                Ok(space) => {
                    let (blocks, free) = (space.capacity / BLOCK as u64, space.free / BLOCK as u64);
                    reply.statfs(blocks, free, free, space.files + free, free, BLOCK, MAX_NAME as u32, BLOCK);
                }
                Err(e) => reply.error(refuse(e)),
            },
        );
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value) = (convert::name(name), value.to_vec());
        self.task(
            move |view| async move { view.setxattr(id(ino), name, value, flags).await },
            move |outcome| answer_empty(reply, outcome),
        );
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = convert::name(name);
        self.task(
            move |view| async move { view.getxattr(id(ino), name).await },
            move |outcome| answer_xattr(reply, outcome, size),
        );
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.task(
            move |view| async move { view.listxattr(id(ino)).await },
            move |outcome| answer_xattr(reply, outcome, size),
        );
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = convert::name(name);
        self.task(
            move |view| async move { view.removexattr(id(ino), name).await },
            move |outcome| answer_empty(reply, outcome),
        );
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // The kernel decides by mode bits (default_permissions).
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        match fallocate_request(mode, offset, length) {
            Some(request) => self.view.change(id(ino), request, reply),
            None => reply.error(Errno::EOPNOTSUPP),
        }
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let Ok(from) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        self.task(
            move |view| async move { view.seek(id(ino), from, whence).await },
            move |outcome| match outcome {
                Ok(at) => reply.offset(at as i64),
                Err(e) => reply.error(refuse(e)),
            },
        );
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
