//! The last line of dsmove: how a move ended, for people and for programs.

use proto::control::{MovePhase, MoveStatus};
use serde_json::{Map, Value, json};

use crate::exit::{Exit, Failure};
use crate::progress::phase_name;
use crate::quantity::{rate, size};

/// `moved vm42 from ds1 to ds2: 1.2 GiB in 12.3 s (98.0 MiB/s), longest pause 4.2 ms, every chunk verified (BLAKE3)`
pub fn moved(status: &MoveStatus) -> String {
    let (what, from, to) = if status.what.contains('/') {
        (None, status.from.as_str(), status.to.as_str())
    } else {
        (Some(&status.what), datastore(&status.from), datastore(&status.to))
    };
    let mut line = match what {
        Some(vm) => format!("moved {vm} from {from} to {to}: "),
        None => format!("moved {from} to {to}: "),
    };
    line.push_str(&format!("{} in {:.1} s", size(status.bytes_copied), status.seconds));
    if status.seconds > 0.0 {
        line.push_str(&format!(" ({})", rate((status.bytes_copied as f64 / status.seconds) as u64)));
    }
    if let Some(pause) = status.pause_ms {
        line.push_str(&format!(", longest pause {pause:.1} ms"));
    }
    match status.verified.as_deref() {
        Some("digest") => line.push_str(", every chunk verified (BLAKE3)"),
        Some(other) => line.push_str(&format!(", verified: {other}")),
        None => {}
    }
    line
}

/// Why a final state is none of success; `None` when the move is done.
pub fn failure(status: &MoveStatus) -> Option<Failure> {
    let fallback = match status.phase {
        MovePhase::Done => return None,
        MovePhase::Cancelled => Exit::Cancelled,
        _ => Exit::Failed,
    };
    let stays = format!("{} stays as it was", status.from);
    Some(match status.error.clone() {
        Some(error) if status.phase == MovePhase::Cancelled => {
            Failure { exit: Exit::Cancelled, ..Failure::from(error) }
        }
        Some(error) => Failure::from(error),
        None if fallback == Exit::Cancelled => {
            Failure { exit: fallback, message: format!("the move to {}; {stays}", status.to), hint: None }
        }
        None => Failure {
            exit: fallback,
            message: format!("the move to {} failed; {stays}", status.to),
            hint: None,
        },
    })
}

/// The last JSON line for a final state.
pub fn json_result(status: &MoveStatus) -> Value {
    let mut phases = Map::new();
    for (phase, seconds) in &status.phases {
        let sum = phases.get(phase_name(*phase)).and_then(Value::as_f64).unwrap_or(0.0) + seconds;
        phases.insert(phase_name(*phase).into(), json!(sum));
    }
    let mut object = json!({
        "event": "result",
        "ok": status.phase == MovePhase::Done,
        "id": status.id,
        "what": status.what,
        "from": status.from,
        "to": status.to,
        "bytes_copied": status.bytes_copied,
        "bytes_mirrored": status.bytes_mirrored,
        "seconds": status.seconds,
        "pause_ms": status.pause_ms,
        "phases": phases,
        "verified": status.verified,
    });
    if let Some(failure) = failure(status) {
        add_failure(&mut object, &failure);
    }
    object
}

/// The last JSON line when there is no final state.
pub fn json_failure(failure: &Failure) -> Value {
    let mut object = json!({ "event": "result", "ok": false });
    add_failure(&mut object, failure);
    object
}

fn add_failure(object: &mut Value, failure: &Failure) {
    object["error"] = json!(failure.message);
    object["hint"] = json!(failure.hint);
    object["exit"] = json!(failure.exit as u8);
}

fn datastore(label: &str) -> &str {
    label.split('/').next().unwrap_or(label)
}
