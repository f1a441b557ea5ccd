//! Drives a [`MirrorCore`]: submits what it asks for to the two disks and reports the ends back.
//!
//! The core's outputs are done one after another, in order, by whichever thread comes first, and
//! never under the lock; others leave theirs in the queue. So a disk may complete a request inside
//! `submit`, a completion may submit the next request, and the stack stays flat.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::messages::{FailReason, GuestId, Input, Mutation, OpId, Outcome, Output, Phase, Side};
use super::transfer::{self, Chunk};
use super::{MirrorConfig, MirrorCore, Progress, timer};
use crate::{Bitmap, BitmapError, Completion, Disk, DiskResult, Request, Response, SharedDisk};

/// A guest request that has not been answered.
struct Guest {
    request: Request,
    done: Completion,
    result: Option<DiskResult>,
    /// Whoever waits keeps the mirror alive, also when it was swapped away and forgotten.
    _mirror: Arc<Mirror>,
}

struct State {
    core: MirrorCore,
    guests: HashMap<GuestId, Guest>,
    next_guest: u64,
    outputs: VecDeque<Output>,
    /// A thread is doing outputs.
    busy: bool,
    /// When the core wants to be woken.
    wake_at: Option<u64>,
    failure: Option<FailReason>,
}

type PhaseListener = Box<dyn Fn(Phase) + Send + Sync>;

/// A source disk in use whose contents are being carried to a destination.
///
/// Put it into the slot of the source, call [`Mirror::start`] when the requests from before are
/// done, and wait for [`Phase::Synced`]. To switch: hold and drain the slot, ask
/// [`Mirror::ready_to_switch`], flush the destination, ask again, commit, call
/// [`Mirror::switched`], swap the slot, release. To call it off: [`Mirror::cancel`], swap back.
pub struct Mirror {
    source: SharedDisk,
    destination: SharedDisk,
    state: Mutex<State>,
    switched: AtomicBool,
    on_phase: OnceLock<PhaseListener>,
    began: Instant,
    me: Weak<Mirror>,
}

impl Mirror {
    /// A mirror that passes requests on and records them, but copies nothing before
    /// [`Mirror::start`]. The destination must be empty (size 0, nothing allocated). `bitmap` is
    /// clean, of any length, and gives the granularity.
    pub fn new(
        source: SharedDisk,
        destination: SharedDisk,
        bitmap: Bitmap,
        config: MirrorConfig,
    ) -> Result<Arc<Mirror>, BitmapError> {
        let state = State {
            core: MirrorCore::new(bitmap, config)?,
            guests: HashMap::new(),
            next_guest: 0,
            outputs: VecDeque::new(),
            busy: false,
            wake_at: None,
            failure: None,
        };
        Ok(Arc::new_cyclic(|me| Mirror {
            source,
            destination,
            state: Mutex::new(state),
            switched: AtomicBool::new(false),
            on_phase: OnceLock::new(),
            began: Instant::now(),
            me: me.clone(),
        }))
    }

    /// Calls `listener` with each new phase, in order, on any thread. It must not block. Only the
    /// first listener counts.
    pub fn on_phase(&self, listener: impl Fn(Phase) + Send + Sync + 'static) {
        let _ = self.on_phase.set(Box::new(listener));
    }

    /// Begin to copy. `size` is the source's in bytes, asked for after the mirror was put into the
    /// slot and what was in flight before has ended ([`crate::DiskSlot::swap_then`]).
    pub fn start(&self, size: u64) {
        self.input(Input::Start { size });
    }

    /// Start no copies until [`Mirror::resume`].
    pub fn pause(&self) {
        self.input(Input::Pause);
    }

    /// The way back from [`Mirror::pause`].
    pub fn resume(&self) {
        self.input(Input::Resume);
    }

    /// Copy at most so many bytes per second.
    pub fn set_limit(&self, limit: Option<u64>) {
        self.input(Input::SetLimit(limit));
    }

    /// Give up: requests go to the source alone from now on, also those that wait.
    pub fn cancel(&self) {
        self.input(Input::Cancel);
    }

    /// The destination may have lost anything that it was sent: start over.
    pub fn destination_lost(&self) {
        self.input(Input::DestinationLost);
    }

    /// The move is committed: what still arrives goes to the destination.
    pub fn switched(&self) {
        self.switched.store(true, Ordering::SeqCst);
        self.input(Input::Switched);
    }

    /// How it is getting on.
    pub fn progress(&self) -> Progress {
        let now = self.now();
        self.state.lock().core.progress(now)
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.state.lock().core.phase()
    }

    /// Whether both disks are the same now and nothing is in flight. It stays so only while the
    /// slot in front is held.
    pub fn ready_to_switch(&self) -> bool {
        self.state.lock().core.ready_to_switch()
    }

    /// Why it gave up, if it did.
    pub fn failure(&self) -> Option<FailReason> {
        self.state.lock().failure.clone()
    }

    /// Where the data comes from.
    pub fn source(&self) -> SharedDisk {
        self.source.clone()
    }

    /// Where it goes.
    pub fn destination(&self) -> SharedDisk {
        self.destination.clone()
    }

    /// Nanoseconds on the core's clock.
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn input(&self, input: Input) {
        let mut state = self.state.lock();
        self.step(&mut state, input);
        if std::mem::replace(&mut state.busy, true) {
            return; // The thread that is busy does these outputs as well.
        }
        drop(state);
        self.do_outputs();
    }

    fn step(&self, state: &mut State, input: Input) {
        let mut outputs = Vec::new();
        state.core.step(self.now(), input, &mut outputs);
        state.outputs.extend(outputs);
    }

    fn do_outputs(&self) {
        loop {
            let outputs = {
                let mut state = self.state.lock();
                if state.outputs.is_empty() {
                    state.busy = false;
                    return;
                }
                std::mem::take(&mut state.outputs)
            };
            for output in outputs {
                self.perform(output);
            }
        }
    }

    fn perform(&self, output: Output) {
        match output {
            Output::Guest { op, guest, side, answers } => self.pass_on(op, guest, side, answers),
            Output::Answer { guest } => {
                let guest = self.state.lock().guests.remove(&guest);
                let Guest { done, result, .. } = guest.expect("the core answers each guest once");
                done(result.expect("the core answers after the op that has the answer"));
            }
            Output::Copy { op, offset, len, read_len, fresh } => {
                let done = self.report_outcome(op);
                let chunk = Chunk { offset, len, read_len, fresh };
                transfer::copy(&self.source, &self.destination, chunk, done);
            }
            Output::Map { op, offset, len } => {
                self.source.submit(Request::Map { offset, len }, self.report(op, Side::Source));
            }
            Output::FlushDestination { op } => {
                self.destination.submit(Request::Flush, self.report(op, Side::Destination));
            }
            Output::ResizeDestination { op, size } => {
                self.destination.submit(Request::Resize { size }, self.report(op, Side::Destination));
            }
            Output::WakeAt(at) => {
                self.state.lock().wake_at = Some(at);
                timer::wake_at(self.began + Duration::from_nanos(at), self.me.clone());
            }
            Output::Phase(phase) => {
                tracing::debug!(disk = self.source.describe(), ?phase, "mirror phase");
                if let Some(listener) = self.on_phase.get() {
                    listener(phase);
                }
            }
            Output::Failed(reason) => {
                tracing::warn!(disk = self.source.describe(), %reason, "mirror gave up");
                self.state.lock().failure = Some(reason);
            }
        }
    }

    fn report_outcome(&self, op: OpId) -> transfer::Done {
        let me = self.me.clone();
        Box::new(move |outcome| {
            if let Some(mirror) = me.upgrade() {
                mirror.input(Input::Done { op, outcome });
            }
        })
    }

    /// A completion that tells the core how `op` of its own ended.
    fn report(&self, op: OpId, side: Side) -> Completion {
        let done = self.report_outcome(op);
        Box::new(move |result| {
            done(match result {
                Ok(Response::Extents { extents, upto }) => Outcome::Mapped { extents, upto },
                Ok(_) => Outcome::Done,
                Err(error) => Outcome::Failed { side, error },
            });
        })
    }

    fn pass_on(&self, op: OpId, guest: GuestId, side: Side, answers: bool) {
        let request = self.state.lock().guests.get(&guest).map(|guest| guest.request.clone());
        let request = request.expect("a guest's ops are issued before its answer, in order");
        let (request, disk) = match side {
            Side::Destination if !answers => (for_destination(request), &self.destination),
            Side::Destination => (request, &self.destination),
            Side::Source => (request, &self.source),
        };
        let me = self.me.clone();
        disk.submit(
            request,
            Box::new(move |result| {
                let Some(mirror) = me.upgrade() else { return };
                let outcome = match &result {
                    Ok(_) => Outcome::Done,
                    Err(error) => Outcome::Failed { side, error: error.clone() },
                };
                if answers && let Some(guest) = mirror.state.lock().guests.get_mut(&guest) {
                    guest.result = Some(result);
                }
                mirror.input(Input::Done { op, outcome });
            }),
        );
    }
}

/// What the destination gets of a guest's request: durability is the source's matter until the
/// switch, which flushes the destination first.
fn for_destination(request: Request) -> Request {
    match request {
        Request::Write { offset, data, digest, .. } => Request::Write { offset, data, digest, fua: false },
        other => other,
    }
}

impl timer::Wake for Mirror {
    fn wake(&self) {
        let mut state = self.state.lock();
        // Alarms are never taken back; only the last one counts.
        if state.wake_at.is_some_and(|at| at <= self.now()) {
            state.wake_at = None;
            drop(state);
            self.input(Input::Tick);
        }
    }
}

impl Disk for Mirror {
    fn submit(&self, request: Request, done: Completion) {
        let Some(mutation) = Mutation::of(&request) else {
            let switched = self.switched.load(Ordering::SeqCst);
            let disk = if switched { &self.destination } else { &self.source };
            return disk.submit(request, done);
        };
        let mirror = self.me.upgrade().expect("whoever calls holds it");
        let mut state = self.state.lock();
        let guest = GuestId(state.next_guest);
        state.next_guest += 1;
        state.guests.insert(guest, Guest { request, done, result: None, _mirror: mirror });
        self.step(&mut state, Input::Guest { guest, mutation });
        if std::mem::replace(&mut state.busy, true) {
            return;
        }
        drop(state);
        self.do_outputs();
    }

    fn describe(&self) -> String {
        self.source.describe()
    }
}
