//! One datastore `ds1` with its server, and short words for what the tests ask of it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use godwit_tests::cluster::Cluster;
use godwit_tests::lab::Server;
use godwit_tests::process::wait_for;
use parking_lot::Mutex;
use proto::ops::data::{Flush, Read, Write};
use proto::ops::names::{Attr, Create, DirEntry, GetAttr, Lookup, NewNode, ReadDir, Space, StatFs};
use proto::ops::session::{Attached, OpenMode};
use proto::{FileId, MoveId, WireError};

use super::wire::{Host, Wire};

/// Variables of the environment.
pub type Env = &'static [(&'static str, &'static str)];
/// The two ways of the server to do data I/O.
pub const BOTH_PATHS: [Env; 2] = [&[], &[("GODWIT_NO_URING", "1")]];

/// A datastore's server in a scratch directory.
pub struct Site {
    cluster: Cluster,
    address: Arc<Mutex<String>>,
    env: Env,
}

impl Site {
    pub fn new() -> Site {
        Site::with(&[], &[])
    }

    /// With further arguments and variables to the server.
    pub fn with(extra: &[&str], env: Env) -> Site {
        let mut cluster = Cluster::with(&[("ds1", extra)]);
        let address = Arc::new(Mutex::new(cluster.server("ds1").address.clone()));
        let mut site = Site { cluster, address, env };
        if !env.is_empty() {
            site.restart();
        }
        site
    }

    pub fn server(&mut self) -> &mut Server {
        self.cluster.server("ds1")
    }

    /// A directory on the datastore's file system.
    pub fn scratch(&self) -> &Path {
        self.cluster.scratch()
    }

    /// Where the server listens now. A restart takes another port, as the old one may have been
    /// given to somebody else meanwhile.
    pub fn address(&self) -> String {
        self.address.lock().clone()
    }

    /// The same for threads: always the newest.
    pub fn shared_address(&self) -> Arc<Mutex<String>> {
        self.address.clone()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.server().kill();
    }

    /// kill -9 if it runs, and start it again.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    pub fn restart_with(&mut self, env: &[(&str, &str)]) {
        let all: Vec<_> = self.env.iter().chain(env).copied().collect();
        let server = self.server();
        server.kill();
        server.address = "127.0.0.1:0".into();
        server.start(&all);
        let address = std::fs::read_to_string(server.dir.join("address")).unwrap().trim().to_string();
        server.address = address.clone();
        *self.address.lock() = address;
    }

    /// Wait until a halt point (GODWIT_HALT_AT) has stopped the server.
    pub fn wait_for_halt(&mut self) {
        let process = self.server().process();
        wait_for("the halt point", || process.is_stopped());
    }

    /// A host's channel 0 in a session, new or its own.
    pub fn host(&self, host: &Host) -> (Wire, Attached) {
        self.channel(host, 0)
    }

    pub fn channel(&self, host: &Host, channel: u8) -> (Wire, Attached) {
        Wire::try_attach(&self.address(), host.attach(channel, None)).unwrap().unwrap()
    }

    /// A host's channel 0 in the session that it had.
    pub fn resume(&self, host: &Host, before: &Attached) -> Wire {
        let ask = host.attach(0, Some(before.session));
        let (wire, attached) = Wire::try_attach(&self.address(), ask).unwrap().unwrap();
        assert_eq!((attached.session, attached.datastore), (before.session, before.datastore));
        wire
    }
}

pub fn new_node(parent: FileId, name: &str, node: NewNode) -> Create {
    let (mode, uid, gid) = (0o640, 7, 8);
    Create { parent, name: name.into(), node, mode, uid, gid, exclusive: true, open: OpenMode::Closed }
}

pub fn posix(result: Result<impl std::fmt::Debug, WireError>) -> i32 {
    match result {
        Err(WireError::Posix { errno, .. }) => errno,
        other => panic!("expected an errno, got {other:?}"),
    }
}

pub const ENOENT: i32 = libc::ENOENT;

impl Wire {
    pub fn make_file(&mut self, parent: FileId, name: &str) -> FileId {
        self.call(new_node(parent, name, NewNode::File)).unwrap().attr.file
    }

    pub fn make_dir(&mut self, parent: FileId, name: &str) -> FileId {
        self.call(new_node(parent, name, NewNode::Directory)).unwrap().attr.file
    }

    pub fn lookup(&mut self, parent: FileId, name: &str) -> Result<Attr, WireError> {
        self.call(Lookup { parent, name: name.into() })
    }

    pub fn attr(&mut self, file: FileId) -> Result<Attr, WireError> {
        self.call(GetAttr { file })
    }

    pub fn space(&mut self) -> Space {
        self.call(StatFs {}).unwrap()
    }

    /// All entries of a directory, in small pages.
    pub fn list(&mut self, dir: FileId) -> Vec<DirEntry> {
        let (mut all, mut after) = (Vec::<DirEntry>::new(), 0);
        loop {
            let page = self.call(ReadDir { dir, after, max: 100 }).unwrap();
            all.extend(page.entries);
            if page.end {
                return all;
            }
            after = all.last().unwrap().cookie;
        }
    }

    /// Names of a directory, sorted.
    pub fn names(&mut self, dir: FileId) -> Vec<String> {
        let mut names: Vec<_> = self.list(dir).iter().map(|e| e.name.lossy().into_owned()).collect();
        names.sort();
        names
    }

    pub fn write(&mut self, file: FileId, offset: u64, data: &[u8]) -> Result<(), WireError> {
        self.call_data(a_write(file, offset), data).map(drop)
    }

    pub fn write_incoming(
        &mut self,
        id: MoveId,
        file: FileId,
        offset: u64,
        data: &[u8],
    ) -> Result<(), WireError> {
        self.call_data(Write { incoming: Some(id), ..a_write(file, offset) }, data).map(drop)
    }

    pub fn read(&mut self, file: FileId, offset: u64, len: u32) -> Result<Bytes, WireError> {
        self.call_data(a_read(file, offset, len), &[])
    }

    /// Have the server flush much data; the answers are not waited for.
    pub fn keep_busy(&mut self, file: FileId, byte: u8) {
        for at in 0..4 {
            self.write(file, at << 22, &vec![byte; 4 << 20]).unwrap();
        }
        for _ in 0..8 {
            self.post(Flush { file, incoming: None }, Bytes::new());
        }
    }

    pub fn flush(&mut self, file: FileId) -> Result<(), WireError> {
        self.call(Flush { file, incoming: None }).map(drop)
    }
}

pub fn a_write(file: FileId, offset: u64) -> Write {
    Write { file, offset, digest: None, fua: false, incoming: None }
}

pub fn a_read(file: FileId, offset: u64, len: u32) -> Read {
    Read { file, offset, len, digest: false, incoming: None }
}
