//! The command line of dsmove.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use proto::control::{MirrorMode, MovePlan, MoveRequest, MoveStatus};
use serde_json::json;

use crate::client::{Client, DEFAULT_RUN};
use crate::exit::{Exit, Failure};
use crate::follow::{End, Follower, OnInterrupt, outcome_unknown};
use crate::interrupts::{Interrupts, can_ask};
use crate::progress::{BarView, JsonView, LineView, View};
use crate::quantity::{parse_duration, parse_rate, size};
use crate::result_line::{failure, json_failure, json_result, moved};

const EXAMPLES: &str = "\
Examples:
  dsmove vm42 --to ds2                      the VM's directory with all its disks, while it runs
  dsmove ds1/images/big.img --to ds2        any file or directory, open or not
  dsmove vm42 --to ds2 --limit 200MiB/s     copy no faster than that
  dsmove vm42 --to ds2 --dry-run            check everything, change nothing
  dsmove vm42 --to ds2 --detach             start it; `dsctl move watch vm42` follows it
  dsmove vm42 --to ds2 --json               one JSON object per line, the last is the result

Ctrl-C on a terminal asks whether to cancel the move or to leave it running; without a terminal
SIGINT and SIGTERM cancel it. If dsmove is killed the move goes on.

Exit codes:
  0  done
  1  failed and rolled back (it is where it was); or dshost is gone and the outcome is unknown
  2  wrong usage
  3  refused by a check, nothing was changed
  4  cancelled and rolled back";

/// Move a VM, a file or a directory to another datastore while it is in use
#[derive(Parser, Debug)]
#[command(name = "dsmove", version, after_help = EXAMPLES, max_term_width = 110)]
struct Arguments {
    /// A VM's name, or DATASTORE/PATH of a file or directory
    what: String,
    /// The datastore it shall go to
    #[arg(long, value_name = "DATASTORE")]
    to: String,
    /// Bytes per second that copying may use, like 200MiB/s
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    limit: Option<u64>,
    /// How writes reach the destination before the switchover
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    mode: Mode,
    /// Start the move and return
    #[arg(long)]
    detach: bool,
    /// Check everything and say what would be done
    #[arg(long, conflicts_with = "detach")]
    dry_run: bool,
    /// One JSON object per line, the last is the result
    #[arg(long)]
    json: bool,
    /// Cancel the move if it has not switched over by then, like 10m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Don't ask on Ctrl-C: cancel the move
    #[arg(long, short)]
    yes: bool,
    /// How long to wait for dshost when it goes away during the move
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "30s")]
    reconnect: Duration,
    /// The run directory of the dshost to talk to
    #[arg(long, value_name = "DIR", env = "GODWIT_RUN", default_value = DEFAULT_RUN)]
    run: PathBuf,
}

/// Modes as they are typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// The engine decides from measured rates
    Auto,
    /// Copy passes as long as they make progress
    Background,
    /// Write to both sides as soon as possible
    Mirror,
}

impl From<Mode> for MirrorMode {
    fn from(mode: Mode) -> MirrorMode {
        match mode {
            Mode::Auto => MirrorMode::Auto,
            Mode::Background => MirrorMode::Background,
            Mode::Mirror => MirrorMode::Mirror,
        }
    }
}

impl Arguments {
    fn request(&self) -> MoveRequest {
        MoveRequest {
            what: self.what.clone(),
            to: self.to.clone(),
            limit: self.limit,
            mode: self.mode.into(),
            timeout_s: self.timeout.map(|t| t.as_secs()),
            dry_run: self.dry_run,
        }
    }
}

/// Run dsmove with the arguments of this process.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.json;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: start the runtime: {e}");
            return Exit::Failed.into();
        }
    };
    let result = runtime.block_on(run(&arguments));
    // A thread may still wait for an answer at the terminal.
    runtime.shutdown_background();
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if json {
                println!("{}", json_failure(&failure));
            } else {
                eprintln!("{failure}");
            }
            failure.exit.into()
        }
    }
}

async fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let client = Client::new(&arguments.run);
    if arguments.dry_run {
        let plan = client.plan_move(&arguments.request()).await?;
        print_plan(&plan, arguments.json);
        return Ok(Exit::Done);
    }
    let mut interrupts = Interrupts::catch().map_err(|e| Failure {
        exit: Exit::Failed,
        message: format!("catch signals: {e}"),
        hint: None,
    })?;
    let status = start(&client, arguments, &mut interrupts).await?;
    if arguments.detach {
        print_left(&status, arguments.json);
        return Ok(Exit::Done);
    }
    let on_interrupt =
        if arguments.json || arguments.yes || !can_ask() { OnInterrupt::Cancel } else { OnInterrupt::Ask };
    let mut view = view(arguments.json);
    let mut follower = Follower {
        client: &client,
        view: view.as_mut(),
        interrupts: &mut interrupts,
        on_interrupt,
        patience: arguments.reconnect,
    };
    conclude(follower.run(status).await, arguments.json)
}

/// The view for stdout and stderr as they are.
pub fn view(json: bool) -> Box<dyn View> {
    use std::io::IsTerminal;
    if json {
        Box::new(JsonView)
    } else if std::io::stderr().is_terminal() {
        Box::new(BarView::new())
    } else {
        Box::new(LineView::default())
    }
}

/// Start the move. The first interrupt is kept for when it has started, the second gives up.
async fn start(
    client: &Client,
    arguments: &Arguments,
    interrupts: &mut Interrupts,
) -> Result<MoveStatus, Failure> {
    let request = arguments.request();
    let unknown = |why: &str| outcome_unknown(why, &arguments.what, "its old place", &arguments.to);
    let starting = client.start_move(&request);
    tokio::pin!(starting);
    let mut cancel = false;
    let started = loop {
        tokio::select! {
            started = &mut starting => break started,
            _ = interrupts.next() => {
                if cancel {
                    return Err(unknown("dshost has not answered yet"));
                }
                cancel = true;
                if !arguments.json {
                    eprintln!("cancelling as soon as dshost has answered; once more gives up waiting");
                }
            }
        }
    };
    let status = match started {
        // The request may have arrived.
        Err(lost @ crate::client::ClientError::Lost(_)) => return Err(unknown(&lost.to_string())),
        started => started?,
    };
    if cancel { Ok(client.ask_move(status.id, "cancel").await?) } else { Ok(status) }
}

/// Say how following a move ended.
pub fn conclude(end: End, json: bool) -> Result<Exit, Failure> {
    match end {
        End::Finished(status) if json => {
            println!("{}", json_result(&status));
            Ok(failure(&status).map_or(Exit::Done, |f| f.exit))
        }
        End::Finished(status) => match failure(&status) {
            None => {
                println!("{}", moved(&status));
                Ok(Exit::Done)
            }
            Some(failure) => Err(failure),
        },
        End::Left(status) => {
            print_left(&status, json);
            Ok(Exit::Done)
        }
        End::Unknown(failure) => Err(failure),
    }
}

fn print_plan(plan: &MovePlan, json: bool) {
    if json {
        println!(
            "{}",
            json!({
                "event": "result", "ok": true, "dry_run": true, "from": plan.from, "to": plan.to,
                "entries": plan.entries, "bytes": plan.bytes, "free": plan.free,
            })
        );
        return;
    }
    let entries = if plan.entries == 1 { "1 entry".into() } else { format!("{} entries", plan.entries) };
    println!(
        "would move {} to {}: {entries}, {} to copy, {} free there; nothing was changed",
        plan.from,
        plan.to,
        size(plan.bytes),
        size(plan.free)
    );
}

/// The move runs on without this tool.
fn print_left(status: &MoveStatus, json: bool) {
    if json {
        println!(
            "{}",
            json!({
                "event": "result", "ok": true, "detached": true, "id": status.id, "what": status.what,
                "from": status.from, "to": status.to,
            })
        );
        return;
    }
    println!("{} moves from {} to {} (move {})", status.what, status.from, status.to, status.id);
    println!(
        "hint: `dsctl move watch {}` follows it, `dsctl move cancel {}` ends it",
        status.what, status.what
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_a_request() {
        let arguments = Arguments::try_parse_from([
            "dsmove",
            "vm42",
            "--to",
            "ds2",
            "--limit",
            "200MiB/s",
            "--mode",
            "mirror",
            "--timeout",
            "10m",
        ])
        .unwrap();
        assert_eq!(
            arguments.request(),
            MoveRequest {
                what: "vm42".into(),
                to: "ds2".into(),
                limit: Some(200 << 20),
                mode: MirrorMode::Mirror,
                timeout_s: Some(600),
                dry_run: false,
            }
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            &["dsmove"][..],
            &["dsmove", "vm42"],
            &["dsmove", "vm42", "--to"],
            &["dsmove", "vm42", "--to", "ds2", "--limit", "fast"],
            &["dsmove", "vm42", "--to", "ds2", "--limit", "0"],
            &["dsmove", "vm42", "--to", "ds2", "--mode", "magic"],
            &["dsmove", "vm42", "--to", "ds2", "--timeout", "0s"],
            &["dsmove", "vm42", "--to", "ds2", "--dry-run", "--detach"],
            &["dsmove", "vm42", "vm43", "--to", "ds2"],
        ] {
            assert!(Arguments::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }
}
