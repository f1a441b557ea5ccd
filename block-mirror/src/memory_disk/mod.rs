//! A disk in memory, for tests: sparse, with faults and with control over when requests end.
//!
//! It keeps what it is told as a datastore file would (sizes, holes, digests, space), and can end
//! its requests inside `submit`, one by one when the test says so, or on threads of its own in
//! random order after random delays. A request takes effect in the moment it ends, unless it is
//! made to fail: then it has no effect.

mod store;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::{Completion, Disk, DiskError, DiskResult, Request, Response};
use store::Store;

/// When requests end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Inside `submit`.
    AtOnce,
    /// When [`MemoryDisk::finish`] says so.
    ByHand,
    /// On so many threads of the disk, in random order, each after a random delay.
    OnThreads {
        /// Requests ended at the same time.
        threads: usize,
        /// The longest delay.
        delay: Duration,
    },
}

type Fault = Box<dyn FnMut(&Request) -> Option<DiskError> + Send>;
type Alter = Box<dyn FnMut(u64, &mut Vec<u8>) + Send>;

#[derive(Default)]
struct State {
    store: Store,
    fault: Option<Fault>,
    alter: Option<Alter>,
    pending: Vec<(Request, Completion)>,
    closing: bool,
}

struct Inner {
    name: String,
    ending: Ending,
    state: Mutex<State>,
    arrived: Condvar,
    requests: AtomicU64,
    written: AtomicU64,
    random: AtomicU64,
}

/// See the module's comment.
pub struct MemoryDisk {
    inner: Arc<Inner>,
}

impl MemoryDisk {
    /// A hole of `size` bytes whose requests end at once.
    pub fn new(name: &str, size: u64) -> MemoryDisk {
        MemoryDisk::ending(name, size, Ending::AtOnce)
    }

    /// A hole of `size` bytes.
    pub fn ending(name: &str, size: u64, ending: Ending) -> MemoryDisk {
        let mut state = State::default();
        state.store.size = size;
        let inner = Arc::new(Inner {
            name: name.to_owned(),
            ending,
            state: Mutex::new(state),
            arrived: Condvar::new(),
            requests: AtomicU64::new(0),
            written: AtomicU64::new(0),
            random: AtomicU64::new(0x9E37_79B9_7F4A_7C15),
        });
        if let Ending::OnThreads { threads, delay } = ending {
            for _ in 0..threads.max(1) {
                let inner = inner.clone();
                std::thread::spawn(move || inner.work(delay));
            }
        }
        MemoryDisk { inner }
    }

    /// Allocated bytes may not become more than this.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        let blocks = bytes.map(|bytes| usize::try_from(bytes / store::BLOCK).unwrap_or(usize::MAX));
        self.inner.state.lock().store.capacity = blocks;
    }

    /// `fault` says of each request whether it fails, and how.
    pub fn set_fault(&self, fault: impl FnMut(&Request) -> Option<DiskError> + Send + 'static) {
        self.inner.state.lock().fault = Some(Box::new(fault));
    }

    /// No more faults.
    pub fn clear_fault(&self) {
        self.inner.state.lock().fault = None;
    }

    /// `alter` may change what a read returns after its digest was computed: a corruption on the way.
    pub fn set_alter(&self, alter: impl FnMut(u64, &mut Vec<u8>) + Send + 'static) {
        self.inner.state.lock().alter = Some(Box::new(alter));
    }

    /// What is on the disk, zeroes past the end; no request.
    pub fn peek(&self, range: Range<u64>) -> Vec<u8> {
        self.inner.state.lock().store.read(range)
    }

    /// Puts data on the disk; no request.
    ///
    /// # Panics
    /// When it does not fit.
    pub fn poke(&self, offset: u64, data: &[u8]) {
        self.inner.state.lock().store.write(offset, data, "poke").expect("there is room for a poke");
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.inner.state.lock().store.size
    }

    /// Bytes that take up space.
    pub fn allocated(&self) -> u64 {
        self.inner.state.lock().store.allocated()
    }

    /// Requests that arrived.
    pub fn requests(&self) -> u64 {
        self.inner.requests.load(Ordering::Relaxed)
    }

    /// Bytes that arrived in writes.
    pub fn written(&self) -> u64 {
        self.inner.written.load(Ordering::Relaxed)
    }

    /// Requests that have not ended.
    pub fn pending(&self) -> Vec<Request> {
        self.inner.state.lock().pending.iter().map(|(request, _)| request.clone()).collect()
    }

    /// Ends request `index` of [`MemoryDisk::pending`]; `false` when there is none.
    pub fn finish(&self, index: usize) -> bool {
        let mut state = self.inner.state.lock();
        if index >= state.pending.len() {
            return false;
        }
        let (request, done) = state.pending.remove(index);
        drop(state);
        self.inner.end(request, done);
        true
    }

    /// The first byte at which the two differ, the shorter one followed by zeroes; `Some` also
    /// for disks that differ in size alone.
    pub fn first_difference(&self, other: &MemoryDisk) -> Option<u64> {
        let (size, other_size) = (self.size(), other.size());
        let mut at = 0;
        while at < size.max(other_size) {
            let end = (at + (1 << 20)).min(size.max(other_size));
            let (mine, theirs) = (self.peek(at..end), other.peek(at..end));
            if let Some(place) = mine.iter().zip(&theirs).position(|(a, b)| a != b) {
                return Some(at + place as u64);
            }
            at = end;
        }
        (size != other_size).then_some(size.min(other_size))
    }
}

impl Drop for MemoryDisk {
    fn drop(&mut self) {
        self.inner.state.lock().closing = true;
        self.inner.arrived.notify_all();
    }
}

impl Disk for MemoryDisk {
    fn submit(&self, request: Request, done: Completion) {
        self.inner.requests.fetch_add(1, Ordering::Relaxed);
        if let Request::Write { data, .. } = &request {
            self.inner.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        match self.inner.ending {
            Ending::AtOnce => self.inner.end(request, done),
            Ending::ByHand | Ending::OnThreads { .. } => {
                self.inner.state.lock().pending.push((request, done));
                self.inner.arrived.notify_one();
            }
        }
    }

    fn describe(&self) -> String {
        self.inner.name.clone()
    }
}

impl Inner {
    fn end(&self, request: Request, done: Completion) {
        let result = self.state.lock().apply(request, &self.name);
        done(result);
    }

    fn roll(&self) -> u64 {
        let value = self.random.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let mixed = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed ^ (mixed >> 31)
    }

    fn work(&self, delay: Duration) {
        loop {
            let mut state = self.state.lock();
            while state.pending.is_empty() && !state.closing {
                self.arrived.wait(&mut state);
            }
            if state.pending.is_empty() {
                return;
            }
            let index = self.roll() as usize % state.pending.len();
            let (request, done) = state.pending.swap_remove(index);
            drop(state);
            let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
            if nanos > 0 {
                std::thread::sleep(Duration::from_nanos(self.roll() % nanos));
            }
            self.end(request, done);
        }
    }
}

impl State {
    fn apply(&mut self, request: Request, keeper: &str) -> DiskResult {
        if let Some(error) = self.fault.as_mut().and_then(|fault| fault(&request)) {
            return Err(error);
        }
        match request {
            Request::Read { offset, len } => Ok(self.read(offset, len, false)),
            Request::ReadDigest { offset, len } => Ok(self.read(offset, len, true)),
            Request::Write { offset, data, digest, .. } => {
                if digest.is_some_and(|digest| *blake3::hash(&data).as_bytes() != digest) {
                    return Err(DiskError::Digest { offset, len: data.len() as u64 });
                }
                self.store.write(offset, &data, keeper).map(|()| Response::Done)
            }
            Request::Flush => Ok(Response::Done),
            Request::Discard { offset, len } => {
                self.store.discard(offset..offset.saturating_add(len));
                Ok(Response::Done)
            }
            Request::Zero { offset, len, keep_size } => {
                let end = self.reach(offset, len, keep_size);
                self.store.zero(offset..end, keeper)?;
                self.store.size = self.store.size.max(end);
                Ok(Response::Done)
            }
            Request::Allocate { offset, len, keep_size } => {
                let end = self.reach(offset, len, keep_size);
                self.store.allocate(offset..end, keeper)?;
                self.store.size = self.store.size.max(end);
                Ok(Response::Done)
            }
            Request::Resize { size } => {
                self.store.resize(size);
                Ok(Response::Done)
            }
            Request::Map { offset, len } => {
                let (extents, upto) = self.store.extents(offset..offset.saturating_add(len), 16);
                Ok(Response::Extents { extents, upto })
            }
        }
    }

    fn reach(&self, offset: u64, len: u64, keep_size: bool) -> u64 {
        let end = offset.saturating_add(len);
        if keep_size { end.min(self.store.size) } else { end }
    }

    fn read(&mut self, offset: u64, len: u32, digest: bool) -> Response {
        let end = (offset + u64::from(len)).min(self.store.size).max(offset);
        let mut data = self.store.read(offset..end);
        let digest = digest.then(|| *blake3::hash(&data).as_bytes());
        if let Some(alter) = &mut self.alter {
            alter(offset, &mut data);
        }
        Response::Data { data: Bytes::from(data), digest }
    }
}
