//! Sessions, leases and opens.

use serde::{Deserialize, Serialize};

use crate::ids::{DatastoreId, Epoch, FileId, Generation, InstanceId};

/// Open or resume a session on this connection.
///
/// A host has one session with a datastore and several channels (connections) in it. A second
/// connection for the same channel ends the first: the server closes it and waits for what it
/// still has in work before it answers, so that nothing of the old connection can land later than
/// what is sent on the new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Name of the datastore that the client means to reach (a server keeps several).
    pub datastore: String,
    /// The host's name; a name belongs to one running dshost at a time.
    pub host: String,
    /// This run of dshost. Another instance of the same host name supersedes an instance that is
    /// gone (no connection, or its lease is over), and is refused while that one lives.
    pub instance: InstanceId,
    /// Which channel: 0 guest I/O and names, 1 bulk copies.
    pub channel: u8,
    /// The session to resume, or none for a new one.
    pub resume: Option<Generation>,
}

/// The session is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Which datastore this is, for ever.
    pub datastore: DatastoreId,
    /// Its name.
    pub name: String,
    /// The datastore's epoch; to be put into every request.
    pub epoch: Epoch,
    /// The session's generation; to be put into every request.
    pub session: Generation,
    /// Prefix of the ids of files born here.
    pub prefix: u32,
    /// The root directory.
    pub root: FileId,
    /// This run of the server: when it differs from the one before, opens must be declared again.
    pub server: InstanceId,
    /// The machine's boot: when it differs, unflushed writes may be lost.
    pub boot: String,
    /// How long the session lives without renewal, in milliseconds.
    pub lease_ms: u32,
    /// How often the client should renew, in milliseconds.
    pub renew_ms: u32,
    /// No request below this id of this session will be answered from memory: the client starts
    /// its request ids at or above it. 1 in a new session.
    pub next_request: crate::ids::RequestId,
}

/// Renew the lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {}

/// The lease runs for its full length from when the request was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {}

/// End the session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detach {}

/// How a session has a file open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OpenMode {
    /// Not at all.
    Closed,
    /// For reading.
    Read,
    /// For reading and writing. On files of the `exclusive` patterns one session at a time.
    Write,
}

/// Declare how this session has a file open from now on. An open file's data outlives its last name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetOpen {
    /// The file.
    pub file: FileId,
    /// The strongest mode among the session's open descriptors of it.
    pub mode: OpenMode,
}

/// Answer to [`SetOpen`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The size at that moment in bytes.
    pub size: u64,
}

/// Ask for the server's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {}

/// The server's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Version of the server program.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Sessions, live and expired.
    pub sessions: Vec<SessionInfo>,
    /// Inodes in use.
    pub files: u64,
    /// Bytes that may be used.
    pub capacity: u64,
    /// Bytes allocated.
    pub used: u64,
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// The host.
    pub host: String,
    /// The session's generation.
    pub generation: Generation,
    /// Address of its newest connection.
    pub address: String,
    /// Open connections.
    pub connections: u32,
    /// Milliseconds since the lease was renewed.
    pub renewed_ms_ago: u64,
    /// Files it has open.
    pub opens: u32,
}
