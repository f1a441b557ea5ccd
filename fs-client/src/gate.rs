//! The gate that names pass through, so that a tree can be kept still while it changes datastores.
//!
//! Every operation on names or attributes enters the gate with the nodes that it concerns and holds
//! a [`Ticket`] until it is done. A [`MovingSet`] counts what passes and changes it, takes new
//! children in, and on hold lets nothing pass that concerns it until it is released. Operations
//! wait without a thread. While no set exists an operation costs three atomic instructions.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use proto::FileId;
use tokio::sync::Notify;

/// The gate of a host.
#[derive(Clone, Default)]
pub struct Gate {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// How many sets there are. Written before `passing` is read and the other way round on
    /// entering, so that an operation is seen by a new set or sees it.
    sets: AtomicUsize,
    /// Operations that entered while there was no set.
    passing: AtomicU64,
    table: Mutex<Table>,
    left: Notify,
    released: Notify,
}

#[derive(Default)]
struct Table {
    sets: BTreeMap<u64, Set>,
    /// Operations that entered while there was a set, with what they concern: a node may join a
    /// set while an operation on it is under way.
    inside: BTreeMap<u64, Vec<FileId>>,
    /// The last number given to a set or an operation.
    born: u64,
}

#[derive(Default)]
struct Set {
    ids: HashSet<FileId>,
    held: bool,
    changes: u64,
    joined: Vec<FileId>,
}

impl Set {
    fn concerns(&self, ids: &[FileId]) -> bool {
        ids.iter().any(|id| self.ids.contains(id))
    }
}

impl Gate {
    /// A new, empty set of nodes that are on the move.
    pub fn moving_set(&self) -> MovingSet {
        let mut table = self.shared.table.lock();
        let key = table.next_number();
        table.sets.insert(key, Set::default());
        self.shared.sets.fetch_add(1, Ordering::SeqCst);
        MovingSet { shared: self.shared.clone(), key }
    }

    /// Enter with the nodes that an operation concerns; waits while one of them is held still.
    pub(crate) async fn enter(&self, ids: &[FileId]) -> Ticket {
        let shared = &self.shared;
        shared.passing.fetch_add(1, Ordering::SeqCst);
        if shared.sets.load(Ordering::SeqCst) == 0 {
            return Ticket { shared: shared.clone(), inside: None };
        }
        shared.leave_passing();
        loop {
            let released = shared.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            if let Some(inside) = shared.table.lock().try_enter(ids) {
                return Ticket { shared: shared.clone(), inside: Some(inside) };
            }
            released.await;
        }
    }

    /// Whether one of the two nodes is in a set that the other is not in.
    pub(crate) fn divides(&self, a: FileId, b: FileId) -> bool {
        self.shared.sets.load(Ordering::SeqCst) > 0
            && self.shared.table.lock().sets.values().any(|set| set.ids.contains(&a) != set.ids.contains(&b))
    }

    /// Whether there is any set at all.
    pub(crate) fn is_watched(&self) -> bool {
        self.shared.sets.load(Ordering::SeqCst) > 0
    }
}

impl Table {
    fn next_number(&mut self) -> u64 {
        self.born += 1;
        self.born
    }

    /// The number of the operation, which is inside now; none when what it concerns is on hold.
    fn try_enter(&mut self, ids: &[FileId]) -> Option<u64> {
        if self.sets.values().any(|set| set.held && set.concerns(ids)) {
            return None;
        }
        let number = self.next_number();
        self.inside.insert(number, ids.to_vec());
        Some(number)
    }
}

impl Shared {
    fn leave_passing(&self) {
        self.passing.fetch_sub(1, Ordering::SeqCst);
        if self.sets.load(Ordering::SeqCst) > 0 {
            self.left.notify_waiters();
        }
    }
}

/// Permission to do one operation; held until it is done.
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    /// Its number; none when it entered while there was no set.
    inside: Option<u64>,
}

impl Ticket {
    /// The operation changed something about `ids`, and `born` came to be below one of them.
    pub fn changed(&self, ids: &[FileId], born: &[FileId]) {
        if self.shared.sets.load(Ordering::SeqCst) == 0 {
            return;
        }
        // By what is in the sets now, not on entering: a set may have come up meanwhile.
        let mut table = self.shared.table.lock();
        for set in table.sets.values_mut().filter(|set| set.concerns(ids)) {
            set.changes += 1;
            for id in born {
                if set.ids.insert(*id) {
                    set.joined.push(*id);
                }
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some(number) = self.inside else { return self.shared.leave_passing() };
        self.shared.table.lock().inside.remove(&number);
        self.shared.left.notify_waiters();
    }
}

/// Nodes that are on the move. Dropping it lifts everything.
pub struct MovingSet {
    shared: Arc<Shared>,
    key: u64,
}

impl MovingSet {
    fn with<T>(&self, act: impl FnOnce(&mut Set) -> T) -> T {
        act(self.shared.table.lock().sets.get_mut(&self.key).expect("a set lives as long as its handle"))
    }

    /// Take nodes in.
    pub fn insert(&self, ids: impl IntoIterator<Item = FileId>) {
        self.with(|set| set.ids.extend(ids));
    }

    /// Let a node go.
    pub fn remove(&self, id: FileId) {
        self.with(|set| set.ids.remove(&id));
    }

    /// Whether a node is in it.
    pub fn contains(&self, id: FileId) -> bool {
        self.with(|set| set.ids.contains(&id))
    }

    /// Changes of names and attributes of its nodes that have gone through so far.
    pub fn changes(&self) -> u64 {
        self.with(|set| set.changes)
    }

    /// Nodes that came to be below its nodes, or into it, since this was asked last.
    pub fn new_ids(&self) -> Vec<FileId> {
        self.with(|set| std::mem::take(&mut set.joined))
    }

    /// From now on operations that concern its nodes wait.
    pub fn hold(&self) {
        self.with(|set| set.held = true);
    }

    /// Wait until no operation that could concern its nodes is under way. Without
    /// [`MovingSet::hold`] that moment may never come.
    pub async fn drained(&self) {
        loop {
            let left = self.shared.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if self.shared.passing.load(Ordering::SeqCst) == 0 && !self.is_entered() {
                return;
            }
            left.await;
        }
    }

    fn is_entered(&self) -> bool {
        let table = self.shared.table.lock();
        let set = table.sets.get(&self.key).expect("a set lives as long as its handle");
        table.inside.values().any(|ids| set.concerns(ids))
    }

    /// Let operations pass again.
    pub fn release(&self) {
        self.with(|set| set.held = false);
        self.shared.released.notify_waiters();
    }
}

impl Drop for MovingSet {
    fn drop(&mut self) {
        self.shared.table.lock().sets.remove(&self.key);
        self.shared.sets.fetch_sub(1, Ordering::SeqCst);
        self.shared.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn ids(numbers: &[u64]) -> Vec<FileId> {
        numbers.iter().copied().map(FileId).collect()
    }

    fn enter(gate: &Gate, numbers: &[u64]) -> Option<Ticket> {
        gate.enter(&ids(numbers)).now_or_never()
    }

    #[test]
    fn held_nodes_wait_and_others_pass() {
        let gate = Gate::default();
        let set = gate.moving_set();
        set.insert(ids(&[5, 6]));
        set.hold();
        assert!(enter(&gate, &[7]).is_some());
        let operation = [FileId(7), FileId(6)];
        let mut waiting = Box::pin(gate.enter(&operation));
        assert!(waiting.as_mut().now_or_never().is_none());
        set.release();
        assert!(waiting.now_or_never().is_some());
    }

    #[test]
    fn drained_waits_for_those_inside_and_for_those_from_before_the_set() {
        let gate = Gate::default();
        let from_before = enter(&gate, &[5]).unwrap();
        let set = gate.moving_set();
        set.insert(ids(&[5]));
        let inside = enter(&gate, &[5]).unwrap();
        let elsewhere = enter(&gate, &[9]).unwrap();
        let joins_later = enter(&gate, &[6]).unwrap();
        set.insert(ids(&[6]));
        set.hold();
        let mut drained = Box::pin(set.drained());
        assert!(drained.as_mut().now_or_never().is_none());
        drop(inside);
        assert!(drained.as_mut().now_or_never().is_none(), "the one from before the set is still under way");
        drop(from_before);
        assert!(drained.as_mut().now_or_never().is_none(), "one that entered before its node was in the set");
        drop(joins_later);
        assert!(drained.as_mut().now_or_never().is_some());
        drop(elsewhere);
    }

    #[test]
    fn changes_count_and_children_join() {
        let gate = Gate::default();
        let from_before = enter(&gate, &[5]).unwrap();
        let set = gate.moving_set();
        set.insert(ids(&[5]));
        from_before.changed(&ids(&[5]), &ids(&[50]));
        let other = enter(&gate, &[9]).unwrap();
        other.changed(&ids(&[9]), &ids(&[90]));
        assert_eq!((set.changes(), set.new_ids()), (1, ids(&[50])));
        assert!(set.contains(FileId(50)) && !set.contains(FileId(90)));
        assert!(set.new_ids().is_empty());
    }

    #[test]
    fn a_dropped_set_lifts_everything() {
        let gate = Gate::default();
        let set = gate.moving_set();
        set.insert(ids(&[5]));
        set.hold();
        assert!(gate.divides(FileId(5), FileId(6)) && !gate.divides(FileId(5), FileId(5)));
        let operation = [FileId(5)];
        let mut waiting = Box::pin(gate.enter(&operation));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(set);
        let ticket = waiting.now_or_never().expect("passes");
        drop(ticket);
        assert!(!gate.divides(FileId(5), FileId(6)));
        assert_eq!(gate.shared.passing.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_passes_a_held_and_drained_set() {
        let gate = Gate::default();
        let (inside, passed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let workers: Vec<_> = (0..4u64)
            .map(|n| {
                let (gate, inside, passed, stop) =
                    (gate.clone(), inside.clone(), passed.clone(), stop.clone());
                tokio::spawn(async move {
                    while !stop.load(Ordering::SeqCst) {
                        let ticket = gate.enter(&[FileId(5), FileId(100 + n)]).await;
                        inside.fetch_add(1, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                        inside.fetch_sub(1, Ordering::SeqCst);
                        passed.fetch_add(1, Ordering::SeqCst);
                        drop(ticket);
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for _ in 0..100 {
            let set = gate.moving_set();
            set.insert(ids(&[5]));
            tokio::task::yield_now().await;
            set.hold();
            set.drained().await;
            for _ in 0..20 {
                assert_eq!(inside.load(Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
            }
            let before = passed.load(Ordering::SeqCst);
            set.release();
            while passed.load(Ordering::SeqCst) == before {
                tokio::task::yield_now().await;
            }
        }
        stop.store(true, Ordering::SeqCst);
        for worker in workers {
            worker.await.unwrap();
        }
    }
}
