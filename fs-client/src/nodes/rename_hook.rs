//! How a move takes part in a rename(2) from one datastore to another.

use proto::FileId;
use proto::ops::names::Name;

/// A rename that a move has prepared: run it, and it answers later, with an errno if it failed.
/// The kernel waits for the answer with both directories and the file locked.
pub type PreparedRename = Box<dyn FnOnce(Box<dyn FnOnce(Result<(), i32>) + Send>) + Send>;

/// Asked about each rename from one datastore to another.
pub trait RenameHook: Send + Sync {
    /// What carries this rename out; none when no move has prepared it (the answer is EXDEV).
    /// Must not block.
    fn prepared(
        &self,
        parent: FileId,
        name: &Name,
        new_parent: FileId,
        new_name: &Name,
    ) -> Option<PreparedRename>;
}
