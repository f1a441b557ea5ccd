//! The source's side of a move: begin, commit, finish, abort. See proto::ops::moves for the rules.

use proto::ops::moves::{MoveBegin, MoveRecord, MoveSide, MoveState};
use proto::ops::names::FileKind;
use proto::{FileId, Generation, MoveId, WireError};

use super::names::remove_entry;
use super::plan::{Context, Effect, errno::*, posix};
use super::records::{Forward, Records, file_key};
use super::tables::{Table, Tables, Txn, decode};
use super::trees::{erase_some, inodes_of};

/// Inodes erased in one transaction.
const BATCH: usize = 1_000;
/// Finished records that are kept.
const HISTORY: usize = 1_000;

/// Key of a move's record.
pub fn move_key(id: MoveId, side: MoveSide) -> Vec<u8> {
    let mut key = id.0.as_bytes().to_vec();
    key.push(side as u8);
    key
}

/// A move's record.
pub fn find(tables: &dyn Tables, id: MoveId, side: MoveSide) -> Result<Option<MoveRecord>, WireError> {
    tables.get(Table::Moves, &move_key(id, side))?.map(|b| decode(&b)).transpose()
}

/// All records.
pub fn all(tables: &dyn Tables) -> Result<Vec<MoveRecord>, WireError> {
    tables.scan(Table::Moves, &[], &[], false, usize::MAX)?.iter().map(|(_, v)| decode(v)).collect()
}

pub(super) fn put(txn: &mut Txn, record: &MoveRecord) {
    txn.write(Table::Moves, move_key(record.id, record.side), record);
}

pub(super) fn state_error(record: &MoveRecord) -> WireError {
    WireError::MoveState { state: format!("{:?}", record.state).to_lowercase() }
}

/// Begin. `writer` names another host that has a file open for writing, if one has.
/// Answers the record and the inodes that belong to the tree from now on.
pub fn begin(
    ctx: &Context,
    txn: &mut Txn,
    ask: &MoveBegin,
    writer: &dyn Fn(FileId) -> Option<String>,
) -> Result<(MoveRecord, Vec<FileId>), WireError> {
    let ids = inodes_of(txn, ask.root)?;
    if let Some(record) = find(txn, ask.id, MoveSide::Source)? {
        return Ok((record, ids.into_keys().collect()));
    }
    let entry = txn.entry(ask.parent, &ask.name)?.filter(|e| e.file == ask.root);
    entry.ok_or_else(|| posix(ENOENT, format!("{} is not what it was", ask.name.lossy())))?;
    for (file, names) in &ids {
        let inode = txn.inode(*file)?;
        let busy = |holder: String| WireError::Busy {
            object: format!("file {file} of {}", ask.name.lossy()),
            holder,
        };
        if let Some(mover) = (ctx.moving)(*file) {
            return Err(mover.busy(format!("file {file} of {}", ask.name.lossy())));
        }
        if let Some(host) = writer(*file) {
            return Err(busy(format!("host {host}, which has it open for writing")));
        }
        if inode.kind != FileKind::Directory && inode.nlink > *names {
            return Err(busy("a hard link outside of what is moved".into()));
        }
        if !txn.scan(Table::Reserved, &file_key(*file), &file_key(*file), false, 1)?.is_empty() {
            return Err(busy("an incoming move".into()));
        }
    }
    let record = MoveRecord {
        id: ask.id,
        side: MoveSide::Source,
        state: MoveState::Copying,
        host: ctx.host.to_string(),
        peer: ask.to,
        peer_name: ask.to_name.clone(),
        root: ask.root,
        parent: ask.parent,
        name: ask.name.clone(),
        generation: Generation(0),
        began: ctx.now,
        changed: ctx.now,
    };
    put(txn, &record);
    Ok((record, ids.into_keys().collect()))
}

/// THE commit. The driver has fenced the tree and drained what was admitted.
pub fn commit(ctx: &Context, txn: &mut Txn, id: MoveId) -> Result<MoveRecord, WireError> {
    let mut record = find(txn, id, MoveSide::Source)?.ok_or(WireError::NoSuchMove)?;
    if record.state >= MoveState::Committed {
        return Ok(record);
    }
    // The root may have got another name on the source meanwhile; then the rename did not find it.
    let entry = txn.entry(record.parent, &record.name)?.filter(|e| e.file == record.root);
    entry.ok_or_else(|| posix(ENOENT, format!("{} is not what it was", record.name.lossy())))?;
    for (file, names) in inodes_of(txn, record.root)? {
        let inode = txn.inode(file)?;
        if inode.kind != FileKind::Directory && inode.nlink > names {
            return Err(WireError::Busy {
                object: format!("file {file} of {}", record.name.lossy()),
                holder: "a hard link outside of what is moved".into(),
            });
        }
    }
    let is_dir = txn.inode(record.root)?.kind == FileKind::Directory;
    remove_entry(ctx, txn, record.parent, &record.name.clone(), is_dir)?;
    let last: u64 = txn.read(Table::Header, b"generation")?.unwrap_or(0);
    txn.write(Table::Header, b"generation".to_vec(), &(last + 1));
    record.generation = Generation(last + 1);
    record.state = MoveState::Committed;
    record.changed = ctx.now;
    put(txn, &record);
    Ok(record)
}

/// Free some of the source's space. The record, and whether that was all.
pub fn finish(
    ctx: &Context,
    txn: &mut Txn,
    id: MoveId,
    effects: &mut Vec<Effect>,
) -> Result<(MoveRecord, bool), WireError> {
    let mut record = find(txn, id, MoveSide::Source)?.ok_or(WireError::NoSuchMove)?;
    match record.state {
        MoveState::Finished => return Ok((record, true)),
        MoveState::Committed => {}
        _ => return Err(state_error(&record)),
    }
    let forward = Forward { to: record.peer, name: record.peer_name.clone() };
    let done = erase_some(txn, record.root, BATCH, effects, &mut |txn, file| {
        txn.write(Table::Forwards, file_key(file), &forward);
    })?;
    if done {
        record.state = MoveState::Finished;
        record.changed = ctx.now;
        put(txn, &record);
        prune(txn)?;
    }
    Ok((record, done))
}

/// Forget a move that has not committed.
pub fn abort(txn: &mut Txn, id: MoveId) -> Result<(), WireError> {
    match find(txn, id, MoveSide::Source)? {
        Some(record) if record.state >= MoveState::Committed => Err(state_error(&record)),
        Some(_) => {
            txn.delete(Table::Moves, move_key(id, MoveSide::Source));
            Ok(())
        }
        None => Ok(()),
    }
}

/// Keep the newest finished records.
pub(super) fn prune(txn: &mut Txn) -> Result<(), WireError> {
    let mut finished: Vec<_> = all(txn)?.into_iter().filter(|r| r.state == MoveState::Finished).collect();
    if finished.len() > HISTORY {
        finished.sort_by_key(|r| r.changed);
        for record in &finished[..finished.len() - HISTORY] {
            txn.delete(Table::Moves, move_key(record.id, record.side));
        }
    }
    Ok(())
}
