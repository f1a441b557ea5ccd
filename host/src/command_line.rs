//! The command line of dshost.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, Flags};
use crate::{daemon, rename_child};

const EXAMPLES: &str = "\
Examples:
  dshost run --name hostA --mount /vmfs --datastore ds1=storage1:7101 --datastore ds2=storage2:7101
  dshost run --config /etc/godwit/host.toml

SIGTERM or Ctrl-C cancel what moves, unmount and end; once more ends at once.
GODWIT_LOG says what is logged, like `debug` or `host=debug,fs_client=trace`.
Exit codes: 0 ended in order; 1 could not start, or something went wrong; 2 wrong usage";

/// The daemon of a VM host: mounts datastores, moves VMs, serves the control API
#[derive(Parser, Debug)]
#[command(name = "dshost", version, after_help = EXAMPLES, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Mount the datastores and serve until SIGTERM
    #[command(after_help = EXAMPLES)]
    Run(Flags),
    /// Rename on the mount, for dshost itself
    #[command(hide = true)]
    RenameIntoPlace {
        /// From
        source: PathBuf,
        /// To
        destination: PathBuf,
    },
}

/// Run dshost with the arguments of this process.
pub fn main() -> ExitCode {
    let flags = match Arguments::parse().command {
        Command::RenameIntoPlace { source, destination } => return rename_child::main(&source, &destination),
        Command::Run(flags) => flags,
    };
    start_logging();
    let config = match Config::load(&flags) {
        Ok(config) => config,
        Err(e) => return fail(2, &e, e.hint.clone()),
    };
    match daemon::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(1, &e, e.hint()),
    }
}

fn fail(code: u8, error: &dyn std::error::Error, hint: Option<String>) -> ExitCode {
    eprintln!("error: {error}");
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(code)
}

fn start_logging() {
    let filter = EnvFilter::try_from_env("GODWIT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
