//! One move, from its records to its end.
//!
//! Copying changes nothing for anybody: until the commit (in `switchover`) every failure, cancel
//! and timeout ends in [`Job::undo`], which leaves the source as it was and nothing on the
//! destination. After the commit the move only goes forward.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fs_client::{CallError, Files, MovingSet};
use parking_lot::Mutex;
use proto::control::{ApiError, MovePhase, MoveRequest};
use proto::ops::moves::{
    IncomingBegin, IncomingDrop, IncomingPut, IncomingRemove, MoveAbort, MoveBegin, MoveFinish,
};
use proto::ops::names::{Create, Name, NewNode, Rmdir, TreeEntry};
use proto::ops::session::OpenMode;
use proto::{FileId, MoveId};
use tokio::sync::watch;
use tracing::{info, warn};

use super::answer::{cancelled, check_failed, failed, step_failed};
use super::armed::Armed;
use super::copies::Copies;
use super::halt::halt_at;
use super::report::Report;
use super::switchover::{Attempt, SwitchContext};
use super::target::{Target, list_tree};
use super::tree::{Difference, Manifest};

/// How often the state of the copies is looked at.
const TICK: Duration = Duration::from_millis(20);
/// Entries put on the destination in one request.
const PUT_BATCH: usize = 500;
/// Bytes of entries put on the destination in one request, about.
const PUT_BYTES: usize = 512 << 10;
/// Attempts at the switchover before the move is given up.
const ATTEMPTS: u32 = 50;
/// How long undoing waits for a datastore that is away before it leaves the rest to recovery.
const UNDO_PATIENCE: Duration = Duration::from_secs(10);

/// Entries in groups that each fit into one request.
fn batches(entries: Vec<TreeEntry>) -> Vec<Vec<TreeEntry>> {
    let weight = |e: &TreeEntry| {
        let xattrs: usize = e.xattrs.iter().map(|(name, value)| name.0.len() + value.0.len() + 8).sum();
        e.name.0.len() + e.target.as_ref().map_or(0, |t| t.0.len()) + xattrs + 128
    };
    let (mut out, mut bytes) = (vec![Vec::new()], 0);
    for entry in entries {
        let batch = out.last_mut().expect("there is always one");
        bytes += weight(&entry);
        if batch.len() >= PUT_BATCH || (bytes > PUT_BYTES && !batch.is_empty()) {
            bytes = weight(&entry);
            out.push(vec![entry]);
        } else {
            batch.push(entry);
        }
    }
    out.retain(|batch| !batch.is_empty());
    out
}

/// What administrators ask of a running move.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// End it, if it has not committed.
    pub cancel: Option<String>,
    /// Stop copying for now.
    pub paused: bool,
    /// Bytes per second that copying may use.
    pub limit: Option<u64>,
}

/// What a move needs of its host.
pub struct Surroundings {
    /// Datastores and nodes.
    pub files: Arc<Files>,
    /// Renames that moves have prepared.
    pub armed: Arc<Armed>,
    /// Where the datastores are mounted.
    pub mount: PathBuf,
    /// Where volatile state (dirty bitmaps) lives.
    pub run: PathBuf,
}

/// One move.
pub struct Job {
    /// Its id, the same on both datastores.
    pub id: MoveId,
    pub(super) request: MoveRequest,
    pub(super) target: Target,
    pub(super) around: Arc<Surroundings>,
    /// What is shown of it.
    pub report: Report,
    /// What is asked of it.
    pub wishes: watch::Sender<Wishes>,
    pub(super) committed: AtomicBool,
    started: Instant,
    made_parents: Mutex<Vec<(FileId, Name)>>,
    /// The directory that holds the root on the destination; known once its missing ones are made.
    incoming_parent: OnceLock<FileId>,
}

impl Job {
    /// A move that has passed its checks and has not begun.
    pub fn new(id: MoveId, request: MoveRequest, target: Target, around: Arc<Surroundings>) -> Arc<Job> {
        let report = Report::new(id, &request, &target);
        let wishes = Wishes { cancel: None, paused: false, limit: request.limit };
        Arc::new(Job {
            id,
            request,
            target,
            around,
            report,
            wishes: watch::Sender::new(wishes),
            committed: AtomicBool::new(false),
            started: Instant::now(),
            made_parents: Mutex::default(),
            incoming_parent: OnceLock::new(),
        })
    }

    /// Run a move that has begun to its end; the outcome is in the report.
    pub async fn run(self: Arc<Self>, manifest: Manifest) {
        info!(id = %self.id, from = self.target.source_label(), to = self.target.destination_label(), "move starts");
        match self.drive(manifest).await {
            Ok(()) => {
                self.report.enter(MovePhase::Done);
                info!(id = %self.id, "move done");
            }
            Err(error) => {
                warn!(id = %self.id, "move ends: {error}");
                self.report.fail(error);
            }
        }
    }

    async fn drive(self: &Arc<Self>, manifest: Manifest) -> Result<(), ApiError> {
        let set = Arc::new(self.around.files.gate().moving_set());
        let copies = Arc::new(Copies::new(self));
        let weak = Arc::downgrade(&copies);
        self.target.to.on_boot_change(move || {
            if let Some(copies) = weak.upgrade() {
                copies.destination_lost();
            }
        });
        let result = self.copy_and_switch(&set, &copies, manifest).await;
        if let Err(error) = result {
            if !self.committed.load(Ordering::SeqCst) {
                self.undo(&copies).await;
            }
            return Err(error);
        }
        drop(set);
        self.finish().await
    }

    /// Write the records on both sides. On an error nothing is left of it.
    pub(super) async fn begin(&self, manifest: &Manifest) -> Result<(), ApiError> {
        let (from, to) = (&self.target.from, &self.target.to);
        let identity = |d: &fs_client::Datastore| d.info().map(|i| i.datastore);
        let (Some(from_id), Some(to_id)) = (identity(from), identity(to)) else {
            return Err(failed("a datastore went away before the move began", None));
        };
        let begin = MoveBegin {
            id: self.id,
            parent: self.target.source_parent(),
            name: self.target.name().clone(),
            root: self.target.root.file,
            to: to_id,
            to_name: to.name().to_string(),
        };
        self.unless_cancelled(from.call(begin))
            .await?
            .map_err(|e| check_failed(&format!("begin the move on {}", from.name()), &e))?;
        halt_at("move-after-begin");
        let reserved = async {
            let parent = self.make_parents().await?;
            let begin = IncomingBegin {
                id: self.id,
                from: from_id,
                from_name: from.name().to_string(),
                root: self.target.root.file,
                parent,
                name: self.target.name().clone(),
                bytes: manifest.allocated(),
                check_only: false,
            };
            self.unless_cancelled(to.call(begin))
                .await?
                .map_err(|e| check_failed(&format!("reserve {}", self.target.destination_label()), &e))
        };
        if let Err(error) = reserved.await {
            self.undo_records().await;
            return Err(error);
        }
        halt_at("move-after-reserve");
        Ok(())
    }

    /// Make the directories above the root that the destination lacks, like those of the source.
    async fn make_parents(&self) -> Result<FileId, ApiError> {
        let mut parent = self.target.to_parent;
        let missing = self.target.to_depth..self.target.path.len() - 1;
        for depth in missing {
            // ancestors[0] is the datastore's root, so the directory at `depth` is one further.
            let like = self.target.ancestors[depth + 1];
            let create = Create {
                parent,
                name: self.target.path[depth].clone(),
                node: NewNode::Directory,
                mode: like.mode,
                uid: like.uid,
                gid: like.gid,
                exclusive: true,
                open: OpenMode::Closed,
            };
            let made = self.unless_cancelled(self.target.to.call(create)).await?.map_err(|e| {
                check_failed(&format!("make the directory above {}", self.target.destination_label()), &e)
            })?;
            self.made_parents.lock().push((parent, self.target.path[depth].clone()));
            parent = made.attr.file;
        }
        Ok(*self.incoming_parent.get_or_init(|| parent))
    }

    async fn copy_and_switch(
        self: &Arc<Self>,
        set: &Arc<MovingSet>,
        copies: &Arc<Copies>,
        listed: Manifest,
    ) -> Result<(), ApiError> {
        set.insert(listed.ids());
        // Listed again now that changes are being watched: nothing can slip in between.
        let told = Arc::new(Mutex::new(Manifest::default()));
        self.report.enter(MovePhase::Bulk);
        for attempt in 0..ATTEMPTS {
            let known = told.lock().clone();
            let now = self.bring_up_to_date(set, copies, known).await?;
            *told.lock() = now;
            if attempt == 0 {
                halt_at("move-after-put");
            }
            self.wait_synced(copies).await?;
            halt_at("move-after-synced");
            let context = SwitchContext { set: set.clone(), copies: copies.clone(), told: told.clone() };
            match self.attempt_switch(context).await? {
                Attempt::Committed => return Ok(()),
                Attempt::Again(reason) => {
                    info!(id = %self.id, attempt, "switchover put off: {reason}");
                    self.report.back_from_switchover();
                    tokio::time::sleep(TICK * attempt.min(25)).await;
                }
            }
        }
        Err(failed(
            format!("{} changed faster than it could be switched over", self.target.source_label()),
            Some("stop what creates and removes files in it, then try again".into()),
        ))
    }

    /// Tell the destination how the tree looks now and start mirrors for files that are new in it.
    async fn bring_up_to_date(
        self: &Arc<Self>,
        set: &MovingSet,
        copies: &Arc<Copies>,
        told: Manifest,
    ) -> Result<Manifest, ApiError> {
        let step =
            |what: &str, e: &CallError| step_failed(&format!("{what} of {}", self.target.source_label()), e);
        let now = self
            .unless_cancelled(list_tree(&self.target.from, self.target.root.file))
            .await?
            .map_err(|e| step("list the tree", &e))?;
        if now.linked_from_outside().is_some() {
            return Err(failed(
                format!("a file of {} got a hard link outside of it", self.target.source_label()),
                None,
            ));
        }
        set.insert(now.ids());
        let difference = told.difference(&now);
        for id in &difference.departed {
            set.remove(*id);
            copies.detach(*id).await;
        }
        self.unless_cancelled(self.tell(&difference)).await?.map_err(|e| step("put the tree", &e))?;
        let files: BTreeMap<FileId, &TreeEntry> = now.regular_files();
        for id in &difference.arrived {
            if let Some(entry) = files.get(id) {
                copies.add(entry)?;
            }
        }
        Ok(now)
    }

    /// Send a difference to the destination's incoming tree.
    pub(super) async fn tell(&self, difference: &Difference) -> Result<(), CallError> {
        let root = self.target.root.file;
        let entries: Vec<TreeEntry> = difference.puts.iter().map(|e| self.as_incoming(e, root)).collect();
        for batch in batches(entries) {
            self.target.to.call(IncomingPut { id: self.id, entries: batch }).await?;
        }
        for batch in difference.removals.chunks(PUT_BATCH) {
            self.target.to.call(IncomingRemove { id: self.id, names: batch.to_vec() }).await?;
        }
        Ok(())
    }

    /// The directory that holds the root on the destination.
    pub(super) fn incoming_parent(&self) -> FileId {
        *self.incoming_parent.get().unwrap_or(&self.target.to_parent)
    }

    /// The root is the only entry whose directory differs between the two sides.
    fn as_incoming(&self, entry: &TreeEntry, root: FileId) -> TreeEntry {
        let mut entry = entry.clone();
        if entry.attr.file == root {
            entry.parent = self.incoming_parent();
        }
        entry
    }

    async fn wait_synced(&self, copies: &Arc<Copies>) -> Result<(), ApiError> {
        let mut tick = tokio::time::interval(TICK);
        let mut halted = false;
        loop {
            tick.tick().await;
            self.check_wishes()?;
            let wishes = self.wishes.borrow().clone();
            copies.steer(wishes.paused, wishes.limit);
            let progress = copies.progress();
            self.report.progress(&progress, &wishes);
            if let Some(error) = copies.failure() {
                return Err(error);
            }
            if progress.bytes_copied > 0 && !halted {
                halted = true;
                halt_at("move-while-copying");
            }
            if progress.all_synced {
                return Ok(());
            }
        }
    }

    fn check_wishes(&self) -> Result<(), ApiError> {
        if let Some(reason) = self.wishes.borrow().cancel.clone() {
            return Err(cancelled(reason));
        }
        match self.request.timeout_s {
            Some(limit) if self.started.elapsed() >= Duration::from_secs(limit) => {
                Err(cancelled(format!("not synced within {limit} s; cancelled, nothing was changed")))
            }
            _ => Ok(()),
        }
    }

    /// Wait for `work`, but no longer than until the move is cancelled or its time is over.
    async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<T, ApiError> {
        tokio::pin!(work);
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                _ = tick.tick() => self.check_wishes()?,
            }
        }
    }

    /// Before the commit: put everything back and leave nothing behind.
    async fn undo(&self, copies: &Copies) {
        copies.detach_all().await;
        self.undo_records().await;
    }

    async fn undo_records(&self) {
        let (from, to) = (&self.target.from, &self.target.to);
        let undo = async {
            // In this order: once the source has forgotten the move, its incoming tree is dead and
            // recovery may drop it.
            from.call(MoveAbort { id: self.id }).await?;
            to.call(IncomingDrop { id: self.id }).await?;
            let made: Vec<_> = self.made_parents.lock().drain(..).rev().collect();
            for (parent, name) in made {
                // Somebody else may have put something there meanwhile; then it stays.
                let _ = to.call(Rmdir { parent, name }).await;
            }
            Ok::<(), CallError>(())
        };
        match tokio::time::timeout(UNDO_PATIENCE, undo).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => warn!(id = %self.id, "undo: {e}; recovery goes on with it"),
            Err(_) => {
                warn!(id = %self.id, "undo waits for a datastore that is away; recovery goes on with it")
            }
        }
    }

    /// After the commit and the swap: free the source's space.
    async fn finish(&self) -> Result<(), ApiError> {
        self.report.enter(MovePhase::Finishing);
        halt_at("move-before-finish");
        if let Err(e) = self.target.from.call(MoveFinish { id: self.id }).await {
            // The move itself is done; only space on the source is still taken.
            warn!(id = %self.id, "free the source: {e}; recovery tries again");
        }
        halt_at("move-after-finish");
        Ok(())
    }
}
