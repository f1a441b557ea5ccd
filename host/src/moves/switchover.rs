//! The switchover: from held I/O to the commit, in the handler of a rename(2).
//!
//! The kernel calls it while it holds the locks of both directories and of what is renamed, so no
//! namespace change of the root can be under way. Before the commit every failure releases the I/O
//! to the source and the rename answers EAGAIN; after it there is only forward.

use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fs_client::{CallError, MovingSet};
use parking_lot::Mutex;
use proto::control::{ApiError, MovePhase};
use proto::ops::moves::{IncomingPublish, IncomingSeal, MoveCommit};
use proto::ops::names::{Name, TreeEntry};
use proto::{FileId, Generation, WireError};
use tokio::process::Command;
use tracing::{error, info};

use super::answer::{failed, step_failed};
use super::copies::Copies;
use super::halt::halt_at;
use super::job::Job;
use super::target::list_tree;
use super::tree::Manifest;

/// How long guest I/O may be held before the commit; then the switchover is put off.
const HOLD_LIMIT: Duration = Duration::from_secs(2);
/// Most bytes, and files, that may be copied while guest I/O is held, because they came to be after
/// the tree was listed.
const LATE_BYTES: u64 = 4 << 20;
const LATE_FILES: usize = 64;
/// Pause between attempts at a step that must succeed after the commit.
const FORWARD_RETRY: Duration = Duration::from_millis(200);
const EAGAIN: i32 = 11;

/// What a switchover works on.
#[derive(Clone)]
pub struct SwitchContext {
    /// Gate of the tree's names.
    pub set: Arc<MovingSet>,
    /// The mirrored files.
    pub copies: Arc<Copies>,
    /// The tree as the destination knows it.
    pub told: Arc<Mutex<Manifest>>,
}

/// How an attempt at the switchover ended, when the move can go on.
pub enum Attempt {
    /// The destination is live.
    Committed,
    /// Nothing changed; try again.
    Again(String),
}

type Outcome = Result<Attempt, ApiError>;

/// Regular files among what has arrived in the tree.
fn late_files(now: &Manifest, arrived: &[FileId]) -> Vec<TreeEntry> {
    let files = now.regular_files();
    arrived.iter().filter_map(|id| files.get(id).map(|e| TreeEntry::clone(e))).collect()
}

impl Job {
    /// Have the kernel rename the root; the handler runs [`Job::switch`].
    pub(super) async fn attempt_switch(self: &Arc<Self>, context: SwitchContext) -> Outcome {
        self.report.enter(MovePhase::Switchover);
        let outcome: Arc<Mutex<Option<Outcome>>> = Arc::default();
        let handler = {
            let (job, outcome, runtime) = (self.clone(), outcome.clone(), tokio::runtime::Handle::current());
            move |answer: Box<dyn FnOnce(Result<(), i32>) + Send>| {
                let (job, outcome, context) = (job.clone(), outcome.clone(), context.clone());
                runtime.spawn(async move {
                    let result = job.switch(&context).await;
                    let renamed = matches!(result, Ok(Attempt::Committed));
                    *outcome.lock() = Some(result);
                    answer(if renamed { Ok(()) } else { Err(EAGAIN) });
                });
            }
        };
        let target = &self.target;
        let pair =
            (target.source_parent(), target.name().clone(), self.incoming_parent(), target.name().clone());
        let guard = self.around.armed.arm(pair, Arc::new(handler));
        let child = self.rename_in_child().await;
        drop(guard);
        // The handler has answered before the child could end; without an outcome it was never asked.
        match (outcome.lock().take(), child) {
            (Some(result), _) => result,
            (None, Ok(())) => Err(failed("the kernel renamed without asking", None)),
            (None, Err(words)) => Ok(Attempt::Again(words)),
        }
    }

    /// rename(2) in a child process: a dshost that is killed while its own thread waits for its own
    /// mount could never exit.
    async fn rename_in_child(&self) -> Result<(), String> {
        let output = Command::new("/proc/self/exe")
            .arg("rename-into-place")
            .arg(self.mounted(self.target.from.name()))
            .arg(self.mounted(self.target.to.name()))
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|e| format!("start the renaming process: {e}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("rename: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }

    fn mounted(&self, datastore: &str) -> PathBuf {
        let mut path = self.around.mount.join(datastore);
        path.extend(self.target.path.iter().map(|Name(bytes)| std::ffi::OsString::from_vec(bytes.clone())));
        path
    }

    async fn switch(&self, context: &SwitchContext) -> Outcome {
        let SwitchContext { set, copies, .. } = context;
        let held = Instant::now();
        copies.hold();
        set.hold();
        halt_at("move-after-hold");
        let prepared = match tokio::time::timeout(HOLD_LIMIT, self.prepare(context)).await {
            Ok(prepared) => prepared,
            Err(_) => Ok(Err(format!("I/O could not be drained within {} s", HOLD_LIMIT.as_secs()))),
        };
        let outcome = match prepared {
            Ok(Ok(())) => self.commit(context).await,
            Ok(Err(reason)) => Ok(Attempt::Again(reason)),
            Err(error) => Err(error),
        };
        copies.release();
        set.release();
        let pause = held.elapsed();
        if matches!(outcome, Ok(Attempt::Committed)) {
            self.report.paused_for(pause);
        }
        info!(id = %self.id, pause_us = pause.as_micros() as u64, "switchover");
        outcome
    }

    /// Drain, bring the tree's names up to date, flush. `Ok(Err(reason))`: not now.
    async fn prepare(&self, context: &SwitchContext) -> Result<Result<(), String>, ApiError> {
        let SwitchContext { set, copies, told } = context;
        copies.drained().await;
        set.drained().await;
        let step = |what: &str, e: &CallError| {
            step_failed(&format!("{what} {}", self.target.destination_label()), e)
        };
        let mut now = self.list_source().await?;
        let known = told.lock().clone();
        let difference = known.difference(&now);
        difference.departed.iter().for_each(|id| copies.let_go(*id));
        if !copies.ready() {
            return Ok(Err("writes to the destination failed meanwhile".into()));
        }
        let late = late_files(&now, &difference.arrived);
        if late.iter().map(|e| e.attr.size).sum::<u64>() > LATE_BYTES || late.len() > LATE_FILES {
            return Ok(Err("files came".into()));
        }
        if !late.is_empty() {
            for entry in &late {
                copies.add_held(entry).await?;
            }
            // With what was still in flight to them.
            now = self.list_source().await?;
        }
        *told.lock() = known.on_the_way_to(&now);
        self.tell(&known.difference(&now)).await.map_err(|e| step("bring up to date", &e))?;
        *told.lock() = now.clone();
        for entry in late_files(&now, &difference.arrived) {
            copies.copy_held(entry.attr.file, entry.attr.size).await?;
        }
        if let Err(e) = copies.flush_destinations().await {
            return Ok(Err(format!("flush {}: {e}", self.target.to.name())));
        }
        if !copies.ready() {
            return Ok(Err("a flush found writes missing on the destination".into()));
        }
        halt_at("move-after-flush");
        self.target.to.call(IncomingSeal { id: self.id }).await.map_err(|e| step("seal", &e))?;
        halt_at("move-after-seal");
        Ok(Ok(()))
    }

    async fn list_source(&self) -> Result<Manifest, ApiError> {
        list_tree(&self.target.from, self.target.root.file)
            .await
            .map_err(|e| step_failed(&format!("list {}", self.target.source_label()), &e))
    }

    /// The commit point and what must follow it.
    async fn commit(&self, context: &SwitchContext) -> Outcome {
        let record = loop {
            match self.target.from.call(MoveCommit { id: self.id }).await {
                Ok(record) => break record,
                // Its metadata store broke in the middle: only after its restart is it known
                // whether the record is durable, and until then nothing may go on.
                Err(e @ CallError::Wire(WireError::Failed { .. })) => {
                    error!(id = %self.id, "commit on {}: {e}; guest I/O waits", self.target.from.name());
                    tokio::time::sleep(FORWARD_RETRY).await;
                }
                Err(e) => return Err(step_failed(&format!("commit on {}", self.target.from.name()), &e)),
            }
        };
        self.committed.store(true, Ordering::SeqCst);
        halt_at("move-after-commit");
        self.publish(record.generation).await;
        halt_at("move-after-publish");
        context.copies.swap_to_destination();
        for entry in context.told.lock().entries() {
            if let Some(node) = self.around.files.node(entry.attr.file) {
                node.set_home(self.target.to.clone());
            }
        }
        halt_at("move-after-swap");
        Ok(Attempt::Committed)
    }

    /// Publishing can't be given up: the source has already let go.
    async fn publish(&self, generation: Generation) {
        while let Err(e) = self.target.to.call(IncomingPublish { id: self.id, generation }).await {
            error!(id = %self.id, "publish on {}: {e}; guest I/O waits", self.target.to.name());
            tokio::time::sleep(FORWARD_RETRY).await;
        }
    }
}
