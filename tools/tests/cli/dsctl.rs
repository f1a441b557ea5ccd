//! dsctl.

use proto::control::{ApiErrorCode, MovePhase};
use serde_json::{Value, json};

use crate::dsctl;
use crate::fake_dshost::{Answer, FakeDshost, ID, done, ended, to_json, vm42};

const LIST: &str = "GET /v1/moves";

fn status() -> Value {
    json!({
        "host": "hostA", "version": "0.1.0", "pid": 7, "mount": "/vmfs", "uptime_s": 60, "moves": 0,
        "datastores": [{
            "name": "ds1", "address": "127.0.0.1:7101", "connected": true, "error": null, "session": 1,
            "capacity": 10u64 << 30, "free": 9u64 << 30,
        }],
    })
}

fn vm(state: &str) -> Value {
    json!({
        "name": "vm42", "datastore": "ds1", "directory": "/vmfs/ds1/vm42", "state": state, "pid": null,
        "uptime_s": null, "memory": 256 << 20, "cpus": 1, "disks": [], "console": "/vmfs/ds1/vm42/console.log",
    })
}

#[test]
fn status_and_datastores() {
    let host = FakeDshost::start((0..4).map(|_| ("GET /v1/status", Answer::Json(200, status()))).collect());
    let run = host.run.path();
    let said = dsctl(run, &["status"]);
    assert!(said.stdout.starts_with("host:   hostA\n"), "{}", said.stdout);
    assert_eq!(serde_json::from_str::<Value>(&dsctl(run, &["status", "--json"]).stdout).unwrap(), status());
    let said = dsctl(run, &["datastore", "list"]);
    assert_eq!(
        said.stdout,
        "DATASTORE  STATE  ADDRESS         CAPACITY  FREE\nds1        up     127.0.0.1:7101  10.0 GiB  9.0 GiB\n"
    );
    let said = dsctl(run, &["--json", "datastore", "list"]);
    assert_eq!(serde_json::from_str::<Value>(&said.stdout).unwrap(), status()["datastores"]);
}

#[test]
fn a_vm_is_made_started_stopped_deleted() {
    let host = FakeDshost::start(vec![
        ("POST /v1/vms", Answer::Json(201, vm("stopped"))),
        ("POST /v1/vms/vm42/start", Answer::Json(200, vm("running"))),
        ("GET /v1/vms", Answer::Json(200, json!([vm("running")]))),
        ("POST /v1/vms/vm42/stop", Answer::Json(200, vm("stopped"))),
        ("GET /v1/vms/vm42", Answer::Json(200, vm("stopped"))),
        ("GET /v1/vms/vm42", Answer::Json(200, vm("stopped"))),
        ("DELETE /v1/vms/vm42", Answer::Json(204, Value::Null)),
    ]);
    let run = host.run.path();
    let create = ["vm", "create", "vm42", "--datastore", "ds1", "--memory", "256MiB", "--disk", "1GiB"];
    let said = dsctl(run, &create);
    assert_eq!(said.stdout, "made vm42 in /vmfs/ds1/vm42\nhint: `dsctl vm start vm42` starts it\n");
    assert_eq!(
        host.seen()[0].body,
        json!({
            "name": "vm42", "datastore": "ds1", "memory": 256 << 20, "cpus": 1, "nics": [],
            "disks": [{ "size": 1 << 30, "from": null, "format": null }],
            "boot": { "kernel": null, "initrd": null, "append": null },
            "accel": null, "serial_socket": false, "extra_args": [],
        })
    );
    assert!(dsctl(run, &["vm", "start", "vm42"]).stdout.starts_with("vm42 is running"));
    assert!(dsctl(run, &["vm", "list"]).stdout.contains("\nvm42  running  ds1 "));
    assert_eq!(dsctl(run, &["vm", "stop", "vm42", "--timeout", "90s"]).stdout, "vm42 is stopped\n");
    assert_eq!(host.seen()[3].body, json!({ "force": false, "timeout_s": 90 }));
    let said = dsctl(run, &["vm", "delete", "vm42"]);
    assert_eq!((said.code, said.stderr.lines().nth(1)), (2, Some("hint: `dsctl vm delete vm42 --yes`")));
    assert_eq!(dsctl(run, &["vm", "delete", "vm42", "--yes"]).stdout, "deleted vm42\n");
    assert_eq!(host.unused(), 0);
}

#[test]
fn moves_are_found_and_told() {
    let list = || (LIST, Answer::Json(200, to_json(&vec![vm42(MovePhase::Bulk)])));
    let paused = proto::control::MoveStatus { paused: true, ..vm42(MovePhase::Bulk) };
    let limited = proto::control::MoveStatus { limit: Some(1 << 20), ..vm42(MovePhase::Bulk) };
    let host = FakeDshost::start(vec![
        list(),
        list(),
        ("POST /v1/moves/11111111-2222-4333-8444-555555555555/pause", Answer::Json(200, to_json(&paused))),
        list(),
        ("POST /v1/moves/11111111-2222-4333-8444-555555555555/limit", Answer::Json(200, to_json(&limited))),
        list(),
        list(),
        (
            "GET /v1/moves/11111111-2222-4333-8444-555555555555/events",
            Answer::Events { events: vec![to_json(&done())], broken: false },
        ),
    ]);
    let run = host.run.path();
    assert!(
        dsctl(run, &["move", "list"]).stdout.contains("\n11111111  vm42  ds1/vm42  ds2/vm42  bulk   25%")
    );
    assert_eq!(
        dsctl(run, &["move", "pause", "vm42"]).stdout,
        "vm42 from ds1/vm42 to ds2/vm42: bulk (paused)\n"
    );
    assert!(dsctl(run, &["move", "limit", "1111", "1MiB/s"]).stdout.ends_with("bulk, limit 1.0 MiB/s\n"));
    assert_eq!(host.seen()[4].body, json!({ "limit": 1 << 20 }));
    let said = dsctl(run, &["move", "show", ID, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&said.stdout).unwrap(), to_json(&vm42(MovePhase::Bulk)));
    let said = dsctl(run, &["move", "watch", "vm42"]);
    assert!(said.stdout.starts_with("moved vm42 from ds1 to ds2"), "{}", said.stdout);
}

#[test]
fn watching_a_move_that_fails_exits_like_dsmove() {
    let failed = ended(MovePhase::Failed, ApiErrorCode::Failed, "ds2 is gone", None);
    let host = FakeDshost::start(vec![(LIST, Answer::Json(200, to_json(&vec![failed])))]);
    let said = dsctl(host.run.path(), &["move", "watch", "vm42"]);
    assert_eq!((said.code, said.stderr.lines().last()), (1, Some("error: ds2 is gone")));
}

#[test]
fn errors_have_codes_and_hints() {
    let no =
        json!({ "code": "not_found", "message": "no VM named vm9", "hint": "`dsctl vm list` shows them" });
    let host = FakeDshost::start(vec![
        ("POST /v1/vms/vm9/start", Answer::Json(404, no.clone())),
        ("POST /v1/vms/vm9/start", Answer::Json(404, no)),
        ("GET /v1/vms", Answer::Json(502, json!("a proxy in between"))),
        (LIST, Answer::Json(200, json!([]))),
    ]);
    let run = host.run.path();
    let said = dsctl(run, &["vm", "start", "vm9"]);
    assert_eq!(said.stderr, "error: no VM named vm9\nhint: `dsctl vm list` shows them\n");
    assert_eq!(said.code, 3);
    let said = dsctl(run, &["vm", "start", "vm9", "--json"]);
    assert_eq!(
        serde_json::from_str::<Value>(&said.stdout).unwrap(),
        json!({ "error": "no VM named vm9", "hint": "`dsctl vm list` shows them", "exit": 3 })
    );
    let said = dsctl(run, &["vm", "list"]);
    assert!(said.stderr.starts_with("error: dshost answered 502"), "{}", said.stderr);
    assert_eq!(said.code, 1);
    let said = dsctl(run, &["move", "cancel", "vm9"]);
    assert_eq!((said.code, said.stderr.lines().next()), (3, Some("error: no move vm9")));
    assert_eq!(dsctl(run, &["vm", "frobnicate"]).code, 2);
    assert_eq!(dsctl(run, &[]).code, 2);

    let nowhere = tempfile::tempdir().unwrap();
    let said = dsctl(nowhere.path(), &["status"]);
    assert!(said.stderr.contains("dshost is not running (no socket at "), "{}", said.stderr);
    assert_eq!(said.code, 1);
}
