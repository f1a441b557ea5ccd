//! The fallback: a few threads with pread and pwrite.

use std::os::unix::fs::FileExt;
use std::sync::{Arc, mpsc};

use parking_lot::Mutex;

use super::{Done, Finished, Work};
use crate::store::DataFile;

const THREADS: usize = 4;

type Job = (Arc<DataFile>, Work, Done);

/// A pool that ends when it is dropped.
pub struct Threads {
    jobs: mpsc::Sender<Job>,
}

impl Threads {
    /// Start the threads.
    pub fn new() -> Threads {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let inbox = Arc::new(Mutex::new(inbox));
        for _ in 0..THREADS {
            let inbox = inbox.clone();
            std::thread::spawn(move || {
                loop {
                    let job = inbox.lock().recv();
                    let Ok((file, work, done)) = job else { return };
                    done(perform(&file, work));
                }
            });
        }
        Threads { jobs }
    }

    /// Queue work.
    pub fn submit(&self, file: Arc<DataFile>, work: Work, done: Done) {
        if let Err(mpsc::SendError((_, _, done))) = self.jobs.send((file, work, done)) {
            done(Err(rustix::io::Errno::IO.raw_os_error()));
        }
    }
}

fn perform(file: &DataFile, work: Work) -> Finished {
    let errno = |e: std::io::Error| e.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error());
    match work {
        Work::Write { offset, data } => file.file.write_all_at(&data, offset).map(|()| vec![]).map_err(errno),
        Work::Flush => file.file.sync_data().map(|()| vec![]).map_err(errno),
        Work::Read { offset, len } => {
            let mut data = vec![0; len as usize];
            let mut filled = 0;
            while filled < data.len() {
                match file.file.read_at(&mut data[filled..], offset + filled as u64) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(errno(e)),
                }
            }
            data.truncate(filled);
            Ok(data)
        }
    }
}
