//! The place where an open file's backing sits, and can be exchanged while the file is in use.
//!
//! All I/O of an open file goes through its one [`DiskSlot`]. A move attaches its mirror with
//! [`DiskSlot::swap_then`] while requests run, and ends with `hold`, `on_drained`, `swap`,
//! `release`. Each request is submitted exactly once, to the backing that sits in the slot then.
//! The slot keeps no clock: whoever holds measures how long. No lock is held while a backing's
//! `submit`, a completion or a waiter runs.

mod core;

use std::sync::Arc;

use parking_lot::Mutex;

use self::core::{Arrival, Installation, SlotCore};
use crate::{Completion, Disk, DiskError, Request, SharedDisk};

type Waiter = Box<dyn FnOnce() + Send>;
type Held = (Request, Completion);
type Shared = Mutex<SlotCore<SharedDisk, Held, Waiter>>;

/// A disk whose backing can be exchanged. See the module's comment.
pub struct DiskSlot {
    shared: Arc<Shared>,
}

impl DiskSlot {
    /// A slot that passes everything to `backing`.
    pub fn new(backing: SharedDisk) -> DiskSlot {
        DiskSlot { shared: Arc::new(Mutex::new(SlotCore::new(backing))) }
    }

    /// What sits in the slot now.
    pub fn backing(&self) -> SharedDisk {
        self.shared.lock().backing().clone()
    }

    /// Requests that were submitted and have not been answered, to this or an earlier backing.
    pub fn in_flight(&self) -> u64 {
        self.shared.lock().in_flight()
    }

    /// Whether new requests are being kept waiting.
    pub fn is_holding(&self) -> bool {
        self.shared.lock().holding()
    }

    /// New requests wait from now on; those in flight go on. Holding twice is holding once.
    pub fn hold(&self) {
        self.shared.lock().hold();
    }

    /// Calls `callback` once, when no request is in flight to any backing: at once if that is so
    /// now, else from the thread that answers the last one. Without [`DiskSlot::hold`] that
    /// moment may never come.
    pub fn on_drained(&self, callback: impl FnOnce() + Send + 'static) {
        let due = self.shared.lock().on_drained(Box::new(callback));
        due.into_iter().for_each(|waiter| waiter());
    }

    /// Puts `new` in the slot and returns what was there. New requests go to `new`; those in
    /// flight to the old one go on.
    pub fn swap(&self, new: SharedDisk) -> SharedDisk {
        self.shared.lock().swap(new, None).0
    }

    /// Like [`DiskSlot::swap`]; calls `on_old_drained` once, when the requests that were in
    /// flight to the old backing have all been answered.
    pub fn swap_then(&self, new: SharedDisk, on_old_drained: impl FnOnce() + Send + 'static) -> SharedDisk {
        let (old, due) = self.shared.lock().swap(new, Some(Box::new(on_old_drained)));
        due.into_iter().for_each(|waiter| waiter());
        old
    }

    /// Submits the requests that waited, in order, to the current backing, and lets new ones pass.
    pub fn release(&self) {
        let (backing, installation, held) = self.shared.lock().release();
        for request in held {
            submit_to(&self.shared, &backing, installation, request);
        }
    }

    /// Ends with [`DiskError::Closed`] what waits and whatever arrives from now on. Requests in
    /// flight end as their backing ends them.
    pub fn close(&self) {
        let held = self.shared.lock().close();
        for (_, done) in held {
            done(Err(DiskError::Closed));
        }
    }
}

impl Disk for DiskSlot {
    fn submit(&self, request: Request, done: Completion) {
        // The guard must be gone before the backing is called.
        let arrival = self.shared.lock().arrive((request, done));
        match arrival {
            Arrival::Submit(backing, installation, request) => {
                submit_to(&self.shared, &backing, installation, request);
            }
            Arrival::Held => {}
            Arrival::Refused((_, done)) => done(Err(DiskError::Closed)),
        }
    }

    fn describe(&self) -> String {
        self.backing().describe()
    }
}

fn submit_to(shared: &Arc<Shared>, backing: &SharedDisk, installation: Installation, (request, done): Held) {
    let shared = shared.clone();
    backing.submit(
        request,
        Box::new(move |result| {
            // Answered first: "drained" promises that nobody still waits for an answer.
            done(result);
            let due = shared.lock().finished(installation);
            due.into_iter().for_each(|waiter| waiter());
        }),
    );
}
