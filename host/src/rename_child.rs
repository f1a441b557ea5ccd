//! The child process that renames: `dshost rename-into-place SOURCE DESTINATION`.
//!
//! The move coordinator has it call rename(2) on dshost's own mount. A thread of dshost that
//! waited for its own mount could not die with the process; a child can be left behind.

use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Rename without replacing anything. Says the errno on stderr when that fails.
pub fn main(source: &Path, destination: &Path) -> ExitCode {
    match renameat_with(CWD, source, CWD, destination, RenameFlags::NOREPLACE) {
        Ok(()) => ExitCode::SUCCESS,
        Err(errno) => {
            let error = std::io::Error::from(errno);
            eprintln!("{} to {}: {error}", source.display(), destination.display());
            ExitCode::FAILURE
        }
    }
}
