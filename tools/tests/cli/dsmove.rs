//! dsmove.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use proto::control::{ApiErrorCode, MovePhase, MoveStatus};
use serde_json::{Value, json};

use crate::fake_dshost::{Answer, FakeDshost, ID, done, ended, to_json, vm42};
use crate::{Said, dsmove, tool};

const START: &str = "POST /v1/moves";
const GET: &str = "GET /v1/moves/11111111-2222-4333-8444-555555555555";
const EVENTS: &str = "GET /v1/moves/11111111-2222-4333-8444-555555555555/events";
const CANCEL: &str = "POST /v1/moves/11111111-2222-4333-8444-555555555555/cancel";

fn started() -> (&'static str, Answer) {
    (START, Answer::Json(201, to_json(&vm42(MovePhase::Preparing))))
}

fn events(states: &[MoveStatus]) -> (&'static str, Answer) {
    (EVENTS, Answer::Events { events: states.iter().map(to_json).collect(), broken: false })
}

fn broken(states: &[MoveStatus]) -> (&'static str, Answer) {
    (EVENTS, Answer::Events { events: states.iter().map(to_json).collect(), broken: true })
}

fn refused(status: u16, code: &str, message: &str, hint: &str) -> Answer {
    Answer::Json(status, json!({ "code": code, "message": message, "hint": hint }))
}

fn json_lines(said: &Said) -> Vec<Value> {
    said.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_move_is_asked_for_followed_and_reported() {
    let later = MoveStatus { seconds: 12.0, ..vm42(MovePhase::Bulk) };
    let latest = MoveStatus { seconds: 13.5, bytes_dirty: 1 << 30, ..vm42(MovePhase::Bulk) };
    let paused = MoveStatus { paused: true, limit: Some(1 << 20), ..latest.clone() };
    let mirror = MoveStatus { eta_s: None, ..vm42(MovePhase::Mirror) };
    let host = FakeDshost::start(vec![
        started(),
        events(&[vm42(MovePhase::Bulk), later, latest, paused, mirror, vm42(MovePhase::Switchover), done()]),
    ]);
    let said = dsmove(host.run.path(), &["vm42", "--to", "ds2", "--limit", "200MiB/s"]);
    assert_eq!(
        said.stdout,
        "moved vm42 from ds1 to ds2: 4.0 GiB in 41.0 s (100.0 MiB/s), longest pause 4.2 ms, every chunk verified (BLAKE3)\n"
    );
    assert_eq!(
        said.stderr,
        "\
vm42 preparing    0%  0 B of 4.0 GiB, 100.0 MiB/s, ETA 0:31, dirty 2.0 MiB/s
vm42 bulk        25%  1.0 GiB of 4.0 GiB, 100.0 MiB/s, ETA 0:31, dirty 2.0 MiB/s
vm42 bulk        75%  3.0 GiB of 4.0 GiB, 100.0 MiB/s, ETA 0:31, dirty 2.0 MiB/s
vm42 bulk        75%  3.0 GiB of 4.0 GiB, paused, dirty 2.0 MiB/s, limit 1.0 MiB/s
vm42 mirror      25%  1.0 GiB of 4.0 GiB, 100.0 MiB/s, ETA unknown, dirty 2.0 MiB/s
vm42 switchover 100%  4.0 GiB of 4.0 GiB, 100.0 MiB/s, ETA 0:31, dirty 2.0 MiB/s
"
    );
    assert_eq!(said.code, 0);
    assert_eq!(
        host.seen()[0].body,
        json!({
            "what": "vm42", "to": "ds2", "limit": 200 << 20, "mode": "auto", "timeout_s": null, "dry_run": false
        })
    );
    assert_eq!(host.lines(), [START, EVENTS]);
}

#[test]
fn a_path_is_reported_as_a_path() {
    let path = MoveStatus { what: "ds1/a/b".into(), from: "ds1/a/b".into(), to: "ds2/a/b".into(), ..done() };
    let path = MoveStatus { pause_ms: None, verified: None, bytes_copied: 0, ..path };
    let host = FakeDshost::start(vec![(START, Answer::Json(201, to_json(&path)))]);
    let said = dsmove(host.run.path(), &["ds1/a/b", "--to", "ds2"]);
    assert_eq!((said.code, said.stdout.as_str()), (0, "moved ds1/a/b to ds2/a/b: 0 B in 41.0 s (0 B/s)\n"));
}

#[test]
fn json_lines_end_with_the_result() {
    let host = FakeDshost::start(vec![started(), events(&[vm42(MovePhase::Bulk), done()])]);
    let said = dsmove(host.run.path(), &["vm42", "--to", "ds2", "--json"]);
    let lines = json_lines(&said);
    let phases: Vec<_> = lines[..3].iter().map(|l| l["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["preparing", "bulk", "done"]);
    assert_eq!(
        lines[1],
        json!({
            "event": "progress", "id": ID, "what": "vm42", "from": "ds1/vm42", "to": "ds2/vm42", "phase": "bulk",
            "paused": false, "bytes_total": 4u64 << 30, "bytes_copied": 1 << 30, "bytes_mirrored": 3 << 20,
            "bytes_dirty": 3u64 << 30, "rate": 100 << 20, "dirty_rate": 2 << 20, "eta_s": 31, "limit": null,
            "seconds": 10.5,
        })
    );
    assert_eq!(
        lines[3],
        json!({
            "event": "result", "ok": true, "id": ID, "what": "vm42", "from": "ds1/vm42", "to": "ds2/vm42",
            "bytes_copied": 4u64 << 30, "bytes_mirrored": 3 << 20, "seconds": 40.96, "pause_ms": 4.2,
            "phases": { "bulk": 30.0, "converge": 7.5 }, "verified": "digest",
        })
    );
    assert_eq!((lines.len(), said.code, said.stderr.as_str()), (4, 0, ""));
}

#[test]
fn a_check_that_says_no_exits_3_with_its_hint() {
    for (status, code) in [(412, "precheck"), (404, "not_found"), (409, "conflict")] {
        let answer =
            || refused(status, code, "ds2 has 1.0 GiB free, 4.0 GiB are needed", "free space on ds2");
        let host = FakeDshost::start(vec![(START, answer()), (START, answer())]);
        let said = dsmove(host.run.path(), &["vm42", "--to", "ds2"]);
        assert_eq!(said.stderr, "error: ds2 has 1.0 GiB free, 4.0 GiB are needed\nhint: free space on ds2\n");
        assert_eq!((said.code, said.stdout.as_str()), (3, ""));
        let said = dsmove(host.run.path(), &["vm42", "--to", "ds2", "--json"]);
        assert_eq!(
            json_lines(&said),
            [json!({
                "event": "result", "ok": false, "exit": 3, "error": "ds2 has 1.0 GiB free, 4.0 GiB are needed",
                "hint": "free space on ds2",
            })]
        );
        assert_eq!(said.code, 3);
    }
}

#[test]
fn a_usage_error_of_dshost_exits_2() {
    let host =
        FakeDshost::start(vec![(START, refused(400, "usage", "ds1 is a whole datastore", "name a VM"))]);
    let said = dsmove(host.run.path(), &["ds1/", "--to", "ds2"]);
    assert_eq!((said.code, said.stderr.as_str()), (2, "error: ds1 is a whole datastore\nhint: name a VM\n"));
}

#[test]
fn a_failed_move_exits_1_and_a_cancelled_one_4() {
    let failed = ended(MovePhase::Failed, ApiErrorCode::Failed, "write to ds2: no space", Some("free some"));
    let host = FakeDshost::start(vec![started(), events(std::slice::from_ref(&failed))]);
    let said = dsmove(host.run.path(), &["vm42", "--to", "ds2"]);
    assert!(said.stderr.ends_with("error: write to ds2: no space\nhint: free some\n"), "{}", said.stderr);
    assert_eq!((said.code, said.stdout.as_str()), (1, ""));

    let host = FakeDshost::start(vec![started(), events(&[failed])]);
    let said = dsmove(host.run.path(), &["vm42", "--to", "ds2", "--json"]);
    let last = json_lines(&said).pop().unwrap();
    assert_eq!(
        (&last["ok"], &last["exit"], &last["error"]),
        (&json!(false), &json!(1), &json!("write to ds2: no space"))
    );
    assert_eq!((&last["bytes_copied"], said.code), (&json!(1 << 30), 1));

    let cancelled = ended(MovePhase::Cancelled, ApiErrorCode::Cancelled, "by request", None);
    let host = FakeDshost::start(vec![started(), events(&[cancelled])]);
    let said = dsmove(host.run.path(), &["vm42", "--to", "ds2"]);
    assert!(said.stderr.ends_with("cancelled: by request\n"), "{}", said.stderr);
    assert_eq!(said.code, 4);
}

#[test]
fn no_dshost_is_said_with_a_hint() {
    let run = tempfile::tempdir().unwrap();
    let said = dsmove(run.path(), &["vm42", "--to", "ds2"]);
    let socket = run.path().join("dshost.sock");
    let mut lines = said.stderr.lines();
    assert_eq!(
        lines.next().unwrap(),
        format!("error: dshost is not running (no socket at {})", socket.display())
    );
    assert!(lines.next().unwrap().starts_with("hint: start it"));
    assert_eq!(said.code, 1);

    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let said = dsmove(run.path(), &["vm42", "--to", "ds2"]);
    assert!(said.stderr.contains("nobody listens at"), "{}", said.stderr);
    assert_eq!(said.code, 1);
}

#[test]
fn run_says_which_dshost() {
    let nowhere = tempfile::tempdir().unwrap();
    let host = FakeDshost::start(vec![(START, Answer::Json(201, to_json(&done())))]);
    let run = host.run.path().to_str().unwrap();
    assert_eq!(dsmove(nowhere.path(), &["vm42", "--to", "ds2", "--run", run]).code, 0);
}

#[test]
fn wrong_usage_exits_2_and_asks_nothing() {
    let host = FakeDshost::start(vec![]);
    for bad in
        [&["vm42"][..], &["vm42", "--to", "ds2", "--limit", "200M"], &["vm42", "--to", "ds2", "--what"]]
    {
        let said = dsmove(host.run.path(), bad);
        assert_eq!(said.code, 2, "{bad:?}: {}", said.stderr);
    }
    assert!(host.lines().is_empty());
}

#[test]
fn a_dry_run_shows_the_plan() {
    let plan = json!({ "from": "ds1/vm42", "to": "ds2/vm42", "entries": 3, "bytes": 1u64 << 30, "free": 9u64 << 30 });
    let host =
        FakeDshost::start(vec![(START, Answer::Json(200, plan.clone())), (START, Answer::Json(200, plan))]);
    let said = dsmove(host.run.path(), &["vm42", "--to", "ds2", "--dry-run"]);
    assert_eq!(
        said.stdout,
        "would move ds1/vm42 to ds2/vm42: 3 entries, 1.0 GiB to copy, 9.0 GiB free there; nothing was changed\n"
    );
    assert_eq!(host.seen()[0].body["dry_run"], json!(true));
    let said = dsmove(host.run.path(), &["vm42", "--to", "ds2", "--dry-run", "--json"]);
    assert_eq!(
        json_lines(&said),
        [json!({
            "event": "result", "ok": true, "dry_run": true, "from": "ds1/vm42", "to": "ds2/vm42", "entries": 3,
            "bytes": 1u64 << 30, "free": 9u64 << 30,
        })]
    );
}

#[test]
fn detached_the_move_is_started_and_left() {
    let host = FakeDshost::start(vec![started(), started()]);
    let said = dsmove(host.run.path(), &["vm42", "--to", "ds2", "--detach"]);
    assert_eq!(
        said.stdout,
        format!(
            "vm42 moves from ds1/vm42 to ds2/vm42 (move {ID})\n\
             hint: `dsctl move watch vm42` follows it, `dsctl move cancel vm42` ends it\n"
        )
    );
    let said = dsmove(host.run.path(), &["vm42", "--to", "ds2", "--detach", "--json"]);
    assert_eq!((&json_lines(&said)[0]["detached"], said.code), (&json!(true), 0));
    assert_eq!(host.lines(), [START, START]);
}

#[test]
fn a_connection_that_breaks_is_made_again() {
    let host = FakeDshost::start(vec![
        started(),
        broken(&[vm42(MovePhase::Bulk)]),
        (GET, Answer::Close),
        (GET, Answer::Json(200, to_json(&vm42(MovePhase::Mirror)))),
        events(&[done()]),
    ]);
    let said = dsmove(host.run.path(), &["vm42", "--to", "ds2"]);
    assert!(
        said.stderr.contains("dshost does not answer; trying for 30s\ndshost answers again\n"),
        "{}",
        said.stderr
    );
    assert_eq!((said.code, host.unused()), (0, 0));
}

#[test]
fn a_stream_that_ends_early_is_opened_again() {
    let host = FakeDshost::start(vec![
        started(),
        events(&[vm42(MovePhase::Bulk)]),
        (GET, Answer::Json(200, to_json(&vm42(MovePhase::Bulk)))),
        events(&[done()]),
    ]);
    assert_eq!(dsmove(host.run.path(), &["vm42", "--to", "ds2"]).code, 0);
    assert_eq!(host.lines(), [START, EVENTS, GET, EVENTS]);
}

#[test]
fn a_dshost_that_stays_away_leaves_the_outcome_unknown() {
    let host = FakeDshost::start(vec![started(), (EVENTS, Answer::Close), (GET, Answer::Close)]);
    std::fs::create_dir(host.run.path().join("other")).unwrap();
    let mut child = tool(
        env!("CARGO_BIN_EXE_dsmove"),
        host.run.path(),
        &["vm42", "--to", "ds2", "--reconnect", "1s", "--json"],
    )
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("preparing"));
    std::fs::remove_file(host.socket()).unwrap();
    let last: Value = serde_json::from_str(&lines.last().unwrap().unwrap()).unwrap();
    assert!(last["error"].as_str().unwrap().ends_with("the outcome of the move is unknown"), "{last}");
    assert!(last["hint"].as_str().unwrap().contains("either ds1/vm42 or ds2/vm42, never both"), "{last}");
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn a_restarted_dshost_that_forgot_the_move_leaves_the_outcome_unknown() {
    let host = FakeDshost::start(vec![
        started(),
        (EVENTS, Answer::Close),
        (GET, refused(404, "not_found", "no move", "")),
    ]);
    let said = dsmove(host.run.path(), &["vm42", "--to", "ds2"]);
    assert!(said.stderr.contains("dshost was restarted"), "{}", said.stderr);
    assert_eq!(said.code, 1);
}

#[test]
fn an_answer_lost_at_the_start_leaves_the_outcome_unknown() {
    let host = FakeDshost::start(vec![(START, Answer::Close)]);
    let said = dsmove(host.run.path(), &["vm42", "--to", "ds2"]);
    assert!(said.stderr.contains("outcome of the move is unknown"), "{}", said.stderr);
    assert_eq!((said.code, host.lines().len()), (1, 1));
}

/// Start dsmove, wait until the move is being followed, send the signal, and see how it ends.
fn interrupted(host: &FakeDshost, signal: &str) -> Said {
    let mut child = tool(env!("CARGO_BIN_EXE_dsmove"), host.run.path(), &["vm42", "--to", "ds2", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("bulk") {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "ended before bulk");
    }
    let sent = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let stdout: Vec<String> = reader.lines().map(Result::unwrap).collect();
    let mut said: Said = child.wait_with_output().unwrap().into();
    said.stdout = stdout.join("\n");
    said
}

#[test]
fn signals_cancel_the_move_and_wait_for_its_end() {
    for signal in ["-INT", "-TERM"] {
        let cancelled = ended(MovePhase::Cancelled, ApiErrorCode::Cancelled, "by request", None);
        let host = FakeDshost::start(vec![
            started(),
            (EVENTS, Answer::Hang(vec![to_json(&vm42(MovePhase::Bulk))])),
            (CANCEL, Answer::Json(200, to_json(&cancelled))),
        ]);
        let said = interrupted(&host, signal);
        let last = json_lines(&said).pop().unwrap();
        assert_eq!((&last["ok"], &last["exit"]), (&json!(false), &json!(4)));
        assert_eq!((said.code, host.lines()), (4, vec![START.into(), EVENTS.into(), CANCEL.to_string()]));
    }
}

#[test]
fn a_move_too_far_to_cancel_goes_on_to_its_end() {
    let bulk = to_json(&vm42(MovePhase::Bulk));
    let host = FakeDshost::start(vec![
        started(),
        (EVENTS, Answer::Hang(vec![bulk])),
        (
            CANCEL,
            Answer::Release(409, json!({ "code": "conflict", "message": "vm42 has switched over already" })),
        ),
        (GET, Answer::Json(200, to_json(&done()))),
    ]);
    let said = interrupted(&host, "-INT");
    let lines = json_lines(&said);
    assert_eq!(lines[0], json!({ "event": "note", "text": "cancelling…" }));
    assert_eq!(lines[1], json!({ "event": "note", "text": "vm42 has switched over already" }));
    assert_eq!((&lines.last().unwrap()["ok"], said.code), (&json!(true), 0));
}
