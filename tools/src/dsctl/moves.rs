//! `dsctl move …`

use std::time::Duration;

use clap::Subcommand;
use proto::control::MoveStatus;

use super::Context;
use crate::dsmove::{conclude, view};
use crate::exit::{Exit, Failure};
use crate::follow::{Follower, OnInterrupt};
use crate::interrupts::Interrupts;
use crate::progress::{figures, percent, phase_name};
use crate::quantity::{parse_rate, rate, size};
use crate::table::{facts, or_dash, table};

/// Characters of an id that are shown in lists.
const SHORT: usize = 8;

const WHICH: &str = "The move: its id, the beginning of it, or what is being moved";

#[derive(Subcommand, Debug)]
pub enum MoveCommand {
    /// Moves that run and that have ended since dshost was started
    #[command(after_help = "Example:\n  dsctl move list")]
    List,
    /// One move in full
    #[command(after_help = "Example:\n  dsctl move show vm42")]
    Show {
        #[arg(help = WHICH)]
        which: String,
    },
    /// Follow a move to its end; Ctrl-C stops following, the move goes on
    #[command(after_help = "Example:\n  dsctl move watch vm42")]
    Watch {
        #[arg(help = WHICH)]
        which: String,
    },
    /// Stop copying; what the guest writes meanwhile is kept track of
    #[command(after_help = "Example:\n  dsctl move pause vm42")]
    Pause {
        #[arg(help = WHICH)]
        which: String,
    },
    /// Go on copying
    #[command(after_help = "Example:\n  dsctl move resume vm42")]
    Resume {
        #[arg(help = WHICH)]
        which: String,
    },
    /// End a move that has not switched over; everything stays as it was
    #[command(after_help = "Example:\n  dsctl move cancel vm42")]
    Cancel {
        #[arg(help = WHICH)]
        which: String,
    },
    /// Change how fast a move may copy
    #[command(after_help = "Examples:\n  dsctl move limit vm42 100MiB/s\n  dsctl move limit vm42 none")]
    Limit {
        #[arg(help = WHICH)]
        which: String,
        /// Bytes per second like 100MiB/s, or `none`
        #[arg(value_parser = parse_limit)]
        limit: Limit,
    },
}

/// A limit as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(Option<u64>);

fn parse_limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" | "unlimited" => Ok(Limit(None)),
        rate => parse_rate(rate).map(|r| Limit(Some(r))),
    }
}

pub async fn run(context: &Context, command: MoveCommand) -> Result<Exit, Failure> {
    let client = &context.client;
    let said = match command {
        MoveCommand::List => {
            let moves = client.moves().await?;
            context.print(&moves, |moves| list_text(moves))
        }
        MoveCommand::Show { which } => context.print(&find(context, &which).await?, show_text),
        MoveCommand::Watch { which } => return watch(context, find(context, &which).await?).await,
        MoveCommand::Pause { which } => ask(context, &which, "pause").await,
        MoveCommand::Resume { which } => ask(context, &which, "resume").await,
        MoveCommand::Cancel { which } => ask(context, &which, "cancel").await,
        MoveCommand::Limit { which, limit: Limit(limit) } => {
            let id = find(context, &which).await?.id;
            let status = client.limit_move(id, limit).await?;
            context.print(&status, one_line)
        }
    };
    said.map(|()| Exit::Done)
}

async fn ask(context: &Context, which: &str, verb: &str) -> Result<(), Failure> {
    let id = find(context, which).await?.id;
    let status = context.client.ask_move(id, verb).await?;
    context.print(&status, one_line)
}

async fn watch(context: &Context, status: MoveStatus) -> Result<Exit, Failure> {
    let mut interrupts = Interrupts::catch().map_err(|e| Failure {
        exit: Exit::Failed,
        message: format!("catch signals: {e}"),
        hint: None,
    })?;
    let mut view = view(context.json);
    let mut follower = Follower {
        client: &context.client,
        view: view.as_mut(),
        interrupts: &mut interrupts,
        on_interrupt: OnInterrupt::Leave,
        patience: Duration::from_secs(30),
    };
    conclude(follower.run(status).await, context.json)
}

async fn find(context: &Context, which: &str) -> Result<MoveStatus, Failure> {
    choose(context.client.moves().await?, which)
}

/// The move that `which` means. What is being moved names the newest move of it, and one that
/// runs before those that have ended.
fn choose(moves: Vec<MoveStatus>, which: &str) -> Result<MoveStatus, Failure> {
    let named = |m: &&MoveStatus| m.what == which || m.from == which;
    if let Some(found) = moves.iter().rev().filter(named).min_by_key(|m| m.phase.is_final()) {
        return Ok(found.clone());
    }
    let mut with_id = moves.into_iter().filter(|m| !which.is_empty() && m.id.to_string().starts_with(which));
    match (with_id.next(), with_id.next()) {
        (Some(found), None) => Ok(found),
        (Some(_), Some(_)) => Err(Failure::new(
            Exit::Refused,
            format!("several moves begin with {which}"),
            "write more of the id; `dsctl --json move list` has them in full",
        )),
        (None, _) => Err(Failure::new(
            Exit::Refused,
            format!("no move {which}"),
            "`dsctl move list` shows those since dshost was started",
        )),
    }
}

fn state(status: &MoveStatus) -> String {
    let paused = if status.paused && !status.phase.is_final() { " (paused)" } else { "" };
    format!("{}{paused}", phase_name(status.phase))
}

fn short(status: &MoveStatus) -> String {
    status.id.to_string().chars().take(SHORT).collect()
}

fn list_text(moves: &[MoveStatus]) -> String {
    if moves.is_empty() {
        return "no moves since dshost was started\n".into();
    }
    let rows: Vec<Vec<String>> = moves
        .iter()
        .map(|m| {
            vec![
                short(m),
                m.what.clone(),
                m.from.clone(),
                m.to.clone(),
                state(m),
                format!("{}%", percent(m)),
                size(m.bytes_copied),
                format!("{:.1} s", m.seconds),
            ]
        })
        .collect();
    table(&["MOVE", "WHAT", "FROM", "TO", "PHASE", "CLEAN", "COPIED", "TIME"], &rows)
}

fn show_text(status: &MoveStatus) -> String {
    let phases: Vec<String> =
        status.phases.iter().map(|(phase, s)| format!("{} {s:.1} s", phase_name(*phase))).collect();
    let mut text = facts(&[
        ("move", status.id.to_string()),
        ("what", status.what.clone()),
        ("from", status.from.clone()),
        ("to", status.to.clone()),
        ("phase", state(status)),
        ("progress", figures(status)),
        ("copied", size(status.bytes_copied)),
        ("mirrored", size(status.bytes_mirrored)),
        ("limit", status.limit.map(rate).unwrap_or_else(|| "none".into())),
        ("time", format!("{:.1} s", status.seconds)),
        ("phases", phases.join(", ")),
        ("pause", or_dash(status.pause_ms.map(|ms| format!("{ms:.1} ms")))),
        ("verified", or_dash(status.verified.clone())),
    ]);
    if let Some(error) = &status.error {
        text.push_str(&format!("error: {}\n", error.message));
        if let Some(hint) = &error.hint {
            text.push_str(&format!("hint: {hint}\n"));
        }
    }
    text
}

fn one_line(status: &MoveStatus) -> String {
    let limit = status.limit.map(|l| format!(", limit {}", rate(l))).unwrap_or_default();
    format!("{} from {} to {}: {}{limit}\n", status.what, status.from, status.to, state(status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::MoveId;
    use proto::control::MovePhase;

    fn a_move(id: u128, what: &str, phase: MovePhase) -> MoveStatus {
        MoveStatus {
            id: MoveId(uuid::Uuid::from_u128(id)),
            what: what.into(),
            from: format!("ds1/{what}"),
            to: format!("ds2/{what}"),
            phase,
            paused: false,
            bytes_total: 4 << 30,
            bytes_copied: 3 << 30,
            bytes_mirrored: 0,
            bytes_dirty: 1 << 30,
            rate: 100 << 20,
            dirty_rate: 0,
            eta_s: Some(10),
            limit: None,
            seconds: 31.25,
            pause_ms: None,
            phases: vec![(MovePhase::Preparing, 0.25), (MovePhase::Bulk, 31.0)],
            verified: None,
            error: None,
        }
    }

    #[test]
    fn a_name_means_its_running_or_newest_move() {
        let all = || {
            vec![
                a_move(1 << 120, "vm1", MovePhase::Failed),
                a_move(2 << 120, "vm1", MovePhase::Bulk),
                a_move(3 << 120, "vm1", MovePhase::Cancelled),
                a_move(4 << 120, "vm2", MovePhase::Failed),
                a_move(5 << 120, "vm2", MovePhase::Done),
                a_move((5 << 120) + 1, "vm3", MovePhase::Bulk),
            ]
        };
        let chosen = |which: &str| choose(all(), which).map(|m| m.id.0.as_u128() >> 120);
        assert_eq!(chosen("vm1"), Ok(2));
        assert_eq!(chosen("ds1/vm1"), Ok(2));
        assert_eq!(chosen("vm2"), Ok(5));
        assert_eq!(chosen("03"), Ok(3));
        assert!(chosen("05").is_err_and(|e| e.message.contains("several")));
        assert!(chosen("vm9").is_err_and(|e| e.exit == Exit::Refused && e.hint.is_some()));
        assert!(chosen("").is_err());
    }

    #[test]
    fn lists_and_single_moves() {
        let m = a_move(0x1234_5678 << 96, "vm1", MovePhase::Bulk);
        assert_eq!(
            list_text(std::slice::from_ref(&m)),
            "\
MOVE      WHAT  FROM     TO       PHASE  CLEAN  COPIED   TIME
12345678  vm1   ds1/vm1  ds2/vm1  bulk   75%    3.0 GiB  31.2 s
"
        );
        let text = show_text(&m);
        assert!(text.contains("phases:   preparing 0.2 s, bulk 31.0 s\n"), "{text}");
        assert!(
            text.contains("progress: 3.0 GiB of 4.0 GiB, 100.0 MiB/s, ETA 0:10, dirty 0 B/s\n"),
            "{text}"
        );
        assert_eq!(
            one_line(&MoveStatus { paused: true, limit: Some(1 << 20), ..m }),
            "vm1 from ds1/vm1 to ds2/vm1: bulk (paused), limit 1.0 MiB/s\n"
        );
    }
}
