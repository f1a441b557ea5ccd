//! A datastore being served: its stores, its sessions, and which trees are moving or have moved.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use globset::{Glob, GlobSet, GlobSetBuilder};
use parking_lot::RwLock;
use proto::ops::moves::{MoveRecord, MoveSide, MoveState};
use proto::ops::names::{Attr, FileKind, Name, Space, Time};
use proto::{DatastoreId, Epoch, FileId, InstanceId, MoveId, WireError};

use crate::core::plan::{Effect, Mover, posix};
use crate::core::records::{Forward, Inode, Records, Session, file_key};
use crate::core::tables::{Change, Table, Tables, Txn, decode};
use crate::core::{moves, trees};
use crate::sessions::Registry;
use crate::store::{DataFile, DataStore, MetaStore, Snapshot, Store};

/// Version of what lies on disk.
pub const FORMAT: u32 = 1;
const EIO: i32 = 5;

/// What identifies a datastore for ever.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its id.
    pub id: DatastoreId,
    /// Its name.
    pub name: String,
    /// Prefix of ids born here.
    pub prefix: u32,
    /// Which servers keep it.
    pub epoch: Epoch,
}

/// A datastore being served.
pub struct Datastore {
    /// Who it is.
    pub identity: Identity,
    /// Names and attributes.
    pub meta: MetaStore,
    /// File data.
    pub data: DataStore,
    /// Hosts.
    pub sessions: Registry,
    /// This run of the server.
    pub server: InstanceId,
    /// The machine's boot.
    pub boot: String,
    /// When this run began.
    pub started: Instant,
    exclusive: GlobSet,
    moving: RwLock<HashMap<FileId, Mover>>,
    moved: RwLock<HashMap<FileId, Forward>>,
}

/// A data request that has been admitted; the fence of a commit waits for it.
pub struct Admitted {
    /// The file.
    pub file: Arc<DataFile>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.file.admitted.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Why a datastore can't be served.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct OpenError {
    /// What is wrong, with the object.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// The server's time.
pub fn now() -> Time {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Time { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() }
}

fn patterns(globs: &[String]) -> Result<GlobSet, OpenError> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        let parsed = Glob::new(glob).map_err(|e| OpenError {
            message: format!("exclusive pattern {glob:?}: {e}"),
            hint: "write shell patterns such as *.raw".into(),
        })?;
        set.add(parsed);
    }
    set.build()
        .map_err(|e| OpenError { message: format!("exclusive patterns: {e}"), hint: "use fewer".into() })
}

impl Datastore {
    /// Open the datastore in `root`, or make a new one there. The caller holds the directory's lock.
    pub fn open(
        root: &Path,
        name: &str,
        capacity: Option<u64>,
        exclusive: &[String],
    ) -> Result<Datastore, OpenError> {
        let failed = |what: &str, e: &dyn std::fmt::Display| OpenError {
            message: format!("{what} in {}: {e}", root.display()),
            hint: "check the file system below it".into(),
        };
        let meta = MetaStore::open(&root.join("meta.redb")).map_err(|e| failed("open the metadata", &e))?;
        let data = DataStore::open_dir(root, name, capacity).map_err(|e| failed("open the data", &e))?;
        let identity = identify(&meta, name, data.found).map_err(|e| failed("read the identity", &e))??;
        bury(&meta, &data).map_err(|e| failed("remove dead data", &e))?;
        let sessions = Registry::default();
        let (mut moving, mut moved) = (HashMap::new(), HashMap::new());
        let snapshot = meta.snapshot();
        let known = snapshot
            .scan(Table::Sessions, &[], &[], false, usize::MAX)
            .map_err(|e| failed("read sessions", &e))?;
        for (_, bytes) in known {
            let session: Session = decode(&bytes).map_err(|e| failed("read sessions", &e))?;
            sessions.restore(&session.host, session.instance, session.generation);
        }
        for record in moves::all(&*snapshot).map_err(|e| failed("read moves", &e))? {
            if record.side == MoveSide::Source && record.state < MoveState::Finished {
                let ids = trees::inodes_of(&*snapshot, record.root)
                    .map_err(|e| failed("walk a moving tree", &e))?;
                for file in ids.into_keys() {
                    if record.state == MoveState::Committed {
                        moved.insert(file, forward(&record));
                    } else {
                        moving.insert(file, Mover { id: record.id, host: record.host.clone() });
                    }
                }
            }
        }
        let boot =
            std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string();
        Ok(Datastore {
            identity,
            meta,
            data,
            sessions,
            server: InstanceId::new(),
            boot,
            started: Instant::now(),
            exclusive: patterns(exclusive)?,
            moving: RwLock::new(moving),
            moved: RwLock::new(moved),
        })
    }

    /// Whether a name is one of a file with one writer.
    pub fn is_exclusive(&self, name: &Name) -> bool {
        self.exclusive.is_match(&*name.lossy())
    }

    /// By whom the file's tree is being moved, if it is.
    pub fn mover_of(&self, file: FileId) -> Option<Mover> {
        let moving = self.moving.read();
        if moving.is_empty() { None } else { moving.get(&file).cloned() }
    }

    /// Refuse requests for what has moved away.
    pub fn check_here(&self, file: FileId) -> Result<(), WireError> {
        let moved = self.moved.read();
        match moved.is_empty() {
            true => Ok(()),
            false => {
                moved.get(&file).map_or(Ok(()), |f| Err(WireError::Moved { to: f.to, name: f.name.clone() }))
            }
        }
    }

    /// Attributes with the data file's share.
    pub fn complete(&self, attr: Attr) -> Result<Attr, WireError> {
        if attr.kind != FileKind::File {
            return Ok(attr);
        }
        let io = |e: std::io::Error| posix(e.raw_os_error().unwrap_or(EIO), format!("file {}", attr.file));
        match self.data.open(attr.file, false).map_err(io)? {
            Some(data) => data.complete(attr).map_err(io),
            None => Ok(attr),
        }
    }

    /// The move that owns a file, if it is incoming; an error if the file is not here.
    fn owner(&self, snapshot: &Snapshot, file: FileId) -> Result<Option<MoveId>, WireError> {
        match snapshot.find_inode(file)? {
            Some(Inode { kind: FileKind::File, incoming, .. }) => Ok(incoming),
            Some(_) => Err(WireError::Invalid { reason: format!("file {file} has no data") }),
            None => snapshot.inode(file).map(|_| None),
        }
    }

    /// Let a data request in: the file is here, visible to whoever asks, and not fenced. None when
    /// it has no data yet and `create` is not set. What is let in is waited for by a commit.
    pub fn admit(
        &self,
        host: &str,
        file: FileId,
        incoming: Option<MoveId>,
        create: bool,
    ) -> Result<Option<Admitted>, WireError> {
        let io = |e: std::io::Error| {
            posix(e.raw_os_error().unwrap_or(EIO), format!("open the data of file {file}"))
        };
        let (opened, fresh) = match self.data.open(file, false).map_err(io)? {
            Some(open) => (open, false),
            None => {
                let owner = self.owner(&self.meta.snapshot(), file)?;
                self.check_owner(file, owner, incoming)?;
                self.check_here(file)?;
                if !create {
                    return Ok(None);
                }
                match self.data.open(file, true).map_err(io)? {
                    Some(open) => (open, true),
                    None => return Ok(None),
                }
            }
        };
        opened.admitted.fetch_add(1, Ordering::SeqCst);
        if create {
            let position = self.data.position();
            tracing::trace!(%file, ?position, "a change of data");
        }
        let admitted = Admitted { file: opened };
        // In this order: a commit puts up its fence first and counts the admitted then.
        self.check_here(file)?;
        let mut cached = admitted.file.owner.lock();
        let owner = match *cached {
            Some(owner) => owner,
            None => {
                let owner = match self.owner(&self.meta.snapshot(), file) {
                    Ok(owner) => owner,
                    Err(error) => {
                        // It went between the look and the making of its data.
                        if fresh && let Err(e) = self.data.remove(file) {
                            tracing::warn!(%file, "remove the data of what is gone: {e}");
                        }
                        return Err(error);
                    }
                };
                *cached = Some(owner);
                owner
            }
        };
        drop(cached);
        self.check_owner(file, owner, incoming)?;
        if create {
            // A copy that comes late must not overwrite what was written since it was published.
            if owner.is_none() && incoming.is_some() {
                return Err(WireError::MoveState { state: "finished".into() });
            }
            if let Some(mover) = self.mover_of(file).filter(|mover| mover.host != host) {
                return Err(mover.busy(format!("file {file}")));
            }
        }
        Ok(Some(admitted))
    }

    fn check_owner(
        &self,
        file: FileId,
        owner: Option<MoveId>,
        incoming: Option<MoveId>,
    ) -> Result<(), WireError> {
        match owner {
            Some(id) if incoming != Some(id) => {
                Err(posix(crate::core::plan::errno::ENOENT, format!("file {file}")))
            }
            _ => Ok(()),
        }
    }

    /// A tree belongs to a move from now on.
    pub fn start_moving(&self, id: MoveId, host: &str, files: &[FileId]) {
        let mover = Mover { id, host: host.to_string() };
        self.moving.write().extend(files.iter().map(|f| (*f, mover.clone())));
    }

    /// A tree belongs to a move no more.
    pub fn stop_moving(&self, id: MoveId) {
        self.moving.write().retain(|_, mover| mover.id != id);
    }

    /// Fence a tree: nothing new is admitted; returns when what was admitted is done.
    pub fn fence(&self, record: &MoveRecord, files: &[FileId]) {
        let target = forward(record);
        self.moved.write().extend(files.iter().map(|f| (*f, target.clone())));
        for file in files {
            while let Ok(Some(data)) = self.data.open(*file, false) {
                if data.admitted.load(Ordering::SeqCst) == 0 {
                    break;
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }

    /// Take the fence down again: the commit failed, or forwarding addresses are durable.
    pub fn unfence(&self, files: &[FileId]) {
        let mut moved = self.moved.write();
        files.iter().for_each(|f| drop(moved.remove(f)));
    }

    /// A file came into a directory: it belongs to the moving tree of that, or to none.
    pub fn join(&self, parent: FileId, file: FileId) {
        let mut moving = self.moving.write();
        match moving.get(&parent).cloned() {
            Some(mover) => drop(moving.insert(file, mover)),
            None => drop(moving.remove(&file)),
        }
    }

    /// Do what a committed transaction asked for. Each effect may be done twice.
    ///
    /// Answers the files whose data is gone; the next transaction forgets that they had to go.
    pub fn perform(&self, effects: &[Effect]) -> Vec<FileId> {
        let mut buried = Vec::new();
        for effect in effects {
            let done = match effect {
                Effect::RemoveData(file) => self.data.remove(*file).inspect(|()| buried.push(*file)),
                Effect::SetMtime(file, time) => {
                    self.data.open(*file, false).and_then(|d| d.map_or(Ok(()), |d| d.set_mtime(*time)))
                }
                Effect::Published(file) => {
                    self.data.forget_owner(*file);
                    Ok(())
                }
                Effect::Joined { .. } => Ok(()),
            };
            if let Err(e) = done {
                tracing::warn!(?effect, "after a commit: {e}");
            }
        }
        buried
    }

    /// Capacity, free bytes, inodes.
    pub fn space(&self) -> Result<Space, WireError> {
        let (capacity, free) =
            self.data.space().map_err(|e| posix(e.raw_os_error().unwrap_or(EIO), "statvfs"))?;
        Ok(Space { capacity, free, files: self.meta.snapshot().count(Table::Inodes) })
    }

    /// Inodes without a name that nobody has open any more.
    pub fn dead_orphans(&self) -> Vec<FileId> {
        if !self.sessions.settled(self.started.elapsed()) {
            return Vec::new();
        }
        let snapshot = self.meta.snapshot();
        let rows = snapshot.scan(Table::Orphans, &[], &[], false, 1_000).unwrap_or_default();
        rows.iter()
            .filter_map(|(key, _)| crate::core::records::key_file(key))
            .filter(|file| !self.sessions.is_open(*file))
            // What has no name in an incoming tree belongs to its move, which may name it again.
            .filter(|file| snapshot.inode(*file).is_ok())
            .collect()
    }
}

fn forward(record: &MoveRecord) -> Forward {
    Forward { to: record.peer, name: record.peer_name.clone() }
}

/// Remove data files that a killed server should have removed.
fn bury(meta: &MetaStore, data: &DataStore) -> Result<(), WireError> {
    let mut changes = Vec::new();
    let snapshot = meta.snapshot();
    for (key, _) in snapshot.scan(Table::Doomed, &[], &[], false, usize::MAX)? {
        if let Some(file) = crate::core::records::key_file(&key)
            && snapshot.find_inode(file)?.is_none()
        {
            data.remove(file)
                .map_err(|e| posix(e.raw_os_error().unwrap_or(EIO), format!("data of file {file}")))?;
        }
        changes.push(Change::Delete { table: Table::Doomed, key });
    }
    if changes.is_empty() { Ok(()) } else { meta.commit(&changes) }
}

/// Read who this datastore is, or make a new one; `found` data files lie there.
fn identify(meta: &MetaStore, name: &str, found: u64) -> Result<Result<Identity, OpenError>, WireError> {
    let snapshot = meta.snapshot();
    let mut txn = Txn::new(&*snapshot);
    if let Some(format) = txn.read::<u32>(Table::Header, b"format")? {
        let theirs: String = txn.read(Table::Header, b"name")?.unwrap_or_default();
        if format > FORMAT {
            return Ok(Err(OpenError {
                message: format!(
                    "the store of {theirs} has format {format}, this dsserver knows up to {FORMAT}"
                ),
                hint: "upgrade dsserver".into(),
            }));
        }
        if theirs != name {
            return Ok(Err(OpenError {
                message: format!("the directory belongs to datastore {theirs}, not {name}"),
                hint: format!("use --name {theirs} or another --path"),
            }));
        }
        let missing = || WireError::Failed { reason: "the store's header is incomplete".into() };
        return Ok(Ok(Identity {
            id: txn.read(Table::Header, b"id")?.ok_or_else(missing)?,
            name: theirs,
            prefix: txn.read(Table::Header, b"prefix")?.ok_or_else(missing)?,
            epoch: txn.read(Table::Header, b"epoch")?.ok_or_else(missing)?,
        }));
    }
    if found > 0 {
        return Ok(Err(OpenError {
            message: format!("data/ holds {found} files, but meta.redb knows nothing of them"),
            hint: "restore meta.redb; the files in data/ are the disks as they were, to be copied out".into(),
        }));
    }
    let id = DatastoreId::new();
    // 24 bits of the id; 0 belongs to mounts.
    let prefix = (id.0.as_u128() as u32 & 0xff_ffff).max(1);
    let identity = Identity { id, name: name.into(), prefix, epoch: Epoch(1) };
    txn.write(Table::Header, b"format".to_vec(), &FORMAT);
    txn.write(Table::Header, b"id".to_vec(), &identity.id);
    txn.write(Table::Header, b"name".to_vec(), &identity.name);
    txn.write(Table::Header, b"prefix".to_vec(), &identity.prefix);
    txn.write(Table::Header, b"epoch".to_vec(), &identity.epoch);
    let root = FileId::datastore_root(prefix)
        .ok_or_else(|| WireError::Failed { reason: "prefix out of range".into() })?;
    let born = now();
    txn.put_inode(
        root,
        &Inode {
            kind: FileKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            nlink: 2,
            rdev: 0,
            atime: born,
            mtime: born,
            ctime: born,
            btime: born,
            target: None,
            parent: root,
            entries: 0,
            next_cookie: 1,
            exclusive: false,
            incoming: None,
        },
    );
    let changes: Vec<Change> = txn.into_changes();
    meta.commit(&changes)?;
    debug_assert!(meta.snapshot().get(Table::Inodes, &file_key(root))?.is_some());
    Ok(Ok(identity))
}
