//! The mirror as a disk: threads that write through a slot while it carries their data away.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use block_mirror::memory_disk::Ending;
use block_mirror::{
    Bitmap, Disk, DiskError, DiskResult, DiskSlot, FailReason, MemoryDisk, Mirror, MirrorConfig, Mode, Phase,
    Request, Response, SharedDisk,
};
use bytes::Bytes;

const MIB: u64 = 1 << 20;

fn call(disk: &dyn Disk, request: Request) -> DiskResult {
    let (tell, told) = channel();
    disk.submit(request, Box::new(move |result| tell.send(result).unwrap()));
    told.recv().unwrap()
}

fn write(offset: u64, data: Vec<u8>) -> Request {
    Request::Write { offset, data: Bytes::from(data), digest: None, fua: false }
}

fn on_threads(name: &str, size: u64, threads: usize) -> Arc<MemoryDisk> {
    let delay = Duration::from_micros(200);
    Arc::new(MemoryDisk::ending(name, size, Ending::OnThreads { threads, delay }))
}

struct Watched {
    mirror: Arc<Mirror>,
    phases: Receiver<Phase>,
}

fn watch(source: &Arc<MemoryDisk>, destination: &Arc<MemoryDisk>, config: MirrorConfig) -> Watched {
    let mirror = Mirror::new(source.clone(), destination.clone(), Bitmap::heap(0).unwrap(), config).unwrap();
    let (tell, phases) = channel();
    let tell = Mutex::new(tell);
    mirror.on_phase(move |phase| {
        let _ = tell.lock().unwrap().send(phase);
    });
    Watched { mirror, phases }
}

impl Watched {
    /// Puts it into the slot and starts it when what was in flight is done.
    fn attach(&self, slot: &DiskSlot, source: &Arc<MemoryDisk>) {
        let (mirror, source) = (self.mirror.clone(), source.clone());
        slot.swap_then(self.mirror.clone(), move || mirror.start(source.size()));
    }

    fn wait_for(&self, wanted: Phase) {
        while self.phases.recv().unwrap() != wanted {}
    }

    /// Hold, drain, look; `false` when something was still to be done.
    fn try_to_switch(&self, slot: &DiskSlot, destination: &Arc<MemoryDisk>) -> bool {
        slot.hold();
        let (tell, told) = channel();
        slot.on_drained(move || tell.send(()).unwrap());
        told.recv().unwrap();
        let ready = self.mirror.ready_to_switch();
        if ready {
            call(&*self.mirror.destination(), Request::Flush).unwrap();
            self.mirror.switched();
            slot.swap(destination.clone());
        }
        ready
    }
}

/// Writers with stretches of the disk of their own, each of which knows what it wrote.
struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<Vec<u8>>>,
    stretch: u64,
    operations: Arc<AtomicU64>,
}

impl Writers {
    fn start(slot: &Arc<DiskSlot>, count: u64, stretch: u64) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let operations = Arc::new(AtomicU64::new(0));
        let begin = Arc::new(Barrier::new(count as usize));
        let threads = (0..count)
            .map(|number| {
                let (slot, stop, begin) = (slot.clone(), stop.clone(), begin.clone());
                let operations = operations.clone();
                std::thread::spawn(move || {
                    begin.wait();
                    let mut known = vec![0; stretch as usize];
                    let mut random = 0x1234_5678_9ABC_DEF1 ^ (number << 32);
                    while !stop.load(Ordering::Relaxed) {
                        one_operation(&*slot, &mut random, number * stretch, &mut known);
                        operations.fetch_add(1, Ordering::Relaxed);
                    }
                    known
                })
            })
            .collect();
        Writers { stop, threads, stretch, operations }
    }

    /// Waits until so many more operations were done.
    fn let_do(&self, operations: u64) {
        let until = self.operations.load(Ordering::Relaxed) + operations;
        while self.operations.load(Ordering::Relaxed) < until {
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Stops them and compares what they know with the disk.
    fn stop_and_compare(self, disk: &MemoryDisk) {
        self.stop.store(true, Ordering::Relaxed);
        for (number, thread) in self.threads.into_iter().enumerate() {
            let known = thread.join().unwrap();
            let start = number as u64 * self.stretch;
            let found = disk.peek(start..start + self.stretch);
            let place = known.iter().zip(&found).position(|(a, b)| a != b);
            assert_eq!(place, None, "writer {number} finds other bytes than it wrote");
        }
    }
}

fn roll(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random >> 11
}

fn one_operation(disk: &dyn Disk, random: &mut u64, base: u64, known: &mut [u8]) {
    let stretch = known.len() as u64;
    let len = 1 + roll(random) % 9000;
    let at = roll(random) % (stretch - len);
    let slice = at as usize..(at + len) as usize;
    let done = match roll(random) % 10 {
        0 => {
            known[slice].fill(0);
            call(disk, Request::Discard { offset: base + at, len })
        }
        1 => {
            known[slice].fill(0);
            call(disk, Request::Zero { offset: base + at, len, keep_size: true })
        }
        2..5 => {
            let answer = call(disk, Request::Read { offset: base + at, len: len as u32 });
            let Ok(Response::Data { data, .. }) = &answer else { panic!("a read ended with {answer:?}") };
            assert!(data[..] == known[slice], "a read at {} returns other bytes", base + at);
            answer
        }
        _ => {
            let value = roll(random) as u8;
            known[slice].fill(value);
            call(disk, write(base + at, vec![value; len as usize]))
        }
    };
    done.expect("no error reaches a guest");
}

fn config(mode: Mode) -> MirrorConfig {
    MirrorConfig {
        mode,
        bulk_chunk: 256 << 10,
        converged_bytes: MIB,
        flush_every_bytes: 2 * MIB,
        ..MirrorConfig::default()
    }
}

fn move_under_load(mode: Mode, disturb: impl Fn(&Watched, &Arc<MemoryDisk>, &Writers)) {
    let source = on_threads("source", 8 * MIB, 3);
    let destination = on_threads("destination", 0, 3);
    let slot = Arc::new(DiskSlot::new(source.clone() as SharedDisk));
    let writers = Writers::start(&slot, 4, 2 * MIB);
    writers.let_do(200);
    let watched = watch(&source, &destination, config(mode));
    watched.attach(&slot, &source);
    disturb(&watched, &destination, &writers);
    loop {
        watched.wait_for(Phase::Synced);
        writers.let_do(50);
        let switched = watched.try_to_switch(&slot, &destination);
        if switched {
            assert_eq!(source.first_difference(&destination), None);
        }
        slot.release();
        if switched {
            break;
        }
    }
    writers.let_do(100);
    let last = source.requests();
    writers.stop_and_compare(&destination);
    assert_eq!(source.requests(), last, "the source is still in use");
}

#[test]
fn a_busy_disk_moves() {
    move_under_load(Mode::Auto, |_, _, _| {});
}

#[test]
fn a_busy_disk_moves_with_writes_to_both_from_the_start() {
    move_under_load(Mode::Mirror, |_, _, _| {});
}

#[test]
fn a_destination_with_errors_is_copied_again_until_all_is_there() {
    move_under_load(Mode::Auto, |watched, destination, writers| {
        let mut count = 0;
        destination.set_fault(move |_| {
            count += 1;
            let broken = DiskError::Io { errno: 5, context: "write".into() };
            (count % 7 == 0).then_some(broken)
        });
        writers.let_do(400);
        destination.clear_fault();
        watched.mirror.destination_lost();
        writers.let_do(100);
    });
}

#[test]
fn data_altered_on_the_way_is_fetched_again() {
    let source = Arc::new(MemoryDisk::new("source", 4 * MIB));
    source.poke(0, &vec![7; 2 * MIB as usize]);
    let destination = Arc::new(MemoryDisk::new("destination", 0));
    let mut altered = 0;
    source.set_alter(move |_, data| {
        if altered < 3 {
            data[17] ^= 1;
            altered += 1;
        }
    });
    let watched = watch(&source, &destination, config(Mode::Auto));
    watched.mirror.start(source.size());
    watched.wait_for(Phase::Synced);
    assert_eq!(source.first_difference(&destination), None);
}

#[test]
fn data_altered_each_time_ends_the_move_and_names_the_place() {
    let source = Arc::new(MemoryDisk::new("source", MIB));
    source.poke(0, &[7; 100_000]);
    let destination = Arc::new(MemoryDisk::new("destination", 0));
    source.set_alter(|_, data| data[0] ^= 1);
    let watched = watch(&source, &destination, config(Mode::Auto));
    watched.mirror.start(source.size());
    watched.wait_for(Phase::Failed);
    let Some(FailReason::Region { offset: 0, error: DiskError::Digest { .. }, .. }) =
        watched.mirror.failure()
    else {
        panic!("failed for {:?}", watched.mirror.failure())
    };
}

#[test]
fn a_full_destination_ends_the_move_and_the_guest_goes_on() {
    let source = on_threads("source", 8 * MIB, 2);
    let destination = Arc::new(MemoryDisk::new("destination", 0));
    destination.set_capacity(Some(MIB));
    let slot = Arc::new(DiskSlot::new(source.clone() as SharedDisk));
    let writers = Writers::start(&slot, 2, 4 * MIB);
    writers.let_do(300);
    let watched = watch(&source, &destination, config(Mode::Mirror));
    watched.attach(&slot, &source);
    watched.wait_for(Phase::Failed);
    assert!(matches!(watched.mirror.failure(), Some(FailReason::NoSpace(_))));
    writers.let_do(100);
    slot.swap(source.clone());
    writers.let_do(100);
    writers.stop_and_compare(&source);
}

#[test]
fn a_dead_destination_delays_no_guest_for_ever_and_a_cancelled_mirror_still_serves() {
    let source = Arc::new(MemoryDisk::new("source", MIB));
    let destination = Arc::new(MemoryDisk::ending("destination", 0, Ending::ByHand));
    let patience_ns = 20_000_000;
    let watched = watch(&source, &destination, MirrorConfig { patience_ns, ..config(Mode::Mirror) });
    watched.mirror.start(source.size());
    destination.finish(0); // its size
    destination.finish(0); // the flush
    watched.wait_for(Phase::Synced);
    // Nothing of this ends at the destination.
    call(&*watched.mirror, write(0, vec![1; 5000])).unwrap();
    assert_eq!(destination.pending().len(), 1);
    watched.wait_for(Phase::Converge);
    call(&*watched.mirror, write(100, vec![2; 5000])).unwrap();
    watched.mirror.cancel();
    let mirror = watched.mirror.clone() as SharedDisk;
    drop(watched);
    call(&*mirror, write(200, vec![3; 10])).unwrap();
    assert_eq!(source.peek(199..203), [2, 3, 3, 3]);
}

#[test]
fn holes_and_zeroes_stay_holes() {
    let source = Arc::new(MemoryDisk::new("source", 1 << 40));
    source.poke(5 * MIB, &[1; 4096]);
    source.poke(700 << 30, &[2; 4096]);
    source.poke(900 << 30, &[0; 65536]);
    let destination = Arc::new(MemoryDisk::new("destination", 0));
    let watched = watch(&source, &destination, config(Mode::Auto));
    watched.mirror.start(source.size());
    watched.wait_for(Phase::Synced);
    assert_eq!(destination.size(), 1 << 40);
    assert_eq!(destination.allocated(), 8192);
    assert_eq!(destination.written(), 8192);
    assert_eq!(destination.peek(700 << 30..(700 << 30) + 4096), [2; 4096]);
}

#[test]
fn an_appended_cut_and_extended_file_arrives() {
    let source = Arc::new(MemoryDisk::new("source", 0));
    let destination = Arc::new(MemoryDisk::new("destination", 0));
    let watched = watch(&source, &destination, config(Mode::Auto));
    let mirror = &watched.mirror;
    call(&**mirror, write(0, vec![4; 3000])).unwrap();
    // Before the start a resize has to wait: the size to begin with must not change.
    let (tell, told) = channel();
    mirror.submit(Request::Resize { size: 10 }, Box::new(move |result| tell.send(result).unwrap()));
    assert!(told.try_recv().is_err());
    mirror.start(source.size());
    told.recv().unwrap().unwrap();
    assert_eq!(source.size(), 10);
    watched.wait_for(Phase::Synced);
    for round in 0..50u64 {
        call(&**mirror, write(round * 700, vec![round as u8 + 1; 900])).unwrap();
        if round % 10 == 9 {
            call(&**mirror, Request::Resize { size: round * 500 }).unwrap();
            call(&**mirror, Request::Resize { size: round * 650 }).unwrap();
        }
    }
    assert!(mirror.ready_to_switch());
    assert_eq!(source.first_difference(&destination), None);
    mirror.switched();
    call(&**mirror, write(0, vec![99; 10])).unwrap();
    assert_eq!(destination.peek(0..1), [99]);
    assert_ne!(source.peek(0..1), [99]);
    let answer = call(&**mirror, Request::Read { offset: 0, len: 1 }).unwrap();
    assert_eq!(answer, Response::Data { data: Bytes::from_static(&[99]), digest: None });
}
