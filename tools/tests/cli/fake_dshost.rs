//! A dshost made of prepared answers, on a real unix socket.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::MoveId;
use proto::control::{ApiError, ApiErrorCode, MovePhase, MoveStatus};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What the server does with one request.
pub enum Answer {
    /// A status and a body.
    Json(u16, Value),
    /// A stream of events; then the connection is closed. The connection breaks off instead when
    /// `broken`.
    Events { events: Vec<Value>, broken: bool },
    /// Events, then silence until the client goes away or a [`Answer::Release`] is given.
    Hang(Vec<Value>),
    /// A status and a body; streams that hang end.
    Release(u16, Value),
    /// The connection is closed without an answer.
    Close,
}

/// A request as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// `POST /v1/moves`
    pub line: String,
    /// Its body; null when empty.
    pub body: Value,
}

type Script = Arc<Mutex<VecDeque<(&'static str, Answer)>>>;

/// Serves a script: each request takes the first answer that is left for its line.
pub struct FakeDshost {
    /// Holds the socket; for `--run`.
    pub run: TempDir,
    seen: Arc<Mutex<Vec<Seen>>>,
    script: Script,
    released: Arc<AtomicBool>,
}

impl FakeDshost {
    /// Start serving.
    pub fn start(script: Vec<(&'static str, Answer)>) -> Self {
        let run = tempfile::tempdir().unwrap();
        let script: Script = Arc::new(Mutex::new(script.into()));
        let host = FakeDshost { run, seen: Arc::default(), script, released: Arc::default() };
        let listener = UnixListener::bind(host.socket()).unwrap();
        let (seen, script, released) = (host.seen.clone(), host.script.clone(), host.released.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, script, released) = (seen.clone(), script.clone(), released.clone());
                std::thread::spawn(move || serve(stream, &seen, &script, &released));
            }
        });
        host
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.run.path().join("dshost.sock")
    }

    /// Requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Request lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|s| s.line).collect()
    }

    /// End streams that hang.
    pub fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
    }

    /// Answers nobody asked for.
    pub fn unused(&self) -> usize {
        self.script.lock().unwrap().len()
    }
}

fn serve(stream: UnixStream, seen: &Mutex<Vec<Seen>>, script: &Script, released: &AtomicBool) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    let Some((line, body)) = read_request(&mut reader) else { return };
    let answer = {
        let mut script = script.lock().unwrap();
        let place = script.iter().position(|(wanted, _)| *wanted == line);
        place.and_then(|p| script.remove(p)).map(|(_, answer)| answer)
    };
    seen.lock().unwrap().push(Seen { line: line.clone(), body });
    let _ = match answer {
        Some(Answer::Json(status, body)) => send_json(&mut stream, status, &body),
        Some(Answer::Release(status, body)) => {
            let sent = send_json(&mut stream, status, &body);
            released.store(true, Ordering::SeqCst);
            sent
        }
        Some(Answer::Events { events, broken }) => send_events(&mut stream, &events)
            .and_then(|()| if broken { Ok(()) } else { write!(stream, "0\r\n\r\n") }),
        Some(Answer::Hang(events)) => {
            let sent = send_events(&mut stream, &events);
            stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let client_gone = |r: std::io::Result<usize>| matches!(r, Ok(0));
            while !released.load(Ordering::SeqCst) && !client_gone(reader.read(&mut [0; 1])) {}
            sent
        }
        Some(Answer::Close) => Ok(()),
        None => {
            let error = format!("the script has nothing for {line}");
            send_json(&mut stream, 500, &json!({ "code": "failed", "message": error }))
        }
    };
}

fn send_json(stream: &mut UnixStream, status: u16, body: &Value) -> std::io::Result<()> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn send_events(stream: &mut UnixStream, events: &[Value]) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )?;
    for event in events {
        let text = format!("data: {event}\n\n");
        write!(stream, "{:x}\r\n{text}\r\n", text.len())?;
    }
    Ok(())
}

fn read_request(reader: &mut BufReader<UnixStream>) -> Option<(String, Value)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace();
    let line = format!("{} {}", words.next()?, words.next()?);
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((line, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

/// The id of the move in all scripts.
pub const ID: &str = "11111111-2222-4333-8444-555555555555";

/// The move of vm42 as it stands in `phase`.
pub fn vm42(phase: MovePhase) -> MoveStatus {
    MoveStatus {
        id: MoveId(uuid::Uuid::parse_str(ID).unwrap()),
        what: "vm42".into(),
        from: "ds1/vm42".into(),
        to: "ds2/vm42".into(),
        phase,
        paused: false,
        bytes_total: 4 << 30,
        bytes_copied: 1 << 30,
        bytes_mirrored: 3 << 20,
        bytes_dirty: 3 << 30,
        rate: 100 << 20,
        dirty_rate: 2 << 20,
        eta_s: Some(31),
        limit: None,
        seconds: 10.5,
        pause_ms: None,
        phases: vec![(MovePhase::Preparing, 0.5), (MovePhase::Bulk, 10.0)],
        verified: None,
        error: None,
    }
}

/// A move that is over and went well.
pub fn done() -> MoveStatus {
    MoveStatus {
        bytes_copied: 4 << 30,
        bytes_dirty: 0,
        seconds: 40.96,
        pause_ms: Some(4.2),
        phases: vec![(MovePhase::Bulk, 30.0), (MovePhase::Converge, 5.0), (MovePhase::Converge, 2.5)],
        verified: Some("digest".into()),
        ..vm42(MovePhase::Done)
    }
}

/// A move that is over and did not go well.
pub fn ended(phase: MovePhase, code: ApiErrorCode, message: &str, hint: Option<&str>) -> MoveStatus {
    let error = ApiError { code, message: message.into(), hint: hint.map(Into::into) };
    MoveStatus { error: Some(error), ..vm42(phase) }
}

/// JSON of anything.
pub fn to_json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}
