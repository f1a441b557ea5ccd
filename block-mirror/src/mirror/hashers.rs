//! The process's few threads that look through copied data (zeroes, digests), so that the threads
//! that receive from the network stay free for guests.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

type Job = Box<dyn FnOnce() + Send>;

/// Runs `job` on one of the threads, soon, in no particular order.
pub(super) fn run(job: Job) {
    static JOBS: OnceLock<Sender<Job>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (sender, receiver) = channel();
        start(Arc::new(Mutex::new(receiver)));
        sender
    });
    jobs.send(job).expect("the threads live as long as the process");
}

fn start(jobs: Arc<Mutex<Receiver<Job>>>) {
    // Guests come first: at most half of the processors.
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
    for _ in 0..(processors / 2).clamp(1, 4) {
        let jobs = jobs.clone();
        let thread = std::thread::Builder::new().name("mirror-hash".into());
        let work = move || {
            loop {
                // Waiting inside the lock is waiting for a turn.
                let job = jobs.lock().recv();
                match job {
                    Ok(job) => job(),
                    Err(_) => return,
                }
            }
        };
        thread.spawn(work).expect("a process can start a thread");
    }
}
