//! The routes over a real socket, with a host made of fixed answers.

use std::path::PathBuf;

use parking_lot::Mutex;
use proto::MoveId;
use proto::control::vm::{CreateVm, StopVm, VmInfo, VmState};
use proto::control::{
    ApiError, ApiErrorCode, DatastoreStatus, HostStatus, MovePhase, MovePlan, MoveRequest, MoveStatus,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use uuid::Uuid;

use super::{Backend, Listener, router, serve};

const ID: &str = "11111111-2222-4333-8444-555555555555";

fn status_of(phase: MovePhase) -> MoveStatus {
    MoveStatus {
        id: MoveId(Uuid::parse_str(ID).unwrap()),
        what: "vm42".into(),
        from: "ds1/vm42".into(),
        to: "ds2/vm42".into(),
        phase,
        paused: false,
        bytes_total: 100,
        bytes_copied: 40,
        bytes_mirrored: 7,
        bytes_dirty: 60,
        rate: 5,
        dirty_rate: 0,
        eta_s: None,
        limit: None,
        seconds: 1.0,
        pause_ms: Some(4.0),
        phases: vec![],
        verified: None,
        error: None,
    }
}

fn vm_info(name: &str) -> VmInfo {
    VmInfo {
        name: name.into(),
        datastore: "ds1".into(),
        directory: "/vmfs/ds1/vm42".into(),
        state: VmState::Stopped,
        pid: None,
        uptime_s: None,
        memory: 1,
        cpus: 1,
        disks: vec![],
        nics: vec![],
        console: None,
        serial_socket: None,
    }
}

struct Fixed {
    moving: watch::Sender<MoveStatus>,
    calls: &'static Mutex<Vec<String>>,
}

impl Fixed {
    fn called<T: std::fmt::Debug>(&self, what: &str, with: T) {
        self.calls.lock().push(format!("{what} {with:?}"));
    }

    fn the_move(&self, what: &str, id: MoveId) -> Result<MoveStatus, ApiError> {
        self.called(what, id);
        Ok(self.moving.borrow().clone())
    }
}

fn refusal(code: ApiErrorCode) -> ApiError {
    ApiError { code, message: "no".into(), hint: Some("do".into()) }
}

impl Backend for Fixed {
    async fn status(&self) -> HostStatus {
        HostStatus {
            host: "hostA".into(),
            version: "1".into(),
            pid: 1,
            mount: "/vmfs".into(),
            uptime_s: 5,
            datastores: vec![DatastoreStatus {
                name: "ds1".into(),
                address: "a:1".into(),
                connected: true,
                error: None,
                session: 1,
                capacity: Some(10),
                free: Some(4),
            }],
            moves: 1,
        }
    }
    async fn plan_move(&self, request: &MoveRequest) -> Result<MovePlan, ApiError> {
        self.called("plan", &request.what);
        Ok(MovePlan { from: "a".into(), to: "b".into(), entries: 1, bytes: 2, free: 3 })
    }
    async fn start_move(&self, request: MoveRequest) -> Result<MoveStatus, ApiError> {
        self.called("start", &request.what);
        match request.to.as_str() {
            "precheck" => Err(refusal(ApiErrorCode::Precheck)),
            "conflict" => Err(refusal(ApiErrorCode::Conflict)),
            "failed" => Err(refusal(ApiErrorCode::Failed)),
            _ => Ok(self.moving.borrow().clone()),
        }
    }
    fn moves(&self) -> Vec<MoveStatus> {
        vec![self.moving.borrow().clone()]
    }
    fn watch_move(&self, id: MoveId) -> Option<watch::Receiver<MoveStatus>> {
        (id.to_string() == ID).then(|| self.moving.subscribe())
    }
    async fn cancel_move(&self, id: MoveId) -> Result<MoveStatus, ApiError> {
        self.the_move("cancel", id)
    }
    async fn pause_move(&self, id: MoveId) -> Result<MoveStatus, ApiError> {
        self.the_move("pause", id)
    }
    async fn resume_move(&self, id: MoveId) -> Result<MoveStatus, ApiError> {
        self.the_move("resume", id)
    }
    async fn limit_move(&self, id: MoveId, limit: Option<u64>) -> Result<MoveStatus, ApiError> {
        self.called("limit", limit);
        self.the_move("of", id)
    }
    async fn vms(&self) -> Result<Vec<VmInfo>, ApiError> {
        Ok(vec![vm_info("vm42")])
    }
    async fn vm(&self, name: &str) -> Result<VmInfo, ApiError> {
        if name == "vm42" { Ok(vm_info(name)) } else { Err(refusal(ApiErrorCode::NotFound)) }
    }
    async fn create_vm(&self, vm: CreateVm) -> Result<VmInfo, ApiError> {
        Ok(vm_info(&vm.name))
    }
    async fn start_vm(&self, name: &str) -> Result<VmInfo, ApiError> {
        self.called("start-vm", name);
        Ok(vm_info(name))
    }
    async fn stop_vm(&self, name: &str, how: StopVm) -> Result<VmInfo, ApiError> {
        self.called("stop-vm", how.force);
        Ok(vm_info(name))
    }
    async fn delete_vm(&self, name: &str) -> Result<(), ApiError> {
        self.called("delete-vm", name);
        Ok(())
    }
}

/// A served API.
struct Lab {
    run: tempfile::TempDir,
    moving: watch::Sender<MoveStatus>,
    calls: &'static Mutex<Vec<String>>,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Lab {
    fn new() -> Lab {
        let run = tempfile::tempdir().unwrap();
        let moving = watch::Sender::new(status_of(MovePhase::Bulk));
        let calls: &'static Mutex<Vec<String>> = Box::leak(Box::default());
        let (end, ended) = tokio::sync::oneshot::channel();
        let listener = Listener::bind(run.path()).unwrap();
        let routes = router(Fixed { moving: moving.clone(), calls });
        let serving = tokio::spawn(serve(listener, routes, async {
            let _ = ended.await;
        }));
        Lab { run, moving, calls, end: Some(end), serving }
    }

    fn socket(&self) -> PathBuf {
        self.run.path().join("dshost.sock")
    }

    /// Send a request as curl would; returns the connection.
    async fn open(&self, line: &str, body: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        let head = format!(
            "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    /// Status and body.
    async fn text(&self, line: &str, body: &str) -> (u16, String) {
        let mut answer = String::new();
        self.open(line, body).await.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_string())
    }

    async fn ask(&self, line: &str, body: &str) -> (u16, Value) {
        let (status, text) = self.text(line, body).await;
        (status, if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() })
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock())
    }
}

fn to_json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

#[tokio::test]
async fn moves() {
    let lab = Lab::new();
    let bulk = to_json(&status_of(MovePhase::Bulk));
    assert_eq!(lab.ask("GET /v1/moves", "").await, (200, json!([bulk])));
    assert_eq!(lab.ask("POST /v1/moves", r#"{"what":"vm42","to":"ds2"}"#).await, (201, bulk.clone()));
    let (status, plan) = lab.ask("POST /v1/moves", r#"{"what":"vm42","to":"ds2","dry_run":true}"#).await;
    assert_eq!((status, &plan["entries"]), (200, &json!(1)));
    assert_eq!(lab.ask(&format!("GET /v1/moves/{ID}"), "").await, (200, bulk.clone()));
    for verb in ["cancel", "pause", "resume"] {
        assert_eq!(lab.ask(&format!("POST /v1/moves/{ID}/{verb}"), "").await, (200, bulk.clone()));
    }
    assert_eq!(lab.ask(&format!("POST /v1/moves/{ID}/limit"), r#"{"limit":9}"#).await.0, 200);
    let calls = ["start \"vm42\"", "plan \"vm42\""].map(String::from).into_iter().chain(
        ["cancel", "pause", "resume"]
            .iter()
            .map(|v| format!("{v} {ID}"))
            .chain(["limit Some(9)".into(), format!("of {ID}")]),
    );
    assert_eq!(lab.calls(), calls.collect::<Vec<_>>());
}

#[tokio::test]
async fn refusals_have_the_status_that_fits() {
    let lab = Lab::new();
    for (to, status) in [("precheck", 422), ("conflict", 409), ("failed", 500)] {
        let body = json!({ "what": "x", "to": to }).to_string();
        let error = json!({ "code": to, "message": "no", "hint": "do" });
        assert_eq!(lab.ask("POST /v1/moves", &body).await, (status, error));
    }
    for id in [ID.replace('1', "2"), "nonsense".into()] {
        for line in [format!("GET /v1/moves/{id}"), format!("GET /v1/moves/{id}/events")] {
            let (status, error) = lab.ask(&line, "").await;
            assert_eq!((status, &error["message"]), (404, &json!(format!("no move {id}"))), "{line}");
        }
    }
    for (line, body, status) in [
        ("POST /v1/moves", "{", 400),
        ("POST /v1/moves", r#"{"what":"x","to":"y","speed":1}"#, 400),
        ("POST /v1/moves", r#"{"what":"x"}"#, 400),
        ("GET /v2/moves", "", 400),
        ("DELETE /v1/moves", "", 400),
    ] {
        let (got, error) = lab.ask(line, body).await;
        assert_eq!((got, &error["code"]), (status, &json!("usage")), "{line} {body}");
    }
}

#[tokio::test]
async fn vms() {
    let lab = Lab::new();
    assert_eq!(lab.ask("GET /v1/vms", "").await, (200, json!([to_json(&vm_info("vm42"))])));
    assert_eq!(lab.ask("GET /v1/vms/vm42", "").await.0, 200);
    assert_eq!(lab.ask("GET /v1/vms/vm9", "").await.0, 404);
    let create = r#"{"name":"new","datastore":"ds1","memory":1,"cpus":1}"#;
    assert_eq!(lab.ask("POST /v1/vms", create).await, (201, to_json(&vm_info("new"))));
    assert_eq!(lab.ask("POST /v1/vms/a%20b/start", "").await.0, 200);
    assert_eq!(lab.ask("POST /v1/vms/vm42/stop", "").await.0, 200);
    assert_eq!(lab.ask("POST /v1/vms/vm42/stop", r#"{"force":true}"#).await.0, 200);
    assert_eq!(lab.ask("DELETE /v1/vms/vm42", "").await, (204, Value::Null));
    assert_eq!(lab.calls(), ["start-vm \"a b\"", "stop-vm false", "stop-vm true", "delete-vm \"vm42\""]);
}

#[tokio::test]
async fn events_end_after_the_final_state() {
    let lab = Lab::new();
    let mut stream = lab.open(&format!("GET /v1/moves/{ID}/events"), "").await;
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    // As fast as it can: states may be skipped, the final one must not be.
    while !seen.contains("\"bulk\"") {
        let n = stream.read(&mut buffer).await.unwrap();
        seen.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
    }
    for copied in 0..1000 {
        lab.moving.send_modify(|m| m.bytes_copied = copied);
        tokio::task::yield_now().await;
    }
    lab.moving.send_replace(status_of(MovePhase::Done));
    stream.read_to_string(&mut seen).await.unwrap();
    assert!(seen.contains("text/event-stream"));
    let events: Vec<Value> = seen
        .lines()
        .filter_map(|l| l.strip_prefix("data: "))
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(events.iter().filter(|e| e["phase"] == "done").count(), 1);
    assert_eq!(events.last().unwrap(), &to_json(&status_of(MovePhase::Done)));
    assert!(events.len() < 100, "{} events", events.len());

    let (status, text) = lab.text(&format!("GET /v1/moves/{ID}/events"), "").await;
    assert_eq!(
        (status, text.matches("data: ").count()),
        (200, 1),
        "a move that is over: its final state at once"
    );
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let lab = Lab::new();
    let (status, text) = lab.text("GET /metrics", "").await;
    assert_eq!(status, 200);
    for line in [
        "godwit_datastore_up{datastore=\"ds1\"} 1",
        "godwit_datastore_free_bytes{datastore=\"ds1\"} 4",
        "godwit_moves_running 1",
        "godwit_move_copied_bytes_total 40",
        "godwit_moves_finished_total{outcome=\"done\"} 0",
        "godwit_move_pause_max_seconds 0.004",
        "# TYPE godwit_move_copied_bytes_total counter",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
    lab.moving.send_replace(status_of(MovePhase::Done));
    let text = lab.text("GET /metrics", "").await.1;
    assert!(text.contains("godwit_moves_running 0") && text.contains("{outcome=\"done\"} 1"), "{text}");
    assert!(text.contains("godwit_move_copied_bytes_total 40\n"), "counted once: {text}");
    // The list forgets the move and has another one.
    lab.moving.send_modify(|m| m.id = MoveId::new());
    let text = lab.text("GET /metrics", "").await.1;
    assert!(text.contains("copied_bytes_total 80\n") && text.contains("{outcome=\"done\"} 2"), "{text}");
}

#[tokio::test]
async fn the_socket_is_private_replaces_a_dead_one_and_goes_at_the_end() {
    use std::os::unix::fs::PermissionsExt;
    let mut lab = Lab::new();
    assert_eq!(std::fs::metadata(lab.socket()).unwrap().permissions().mode() & 0o777, 0o600);
    // An event stream that nobody ends must not keep dshost from ending.
    let _stream = lab.open(&format!("GET /v1/moves/{ID}/events"), "").await;
    assert_eq!(lab.ask("GET /v1/status", "").await.0, 200);
    drop(lab.end.take());
    (&mut lab.serving).await.unwrap();
    assert!(!lab.socket().exists());

    drop(std::os::unix::net::UnixListener::bind(lab.socket()).unwrap());
    drop(Listener::bind(lab.run.path()).unwrap());
    let deep = lab.run.path().join("x".repeat(90));
    std::fs::create_dir(&deep).unwrap();
    let error = Listener::bind(&deep).map(|l| l.path().to_path_buf()).unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
}
