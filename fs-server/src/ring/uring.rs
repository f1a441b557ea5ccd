//! io_uring: one ring a connection. The reader pushes entries and enters once; a thread reaps.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use io_uring::{IoUring, opcode, squeue, types};
use parking_lot::Mutex;

use super::{Done, Work};
use crate::store::DataFile;

const ENTRIES: u32 = 256;
/// The entry that ends the reaper.
const STOP: u64 = u64::MAX;
const EIO: i32 = 5;

struct Flight {
    file: Arc<DataFile>,
    done: Done,
    kind: Kind,
}

enum Kind {
    Read { offset: u64, data: Vec<u8>, filled: usize },
    Write { offset: u64, data: Vec<u8>, written: usize },
    Flush,
}

#[derive(Default)]
struct Flights {
    slots: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// Entries that found the submission queue full.
    waiting: Vec<usize>,
}

struct Shared {
    ring: IoUring,
    /// Guards the submission queue, too.
    flights: Mutex<Flights>,
    stopping: AtomicBool,
}

/// A ring and its reaper.
pub struct Uring {
    shared: Arc<Shared>,
}

impl Uring {
    /// Set up a ring.
    pub fn new() -> io::Result<Uring> {
        let ring = IoUring::builder().setup_clamp().build(ENTRIES)?;
        let shared = Arc::new(Shared { ring, flights: Mutex::default(), stopping: AtomicBool::new(false) });
        let reaper = shared.clone();
        std::thread::Builder::new().name("ring".into()).spawn(move || reaper.reap())?;
        Ok(Uring { shared })
    }

    /// Start work.
    pub fn submit(&self, file: Arc<DataFile>, work: Work, done: Done) {
        let kind = match work {
            Work::Read { offset, len } => Kind::Read { offset, data: vec![0; len as usize], filled: 0 },
            Work::Write { offset, data } => Kind::Write { offset, data, written: 0 },
            Work::Flush => Kind::Flush,
        };
        let mut flights = self.shared.flights.lock();
        let at = match flights.free.pop() {
            Some(at) => at,
            None => {
                flights.slots.push(None);
                flights.slots.len() - 1
            }
        };
        flights.slots[at] = Some(Flight { file, done, kind });
        self.shared.push(&mut flights, at);
        drop(flights);
        self.shared.enter();
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let flights = self.shared.flights.lock();
        // The reaper wakes up for this entry, finds `stopping`, and ends when nothing is in flight.
        self.shared.push_entry(&opcode::Nop::new().build().user_data(STOP));
        drop(flights);
        self.shared.enter();
    }
}

impl Shared {
    fn entry(flight: &mut Flight, at: usize) -> squeue::Entry {
        let fd = types::Fd(flight.file.file.as_raw_fd());
        let entry = match &mut flight.kind {
            Kind::Read { offset, data, filled } => {
                let rest = &mut data[*filled..];
                opcode::Read::new(fd, rest.as_mut_ptr(), rest.len() as u32)
                    .offset(*offset + *filled as u64)
                    .build()
            }
            Kind::Write { offset, data, written } => {
                let rest = &data[*written..];
                opcode::Write::new(fd, rest.as_ptr(), rest.len() as u32)
                    .offset(*offset + *written as u64)
                    .build()
            }
            Kind::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        };
        entry.user_data(at as u64)
    }

    /// Queue the flight in slot `at`; the caller holds the lock.
    fn push(&self, flights: &mut Flights, at: usize) {
        let Some(flight) = flights.slots[at].as_mut() else { return };
        let entry = Self::entry(flight, at);
        if !self.push_entry(&entry) {
            flights.waiting.push(at);
        }
    }

    #[allow(unsafe_code)]
    fn push_entry(&self, entry: &squeue::Entry) -> bool {
        // SAFETY: the submission queue is only touched by holders of the `flights` lock. The
        // buffers and the descriptor that the entry points to are owned by a `Flight` (on the
        // heap, so moving the flight does not move them), which stays in its slot until the
        // completion has been reaped.
        unsafe { self.ring.submission_shared().push(entry).is_ok() }
    }

    fn enter(&self) {
        loop {
            match self.ring.submit() {
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                // EBUSY and EAGAIN: the reaper enters again after it has made room.
                _ => return,
            }
        }
    }

    fn reap(&self) {
        loop {
            match self.ring.submit_and_wait(1) {
                Err(e) if !matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {
                    tracing::error!("io_uring_enter: {e}");
                    return;
                }
                _ => {}
            }
            for (user_data, result) in self.completions() {
                if user_data != STOP {
                    self.complete(user_data as usize, result);
                }
            }
            self.retry_waiting();
            if self.stopping.load(Ordering::SeqCst) && self.idle() {
                return;
            }
        }
    }

    #[allow(unsafe_code)]
    fn completions(&self) -> Vec<(u64, i32)> {
        // SAFETY: only the reaper thread touches the completion queue.
        let queue = unsafe { self.ring.completion_shared() };
        queue.map(|entry| (entry.user_data(), entry.result())).collect()
    }

    fn idle(&self) -> bool {
        self.flights.lock().slots.iter().all(Option::is_none)
    }

    fn retry_waiting(&self) {
        let mut flights = self.flights.lock();
        for at in std::mem::take(&mut flights.waiting) {
            self.push(&mut flights, at);
        }
    }

    fn complete(&self, at: usize, result: i32) {
        let mut flights = self.flights.lock();
        let Some(mut flight) = flights.slots.get_mut(at).and_then(Option::take) else { return };
        let again = matches!(-result, libc::EAGAIN | libc::EINTR) || advance(&mut flight.kind, result);
        if again {
            flights.slots[at] = Some(flight);
            self.push(&mut flights, at);
            return;
        }
        flights.free.push(at);
        drop(flights);
        let outcome = match flight.kind {
            _ if result < 0 => Err(-result),
            Kind::Read { mut data, filled, .. } => {
                data.truncate(filled);
                Ok(data)
            }
            Kind::Write { data, written, .. } if written < data.len() => Err(EIO),
            _ => Ok(Vec::new()),
        };
        (flight.done)(outcome);
    }
}

/// Take note of a partial result; true when there is more to do.
fn advance(kind: &mut Kind, result: i32) -> bool {
    if result <= 0 {
        return false;
    }
    match kind {
        Kind::Read { data, filled, .. } => {
            *filled += result as usize;
            *filled < data.len()
        }
        Kind::Write { data, written, .. } => {
            *written += result as usize;
            *written < data.len()
        }
        Kind::Flush => false,
    }
}
