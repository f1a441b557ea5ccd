//! Moves: a file or a directory tree goes from one datastore to another while it is in use.
//!
//! | file | subject |
//! |---|---|
//! | `manager` | all moves of the host; what the control API calls |
//! | `target` | from the words of a request to ids; checks before anything starts |
//! | `tree` | the manifest of a tree and how two states of it differ (no I/O) |
//! | `job` | one move: records, copying, undoing |
//! | `copies` | the mirrors of a move's files |
//! | `switchover` | hold, drain, flush, seal, commit, publish, swap |
//! | `armed` | how the kernel's rename(2) finds the switchover |
//! | `recovery` | moves that an earlier run left behind |
//! | `report` | what is shown of a move |
//! | `halt` | halt points for crash tests |

mod answer;
mod armed;
mod copies;
mod halt;
mod job;
mod manager;
mod recovery;
mod report;
mod switchover;
mod target;
mod tree;

pub use armed::Armed;
pub use halt::STEPS;
pub use job::Surroundings;
pub use manager::MoveManager;
pub use target::VmLocator;
