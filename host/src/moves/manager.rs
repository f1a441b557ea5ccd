//! The moves of this host: starts them, lists them, passes on what administrators ask of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proto::MoveId;
use proto::control::{ApiError, MovePlan, MoveRequest, MoveStatus};
use tokio::sync::watch;

use super::answer::{conflict, not_found};
use super::job::{Job, Surroundings, Wishes};
use super::recovery::recover;
use super::target::{Target, VmLocator, check_tree, list_tree, resolve};
use super::tree::Manifest;

/// Finished moves that stay listed.
const HISTORY: usize = 200;
/// How often moves left behind by an earlier run are looked at again.
const RECOVERY_PERIOD: Duration = Duration::from_secs(2);

/// All moves of this dshost.
pub struct MoveManager {
    host: String,
    around: Arc<Surroundings>,
    vms: Box<VmLocator>,
    jobs: Mutex<BTreeMap<u64, Arc<Job>>>,
    /// Held by whoever settles moves that were left behind.
    recovering: tokio::sync::Mutex<()>,
}

impl MoveManager {
    /// The manager of `host`'s moves; `vms` finds the directory of a VM.
    pub fn new(host: String, around: Surroundings, vms: Box<VmLocator>) -> Arc<Self> {
        around.files.set_rename_hook(around.armed.clone());
        Arc::new(Self {
            host,
            around: Arc::new(around),
            vms,
            jobs: Mutex::default(),
            recovering: Default::default(),
        })
    }

    /// Check a request and say what it would do; changes nothing.
    pub async fn plan(&self, request: &MoveRequest) -> Result<MovePlan, ApiError> {
        let (target, manifest, free) = self.check(request).await?;
        Ok(MovePlan {
            from: target.source_label(),
            to: target.destination_label(),
            entries: manifest.entries().count() as u64,
            bytes: manifest.allocated(),
            free,
        })
    }

    /// Start a move: refused at once when a check says no, otherwise it goes on by itself.
    pub async fn start(&self, request: MoveRequest) -> Result<MoveStatus, ApiError> {
        // What an earlier run left behind must not stand in the way.
        self.recover_once().await;
        let (target, manifest, _) = self.check(&request).await?;
        let job = Job::new(MoveId::new(), request, target, self.around.clone());
        self.enlist(job.clone());
        let begun = job.begin(&manifest).await;
        if let Err(error) = begun {
            job.report.fail(error.clone());
            return Err(error);
        }
        tokio::spawn(job.clone().run(manifest));
        Ok(job.report.now())
    }

    async fn check(&self, request: &MoveRequest) -> Result<(Target, Manifest, u64), ApiError> {
        let target = resolve(&self.around.files, &*self.vms, request).await?;
        let manifest = list_tree(&target.from, target.root.file)
            .await
            .map_err(|e| super::answer::check_failed(&format!("list {}", target.source_label()), &e))?;
        let free = check_tree(&target, &manifest).await?;
        Ok((target, manifest, free))
    }

    fn enlist(&self, job: Arc<Job>) {
        let mut jobs = self.jobs.lock();
        let next = jobs.last_key_value().map_or(0, |(n, _)| n + 1);
        jobs.insert(next, job);
        let ended: Vec<u64> =
            jobs.iter().filter(|(_, j)| j.report.now().phase.is_final()).map(|(n, _)| *n).collect();
        for number in ended.iter().take(ended.len().saturating_sub(HISTORY)) {
            jobs.remove(number);
        }
    }

    /// Moves running and finished, oldest first.
    pub fn list(&self) -> Vec<MoveStatus> {
        self.jobs.lock().values().map(|job| job.report.now()).collect()
    }

    /// One move.
    pub fn get(&self, id: MoveId) -> Option<MoveStatus> {
        self.job(id).map(|job| job.report.now())
    }

    /// Follow a move.
    pub fn watch(&self, id: MoveId) -> Option<watch::Receiver<MoveStatus>> {
        self.job(id).map(|job| job.report.watch())
    }

    /// Cancel a move that has not committed; answers when it has been undone, or has committed after all.
    pub async fn cancel(&self, id: MoveId) -> Result<MoveStatus, ApiError> {
        let job = self.running(id)?;
        wish(&job, |w| w.cancel = Some("cancelled on request; nothing was changed".into()));
        let mut status = job.report.watch();
        let last = status
            .wait_for(|s| s.phase.is_final())
            .await
            .map(|s| s.clone())
            .unwrap_or_else(|_| job.report.now());
        match last.phase {
            proto::control::MovePhase::Done => Err(conflict(format!("{} had already committed", last.what))),
            _ => Ok(last),
        }
    }

    /// Stop copying until resumed. Writes of the guest go on.
    pub async fn pause(&self, id: MoveId) -> Result<MoveStatus, ApiError> {
        let job = self.running(id)?;
        wish(&job, |w| w.paused = true);
        Ok(job.report.now())
    }

    /// Go on copying.
    pub async fn resume(&self, id: MoveId) -> Result<MoveStatus, ApiError> {
        let job = self.running(id)?;
        wish(&job, |w| w.paused = false);
        Ok(job.report.now())
    }

    /// Change the copy limit, in bytes per second.
    pub async fn set_limit(&self, id: MoveId, limit: Option<u64>) -> Result<MoveStatus, ApiError> {
        let job = self.running(id)?;
        wish(&job, |w| w.limit = limit);
        Ok(job.report.now())
    }

    /// Cancel what has not committed and wait for the clean-up; for an orderly stop.
    pub async fn shutdown(&self) {
        let running: Vec<MoveId> = self.list().iter().filter(|s| !s.phase.is_final()).map(|s| s.id).collect();
        for id in running {
            // Either cancelled or committed: both are ends.
            let _ = self.cancel(id).await;
        }
    }

    /// Settle moves that an earlier run of this dshost left behind. One pass; says how many are left.
    pub async fn recover_once(&self) -> usize {
        let _one_at_a_time = self.recovering.lock().await;
        // A move whose undoing could not reach a datastore counts as left behind, too.
        let running: BTreeSet<MoveId> =
            self.list().iter().filter(|s| !s.phase.is_final()).map(|s| s.id).collect();
        recover(&self.around.files, &self.host, &running).await
    }

    /// Settle moves left behind as their datastores come back, for ever.
    pub async fn keep_recovering(self: Arc<Self>) {
        loop {
            tokio::time::sleep(RECOVERY_PERIOD).await;
            self.recover_once().await;
        }
    }

    fn job(&self, id: MoveId) -> Option<Arc<Job>> {
        self.jobs.lock().values().find(|job| job.id == id).cloned()
    }

    fn running(&self, id: MoveId) -> Result<Arc<Job>, ApiError> {
        let job = self
            .job(id)
            .ok_or_else(|| not_found(format!("no move {id}"), "`dsctl move list` shows the moves"))?;
        let status = job.report.now();
        if status.phase.is_final() {
            return Err(conflict(format!("the move of {} is over ({:?})", status.what, status.phase)));
        }
        Ok(job)
    }
}

fn wish(job: &Job, change: impl FnOnce(&mut Wishes)) {
    job.wishes.send_modify(change);
}
