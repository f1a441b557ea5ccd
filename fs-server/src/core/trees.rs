//! Walking and erasing whole trees, visible or not.

use std::collections::BTreeMap;

use proto::ops::names::{FileKind, Name};
use proto::{FileId, WireError};

use super::names::{detach_entry, erase};
use super::plan::Effect;
use super::records::{Entry, Records, file_key};
use super::tables::{Table, Tables, Txn, decode};

const PAGE: usize = 1_000;

/// All inodes of a tree with the number of names that each has in it (the root has one).
pub fn inodes_of(tables: &dyn Tables, root: FileId) -> Result<BTreeMap<FileId, u32>, WireError> {
    let mut names = BTreeMap::from([(root, 1)]);
    let mut dirs = vec![root];
    while let Some(dir) = dirs.pop() {
        let mut from = file_key(dir);
        loop {
            let rows = tables.scan(Table::Entries, &file_key(dir), &from, true, PAGE)?;
            let Some((last, _)) = rows.last() else { break };
            from = last.clone();
            for (_, value) in &rows {
                let entry: Entry = decode(value)?;
                *names.entry(entry.file).or_insert(0) += 1;
                if tables.find_inode(entry.file)?.is_some_and(|i| i.kind == FileKind::Directory) {
                    dirs.push(entry.file);
                }
            }
        }
    }
    Ok(names)
}

/// Take apart up to `max` names of a tree, leaves first, and erase inodes that have none left;
/// `gone` is called for each of those. True when the root is erased, too. The tables are sound
/// after each part, and after a crash what is left is found again from the root.
pub fn erase_some(
    txn: &mut Txn,
    root: FileId,
    max: usize,
    effects: &mut Vec<Effect>,
    gone: &mut dyn FnMut(&mut Txn, FileId),
) -> Result<bool, WireError> {
    let mut path = vec![root];
    let mut taken = 0;
    while let Some(&top) = path.last() {
        let rows = txn.scan(Table::Entries, &file_key(top), &file_key(top), true, 1)?;
        let Some((key, value)) = rows.first() else {
            path.pop();
            continue;
        };
        let entry: Entry = decode(value)?;
        let name = Name(key[8..].to_vec());
        let inode = txn.find_inode(entry.file)?;
        let is_dir = inode.as_ref().is_some_and(|i| i.kind == FileKind::Directory);
        if is_dir && inode.as_ref().is_some_and(|i| i.entries > 0) {
            path.push(entry.file);
            continue;
        }
        if taken >= max {
            return Ok(false);
        }
        taken += 1;
        detach_entry(txn, top, &name, is_dir)?;
        match inode {
            Some(mut inode) if !is_dir && inode.nlink > 1 => {
                inode.nlink -= 1;
                txn.put_inode(entry.file, &inode);
            }
            Some(inode) => {
                erase(txn, entry.file, &inode, effects)?;
                gone(txn, entry.file);
            }
            None => {}
        }
    }
    if taken >= max {
        return Ok(false);
    }
    if let Some(inode) = txn.find_inode(root)? {
        erase(txn, root, &inode, effects)?;
        gone(txn, root);
    }
    Ok(true)
}
