//! The client of QEMU's control socket (QMP).
//!
//! Thin on purpose: commands and answers are JSON values, so that events, keys and enum values of
//! any QEMU version pass through. What isn't understood is skipped, never an error.
//!
//! Out-of-band commands overtake ordinary ones and are answered by QEMU's monitor thread even
//! while its main loop hangs; `yank` needs that.
//!
//! QEMU serves one client at a time: a second connection is accepted by the kernel and gets no
//! greeting, which shows here as a timeout.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// How long QEMU has to greet and to agree on capabilities.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a command may take when the caller doesn't say.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// Events kept for a slow subscriber; older ones are lost to it.
const EVENT_BACKLOG: usize = 256;
/// Longest line taken; QEMU's longest answers are a few hundred KiB.
const MAX_LINE: u64 = 64 << 20;

/// Why a command has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket can't be reached.
    #[error("connect to QEMU at {}: {source}", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// Something other than QEMU answered.
    #[error("no QMP at the socket: it said {0:?}")]
    NotQmp(String),
    /// QEMU closed the connection: it has ended.
    #[error("QEMU closed its control connection")]
    Closed,
    /// No answer in time. The command may still take effect.
    #[error("QEMU did not answer {command} within {} s", .after.as_secs_f32())]
    Timeout {
        /// The command.
        command: String,
        /// How long it had.
        after: Duration,
    },
    /// QEMU refuses.
    #[error("QEMU refused {command}: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's class, mostly `GenericError`.
        class: String,
        /// QEMU's own words.
        desc: String,
    },
    /// This QEMU offers no out-of-band commands.
    #[error("this QEMU takes no out-of-band commands")]
    NoOutOfBand,
}

/// Something that QEMU tells by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct QmpEvent {
    /// `STOP`, `RESUME`, `MIGRATION`…
    pub name: String,
    /// Its details; null when it has none.
    pub data: Value,
    /// When, in microseconds since 1970 by the host's clock.
    pub at_us: u64,
}

/// A connection to one QEMU. Dropping it closes the connection; QEMU runs on.
#[derive(Debug)]
pub struct Qmp {
    commands: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
    next_id: AtomicU64,
    version: String,
    out_of_band: bool,
    reader: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    /// Who waits for which answer; none once the connection is closed.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Value>>>>,
    events: broadcast::Sender<QmpEvent>,
    closed: watch::Sender<bool>,
}

/// Takes a command's place in the table back, also when its caller gave up.
struct Waiting<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(table) = self.shared.waiting.lock().as_mut() {
            table.remove(&self.id);
        }
    }
}

impl Qmp {
    /// Connect to the socket at `path`, take the greeting, and switch on what is offered of the
    /// capabilities known here.
    pub async fn connect(path: &Path) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|e| QmpError::Connect { path: path.to_path_buf(), source: Arc::new(e) })?;
        let (read, write) = stream.into_split();
        let mut read = BufReader::new(read);
        let greeting = timeout(HANDSHAKE_TIMEOUT, next_line(&mut read))
            .await
            .map_err(|_| QmpError::Timeout { command: "the connection".into(), after: HANDSHAKE_TIMEOUT })?
            .ok_or(QmpError::Closed)?;
        let greeting: Value = serde_json::from_slice(&greeting)
            .ok()
            .filter(|v: &Value| v.get("QMP").is_some())
            .ok_or_else(|| QmpError::NotQmp(String::from_utf8_lossy(&greeting).trim().into()))?;
        let offered = greeting["QMP"]["capabilities"].as_array();
        let out_of_band = offered.is_some_and(|list| list.iter().any(|c| c == "oob"));

        let qmp = Self::run(read, write, version_of(&greeting), out_of_band);
        let enable = if out_of_band { json!({ "enable": ["oob"] }) } else { json!({}) };
        qmp.execute_within("qmp_capabilities", enable, HANDSHAKE_TIMEOUT).await?;
        Ok(qmp)
    }

    fn run(
        read: BufReader<OwnedReadHalf>,
        write: OwnedWriteHalf,
        version: String,
        out_of_band: bool,
    ) -> Self {
        let shared = Arc::new(Shared {
            waiting: Mutex::new(Some(HashMap::new())),
            events: broadcast::Sender::new(EVENT_BACKLOG),
            closed: watch::Sender::new(false),
        });
        // A task of its own writes, so that a caller who gives up can't leave half a command behind.
        let (commands, queue) = mpsc::channel(16);
        tokio::spawn(write_commands(write, queue));
        let reader = tokio::spawn(read_answers(read, shared.clone())).abort_handle();
        Self { commands, shared, next_id: AtomicU64::new(1), version, out_of_band, reader }
    }

    /// QEMU's version, `7.2.22`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Run a command; the answer is its `return` value.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_within(command, arguments, COMMAND_TIMEOUT).await
    }

    /// Run a command that may take longer, or must not.
    pub async fn execute_within(
        &self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        self.call("execute", command, arguments, limit).await
    }

    /// Run a command out of band, ahead of all ordinary ones (`yank`, `migrate-pause`).
    pub async fn execute_oob(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        if !self.out_of_band {
            return Err(QmpError::NoOutOfBand);
        }
        self.call("exec-oob", command, arguments, COMMAND_TIMEOUT).await
    }

    /// All events from now on. A subscriber that falls far behind misses some.
    pub fn events(&self) -> broadcast::Receiver<QmpEvent> {
        self.shared.events.subscribe()
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    /// Wait until the connection has ended.
    pub async fn closed(&self) {
        // The sender lives in `shared`, so waiting can't fail.
        let _ = self.shared.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// `running`, `paused`, `io-error`…: the status of `query-status`.
    pub async fn status(&self, limit: Duration) -> Result<String, QmpError> {
        let answer = self.execute_within("query-status", json!({}), limit).await?;
        Ok(answer["status"].as_str().unwrap_or_default().to_string())
    }

    async fn call(
        &self,
        verb: &str,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line = json!({ verb: command, "id": id });
        if arguments.as_object().is_some_and(|o| !o.is_empty()) {
            line["arguments"] = arguments;
        }
        let mut bytes = line.to_string().into_bytes();
        bytes.push(b'\n');

        let (answer_to, answer) = oneshot::channel();
        self.shared.waiting.lock().as_mut().ok_or(QmpError::Closed)?.insert(id, answer_to);
        let _waiting = Waiting { shared: &self.shared, id };
        let exchange = async {
            self.commands.send(bytes).await.map_err(|_| QmpError::Closed)?;
            answer.await.map_err(|_| QmpError::Closed)
        };
        let mut answer = timeout(limit, exchange)
            .await
            .map_err(|_| QmpError::Timeout { command: command.into(), after: limit })??;
        match answer.get("error") {
            None => Ok(answer["return"].take()),
            Some(error) => Err(QmpError::Refused {
                command: command.into(),
                class: error["class"].as_str().unwrap_or("unknown").into(),
                desc: error["desc"].as_str().unwrap_or("no reason given").into(),
            }),
        }
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn version_of(greeting: &Value) -> String {
    let version = &greeting["QMP"]["version"]["qemu"];
    let part = |key: &str| version[key].as_u64().unwrap_or_default();
    format!("{}.{}.{}", part("major"), part("minor"), part("micro"))
}

/// The next line, or none at the end (or after an error, which is an end too).
async fn next_line(read: &mut BufReader<OwnedReadHalf>) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    (&mut *read).take(MAX_LINE).read_until(b'\n', &mut line).await.ok()?;
    line.ends_with(b"\n").then_some(line)
}

async fn write_commands(mut write: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = queue.recv().await {
        if write.write_all(&bytes).await.is_err() {
            break;
        }
    }
}

async fn read_answers(mut read: BufReader<OwnedReadHalf>, shared: Arc<Shared>) {
    while let Some(line) = next_line(&mut read).await {
        let Ok(message) = serde_json::from_slice::<Value>(&line) else {
            tracing::debug!(line = %String::from_utf8_lossy(&line), "QMP: not JSON, skipped");
            continue;
        };
        if let Some(event) = event_of(&message) {
            // No subscriber is no error.
            let _ = shared.events.send(event);
        } else if let Some(id) = message.get("id").and_then(Value::as_u64) {
            let waiter = shared.waiting.lock().as_mut().and_then(|table| table.remove(&id));
            if let Some(waiter) = waiter {
                // The caller may have given up.
                let _ = waiter.send(message);
            }
        } else {
            tracing::debug!(%message, "QMP: neither event nor answer, skipped");
        }
    }
    // Dropping the senders tells those who wait.
    shared.waiting.lock().take();
    shared.closed.send_replace(true);
}

fn event_of(message: &Value) -> Option<QmpEvent> {
    let name = message.get("event")?.as_str()?.to_string();
    let part = |key: &str| message["timestamp"][key].as_u64().unwrap_or_default();
    let at_us = part("seconds").saturating_mul(1_000_000).saturating_add(part("microseconds"));
    Some(QmpEvent { name, data: message.get("data").cloned().unwrap_or_default(), at_us })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob", "time-travel"]}}"#;

    /// One side of a connection, playing QEMU.
    struct Fake {
        read: BufReader<OwnedReadHalf>,
        write: OwnedWriteHalf,
    }

    impl Fake {
        async fn accept(listener: &UnixListener, greeting: &str) -> Self {
            let (read, write) = listener.accept().await.unwrap().0.into_split();
            let mut fake = Self { read: BufReader::new(read), write };
            fake.say(greeting).await;
            fake
        }

        async fn say(&mut self, line: &str) {
            self.write.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
        }

        async fn hear(&mut self) -> Value {
            let line = next_line(&mut self.read).await.expect("a command");
            serde_json::from_slice(&line).unwrap()
        }

        async fn answer(&mut self, command: &Value, answer: Value) {
            let mut message = answer;
            message["id"] = command["id"].clone();
            self.say(&message.to_string()).await;
        }
    }

    async fn pair(greeting: &str) -> (Qmp, Fake, Value) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let fake = async {
            let mut fake = Fake::accept(&listener, greeting).await;
            let capabilities = fake.hear().await;
            fake.answer(&capabilities, json!({"return": {}})).await;
            (fake, capabilities)
        };
        let (qmp, (fake, capabilities)) = tokio::join!(Qmp::connect(&path), fake);
        (qmp.unwrap(), fake, capabilities)
    }

    #[tokio::test]
    async fn known_capabilities_are_switched_on_and_unknown_ones_left() {
        let (qmp, _fake, capabilities) = pair(GREETING).await;
        assert_eq!(capabilities["execute"], "qmp_capabilities");
        assert_eq!(capabilities["arguments"], json!({"enable": ["oob"]}));
        assert_eq!(qmp.version(), "7.2.22");
    }

    #[tokio::test]
    async fn without_the_offer_nothing_goes_out_of_band() {
        let (qmp, _fake, capabilities) = pair(r#"{"QMP": {}}"#).await;
        assert_eq!(capabilities.get("arguments"), None);
        assert!(matches!(qmp.execute_oob("yank", json!({})).await, Err(QmpError::NoOutOfBand)));
    }

    #[tokio::test]
    async fn answers_find_their_callers_in_any_order_among_noise() {
        let (qmp, mut fake, _) = pair(GREETING).await;
        let script = async {
            let first = fake.hear().await;
            let second = fake.hear().await;
            assert_eq!(second["exec-oob"], "yank");
            assert_eq!(second["arguments"], json!({"instances": []}));
            fake.say("").await;
            fake.say("nonsense {").await;
            fake.say(r#"{"error": {"class": "GenericError", "desc": "belongs to nobody"}}"#).await;
            fake.say(r#"{"return": 1, "id": 4711}"#).await;
            fake.answer(&second, json!({"return": {"n": 2}})).await;
            fake.answer(&first, json!({"return": {"n": 1}})).await;
            fake
        };
        let (first, second, _fake) = tokio::join!(
            biased;
            qmp.execute("query-status", json!({})),
            qmp.execute_oob("yank", json!({"instances": []})),
            script
        );
        assert_eq!((first.unwrap()["n"].clone(), second.unwrap()["n"].clone()), (json!(1), json!(2)));
    }

    #[tokio::test]
    async fn a_refusal_carries_class_and_words() {
        let (qmp, mut fake, _) = pair(GREETING).await;
        let script = async {
            let command = fake.hear().await;
            let error =
                json!({"error": {"class": "CommandNotFound", "desc": "The command frob has not been found"}});
            fake.answer(&command, error).await;
        };
        let (answer, ()) = tokio::join!(qmp.execute("frob", json!({})), script);
        let error = answer.unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused frob: The command frob has not been found");
        assert!(matches!(error, QmpError::Refused { class, .. } if class == "CommandNotFound"));
    }

    #[tokio::test]
    async fn events_of_any_name_and_shape_pass() {
        let (qmp, mut fake, _) = pair(GREETING).await;
        let mut events = qmp.events();
        fake.say(r#"{"event": "FROM_THE_FUTURE", "data": {"x": [1]}, "extra": 1, "timestamp": {"seconds": 2, "microseconds": 3}}"#).await;
        fake.say(r#"{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": -1}}"#).await;
        let first = events.recv().await.unwrap();
        assert_eq!(
            first,
            QmpEvent { name: "FROM_THE_FUTURE".into(), data: json!({"x": [1]}), at_us: 2_000_003 }
        );
        assert_eq!(
            events.recv().await.unwrap(),
            QmpEvent { name: "STOP".into(), data: Value::Null, at_us: 0 }
        );
    }

    #[tokio::test]
    async fn a_silent_command_times_out_and_others_go_on() {
        let (qmp, mut fake, _) = pair(GREETING).await;
        let slow = qmp.execute_within("query-status", json!({}), Duration::from_millis(1)).await;
        assert!(matches!(slow, Err(QmpError::Timeout { command, .. }) if command == "query-status"));
        assert!(qmp.shared.waiting.lock().as_ref().unwrap().is_empty(), "its place is free again");
        let script = async {
            let late = fake.hear().await;
            fake.answer(&late, json!({"return": "late"})).await;
            let next = fake.hear().await;
            fake.answer(&next, json!({"return": "next"})).await;
        };
        let (answer, ()) = tokio::join!(qmp.execute("query-name", json!({})), script);
        assert_eq!(answer.unwrap(), "next");
    }

    #[tokio::test]
    async fn an_end_reaches_those_who_wait_and_those_who_come_later() {
        let (qmp, mut fake, _) = pair(GREETING).await;
        assert!(!qmp.is_closed());
        let script = async {
            fake.hear().await;
            drop(fake);
        };
        let (answer, ()) = tokio::join!(qmp.execute("quit", json!({})), script);
        assert!(matches!(answer, Err(QmpError::Closed)));
        qmp.closed().await;
        assert!(qmp.is_closed());
        assert!(matches!(qmp.execute("quit", json!({})).await, Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn dropping_the_client_closes_the_connection() {
        let (qmp, mut fake, _) = pair(GREETING).await;
        drop(qmp);
        assert_eq!(next_line(&mut fake.read).await, None);
    }

    #[tokio::test]
    async fn what_is_not_qmp_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.sock");
        assert!(matches!(Qmp::connect(&path).await, Err(QmpError::Connect { .. })));
        let listener = UnixListener::bind(&path).unwrap();
        let (answer, _fake) = tokio::join!(Qmp::connect(&path), Fake::accept(&listener, "SSH-2.0"));
        assert_eq!(answer.unwrap_err().to_string(), "no QMP at the socket: it said \"SSH-2.0\"");
        let closing = async { drop(listener.accept().await.unwrap()) };
        let (answer, ()) = tokio::join!(Qmp::connect(&path), closing);
        assert!(matches!(answer, Err(QmpError::Closed)));
    }
}
