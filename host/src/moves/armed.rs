//! Renames across datastores that a move has prepared.
//!
//! The move's own child process calls rename(2); the FUSE handler finds the pair of names here and
//! runs the switchover instead of answering EXDEV.

use std::sync::Arc;

use dashmap::DashMap;
use fs_client::{PreparedRename, RenameHook};
use proto::FileId;
use proto::ops::names::Name;

type Pair = (FileId, Name, FileId, Name);
type Start = Arc<dyn Fn(Box<dyn FnOnce(Result<(), i32>) + Send>) + Send + Sync>;

/// The table of prepared renames.
#[derive(Default)]
pub struct Armed {
    pairs: DashMap<Pair, Start>,
}

/// Takes the pair out of the table when dropped.
pub struct ArmedGuard {
    table: Arc<Armed>,
    pair: Pair,
}

impl Armed {
    /// From now on a rename of `pair` calls `start` with the function that answers the rename.
    pub fn arm(self: &Arc<Self>, pair: Pair, start: Start) -> ArmedGuard {
        self.pairs.insert(pair.clone(), start);
        ArmedGuard { table: self.clone(), pair }
    }
}

impl Drop for ArmedGuard {
    fn drop(&mut self) {
        self.table.pairs.remove(&self.pair);
    }
}

impl RenameHook for Armed {
    fn prepared(
        &self,
        parent: FileId,
        name: &Name,
        new_parent: FileId,
        new_name: &Name,
    ) -> Option<PreparedRename> {
        let pair = (parent, name.clone(), new_parent, new_name.clone());
        let start = self.pairs.get(&pair)?.clone();
        Some(Box::new(move |answer| start(answer)))
    }
}
