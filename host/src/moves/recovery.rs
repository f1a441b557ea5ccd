//! What a dshost does about moves that another run of it left behind.
//!
//! The source's record decides (proto::ops::moves): committed moves are finished, all others are
//! undone. A step that can't be done because a datastore is away is tried again later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fs_client::{CallError, Datastore, Files};
use proto::ops::moves::{
    IncomingDrop, IncomingPublish, MoveAbort, MoveFinish, MoveList, MoveRecord, MoveSide, MoveState,
};
use proto::{DatastoreId, MoveId};
use tracing::{info, warn};

/// What to do about a move, from the records on its two datastores.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Forget it on the source and drop the incoming tree.
    Undo,
    /// Publish on the destination, then free the source.
    Finish(MoveRecord),
    /// Drop the incoming tree; the source knows nothing of it.
    Drop,
    /// Nothing.
    Leave,
}

/// Decide from what the source and the destination say.
fn decide(source: Option<&MoveRecord>, destination: Option<&MoveRecord>) -> Step {
    match (source, destination) {
        (Some(s), _) if s.state < MoveState::Committed => Step::Undo,
        (Some(s), _) if s.state == MoveState::Committed => Step::Finish(s.clone()),
        (Some(s), Some(d)) if d.state < MoveState::Committed => Step::Finish(s.clone()),
        (None, Some(d)) if d.state < MoveState::Committed => Step::Drop,
        _ => Step::Leave,
    }
}

/// One pass over all datastores. `running` are the moves of this run of dshost.
/// Returns how many moves are left for another pass.
pub async fn recover(files: &Files, host: &str, running: &BTreeSet<MoveId>) -> usize {
    let mut left = 0;
    let mut seen: BTreeMap<MoveId, MoveRecord> = BTreeMap::new();
    for datastore in files.datastores().iter().filter(|d| d.state().connected) {
        match datastore.call(MoveList { id: None }).await {
            Ok(list) => {
                for record in list.records {
                    if record.host == host && !running.contains(&record.id) {
                        seen.entry(record.id).or_insert(record);
                    }
                }
            }
            Err(e) => warn!(datastore = datastore.name(), "list moves: {e}"),
        }
    }
    for (id, record) in seen {
        if let Err(reason) = settle(files, id, &record).await {
            left += 1;
            warn!(%id, "a move left behind waits for recovery: {reason}");
        }
    }
    left
}

async fn settle(files: &Files, id: MoveId, found: &MoveRecord) -> Result<(), String> {
    let holder = by_record_side(files, id).await?;
    let (source, destination) = match found.side {
        MoveSide::Source => (holder.0, by_id(files, found.peer)),
        MoveSide::Destination => (by_id(files, found.peer), holder.1),
    };
    // Without the source's word nothing may be decided; without the destination nothing can be done.
    let source = source.ok_or("its source datastore is not attached")?;
    let destination = destination.ok_or("its destination datastore is not attached")?;
    let at_source = record_at(&source, id, MoveSide::Source).await?;
    let at_destination = record_at(&destination, id, MoveSide::Destination).await?;
    match decide(at_source.as_ref(), at_destination.as_ref()) {
        Step::Undo => {
            said(source.call(MoveAbort { id }).await)?;
            said(destination.call(IncomingDrop { id }).await)?;
            info!(%id, "undid a move that had not committed");
        }
        Step::Drop => {
            said(destination.call(IncomingDrop { id }).await)?;
            info!(%id, "dropped the incoming tree of a move that is over");
        }
        Step::Finish(record) => {
            said(destination.call(IncomingPublish { id, generation: record.generation }).await)?;
            said(source.call(MoveFinish { id }).await)?;
            info!(%id, "finished a move that had committed");
        }
        Step::Leave => {}
    }
    Ok(())
}

fn said<T>(result: Result<T, CallError>) -> Result<T, String> {
    result.map_err(|e| e.to_string())
}

fn by_id(files: &Files, id: DatastoreId) -> Option<Arc<Datastore>> {
    files
        .datastores()
        .iter()
        .find(|d| d.state().connected && d.info().is_some_and(|info| info.datastore == id))
        .cloned()
}

/// The datastores that hold the move's source and destination records.
async fn by_record_side(
    files: &Files,
    id: MoveId,
) -> Result<(Option<Arc<Datastore>>, Option<Arc<Datastore>>), String> {
    let (mut source, mut destination) = (None, None);
    for datastore in files.datastores().iter().filter(|d| d.state().connected) {
        for record in said(datastore.call(MoveList { id: Some(id) }).await)?.records {
            match record.side {
                MoveSide::Source => source = Some(datastore.clone()),
                MoveSide::Destination => destination = Some(datastore.clone()),
            }
        }
    }
    Ok((source, destination))
}

async fn record_at(datastore: &Datastore, id: MoveId, side: MoveSide) -> Result<Option<MoveRecord>, String> {
    let list = said(datastore.call(MoveList { id: Some(id) }).await)?;
    Ok(list.records.into_iter().find(|r| r.side == side))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::ops::names::{Name, Time};
    use proto::{FileId, Generation};

    fn record(side: MoveSide, state: MoveState) -> MoveRecord {
        MoveRecord {
            id: MoveId::new(),
            side,
            state,
            host: "hostA".into(),
            peer: DatastoreId::new(),
            peer_name: "other".into(),
            root: FileId(1),
            parent: FileId(2),
            name: Name::from("vm"),
            generation: Generation(1),
            began: Time::default(),
            changed: Time::default(),
        }
    }

    #[test]
    fn only_the_source_decides() {
        use MoveState::*;
        let source = |state| record(MoveSide::Source, state);
        let destination = |state| record(MoveSide::Destination, state);
        assert_eq!(decide(Some(&source(Copying)), Some(&destination(Sealed))), Step::Undo);
        assert_eq!(decide(Some(&source(Copying)), None), Step::Undo);
        assert_eq!(decide(None, Some(&destination(Sealed))), Step::Drop);
        assert_eq!(decide(None, Some(&destination(Copying))), Step::Drop);
        assert_eq!(decide(None, Some(&destination(Finished))), Step::Leave);
        let committed = source(Committed);
        assert_eq!(decide(Some(&committed), Some(&destination(Sealed))), Step::Finish(committed.clone()));
        assert_eq!(decide(Some(&committed), Some(&destination(Finished))), Step::Finish(committed.clone()));
        let finished = source(Finished);
        assert_eq!(decide(Some(&finished), Some(&destination(Sealed))), Step::Finish(finished.clone()));
        assert_eq!(decide(Some(&finished), Some(&destination(Finished))), Step::Leave);
    }
}
