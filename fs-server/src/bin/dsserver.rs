//! `dsserver`: serves a datastore from a directory on local storage.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use fs_server::config::{self, FileConfig};

#[derive(Parser)]
#[command(name = "dsserver", version, about = "Serves a Godwit datastore from a directory on local storage")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a datastore until SIGTERM
    #[command(
        after_help = "Example:\n  dsserver run --name ds1 --path /srv/ds1 --listen 10.0.0.5:7101 --capacity 2TiB"
    )]
    Run(Run),
}

#[derive(Args)]
struct Run {
    /// The datastore's name
    #[arg(long)]
    name: Option<String>,
    /// Its directory: empty at first, then its own
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// How much it may take; without it what the file system has
    #[arg(long, value_name = "SIZE")]
    capacity: Option<ByteSize>,
    /// Pattern of files that one host at a time may write; may be repeated
    #[arg(long, value_name = "PATTERN")]
    exclusive: Option<Vec<String>>,
    /// TOML file with keys named like the flags; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Cli { command: Command::Run(run) } = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("GODWIT_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let file = match run.config.as_deref().map(config::read).transpose() {
        Ok(file) => file.unwrap_or_default(),
        Err(message) => return usage(&message),
    };
    let flags = FileConfig {
        name: run.name,
        path: run.path,
        listen: run.listen,
        capacity: run.capacity,
        exclusive: run.exclusive,
    };
    let merged = match file.merge(flags) {
        Ok(merged) => merged,
        Err(message) => return usage(&message),
    };
    let mut signals = match signal_hook::iterator::Signals::new([libc::SIGTERM, libc::SIGINT]) {
        Ok(signals) => signals,
        Err(e) => return usage(&format!("signals: {e}")),
    };
    match fs_server::run(&merged, || {
        signals.forever().next();
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}\nhint: {}", e.hint);
            ExitCode::FAILURE
        }
    }
}

fn usage(message: &str) -> ExitCode {
    eprintln!("error: {message}\nhint: dsserver run --help");
    ExitCode::from(2)
}
