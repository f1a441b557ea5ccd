//! Names come and go: create, unlink, rmdir, link.

use proto::ops::names::{
    Create, Created, FileKind, Link, MAX_NAME, MAX_TARGET, Name, NewNode, Rmdir, Unlink,
};
use proto::ops::{Done, Reply};
use proto::{FileId, WireError};

use super::plan::{Context, Effect, errno::*, posix};
use super::records::{Entry, Inode, Records, cookie_key, file_key, name_key, names_key};
use super::tables::{Table, Tables, Txn};

pub(super) const MAX_LINKS: u32 = 65_000;
const S_ISGID: u16 = 0o2000;

/// A reply and what to do after the commit.
pub type Planned = Result<(Reply, Vec<Effect>), WireError>;

pub(super) fn check_name(name: &Name) -> Result<(), WireError> {
    if name.0.len() > MAX_NAME {
        return Err(posix(ENAMETOOLONG, name.lossy()));
    }
    let bad = name.0.is_empty()
        || name.0 == b"."
        || name.0 == b".."
        || name.0.iter().any(|b| *b == 0 || *b == b'/');
    if bad { Err(posix(EINVAL, format!("{name:?} is no name"))) } else { Ok(()) }
}

pub(super) fn directory(txn: &Txn, dir: FileId) -> Result<Inode, WireError> {
    let inode = txn.inode(dir)?;
    if inode.kind == FileKind::Directory { Ok(inode) } else { Err(posix(ENOTDIR, format!("file {dir}"))) }
}

pub(super) fn must_find(txn: &Txn, dir: FileId, name: &Name) -> Result<Entry, WireError> {
    txn.entry(dir, name)?.ok_or_else(|| posix(ENOENT, name.lossy()))
}

pub(super) fn not_reserved(txn: &Txn, dir: FileId, name: &Name) -> Result<(), WireError> {
    match txn.get(Table::Reserved, &name_key(dir, name))? {
        Some(_) => {
            Err(WireError::Busy { object: name.lossy().into_owned(), holder: "an incoming move".into() })
        }
        None => Ok(()),
    }
}

/// Put a name into a directory; the directory's inode is stored.
pub fn add_entry(
    ctx: &Context,
    txn: &mut Txn,
    dir: FileId,
    name: &Name,
    file: FileId,
    is_dir: bool,
) -> Result<(), WireError> {
    let mut inode = txn.find_inode(dir)?.ok_or_else(|| posix(ENOENT, format!("directory {dir}")))?;
    let cookie = inode.next_cookie;
    inode.next_cookie += 1;
    inode.entries += 1;
    if is_dir {
        inode.nlink += 1;
    }
    if inode.incoming.is_none() {
        inode.mtime = ctx.now;
        inode.ctime = ctx.now;
    }
    txn.write(Table::Entries, name_key(dir, name), &Entry { file, cookie });
    txn.write(Table::Cookies, cookie_key(dir, cookie), name);
    txn.write(Table::Names, names_key(file, dir, name), &());
    txn.put_inode(dir, &inode);
    Ok(())
}

/// Take a name out of a directory, leaving its times and the file's inode alone.
pub fn detach_entry(txn: &mut Txn, dir: FileId, name: &Name, is_dir: bool) -> Result<Inode, WireError> {
    let entry = must_find(txn, dir, name)?;
    let mut inode = txn.find_inode(dir)?.ok_or_else(|| posix(ENOENT, format!("directory {dir}")))?;
    inode.entries = inode.entries.saturating_sub(1);
    if is_dir {
        inode.nlink = inode.nlink.saturating_sub(1);
    }
    txn.delete(Table::Entries, name_key(dir, name));
    txn.delete(Table::Cookies, cookie_key(dir, entry.cookie));
    txn.delete(Table::Names, names_key(entry.file, dir, name));
    txn.put_inode(dir, &inode);
    Ok(inode)
}

/// Take a name out of a directory; the directory's inode is stored, the file's is not touched.
pub fn remove_entry(
    ctx: &Context,
    txn: &mut Txn,
    dir: FileId,
    name: &Name,
    is_dir: bool,
) -> Result<(), WireError> {
    let mut inode = detach_entry(txn, dir, name, is_dir)?;
    if inode.incoming.is_none() {
        inode.mtime = ctx.now;
        inode.ctime = ctx.now;
        txn.put_inode(dir, &inode);
    }
    Ok(())
}

/// One name less for a file; without any it goes, or waits as an orphan while it is open.
pub fn drop_link(
    ctx: &Context,
    txn: &mut Txn,
    file: FileId,
    effects: &mut Vec<Effect>,
) -> Result<(), WireError> {
    let mut inode = txn.find_inode(file)?.ok_or_else(|| posix(ENOENT, format!("file {file}")))?;
    inode.nlink = if inode.kind == FileKind::Directory { 0 } else { inode.nlink.saturating_sub(1) };
    inode.ctime = ctx.now;
    if inode.nlink > 0 {
        txn.put_inode(file, &inode);
    } else if (ctx.is_open)(file) && inode.incoming.is_none() {
        txn.put_inode(file, &inode);
        txn.write(Table::Orphans, file_key(file), &());
    } else {
        erase(txn, file, &inode, effects)?;
    }
    Ok(())
}

/// Delete an inode with its xattrs and data.
pub fn erase(txn: &mut Txn, file: FileId, inode: &Inode, effects: &mut Vec<Effect>) -> Result<(), WireError> {
    for (key, _) in txn.scan(Table::Xattrs, &file_key(file), &file_key(file), false, usize::MAX)? {
        txn.delete(Table::Xattrs, key);
    }
    txn.delete(Table::Inodes, file_key(file));
    txn.delete(Table::Orphans, file_key(file));
    if inode.kind == FileKind::File {
        txn.write(Table::Doomed, file_key(file), &());
        effects.push(Effect::RemoveData(file));
    }
    Ok(())
}

/// The next id born here.
fn birth(ctx: &Context, txn: &mut Txn) -> Result<FileId, WireError> {
    let next: u64 = txn.read(Table::Header, b"next_file")?.unwrap_or(2);
    txn.write(Table::Header, b"next_file".to_vec(), &(next + 1));
    FileId::of(ctx.prefix, next).ok_or_else(|| posix(ENOSPC, "file ids of this datastore"))
}

/// CREATE, MKNOD, MKDIR, SYMLINK.
pub fn create(ctx: &Context, txn: &mut Txn, ask: &Create) -> Planned {
    check_name(&ask.name)?;
    let parent = directory(txn, ask.parent)?;
    ctx.may_change(ask.parent)?;
    if let Some(entry) = txn.entry(ask.parent, &ask.name)? {
        let inode = txn.inode(entry.file)?;
        if ask.exclusive || ask.node != NewNode::File || inode.kind != FileKind::File {
            return Err(posix(EEXIST, ask.name.lossy()));
        }
        return Ok((Reply::Create(Created { attr: inode.attr(entry.file), existed: true }), vec![]));
    }
    not_reserved(txn, ask.parent, &ask.name)?;
    if parent.nlink == 0 {
        return Err(posix(ENOENT, "a removed directory"));
    }
    let (kind, target, rdev) = match &ask.node {
        NewNode::File => (FileKind::File, None, 0),
        NewNode::Directory => (FileKind::Directory, None, 0),
        NewNode::Symlink(target) if target.0.len() > MAX_TARGET => {
            return Err(posix(ENAMETOOLONG, "symlink target"));
        }
        NewNode::Symlink(target) if target.0.is_empty() => {
            return Err(posix(ENOENT, "an empty symlink target"));
        }
        NewNode::Special { kind: FileKind::File | FileKind::Directory | FileKind::Symlink, .. } => {
            return Err(posix(EINVAL, "that kind is no special file"));
        }
        NewNode::Symlink(target) => (FileKind::Symlink, Some(target.clone()), 0),
        NewNode::Special { kind, rdev } => (*kind, None, *rdev),
    };
    let is_dir = kind == FileKind::Directory;
    if is_dir && parent.nlink >= MAX_LINKS {
        return Err(posix(EMLINK, "the directory"));
    }
    let file = birth(ctx, txn)?;
    let inherits = parent.mode & S_ISGID != 0;
    let inode = Inode {
        kind,
        mode: (ask.mode & 0o7777) | if inherits && is_dir { S_ISGID } else { 0 },
        uid: ask.uid,
        gid: if inherits { parent.gid } else { ask.gid },
        nlink: if is_dir { 2 } else { 1 },
        rdev,
        atime: ctx.now,
        mtime: ctx.now,
        ctime: ctx.now,
        btime: ctx.now,
        target,
        parent: ask.parent,
        entries: 0,
        next_cookie: 1,
        exclusive: kind == FileKind::File && (ctx.exclusive)(&ask.name),
        incoming: None,
    };
    txn.put_inode(file, &inode);
    add_entry(ctx, txn, ask.parent, &ask.name, file, is_dir)?;
    let joined = Effect::Joined { parent: ask.parent, file };
    Ok((Reply::Create(Created { attr: inode.attr(file), existed: false }), vec![joined]))
}

/// UNLINK.
pub fn unlink(ctx: &Context, txn: &mut Txn, ask: &Unlink) -> Planned {
    directory(txn, ask.parent)?;
    let entry = must_find(txn, ask.parent, &ask.name)?;
    ctx.may_change(ask.parent)?;
    ctx.may_change(entry.file)?;
    if txn.inode(entry.file)?.kind == FileKind::Directory {
        return Err(posix(EISDIR, ask.name.lossy()));
    }
    let mut effects = Vec::new();
    remove_entry(ctx, txn, ask.parent, &ask.name, false)?;
    drop_link(ctx, txn, entry.file, &mut effects)?;
    Ok((Reply::Unlink(Done {}), effects))
}

/// RMDIR.
pub fn rmdir(ctx: &Context, txn: &mut Txn, ask: &Rmdir) -> Planned {
    directory(txn, ask.parent)?;
    let entry = must_find(txn, ask.parent, &ask.name)?;
    ctx.may_change(ask.parent)?;
    ctx.may_change(entry.file)?;
    empty_directory(txn, entry.file, &ask.name)?;
    let mut effects = Vec::new();
    remove_entry(ctx, txn, ask.parent, &ask.name, true)?;
    drop_link(ctx, txn, entry.file, &mut effects)?;
    Ok((Reply::Rmdir(Done {}), effects))
}

pub(super) fn empty_directory(txn: &Txn, dir: FileId, name: &Name) -> Result<(), WireError> {
    let inode = txn.inode(dir)?;
    if inode.kind != FileKind::Directory {
        return Err(posix(ENOTDIR, name.lossy()));
    }
    let reserved = !txn.scan(Table::Reserved, &file_key(dir), &file_key(dir), false, 1)?.is_empty();
    if inode.entries > 0 || reserved {
        return Err(posix(ENOTEMPTY, name.lossy()));
    }
    Ok(())
}

/// LINK.
pub fn link(ctx: &Context, txn: &mut Txn, ask: &Link) -> Planned {
    check_name(&ask.new_name)?;
    let mut inode = txn.inode(ask.file)?;
    directory(txn, ask.new_parent)?;
    ctx.may_change(ask.new_parent)?;
    ctx.may_change(ask.file)?;
    if inode.kind == FileKind::Directory {
        return Err(posix(EPERM, "link to a directory"));
    }
    if inode.nlink >= MAX_LINKS {
        return Err(posix(EMLINK, format!("file {}", ask.file)));
    }
    if inode.nlink == 0 {
        return Err(posix(ENOENT, format!("file {} has been removed", ask.file)));
    }
    if txn.entry(ask.new_parent, &ask.new_name)?.is_some() {
        return Err(posix(EEXIST, ask.new_name.lossy()));
    }
    not_reserved(txn, ask.new_parent, &ask.new_name)?;
    if ctx.tree_of(ask.file) != ctx.tree_of(ask.new_parent) {
        return Err(crossing(ctx, &[ask.file, ask.new_parent], &ask.new_name));
    }
    inode.nlink += 1;
    inode.ctime = ctx.now;
    inode.exclusive |= inode.kind == FileKind::File && (ctx.exclusive)(&ask.new_name);
    txn.put_inode(ask.file, &inode);
    add_entry(ctx, txn, ask.new_parent, &ask.new_name, ask.file, false)?;
    Ok((Reply::Link(inode.attr(ask.file)), vec![Effect::Joined { parent: ask.new_parent, file: ask.file }]))
}

/// Refused because it would leave names of one file on both sides of a moving tree's border.
pub(super) fn crossing(ctx: &Context, files: &[FileId], name: &Name) -> WireError {
    match files.iter().find_map(|f| (ctx.moving)(*f)) {
        Some(mover) => mover.busy(name.lossy()),
        None => WireError::Failed { reason: "a border without a moving tree".into() },
    }
}
