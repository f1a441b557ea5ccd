//! What must hold between the tables at any time. Tests call it after every step.

use std::collections::BTreeMap;

use proto::ops::moves::{MoveRecord, MoveSide, MoveState};
use proto::ops::names::{FileKind, Name};
use proto::{FileId, WireError};

use super::moves;
use super::records::{Entry, Inode, cookie_key, key_file};
use super::tables::{Table, Tables, decode};

/// All violations that were found, in words; none in a sound store.
pub fn violations(tables: &dyn Tables) -> Result<Vec<String>, WireError> {
    let mut wrong = Vec::new();
    let all = |table| tables.scan(table, &[], &[], false, usize::MAX);
    let mut inodes: BTreeMap<FileId, Inode> = BTreeMap::new();
    for (key, value) in all(Table::Inodes)? {
        let file = key_file(&key).unwrap_or(FileId(0));
        inodes.insert(file, decode(&value)?);
    }
    let records = moves::all(tables)?;
    let mut names: BTreeMap<FileId, u32> = BTreeMap::new();
    let mut subdirs: BTreeMap<FileId, u32> = BTreeMap::new();
    let mut entries: BTreeMap<FileId, u64> = BTreeMap::new();
    for (key, value) in all(Table::Entries)? {
        let (dir, name) = (key_file(&key).unwrap_or(FileId(0)), Name(key[8..].to_vec()));
        let entry: Entry = decode(&value)?;
        *entries.entry(dir).or_default() += 1;
        *names.entry(entry.file).or_default() += 1;
        match (inodes.get(&dir), inodes.get(&entry.file)) {
            (Some(parent), Some(child)) => {
                if parent.kind != FileKind::Directory {
                    wrong.push(format!("{name:?} lies in {dir}, which is no directory"));
                }
                if parent.incoming != child.incoming {
                    wrong.push(format!("{name:?} in {dir} names {} of another move", entry.file));
                }
                if child.kind == FileKind::Directory {
                    *subdirs.entry(dir).or_default() += 1;
                    if child.parent != dir {
                        wrong.push(format!("directory {} does not know that it lies in {dir}", entry.file));
                    }
                }
            }
            (parent, child) => wrong.push(format!(
                "{name:?} in {dir}: {}{}",
                if parent.is_none() { "no such directory " } else { "" },
                if child.is_none() { "names nothing" } else { "" }
            )),
        }
        match tables.get(Table::Cookies, &cookie_key(dir, entry.cookie))? {
            Some(bytes) if decode::<Name>(&bytes)? == name => {}
            _ => wrong.push(format!("{name:?} in {dir} is not listed under its cookie {}", entry.cookie)),
        }
    }
    let cookies = all(Table::Cookies)?.len() as u64;
    if cookies != entries.values().sum::<u64>() {
        wrong.push(format!("{cookies} cookies for {} entries", entries.values().sum::<u64>()));
    }
    for (file, inode) in &inodes {
        let counts = Counts {
            names: names.get(file).copied().unwrap_or(0),
            subdirs: subdirs.get(file).copied().unwrap_or(0),
            entries: entries.get(file).copied().unwrap_or(0),
        };
        check_inode(tables, &records, *file, inode, counts, &mut wrong)?;
    }
    check_records(&records, &inodes, &mut wrong);
    Ok(wrong)
}

struct Counts {
    names: u32,
    subdirs: u32,
    entries: u64,
}

fn check_inode(
    tables: &dyn Tables,
    records: &[MoveRecord],
    file: FileId,
    inode: &Inode,
    counts: Counts,
    wrong: &mut Vec<String>,
) -> Result<(), WireError> {
    let orphan = tables.get(Table::Orphans, &super::records::file_key(file))?.is_some();
    let moving_root = |side: MoveSide| records.iter().any(|r| r.side == side && r.root == file);
    // The root of a tree that has committed, or that is incoming, has no name here.
    let nameless_root =
        moving_root(MoveSide::Source) || (moving_root(MoveSide::Destination) && inode.incoming.is_some());
    let is_datastore_root = inode.parent == file;
    if inode.kind == FileKind::Directory {
        // One that an incoming tree will name again is no removed directory.
        let removed = orphan && inode.incoming.is_none();
        let expected = if removed { 0 } else { 2 + counts.subdirs };
        if inode.nlink != expected {
            wrong.push(format!("directory {file} has nlink {}, not {expected}", inode.nlink));
        }
        if counts.entries != inode.entries {
            wrong.push(format!("directory {file} counts {} entries, has {}", inode.entries, counts.entries));
        }
        if counts.names != 1 && !is_datastore_root && !orphan && !nameless_root {
            wrong.push(format!("directory {file} has {} names", counts.names));
        }
    } else {
        let own = if nameless_root && counts.names == 0 { inode.nlink } else { counts.names };
        if inode.nlink != own {
            wrong.push(format!("file {file} has nlink {}, not {own}", inode.nlink));
        }
        if inode.nlink == 0 && !orphan {
            wrong.push(format!("file {file} has no name and is no orphan"));
        }
    }
    if let Some(id) = inode.incoming
        && !records
            .iter()
            .any(|r| r.id == id && r.side == MoveSide::Destination && r.state < MoveState::Committed)
    {
        wrong.push(format!("file {file} belongs to incoming move {id}, of which there is no record"));
    }
    Ok(())
}

fn check_records(records: &[MoveRecord], inodes: &BTreeMap<FileId, Inode>, wrong: &mut Vec<String>) {
    for record in records {
        let there = inodes.get(&record.root);
        let sound = match (record.side, record.state) {
            (MoveSide::Source, MoveState::Copying) => there.is_some_and(|i| i.incoming.is_none()),
            (MoveSide::Source, MoveState::Committed) => there.is_some(),
            (MoveSide::Destination, MoveState::Sealed) => {
                there.is_some_and(|i| i.incoming == Some(record.id))
            }
            _ => true,
        };
        if !sound {
            wrong.push(format!(
                "{:?} record of move {} is {:?}, its root {} is not",
                record.side, record.id, record.state, record.root
            ));
        }
    }
}
