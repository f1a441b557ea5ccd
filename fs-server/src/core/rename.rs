//! Renaming within the datastore: rename(2)'s rules, and those of trees that are being moved.

use proto::ops::names::{FileKind, Name, Rename};
use proto::ops::{Done, Reply};
use proto::{FileId, WireError};

use super::names::{
    MAX_LINKS, Planned, add_entry, check_name, crossing, directory, drop_link, empty_directory, must_find,
    not_reserved, remove_entry,
};
use super::plan::{Context, Effect, errno::*, posix};
use super::records::{Entry, Inode, Records};
use super::tables::Txn;

/// RENAME, with RENAME_NOREPLACE and RENAME_EXCHANGE.
pub fn rename(ctx: &Context, txn: &mut Txn, ask: &Rename) -> Planned {
    check_name(&ask.new_name)?;
    if ask.no_replace && ask.exchange {
        return Err(posix(EINVAL, "NOREPLACE and EXCHANGE together"));
    }
    directory(txn, ask.parent)?;
    let new_parent = directory(txn, ask.new_parent)?;
    let old = must_find(txn, ask.parent, &ask.name)?;
    let there = txn.entry(ask.new_parent, &ask.new_name)?;
    for file in [ask.parent, ask.new_parent, old.file].into_iter().chain(there.map(|e| e.file)) {
        ctx.may_change(file)?;
    }
    let moved = txn.inode(old.file)?;
    not_inside(txn, old.file, ask.new_parent)?;
    if new_parent.nlink == 0 {
        return Err(posix(ENOENT, "a removed directory"));
    }
    match there {
        Some(_) if ask.no_replace => Err(posix(EEXIST, ask.new_name.lossy())),
        Some(other) if other.file == old.file => Ok((Reply::Rename(Done {}), vec![])),
        Some(other) if ask.exchange => exchange(ctx, txn, ask, old, other),
        None if ask.exchange => Err(posix(ENOENT, ask.new_name.lossy())),
        there => replace(ctx, txn, ask, (old, &moved), (there, &new_parent)),
    }
}

fn replace(
    ctx: &Context,
    txn: &mut Txn,
    ask: &Rename,
    (old, moved): (Entry, &Inode),
    (there, new_parent): (Option<Entry>, &Inode),
) -> Planned {
    may_cross(ctx, ask, old, moved)?;
    let is_dir = moved.kind == FileKind::Directory;
    let mut effects = vec![Effect::Joined { parent: ask.new_parent, file: old.file }];
    match there {
        Some(entry) => {
            let victim_is_dir = txn.inode(entry.file)?.kind == FileKind::Directory;
            match (is_dir, victim_is_dir) {
                (true, true) => empty_directory(txn, entry.file, &ask.new_name)?,
                (true, false) => return Err(posix(ENOTDIR, ask.new_name.lossy())),
                (false, true) => return Err(posix(EISDIR, ask.new_name.lossy())),
                (false, false) => {}
            }
            remove_entry(ctx, txn, ask.new_parent, &ask.new_name, victim_is_dir)?;
            drop_link(ctx, txn, entry.file, &mut effects)?;
        }
        None if is_dir && ask.parent != ask.new_parent && new_parent.nlink >= MAX_LINKS => {
            return Err(posix(EMLINK, ask.new_name.lossy()));
        }
        None => not_reserved(txn, ask.new_parent, &ask.new_name)?,
    }
    remove_entry(ctx, txn, ask.parent, &ask.name, is_dir)?;
    add_entry(ctx, txn, ask.new_parent, &ask.new_name, old.file, is_dir)?;
    renamed(ctx, txn, old.file, ask.new_parent, &ask.new_name)?;
    // A root that is renamed in place stays in its tree.
    if ctx.tree_of(ask.parent) == ctx.tree_of(ask.new_parent) {
        effects.retain(|e| !matches!(e, Effect::Joined { .. }));
    }
    Ok((Reply::Rename(Done {}), effects))
}

/// Only a file with a single name may come into a moving tree or leave one: with it a directory's
/// content, or a name on the other side, would have to be taken apart.
fn may_cross(ctx: &Context, ask: &Rename, old: Entry, moved: &Inode) -> Result<(), WireError> {
    let (from, to) = (ctx.tree_of(ask.parent), ctx.tree_of(ask.new_parent));
    let is_root = ctx.tree_of(old.file) != from;
    let single = moved.kind != FileKind::Directory && moved.nlink == 1;
    if from == to || (single && !is_root) {
        return Ok(());
    }
    Err(crossing(ctx, &[ask.parent, ask.new_parent, old.file], &ask.name))
}

fn exchange(ctx: &Context, txn: &mut Txn, ask: &Rename, old: Entry, other: Entry) -> Planned {
    not_inside(txn, other.file, ask.parent)?;
    if ctx.tree_of(ask.parent) != ctx.tree_of(ask.new_parent) {
        return Err(crossing(ctx, &[ask.parent, ask.new_parent], &ask.name));
    }
    let is_dir = |txn: &Txn, file| Ok::<bool, WireError>(txn.inode(file)?.kind == FileKind::Directory);
    let (old_dir, other_dir) = (is_dir(txn, old.file)?, is_dir(txn, other.file)?);
    remove_entry(ctx, txn, ask.parent, &ask.name, old_dir)?;
    remove_entry(ctx, txn, ask.new_parent, &ask.new_name, other_dir)?;
    add_entry(ctx, txn, ask.parent, &ask.name, other.file, other_dir)?;
    renamed(ctx, txn, other.file, ask.parent, &ask.name)?;
    add_entry(ctx, txn, ask.new_parent, &ask.new_name, old.file, old_dir)?;
    renamed(ctx, txn, old.file, ask.new_parent, &ask.new_name)?;
    Ok((Reply::Rename(Done {}), vec![]))
}

fn renamed(ctx: &Context, txn: &mut Txn, file: FileId, parent: FileId, name: &Name) -> Result<(), WireError> {
    let mut inode = txn.inode(file)?;
    let matches = inode.kind == FileKind::File && (ctx.exclusive)(name);
    inode.ctime = ctx.now;
    inode.parent = parent;
    inode.exclusive = matches || (inode.exclusive && inode.nlink > 1);
    txn.put_inode(file, &inode);
    Ok(())
}

/// A directory can't come to lie inside itself.
fn not_inside(txn: &Txn, file: FileId, mut dir: FileId) -> Result<(), WireError> {
    if txn.inode(file)?.kind != FileKind::Directory {
        return Ok(());
    }
    loop {
        if dir == file {
            return Err(posix(EINVAL, "a directory into itself"));
        }
        let inode = txn.inode(dir)?;
        if inode.parent == dir {
            return Ok(());
        }
        dir = inode.parent;
    }
}
