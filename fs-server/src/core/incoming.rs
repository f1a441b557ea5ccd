//! The destination's side of a move: a tree that grows unseen until it is published or dropped.

use proto::ops::moves::{
    IncomingBegin, IncomingDrop, IncomingPublish, IncomingPut, IncomingRemove, IncomingSeal, MoveRecord,
    MoveSide, MoveState,
};
use proto::ops::names::{FileKind, Name, TreeEntry};
use proto::{FileId, Generation, MoveId, WireError};

use super::moves::{find, move_key, prune, put, state_error};
use super::names::{add_entry, drop_link, erase, remove_entry};
use super::plan::{Context, Effect, errno::*, posix};
use super::records::{Inode, Records, file_key, key_file, name_key};
use super::tables::{Table, Tables, Txn};
use super::trees::{erase_some, inodes_of};

const BATCH: usize = 1_000;

/// Reserve the name. `free` are the datastore's free bytes.
pub fn begin(
    ctx: &Context,
    txn: &mut Txn,
    ask: &IncomingBegin,
    free: u64,
    datastore: &str,
) -> Result<MoveRecord, WireError> {
    if let Some(record) = find(txn, ask.id, MoveSide::Destination)? {
        return Ok(record);
    }
    let parent = txn.inode(ask.parent)?;
    if parent.kind != FileKind::Directory {
        return Err(posix(ENOTDIR, format!("file {}", ask.parent)));
    }
    if let Some(mover) = (ctx.moving)(ask.parent) {
        return Err(mover.busy(format!("directory {}", ask.parent)));
    }
    if txn.entry(ask.parent, &ask.name)?.is_some() {
        return Err(posix(EEXIST, ask.name.lossy()));
    }
    let key = name_key(ask.parent, &ask.name);
    if txn.get(Table::Reserved, &key)?.is_some() || txn.find_inode(ask.root)?.is_some() {
        return Err(WireError::Busy {
            object: ask.name.lossy().into_owned(),
            holder: "another incoming move".into(),
        });
    }
    if ask.bytes > free {
        return Err(WireError::NoSpace { datastore: datastore.into(), free, needed: ask.bytes });
    }
    let record = MoveRecord {
        id: ask.id,
        side: MoveSide::Destination,
        state: MoveState::Copying,
        host: ctx.host.to_string(),
        peer: ask.from,
        peer_name: ask.from_name.clone(),
        root: ask.root,
        parent: ask.parent,
        name: ask.name.clone(),
        generation: Generation(0),
        began: ctx.now,
        changed: ctx.now,
    };
    if !ask.check_only {
        txn.write(Table::Reserved, key, &ask.id);
        put(txn, &record);
    }
    Ok(record)
}

fn open_record(txn: &mut Txn, id: MoveId) -> Result<MoveRecord, WireError> {
    let mut record = find(txn, id, MoveSide::Destination)?.ok_or(WireError::NoSuchMove)?;
    match record.state {
        MoveState::Copying => Ok(record),
        // A switchover that was put off: there is more to come.
        MoveState::Sealed => {
            record.state = MoveState::Copying;
            put(txn, &record);
            Ok(record)
        }
        _ => Err(state_error(&record)),
    }
}

/// Add or update inodes and names.
pub fn put_entries(
    ctx: &Context,
    txn: &mut Txn,
    ask: &IncomingPut,
    effects: &mut Vec<Effect>,
) -> Result<(), WireError> {
    let record = open_record(txn, ask.id)?;
    for entry in &ask.entries {
        // Should data of that id be left from an earlier stay, it must not show in the copy.
        if entry.attr.kind == FileKind::File && txn.find_inode(entry.attr.file)?.is_none() {
            effects.push(Effect::RemoveData(entry.attr.file));
        }
        put_entry(ctx, txn, &record, entry)?;
    }
    Ok(())
}

fn put_entry(ctx: &Context, txn: &mut Txn, record: &MoveRecord, entry: &TreeEntry) -> Result<(), WireError> {
    let (file, attr) = (entry.attr.file, &entry.attr);
    let root = file == record.root;
    let there = txn.find_inode(file)?;
    if there.as_ref().is_some_and(|i| i.incoming != Some(record.id)) {
        return Err(WireError::Busy {
            object: format!("file {file}"),
            holder: "a live file of the same id".into(),
        });
    }
    let is_dir = attr.kind == FileKind::Directory;
    if there.as_ref().is_some_and(|i| i.kind != attr.kind) {
        return Err(WireError::Invalid { reason: format!("file {file} is put as another kind") });
    }
    let had_name = is_dir && !root && there.is_some();
    let exclusive = attr.kind == FileKind::File && (ctx.exclusive)(&entry.name);
    let fresh = Inode {
        kind: attr.kind,
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        nlink: if is_dir { 2 } else { u32::from(root) },
        rdev: attr.rdev,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        btime: attr.btime,
        target: entry.target.clone(),
        parent: entry.parent,
        entries: 0,
        next_cookie: 1,
        exclusive,
        incoming: Some(record.id),
    };
    let inode = match there {
        Some(old) => Inode {
            nlink: old.nlink,
            entries: old.entries,
            next_cookie: old.next_cookie,
            exclusive: old.exclusive || exclusive,
            ..fresh
        },
        None => fresh,
    };
    if had_name {
        forget_old_name(ctx, txn, file, entry)?;
    }
    txn.put_inode(file, &inode);
    for (key, _) in txn.scan(Table::Xattrs, &file_key(file), &file_key(file), false, usize::MAX)? {
        txn.delete(Table::Xattrs, key);
    }
    for (name, value) in &entry.xattrs {
        txn.write(Table::Xattrs, name_key(file, name), value);
    }
    if !root {
        name_entry(ctx, txn, record, entry)?;
    }
    Ok(())
}

/// A directory has one name: one that comes again under another has lost the old one.
fn forget_old_name(ctx: &Context, txn: &mut Txn, dir: FileId, entry: &TreeEntry) -> Result<(), WireError> {
    match txn.a_name(dir)? {
        Some((parent, name)) if (parent, &name) != (entry.parent, &entry.name) => {
            remove_entry(ctx, txn, parent, &name, true)
        }
        _ => Ok(()),
    }
}

/// Give an incoming inode its name in an incoming directory.
fn name_entry(ctx: &Context, txn: &mut Txn, record: &MoveRecord, entry: &TreeEntry) -> Result<(), WireError> {
    let file = entry.attr.file;
    let parent = txn.find_inode(entry.parent)?;
    if parent.is_none_or(|p| p.incoming != Some(record.id) || p.kind != FileKind::Directory) {
        return Err(WireError::Invalid {
            reason: format!("{} is put below what is not incoming", entry.name.lossy()),
        });
    }
    if let Some(old) = txn.entry(entry.parent, &entry.name)? {
        if old.file == file {
            return Ok(());
        }
        displace(ctx, txn, entry.parent, &entry.name, old.file)?;
    }
    txn.delete(Table::Orphans, file_key(file));
    let is_dir = entry.attr.kind == FileKind::Directory;
    add_entry(ctx, txn, entry.parent, &entry.name, file, is_dir)?;
    if !is_dir {
        let mut inode = txn.find_inode(file)?.ok_or_else(|| posix(ENOENT, format!("file {file}")))?;
        inode.nlink += 1;
        txn.put_inode(file, &inode);
    }
    Ok(())
}

/// A name is given to another inode. Whether the one that had it has got another name will be told
/// later, so it waits without one; what still has none when the tree is sealed goes.
fn displace(ctx: &Context, txn: &mut Txn, dir: FileId, name: &Name, file: FileId) -> Result<(), WireError> {
    let mut inode = txn.find_inode(file)?.ok_or_else(|| posix(ENOENT, format!("file {file}")))?;
    let is_dir = inode.kind == FileKind::Directory;
    remove_entry(ctx, txn, dir, name, is_dir)?;
    if !is_dir {
        inode.nlink = inode.nlink.saturating_sub(1);
        txn.put_inode(file, &inode);
    }
    if is_dir || inode.nlink == 0 {
        txn.write(Table::Orphans, file_key(file), &());
    }
    Ok(())
}

/// Inodes of an incoming tree that have lost their names.
fn nameless(txn: &Txn, id: MoveId) -> Result<Vec<FileId>, WireError> {
    let mut found = Vec::new();
    for (key, _) in txn.scan(Table::Orphans, &[], &[], false, usize::MAX)? {
        if let Some(file) = key_file(&key)
            && txn.find_inode(file)?.is_some_and(|inode| inode.incoming == Some(id))
        {
            found.push(file);
        }
    }
    Ok(found)
}

fn remove_name(
    ctx: &Context,
    txn: &mut Txn,
    dir: FileId,
    name: &Name,
    effects: &mut Vec<Effect>,
) -> Result<(), WireError> {
    let Some(entry) = txn.entry(dir, name)? else { return Ok(()) };
    let inode = txn.find_inode(entry.file)?;
    let is_dir = inode.as_ref().is_some_and(|i| i.kind == FileKind::Directory);
    if inode.as_ref().is_some_and(|i| i.entries > 0) {
        return Err(posix(ENOTEMPTY, name.lossy()));
    }
    remove_entry(ctx, txn, dir, name, is_dir)?;
    match inode {
        Some(inode) if is_dir => erase(txn, entry.file, &inode, effects),
        Some(_) => drop_link(ctx, txn, entry.file, effects),
        None => Ok(()),
    }
}

/// Remove names.
pub fn remove(
    ctx: &Context,
    txn: &mut Txn,
    ask: &IncomingRemove,
    effects: &mut Vec<Effect>,
) -> Result<(), WireError> {
    let record = open_record(txn, ask.id)?;
    for (dir, name) in &ask.names {
        if txn.find_inode(*dir)?.is_some_and(|d| d.incoming == Some(record.id)) {
            remove_name(ctx, txn, *dir, name, effects)?;
        }
    }
    Ok(())
}

/// Everything is there.
pub fn seal(
    ctx: &Context,
    txn: &mut Txn,
    ask: &IncomingSeal,
    effects: &mut Vec<Effect>,
) -> Result<MoveRecord, WireError> {
    let mut record = find(txn, ask.id, MoveSide::Destination)?.ok_or(WireError::NoSuchMove)?;
    if record.state == MoveState::Copying {
        txn.find_inode(record.root)?.ok_or_else(|| posix(ENOENT, "the root of the incoming tree"))?;
        for file in nameless(txn, ask.id)? {
            erase_some(txn, file, usize::MAX, effects, &mut |_, _| {})?;
        }
        record.state = MoveState::Sealed;
        record.changed = ctx.now;
        put(txn, &record);
    }
    if record.state == MoveState::Sealed {
        // Each time, as the answer says that the data files have their times.
        for file in inodes_of(txn, record.root)?.into_keys() {
            if let Some(inode) = txn.find_inode(file)?.filter(|i| i.kind == FileKind::File) {
                effects.push(Effect::SetMtime(file, inode.mtime));
            }
        }
    }
    Ok(record)
}

/// Make the tree live.
pub fn publish(
    ctx: &Context,
    txn: &mut Txn,
    ask: &IncomingPublish,
    effects: &mut Vec<Effect>,
) -> Result<MoveRecord, WireError> {
    let mut record = find(txn, ask.id, MoveSide::Destination)?.ok_or(WireError::NoSuchMove)?;
    match record.state {
        MoveState::Finished => return Ok(record),
        MoveState::Sealed => {}
        _ => return Err(state_error(&record)),
    }
    let mut is_dir = false;
    for file in inodes_of(txn, record.root)?.into_keys() {
        let mut inode =
            txn.find_inode(file)?.ok_or_else(|| posix(ENOENT, format!("incoming file {file}")))?;
        inode.incoming = None;
        if file == record.root {
            inode.parent = record.parent;
            is_dir = inode.kind == FileKind::Directory;
        }
        if inode.kind == FileKind::File {
            effects.push(Effect::Published(file));
        }
        txn.put_inode(file, &inode);
        txn.delete(Table::Forwards, file_key(file));
    }
    txn.delete(Table::Reserved, name_key(record.parent, &record.name));
    add_entry(ctx, txn, record.parent, &record.name.clone(), record.root, is_dir)?;
    let last: u64 = txn.read(Table::Header, b"generation")?.unwrap_or(0);
    txn.write(Table::Header, b"generation".to_vec(), &last.max(ask.generation.0));
    record.generation = ask.generation;
    record.state = MoveState::Finished;
    record.changed = ctx.now;
    put(txn, &record);
    prune(txn)?;
    Ok(record)
}

/// Delete some of the incoming tree; true when all of it and the record are gone.
pub fn drop_some(txn: &mut Txn, ask: &IncomingDrop, effects: &mut Vec<Effect>) -> Result<bool, WireError> {
    let Some(record) = find(txn, ask.id, MoveSide::Destination)? else { return Ok(true) };
    if record.state == MoveState::Finished {
        return Err(state_error(&record));
    }
    for root in nameless(txn, ask.id)?.into_iter().chain([record.root]) {
        if txn.find_inode(root)?.is_some() && !erase_some(txn, root, BATCH, effects, &mut |_, _| {})? {
            return Ok(false);
        }
    }
    txn.delete(Table::Reserved, name_key(record.parent, &record.name));
    txn.delete(Table::Moves, move_key(ask.id, MoveSide::Destination));
    Ok(true)
}
