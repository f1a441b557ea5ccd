//! The real dsmove and dsctl against a dshost made of prepared answers: what they ask, print and
//! return.
#![allow(clippy::unwrap_used)]

mod dsctl;
mod dsmove;
mod fake_dshost;
mod terminal;

use std::process::{Command, Output};

/// What a tool printed and returned.
pub struct Said {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        Said {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A tool, not started yet, that talks to the dshost of `run`.
pub fn tool(path: &str, run: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(path);
    command.args(arguments).env("GODWIT_RUN", run).stdin(std::process::Stdio::null());
    command
}

/// Run dsmove to its end.
pub fn dsmove(run: &std::path::Path, arguments: &[&str]) -> Said {
    tool(env!("CARGO_BIN_EXE_dsmove"), run, arguments).output().unwrap().into()
}

/// Run dsctl to its end.
pub fn dsctl(run: &std::path::Path, arguments: &[&str]) -> Said {
    tool(env!("CARGO_BIN_EXE_dsctl"), run, arguments).output().unwrap().into()
}
