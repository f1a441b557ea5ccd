//! The command line of dsctl.

mod moves;
mod overview;
mod vm_disks;
mod vms;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::client::{Client, DEFAULT_RUN};
use crate::exit::{Exit, Failure};

const EXAMPLES: &str = "\
Examples:
  dsctl status                              the host, its datastores, what moves
  dsctl vm create vm42 --datastore ds1 --memory 1GiB --cpus 2 --disk 20GiB
  dsctl vm start vm42
  dsctl move watch vm42
  dsctl --json vm list | jq '.[].name'

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 refused, nothing was changed; 4 cancelled";

/// Show and change what a dshost runs
#[derive(Parser, Debug)]
#[command(name = "dsctl", version, after_help = EXAMPLES, max_term_width = 110)]
struct Arguments {
    /// The run directory of the dshost to talk to
    #[arg(long, global = true, value_name = "DIR", env = "GODWIT_RUN", default_value = DEFAULT_RUN)]
    run: PathBuf,
    /// JSON instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// The host, its datastores, and how many moves run
    #[command(after_help = "Example:\n  dsctl status")]
    Status,
    /// Datastores as this host sees them
    #[command(subcommand)]
    Datastore(overview::DatastoreCommand),
    /// Virtual machines
    #[command(subcommand)]
    Vm(vms::VmCommand),
    /// Moves between datastores; `dsmove` starts them
    #[command(subcommand)]
    Move(moves::MoveCommand),
}

/// What every command works with.
struct Context {
    client: Client,
    json: bool,
}

impl Context {
    /// Print a value as JSON or as `text` shows it.
    fn print<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        if self.json {
            let json = serde_json::to_string_pretty(value).map_err(|e| Failure {
                exit: Exit::Failed,
                message: format!("write JSON: {e}"),
                hint: None,
            })?;
            println!("{json}");
        } else {
            print!("{}", text(value));
        }
        Ok(())
    }
}

/// Run dsctl with the arguments of this process.
pub fn main() -> ExitCode {
    let Arguments { run, json, command } = Arguments::parse();
    let context = Context { client: Client::new(&run), json };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: start the runtime: {e}");
            return Exit::Failed.into();
        }
    };
    let result = runtime.block_on(async {
        let said = match command {
            Command::Status => overview::status(&context).await,
            Command::Datastore(command) => overview::datastores(&context, command).await,
            Command::Vm(command) => vms::run(&context, command).await,
            Command::Move(command) => return moves::run(&context, command).await,
        };
        said.map(|()| Exit::Done)
    });
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            failure.report(json);
            failure.exit.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_and_an_example() {
        fn visit(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} says not what it does");
            let mut leaves = command.get_subcommands().filter(|c| c.get_name() != "help").peekable();
            if leaves.peek().is_none() {
                let help = command.get_after_help().map(|h| h.to_string()).unwrap_or_default();
                assert!(help.contains(path.trim()), "{path} has no example of itself");
            }
            leaves.for_each(|c| visit(c, &path));
        }
        visit(&Arguments::command(), "");
    }
}
