//! The decisions of a [`super::DiskSlot`], without locks, threads or I/O.
//!
//! Each backing that is put in is an *installation* with a number of its own and a count of the
//! requests that are in flight to it, so that the end of the old backing's requests can be told
//! from those of the new one. Generic over what a backing (`B`), a held request (`T`) and a
//! waiter (`W`) are.

/// Counts the backings that a slot has had; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Installation(u64);

/// What to do with a request that arrived.
#[derive(Debug)]
pub(super) enum Arrival<B, T> {
    /// Submit it to this backing and report its end with this installation.
    Submit(B, Installation, T),
    /// It is kept until `release` or `close`.
    Held,
    /// The slot is closed.
    Refused(T),
}

/// A backing that was swapped away and still has requests in flight.
#[derive(Debug)]
struct Leaving<W> {
    installation: Installation,
    in_flight: u64,
    waiters: Vec<W>,
}

#[derive(Debug)]
enum Gate {
    Open,
    Holding,
    Closed,
}

/// Invariants: a `Leaving` has requests in flight; nothing is held unless the gate is `Holding`.
#[derive(Debug)]
pub(super) struct SlotCore<B, T, W> {
    backing: B,
    installation: Installation,
    in_flight: u64,
    leaving: Vec<Leaving<W>>,
    gate: Gate,
    held: Vec<T>,
    drain_waiters: Vec<W>,
}

impl<B: Clone, T, W> SlotCore<B, T, W> {
    pub(super) fn new(backing: B) -> Self {
        SlotCore {
            backing,
            installation: Installation(0),
            in_flight: 0,
            leaving: Vec::new(),
            gate: Gate::Open,
            held: Vec::new(),
            drain_waiters: Vec::new(),
        }
    }

    pub(super) fn backing(&self) -> &B {
        &self.backing
    }

    /// Requests submitted and not finished, to any backing.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight + self.leaving.iter().map(|leaving| leaving.in_flight).sum::<u64>()
    }

    pub(super) fn holding(&self) -> bool {
        matches!(self.gate, Gate::Holding)
    }

    pub(super) fn arrive(&mut self, request: T) -> Arrival<B, T> {
        match self.gate {
            Gate::Open => {
                self.in_flight += 1;
                Arrival::Submit(self.backing.clone(), self.installation, request)
            }
            Gate::Holding => {
                self.held.push(request);
                Arrival::Held
            }
            Gate::Closed => Arrival::Refused(request),
        }
    }

    /// A submitted request ended. Returns the waiters whose time has come.
    pub(super) fn finished(&mut self, installation: Installation) -> Vec<W> {
        let mut due = Vec::new();
        if installation == self.installation {
            assert!(self.in_flight > 0, "a request of {installation:?} ended twice");
            self.in_flight -= 1;
        } else {
            let index = self.leaving.iter().position(|leaving| leaving.installation == installation);
            let index = index.expect("a leaving backing is kept until its last request ended");
            self.leaving[index].in_flight -= 1;
            if self.leaving[index].in_flight == 0 {
                due = self.leaving.swap_remove(index).waiters;
            }
        }
        if !self.drain_waiters.is_empty() && self.in_flight() == 0 {
            due.append(&mut self.drain_waiters);
        }
        due
    }

    /// New requests wait from now on. No effect on a slot that holds or is closed.
    pub(super) fn hold(&mut self) {
        if matches!(self.gate, Gate::Open) {
            self.gate = Gate::Holding;
        }
    }

    /// Gives `waiter` back when nothing is in flight.
    pub(super) fn on_drained(&mut self, waiter: W) -> Option<W> {
        if self.in_flight() == 0 {
            return Some(waiter);
        }
        self.drain_waiters.push(waiter);
        None
    }

    /// Puts `new` in. `waiter` is due when the old backing's requests have ended; it comes back
    /// when there are none.
    pub(super) fn swap(&mut self, new: B, waiter: Option<W>) -> (B, Option<W>) {
        let old = std::mem::replace(&mut self.backing, new);
        let installation = self.installation;
        self.installation = Installation(installation.0 + 1);
        let in_flight = std::mem::take(&mut self.in_flight);
        if in_flight == 0 {
            return (old, waiter);
        }
        self.leaving.push(Leaving { installation, in_flight, waiters: waiter.into_iter().collect() });
        (old, None)
    }

    /// Opens the gate. The returned requests count as in flight to the current backing.
    pub(super) fn release(&mut self) -> (B, Installation, Vec<T>) {
        if self.holding() {
            self.gate = Gate::Open;
        }
        let held = std::mem::take(&mut self.held);
        self.in_flight += held.len() as u64;
        (self.backing.clone(), self.installation, held)
    }

    /// Refuses everything from now on. Returns what was held.
    pub(super) fn close(&mut self) -> Vec<T> {
        self.gate = Gate::Closed;
        std::mem::take(&mut self.held)
    }
}
