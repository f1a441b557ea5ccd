//! The mirrors of a move's files, handled as one.
//!
//! Each regular file of the tree gets a mirror in its slot. A few are copied at a time; those that
//! are done stay synced until the switchover takes them all at one instant.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use block_mirror::{
    Bitmap, BitmapError, Completion, DEFAULT_GRANULARITY, Disk, DiskError, Mirror, MirrorConfig, Mode, Phase,
    Request, Response, SharedDisk,
};
use fs_client::{Channel, Files, Pinned};
use futures::future::join_all;
use parking_lot::Mutex;
use proto::control::{ApiError, MirrorMode, MovePhase};
use proto::ops::names::{FileKind, GetAttr, TreeEntry};
use proto::{FileId, MoveId};
use tokio::sync::oneshot;
use tracing::debug;

use super::answer::{failed, step_failed};
use super::job::Job;

/// Files copied at the same time; more as long as they are small together.
const AT_ONCE: usize = 4;
const SMALL_AT_ONCE: u64 = 32 << 20;
const MANY_AT_ONCE: usize = 256;
const ENOENT: i32 = 2;
/// Dirty bitmaps of files from this size on are mapped files, which outlive the process.
const MAPPED_FROM: u64 = 1 << 30;

/// How far all copies of a move are together. Bytes unless said otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyProgress {
    /// The phase of the largest file that is not synced.
    pub phase: Option<MovePhase>,
    /// What the first copy has to carry, as known so far.
    pub bytes_total: u64,
    /// Copied, repeated passes included.
    pub bytes_copied: u64,
    /// Guest bytes written to both sides.
    pub bytes_mirrored: u64,
    /// Left to copy.
    pub bytes_dirty: u64,
    /// Copied bytes per second.
    pub rate: u64,
    /// Bytes per second that become dirty.
    pub dirty_rate: u64,
    /// Nothing is left anywhere.
    pub all_synced: bool,
}

struct Copy {
    pinned: Pinned,
    /// Bytes, as listed.
    size: u64,
    source: SharedDisk,
    mirror: Arc<Mirror>,
    started: bool,
}

/// The mirrors of a move.
pub struct Copies {
    id: MoveId,
    files: Arc<Files>,
    from: Arc<fs_client::Datastore>,
    to: Arc<fs_client::Datastore>,
    bitmaps: PathBuf,
    config: MirrorConfig,
    /// Why a copy could not begin.
    stuck: Arc<Mutex<Option<ApiError>>>,
    /// Files that were removed before their copy began.
    gone: Arc<Mutex<BTreeSet<FileId>>>,
    steered: Mutex<(bool, Option<u64>)>,
    all: Mutex<BTreeMap<FileId, Copy>>,
}

impl Copies {
    /// No mirrors yet.
    pub fn new(job: &Job) -> Copies {
        let mode = match job.request.mode {
            MirrorMode::Auto => Mode::Auto,
            MirrorMode::Background => Mode::Background,
            MirrorMode::Mirror => Mode::Mirror,
        };
        Copies {
            id: job.id,
            files: job.around.files.clone(),
            from: job.target.from.clone(),
            to: job.target.to.clone(),
            bitmaps: job.around.run.join("moves").join(job.id.to_string()),
            config: MirrorConfig { mode, limit: job.request.limit, ..MirrorConfig::default() },
            stuck: Arc::default(),
            gone: Arc::default(),
            steered: Mutex::new((false, job.request.limit)),
            all: Mutex::default(),
        }
    }

    /// Put a mirror into the slot of a file of the tree; copying begins when its turn comes.
    pub fn add(&self, entry: &TreeEntry) -> Result<(), ApiError> {
        let id = entry.attr.file;
        let name = entry.name.lossy();
        let pinned = self.files.pin(id, FileKind::File, &self.from);
        let source = pinned.slot().backing();
        let label = |d: &fs_client::Datastore| format!("{}:{name}", d.name());
        // Copies travel on a channel of their own, so that the guest's requests never queue behind them.
        let from = Arc::new(TwoLanes {
            guest: source.clone(),
            copies: self.from.disk(id, None, Channel::Copy, label(&self.from)),
        });
        let to = Arc::new(TwoLanes {
            guest: self.to.disk(id, Some(self.id), Channel::Io, label(&self.to)),
            copies: self.to.disk(id, Some(self.id), Channel::Copy, label(&self.to)),
        });
        let mirror = self
            .bitmap(id, entry.attr.size)
            .and_then(|bitmap| Mirror::new(from, to, bitmap, self.config.clone()))
            .map_err(|e| failed(format!("make the dirty bitmap of {}: {e}", source.describe()), None))?;
        let copy = Copy { pinned, size: entry.attr.size, source, mirror, started: false };
        self.all.lock().insert(id, copy);
        Ok(())
    }

    fn bitmap(&self, id: FileId, size: u64) -> Result<Bitmap, BitmapError> {
        let bits = size.div_ceil(u64::from(DEFAULT_GRANULARITY)).max(1);
        if size < MAPPED_FROM || std::fs::create_dir_all(&self.bitmaps).is_err() {
            return Bitmap::heap(bits);
        }
        Bitmap::mapped(&self.bitmaps.join(format!("{:016x}.dirty", id.0)), bits)
    }

    /// While the tree's names are held: take in a file that came since the tree was listed. Its
    /// requests are held and have ended when this returns.
    pub async fn add_held(&self, entry: &TreeEntry) -> Result<(), ApiError> {
        self.add(entry)?;
        let (tell, told) = oneshot::channel();
        if let Some(copy) = self.all.lock().get(&entry.attr.file) {
            copy.pinned.slot().hold();
            copy.pinned.slot().on_drained(move || {
                let _ = tell.send(());
            });
        }
        let _ = told.await;
        Ok(())
    }

    /// Copy a file that was taken in by [`Copies::add_held`], now of `size` bytes, to the end.
    pub async fn copy_held(&self, id: FileId, size: u64) -> Result<(), ApiError> {
        let mirror = {
            let mut all = self.all.lock();
            let Some(copy) = all.get_mut(&id) else { return Ok(()) };
            copy.started = true;
            copy.pinned.slot().swap(copy.mirror.clone());
            copy.mirror.clone()
        };
        let (tell, told) = oneshot::channel();
        let tell = Mutex::new(Some(tell));
        mirror.on_phase(move |phase| {
            if phase == Phase::Synced || phase.is_over() {
                let _ = tell.lock().take().map(|tell| tell.send(()));
            }
        });
        mirror.start(size);
        let _ = told.await;
        self.failure().map_or(Ok(()), Err)
    }

    /// While requests are held: a file has left the tree and goes on with the source.
    pub fn let_go(&self, id: FileId) {
        if let Some(copy) = self.all.lock().remove(&id) {
            copy.mirror.cancel();
            copy.pinned.slot().swap(copy.source.clone());
            copy.pinned.slot().release();
        }
    }

    /// Let copying begin: the file's size is asked for once nothing is in flight past the mirror.
    fn begin(&self, id: FileId, copy: &Copy) {
        let (from, mirror) = (self.from.clone(), copy.mirror.clone());
        let (stuck, gone) = (self.stuck.clone(), self.gone.clone());
        let (what, runtime) = (copy.source.describe(), tokio::runtime::Handle::current());
        copy.pinned.slot().swap_then(copy.mirror.clone(), move || {
            runtime.spawn(async move {
                match from.call(GetAttr { file: id }).await {
                    Ok(attr) => mirror.start(attr.size),
                    Err(e) if e.errno() == ENOENT => drop(gone.lock().insert(id)),
                    Err(e) => *stuck.lock() = Some(step_failed(&format!("read the size of {what}"), &e)),
                }
            });
        });
    }

    /// Start copies whose turn has come; pass on what administrators wish.
    pub fn steer(&self, paused: bool, limit: Option<u64>) {
        let mut all = self.all.lock();
        let active =
            |id: FileId, c: &Copy| c.started && c.mirror.phase() != Phase::Synced && !self.is_gone(id, c);
        // A limit is for all together, so only one is copied at a time under it.
        let at_once = if limit.is_some() { 1 } else { AT_ONCE };
        let (mut count, mut bytes) = all
            .iter()
            .filter(|(id, c)| active(**id, c))
            .fold((0, 0), |(n, bytes), (_, c)| (n + 1, bytes + c.size));
        // The largest first: what is synced early has to be mirrored for longer.
        let mut waiting: Vec<_> = all.iter_mut().filter(|(_, c)| !c.started && !paused).collect();
        waiting.sort_by_key(|(_, copy)| std::cmp::Reverse(copy.size));
        for (id, copy) in waiting {
            let small = bytes + copy.size <= SMALL_AT_ONCE && count < MANY_AT_ONCE && limit.is_none();
            if count >= at_once && !small {
                break;
            }
            copy.started = true;
            count += 1;
            bytes += copy.size;
            self.begin(*id, copy);
        }
        let mut steered = self.steered.lock();
        if *steered != (paused, limit) {
            *steered = (paused, limit);
            for copy in all.values() {
                copy.mirror.set_limit(limit);
                if paused { copy.mirror.pause() } else { copy.mirror.resume() }
            }
        }
    }

    /// The destination's machine has been booted anew: what it was sent and had not flushed may be gone.
    pub fn destination_lost(&self) {
        self.all.lock().values().for_each(|copy| copy.mirror.destination_lost());
    }

    /// How far all are.
    pub fn progress(&self) -> CopyProgress {
        let all = self.all.lock();
        let mut sum = CopyProgress { all_synced: true, ..CopyProgress::default() };
        let mut largest = 0;
        for (id, copy) in all.iter() {
            if self.is_gone(*id, copy) {
                continue;
            }
            let one = copy.mirror.progress();
            let phase = match one.phase {
                Phase::Attached | Phase::Bulk => MovePhase::Bulk,
                Phase::Converge => MovePhase::Converge,
                Phase::Mirror => MovePhase::Mirror,
                _ => MovePhase::Synced,
            };
            if sum.phase.is_none_or(|p| p == MovePhase::Synced)
                || (phase != MovePhase::Synced && copy.size > largest)
            {
                sum.phase = Some(phase);
                largest = copy.size;
            }
            sum.bytes_total += one.total_estimate;
            sum.bytes_copied += one.copied;
            sum.bytes_mirrored += one.mirrored;
            sum.bytes_dirty += one.dirty;
            sum.rate += one.copy_rate;
            sum.dirty_rate += one.dirty_rate;
            sum.all_synced &= one.phase == Phase::Synced;
        }
        sum
    }

    /// Why a mirror gave up, if one did.
    pub fn failure(&self) -> Option<ApiError> {
        if let Some(error) = self.stuck.lock().clone() {
            return Some(error);
        }
        let all = self.all.lock();
        let (copy, reason) = all
            .iter()
            .filter(|(id, c)| !self.is_gone(**id, c))
            .find_map(|(_, c)| Some((c, c.mirror.failure()?)))?;
        let hint = match reason {
            block_mirror::FailReason::NoSpace(_) => Some(format!(
                "free space on {} or choose another datastore; nothing was changed",
                self.to.name()
            )),
            _ => None,
        };
        Some(failed(format!("copy {}: {reason}", copy.source.describe()), hint))
    }

    /// Whether the source has the file no more. The next listing of the tree will be without it; if
    /// it is not, the switchover finds that the copy is not ready.
    fn is_gone(&self, id: FileId, copy: &Copy) -> bool {
        use block_mirror::FailReason::{Region, Source};
        let missing = |e: &DiskError| e.errno() == ENOENT;
        self.gone.lock().contains(&id)
            || matches!(copy.mirror.failure(), Some(Source(e) | Region { error: e, .. }) if missing(&e))
    }

    /// Take a file out of the move: its slot goes back to the source.
    pub async fn detach(&self, id: FileId) {
        let Some(copy) = self.all.lock().remove(&id) else { return };
        detach(copy).await;
    }

    /// Take all files out of the move.
    pub async fn detach_all(&self) {
        let all = std::mem::take(&mut *self.all.lock());
        join_all(all.into_values().map(detach)).await;
        let _ = std::fs::remove_dir_all(&self.bitmaps);
    }

    /// New requests of all files wait from now on.
    pub fn hold(&self) {
        self.all.lock().values().for_each(|c| c.pinned.slot().hold());
    }

    /// All requests that were in flight are answered.
    pub async fn drained(&self) {
        let waits: Vec<oneshot::Receiver<()>> = self
            .all
            .lock()
            .values()
            .map(|c| {
                let (tell, told) = oneshot::channel();
                c.pinned.slot().on_drained(move || {
                    let _ = tell.send(());
                });
                told
            })
            .collect();
        join_all(waits).await;
    }

    /// Whether all sources and destinations are the same now (after [`Copies::drained`]).
    pub fn ready(&self) -> bool {
        self.all.lock().values().all(|c| c.mirror.ready_to_switch())
    }

    /// Make all destinations durable.
    pub async fn flush_destinations(&self) -> Result<(), DiskError> {
        let flushes: Vec<_> =
            self.all.lock().values().map(|c| ask(c.mirror.destination(), Request::Flush)).collect();
        join_all(flushes).await.into_iter().collect::<Result<Vec<_>, _>>().map(drop)
    }

    /// After the commit, while held: the slots go on with the destination.
    pub fn swap_to_destination(&self) {
        for (id, copy) in self.all.lock().iter() {
            copy.mirror.switched();
            let label = copy.source.describe().replacen(self.from.name(), self.to.name(), 1);
            copy.pinned.set_home(self.to.clone());
            copy.pinned.slot().swap(self.to.disk(*id, None, Channel::Io, label));
        }
        let _ = std::fs::remove_dir_all(&self.bitmaps);
    }

    /// Requests that waited go on.
    pub fn release(&self) {
        self.all.lock().values().for_each(|c| c.pinned.slot().release());
    }
}

async fn detach(copy: Copy) {
    copy.mirror.cancel();
    let (tell, told) = oneshot::channel::<()>();
    copy.pinned.slot().swap_then(copy.source.clone(), move || {
        let _ = tell.send(());
    });
    // Requests inside the mirror end with the source alone, so this wait is short unless the
    // source is away, and then there is nothing to wait for.
    if tokio::time::timeout(std::time::Duration::from_secs(5), told).await.is_err() {
        debug!("requests are still in a cancelled mirror");
    }
}

/// Submit a request and wait for its answer.
async fn ask(disk: SharedDisk, request: Request) -> Result<Response, DiskError> {
    let (tell, told) = oneshot::channel();
    disk.submit(request, Box::new(move |result| drop(tell.send(result))));
    told.await.unwrap_or(Err(DiskError::Closed))
}

/// One file reached by two channels: copies on one, all else on the other.
struct TwoLanes {
    guest: SharedDisk,
    copies: SharedDisk,
}

impl Disk for TwoLanes {
    fn submit(&self, request: Request, done: Completion) {
        let copying = matches!(
            request,
            Request::ReadDigest { .. } | Request::Map { .. } | Request::Write { digest: Some(_), .. }
        );
        let lane = if copying { &self.copies } else { &self.guest };
        lane.submit(request, done);
    }

    fn describe(&self) -> String {
        self.guest.describe()
    }
}
