//! HTTP over dshost's unix socket.
//!
//! One connection per call. Nothing is tried again here: whether a call may be repeated is known
//! to the caller only.

use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use proto::MoveId;
use proto::control::vm::{CreateVm, StopVm, VmInfo};
use proto::control::{ApiError, ApiErrorCode, HostStatus, LimitRequest, MovePlan, MoveRequest, MoveStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// Where dshost keeps its socket when neither `--run` nor `GODWIT_RUN` says otherwise.
pub const DEFAULT_RUN: &str = "/run/godwit";
/// The socket's name within the run directory.
pub const SOCKET: &str = "dshost.sock";
/// A longer event than this is no event of ours.
const MAX_EVENT: usize = 1 << 20;

/// Why a call got no answer, or which error it got.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody serves the socket.
    #[error("dshost is not running ({why} {})", socket.display())]
    NotRunning {
        /// The socket tried.
        socket: PathBuf,
        /// What was found.
        why: &'static str,
    },
    /// The socket is there and this user may not use it.
    #[error("permission denied on {}", socket.display())]
    Forbidden {
        /// The socket tried.
        socket: PathBuf,
    },
    /// The connection ended before the answer.
    #[error("lost the connection to dshost: {0}")]
    Lost(String),
    /// The answer is none of ours.
    #[error("dshost's answer is not understood: {0}")]
    Garbled(String),
    /// dshost says no.
    #[error("{0}")]
    Api(#[from] ApiError),
}

impl ClientError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            ClientError::NotRunning { .. } => Some(format!(
                "start it (`dshost run …`), or say which one is meant with --run DIR or GODWIT_RUN (default {DEFAULT_RUN})"
            )),
            ClientError::Forbidden { .. } => Some("run it as root, as dshost does".into()),
            ClientError::Garbled(_) => Some("dshost and this tool may be of different versions".into()),
            ClientError::Lost(_) => None,
            ClientError::Api(error) => error.hint.clone(),
        }
    }

    /// Whether dshost may answer when it is asked again.
    pub fn is_absence(&self) -> bool {
        matches!(self, ClientError::NotRunning { .. } | ClientError::Lost(_))
    }
}

/// Talks to one dshost.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The dshost whose run directory this is.
    pub fn new(run: &Path) -> Self {
        Client { socket: run.join(SOCKET) }
    }

    /// How the host stands.
    pub async fn status(&self) -> Result<HostStatus, ClientError> {
        self.get("/v1/status").await
    }

    /// Start a move.
    pub async fn start_move(&self, request: &MoveRequest) -> Result<MoveStatus, ClientError> {
        self.call(Method::POST, "/v1/moves", Some(request)).await
    }

    /// Ask what a move would do; `request.dry_run` must be set.
    pub async fn plan_move(&self, request: &MoveRequest) -> Result<MovePlan, ClientError> {
        debug_assert!(request.dry_run);
        self.call(Method::POST, "/v1/moves", Some(request)).await
    }

    /// Moves running and finished, oldest first.
    pub async fn moves(&self) -> Result<Vec<MoveStatus>, ClientError> {
        self.get("/v1/moves").await
    }

    /// One move.
    pub async fn get_move(&self, id: MoveId) -> Result<MoveStatus, ClientError> {
        self.get(&format!("/v1/moves/{id}")).await
    }

    /// `cancel`, `pause` or `resume` a move.
    pub async fn ask_move(&self, id: MoveId, verb: &str) -> Result<MoveStatus, ClientError> {
        self.call(Method::POST, &format!("/v1/moves/{id}/{verb}"), None::<&()>).await
    }

    /// Change a move's limit, in bytes per second.
    pub async fn limit_move(&self, id: MoveId, limit: Option<u64>) -> Result<MoveStatus, ClientError> {
        self.call(Method::POST, &format!("/v1/moves/{id}/limit"), Some(&LimitRequest { limit })).await
    }

    /// Follow a move.
    pub async fn move_events(&self, id: MoveId) -> Result<MoveEvents, ClientError> {
        let request = request(Method::GET, &format!("/v1/moves/{id}/events"), Bytes::new())?;
        let response = self.send(request).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        Ok(MoveEvents { body: response.into_body(), buffer: BytesMut::new() })
    }

    /// All VMs.
    pub async fn vms(&self) -> Result<Vec<VmInfo>, ClientError> {
        self.get("/v1/vms").await
    }

    /// One VM.
    pub async fn vm(&self, name: &str) -> Result<VmInfo, ClientError> {
        self.get(&vm_path(name, "")).await
    }

    /// Make a VM.
    pub async fn create_vm(&self, vm: &CreateVm) -> Result<VmInfo, ClientError> {
        self.call(Method::POST, "/v1/vms", Some(vm)).await
    }

    /// Start a VM; returns when it runs.
    pub async fn start_vm(&self, name: &str) -> Result<VmInfo, ClientError> {
        self.call(Method::POST, &vm_path(name, "/start"), None::<&()>).await
    }

    /// Stop a VM; returns when it has stopped.
    pub async fn stop_vm(&self, name: &str, how: &StopVm) -> Result<VmInfo, ClientError> {
        self.call(Method::POST, &vm_path(name, "/stop"), Some(how)).await
    }

    /// Delete a stopped VM with its disks.
    pub async fn delete_vm(&self, name: &str) -> Result<(), ClientError> {
        let response = self.send(request(Method::DELETE, &vm_path(name, ""), Bytes::new())?).await?;
        if response.status().is_success() { Ok(()) } else { Err(refusal(response).await) }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, None::<&()>).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let body = match body {
            Some(value) => serde_json::to_vec(value).map_err(|e| ClientError::Garbled(e.to_string()))?.into(),
            None => Bytes::new(),
        };
        let response = self.send(request(method, path, body)?).await?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let body = read_all(response).await?;
        serde_json::from_slice(&body).map_err(|e| ClientError::Garbled(e.to_string()))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.unreachable(&e))?;
        let lost = |e: hyper::Error| ClientError::Lost(e.to_string());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        // Ends by itself when the sender and the body are dropped; its error reaches us through them.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(lost)
    }

    fn unreachable(&self, error: &std::io::Error) -> ClientError {
        use std::io::ErrorKind;
        let socket = self.socket.clone();
        match error.kind() {
            ErrorKind::NotFound => ClientError::NotRunning { socket, why: "no socket at" },
            ErrorKind::ConnectionRefused => ClientError::NotRunning { socket, why: "nobody listens at" },
            ErrorKind::PermissionDenied => ClientError::Forbidden { socket },
            _ => ClientError::Lost(format!("{}: {error}", socket.display())),
        }
    }
}

/// Server-sent events of a move.
pub struct MoveEvents {
    body: Incoming,
    buffer: BytesMut,
}

impl MoveEvents {
    /// The next state; `None` when dshost has closed the stream. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Option<MoveStatus>, ClientError> {
        loop {
            while let Some(event) = take_event(&mut self.buffer) {
                if let Some(data) = event_data(&event) {
                    return serde_json::from_str(&data)
                        .map(Some)
                        .map_err(|e| ClientError::Garbled(e.to_string()));
                }
            }
            if self.buffer.len() > MAX_EVENT {
                return Err(ClientError::Garbled("endless event".into()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(e)) => return Err(ClientError::Lost(e.to_string())),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

/// Cut the first whole event off the buffer.
fn take_event(buffer: &mut BytesMut) -> Option<Bytes> {
    let end = buffer.windows(2).position(|two| two == b"\n\n")?;
    let event = buffer.split_to(end).freeze();
    buffer.advance(2);
    Some(event)
}

/// The data of an event; `None` for comments (keep-alives) and events without data.
fn event_data(event: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(event);
    let lines: Vec<&str> = text
        .lines()
        .filter_map(|l| l.strip_prefix("data:"))
        .map(|l| l.strip_prefix(' ').unwrap_or(l))
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn request(method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, ClientError> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "dshost")
        .header("content-type", "application/json")
        .body(Full::new(body))
        .map_err(|e| ClientError::Garbled(format!("{path}: {e}")))
}

fn vm_path(name: &str, verb: &str) -> String {
    let mut path = String::from("/v1/vms/");
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => path.push(byte as char),
            other => path.push_str(&format!("%{other:02X}")),
        }
    }
    path + verb
}

async fn read_all(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = response.into_body().collect().await.map_err(|e| ClientError::Lost(e.to_string()))?;
    Ok(body.to_bytes())
}

async fn refusal(response: Response<Incoming>) -> ClientError {
    let status = response.status();
    let body = match read_all(response).await {
        Ok(body) => body,
        Err(e) => return e,
    };
    serde_json::from_slice::<ApiError>(&body).map(ClientError::Api).unwrap_or_else(|_| {
        let said = String::from_utf8_lossy(&body);
        let said = said.lines().next().unwrap_or_default();
        ClientError::Api(ApiError {
            code: ApiErrorCode::Failed,
            message: format!("dshost answered {status}: {said}"),
            hint: Some("dshost and this tool may be of different versions".into()),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_wherever_the_bytes_break() {
        let stream = b": keep-alive\n\nevent: status\ndata: {\"a\":1}\n\ndata: x\ndata: y\n\n";
        let mut got = Vec::new();
        let mut buffer = BytesMut::new();
        for byte in stream {
            buffer.extend_from_slice(&[*byte]);
            while let Some(event) = take_event(&mut buffer) {
                got.push(event_data(&event));
            }
        }
        assert_eq!(got, [None, Some("{\"a\":1}".into()), Some("x\ny".into())]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn names_are_escaped_in_paths() {
        assert_eq!(vm_path("vm-4.2_a", "/start"), "/v1/vms/vm-4.2_a/start");
        assert_eq!(vm_path("../a b?", ""), "/v1/vms/..%2Fa%20b%3F");
    }
}
