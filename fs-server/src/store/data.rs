//! File data: `data/xx/<id>`, one sparse file per inode, on the server's own file system.
//!
//! Data goes through the page cache, so an answered write survives a killed server, and becomes
//! durable with a flush. A killed predecessor's requests can't land late: the directory's lock is
//! released only when the predecessor's threads, io_uring's workers among them, have ended, and
//! buffered writes are done by those threads (direct I/O would outlive them).

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use proto::ops::names::{Attr, Time};
use proto::{FileId, MoveId, Position, WireError};
use rustix::fs::{
    FallocateFlags, SeekFrom, Timespec, Timestamps, fallocate, fstat, ftruncate, futimens, seek,
};

use super::allocated::allocated;

/// Descriptors kept open.
const MAX_OPEN: usize = 8_192;
/// Extents listed in one answer.
const MAX_EXTENTS: usize = 10_000;
const BLOCK: u64 = 512;
/// How long a write near the end of the space waits for those under way.
const SETTLE_PATIENCE: Duration = Duration::from_secs(1);
/// Space is taken in these units at least.
const UNIT: u64 = 4096;

/// Where file data is kept. Every change has a place in one order ([`Store::position`]).
pub trait Store: Send + Sync {
    /// The data file of an inode; without `create` none when nothing was written yet.
    fn open(&self, file: FileId, create: bool) -> io::Result<Option<Arc<DataFile>>>;
    /// Delete an inode's data.
    fn remove(&self, file: FileId) -> io::Result<()>;
    /// Bytes that may be used, and that are free.
    fn space(&self) -> io::Result<(u64, u64)>;
    /// The place of the next change of data in the store's order.
    fn position(&self) -> Position;
}

/// An open data file.
pub struct DataFile {
    /// The inode.
    pub id: FileId,
    /// The file.
    pub file: File,
    /// The move that owns it while it is incoming; known once a request has been admitted.
    pub owner: Mutex<Option<Option<MoveId>>>,
    /// Changes under way.
    pub admitted: AtomicU64,
    new: AtomicBool,
    /// Allocated units as counted in the store's accounts, under whose lock this changes.
    blocks: AtomicU64,
    /// Removed: counts no more. Under the same lock.
    gone: AtomicBool,
    dir: PathBuf,
}

impl DataFile {
    /// Size and allocated units of 512 bytes.
    pub fn size(&self) -> io::Result<u64> {
        Ok(fstat(&self.file)?.st_size as u64)
    }

    /// Put size, space and times into attributes.
    pub fn complete(&self, mut attr: Attr) -> io::Result<Attr> {
        let stat = fstat(&self.file)?;
        let changed = Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 };
        attr.size = stat.st_size as u64;
        attr.blocks = stat.st_blocks as u64;
        attr.mtime = changed;
        attr.ctime = attr.ctime.max(changed);
        Ok(attr)
    }

    /// Set the time of the last change of data.
    pub fn set_mtime(&self, time: Time) -> io::Result<()> {
        let at = Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() };
        let keep = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        Ok(futimens(&self.file, &Timestamps { last_access: keep, last_modification: at })?)
    }

    /// Cut off or grow by a hole.
    pub fn resize(&self, size: u64) -> io::Result<()> {
        Ok(ftruncate(&self.file, size)?)
    }

    /// Punch a hole below the end.
    pub fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let len = len.min(self.size()?.saturating_sub(offset));
        if len == 0 {
            return Ok(());
        }
        Ok(fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?)
    }

    /// Zero or reserve a range.
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool, zero: bool) -> io::Result<()> {
        let mut flags = FallocateFlags::empty();
        flags.set(FallocateFlags::KEEP_SIZE, keep_size);
        flags.set(FallocateFlags::ZERO_RANGE, zero);
        match fallocate(&self.file, flags, offset, len) {
            // A file system without ZERO_RANGE (tmpfs): punch and reserve come to the same.
            Err(rustix::io::Errno::OPNOTSUPP) if zero => {
                self.punch(offset, len)?;
                self.allocate(offset, len, keep_size, false)
            }
            other => Ok(other?),
        }
    }

    /// Allocated runs in a range, and how far was looked.
    pub fn extents(&self, offset: u64, len: u64) -> io::Result<(Vec<(u64, u64)>, u64)> {
        let end = offset.saturating_add(len).min(self.size()?);
        let (mut runs, mut at) = (Vec::new(), offset);
        while at < end {
            if runs.len() >= MAX_EXTENTS {
                return Ok((runs, at));
            }
            let start = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) if start < end => start,
                Ok(_) | Err(rustix::io::Errno::NXIO) => break,
                Err(e) => return Err(e.into()),
            };
            let stop = seek(&self.file, SeekFrom::Hole(start))?.min(end);
            runs.push((start, stop - start));
            at = stop;
        }
        Ok((runs, end.max(offset)))
    }

    /// Before the first flush of a new file its name must become durable, too.
    pub fn sync_name(&self) -> io::Result<()> {
        if self.new.swap(false, Ordering::SeqCst) {
            let above = self.dir.parent().unwrap_or(&self.dir);
            let sync = |dir: &Path| File::open(dir).and_then(|d| d.sync_all());
            let synced = sync(&self.dir).and_then(|()| sync(above));
            if synced.is_err() {
                self.new.store(true, Ordering::SeqCst);
            }
            return synced;
        }
        Ok(())
    }
}

/// Bytes that are taken.
struct Accounts {
    /// By what lies there.
    used: u64,
    /// By what is under way.
    reserved: u64,
}

/// The data directory.
pub struct DataStore {
    root: PathBuf,
    name: String,
    capacity: Option<u64>,
    /// Data files that lay there when it was opened.
    pub found: u64,
    accounts: Mutex<Accounts>,
    settled: Condvar,
    position: AtomicU64,
    open: Mutex<HashMap<FileId, Arc<DataFile>>>,
}

impl DataStore {
    /// Open `root`/data, counting what it takes.
    pub fn open_dir(root: &Path, name: &str, capacity: Option<u64>) -> io::Result<DataStore> {
        let root = root.join("data");
        std::fs::create_dir_all(&root)?;
        if let Some(above) = root.parent() {
            File::open(above)?.sync_all()?;
        }
        let mut used = 0;
        let mut files = 0;
        for dir in std::fs::read_dir(&root)? {
            let dir = dir?;
            if dir.file_type()?.is_dir() {
                for file in std::fs::read_dir(dir.path())? {
                    used += std::os::unix::fs::MetadataExt::blocks(&file?.metadata()?);
                    files += 1;
                }
            }
        }
        Ok(DataStore {
            root,
            name: name.into(),
            capacity,
            found: files,
            settled: Condvar::new(),
            accounts: Mutex::new(Accounts { used: used * BLOCK, reserved: 0 }),
            position: AtomicU64::new(0),
            open: Mutex::default(),
        })
    }

    fn dir_of(&self, file: FileId) -> PathBuf {
        self.root.join(format!("{:02x}", file.0 & 0xff))
    }

    fn path_of(&self, file: FileId) -> PathBuf {
        self.dir_of(file).join(format!("{:016x}", file.0))
    }

    /// What is known of the open file is out of date.
    pub fn forget_owner(&self, file: FileId) {
        if let Some(open) = self.open.lock().get(&file) {
            *open.owner.lock() = None;
        }
    }

    /// The space of a file may have changed; what [`DataStore::reserve`] kept for that is free again.
    pub fn settle(&self, file: &DataFile, reserved: u64) {
        let mut accounts = self.accounts.lock();
        accounts.reserved -= reserved;
        if reserved > 0 {
            self.settled.notify_all();
        }
        if file.gone.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stat) = fstat(&file.file) else { return };
        let now = stat.st_blocks as u64;
        let before = file.blocks.swap(now, Ordering::Relaxed);
        accounts.used = (accounts.used + now * BLOCK).saturating_sub(before * BLOCK);
    }

    /// Make sure that a write of `len` bytes fits; what it reserves must be given back by [`DataStore::settle`].
    pub fn reserve(&self, file: &DataFile, offset: u64, len: u64) -> Result<u64, WireError> {
        let Some(capacity) = self.capacity else { return Ok(0) };
        let start = offset / UNIT * UNIT;
        let end = offset.saturating_add(len).checked_next_multiple_of(UNIT).unwrap_or(u64::MAX);
        let mut accounts = self.accounts.lock();
        let free = |accounts: &Accounts| capacity.saturating_sub(accounts.used + accounts.reserved);
        let mut needed = end - start;
        if needed > free(&accounts) {
            // Near the end it counts what has its space already.
            needed = needed.saturating_sub(allocated(&file.file, start..end).unwrap_or(0));
        }
        // What is under way can count twice, as reserved and as written: only when it is done is it
        // certain that there is no room.
        while needed > free(&accounts) {
            if accounts.reserved == 0 || self.settled.wait_for(&mut accounts, SETTLE_PATIENCE).timed_out() {
                let free = free(&accounts);
                return Err(WireError::NoSpace { datastore: self.name.clone(), free, needed: len });
            }
        }
        accounts.reserved += needed;
        Ok(needed)
    }

    /// Allocated bytes.
    pub fn used(&self) -> u64 {
        self.accounts.lock().used
    }
}

impl Store for DataStore {
    fn open(&self, id: FileId, create: bool) -> io::Result<Option<Arc<DataFile>>> {
        let mut open = self.open.lock();
        if let Some(file) = open.get(&id) {
            return Ok(Some(file.clone()));
        }
        let path = self.path_of(id);
        let mut options = File::options();
        options.read(true).write(true);
        let file = match options.open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound && create => {
                std::fs::create_dir_all(self.dir_of(id))?;
                options.create_new(true).open(&path)?
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let blocks = fstat(file.as_fd())?.st_blocks as u64;
        let file = Arc::new(DataFile {
            id,
            file,
            owner: Mutex::default(),
            admitted: AtomicU64::new(0),
            // After a restart nobody knows whether the name was synced: once more costs little.
            new: AtomicBool::new(true),
            blocks: AtomicU64::new(blocks),
            gone: AtomicBool::new(false),
            dir: self.dir_of(id),
        });
        if open.len() >= MAX_OPEN {
            open.retain(|_, f| Arc::strong_count(f) > 1);
        }
        open.insert(id, file.clone());
        Ok(Some(file))
    }

    fn remove(&self, id: FileId) -> io::Result<()> {
        let open = self.open.lock().remove(&id);
        let path = self.path_of(id);
        let mut accounts = self.accounts.lock();
        let blocks = match (&open, std::fs::metadata(&path)) {
            (Some(file), _) => {
                file.gone.store(true, Ordering::Relaxed);
                file.blocks.swap(0, Ordering::Relaxed)
            }
            (None, Ok(meta)) => std::os::unix::fs::MetadataExt::blocks(&meta),
            (None, Err(_)) => 0,
        };
        accounts.used = accounts.used.saturating_sub(blocks * BLOCK);
        drop(accounts);
        match std::fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn space(&self) -> io::Result<(u64, u64)> {
        let under = rustix::fs::statvfs(&self.root)?;
        let (total, available) = (under.f_blocks * under.f_frsize, under.f_bavail * under.f_frsize);
        Ok(match self.capacity {
            Some(capacity) => (capacity, capacity.saturating_sub(self.used()).min(available)),
            None => (total, available),
        })
    }

    fn position(&self) -> Position {
        Position(self.position.fetch_add(1, Ordering::SeqCst))
    }
}
