//! `fsx` reads back what it wrote, by read and by mmap, also while the file moves to and fro.
//!
//! The seeds are fixed, so a run that fails does the same operations again.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use godwit_tests::lab::Lab;
use godwit_tests::process::Process;

use super::judge;

/// Which operations it does.
#[derive(Clone, Copy, Debug)]
enum Operations {
    /// All that go by system call.
    Calls,
    /// Those, and reads and writes of mapped memory.
    Mapped,
}

impl Operations {
    fn config(self, file_size: u64) -> String {
        let mapped = match self {
            Operations::Calls => "mapread = 0\nmapwrite = 0\n",
            Operations::Mapped => "mapread = 10\nmapwrite = 10\ninvalidate = 1\n",
        };
        format!(
            "flen = {file_size}\n[weights]\nread = 10\nwrite = 10\ntruncate = 5\nclose_open = 1\nfsync = 1\n\
             fdatasync = 1\nposix_fallocate = 3\npunch_hole = 5\nsendfile = 2\nposix_fadvise = 1\n\
             copy_file_range = 3\n{mapped}"
        )
    }
}

/// A run of `fsx` on a file that it calls `path`.
struct Run<'a> {
    lab: &'a Lab,
    operations: Operations,
    file_size: u64,
    seed: u64,
    count: u64,
}

impl Run<'_> {
    fn start(&self, path: &Path) -> Process {
        let name = format!("fsx-{:?}-{}", self.operations, self.seed);
        let config = self.lab.root().join(format!("{name}.toml"));
        fs::write(&config, self.operations.config(self.file_size)).unwrap();
        let mut command = Command::new(judge("fsx"));
        command.arg("-f").arg(config).arg("-P").arg(self.lab.root());
        command.args(["-S", &self.seed.to_string(), "-N", &self.count.to_string()]).arg(path);
        Process::start(command, &self.lab.root().join(format!("{name}.log")))
    }

    fn check(&self, process: &mut Process) {
        let status = process.wait();
        let log = process.log();
        assert!(
            status.success() && log.contains("All operations completed A-OK!"),
            "fsx with seed {} ({:?}) ended with {status}:\n{log}",
            self.seed,
            self.operations
        );
    }
}

#[test]
fn fsx_reads_what_it_wrote() {
    let lab = Lab::new();
    for operations in [Operations::Calls, Operations::Mapped] {
        for seed in 1..=3 {
            let run = Run { lab: &lab, operations, file_size: 256 << 10, seed, count: 3_000 };
            let path = lab.path(&format!("ds1/{operations:?}-{seed}"));
            run.check(&mut run.start(&path));
            let size = fs::metadata(&path).unwrap().len();
            assert!(size <= run.file_size, "{size}");
        }
    }
}

/// `fsx` has the file by a descriptor's link in /proc, which stays while its path changes.
fn moving_to_and_fro(operations: Operations, seed: u64) {
    const MOVES: usize = 3;
    let lab = Lab::new();
    let file = File::create_new(lab.path("ds1/moved")).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let run = Run { lab: &lab, operations, file_size: 4 << 20, seed, count: 5_000 };
    let mut process = run.start(Path::new(&path));
    let mut moves = 0;
    let (mut from, mut to) = ("ds1", "ds2");
    while process.ended().is_none() {
        lab.must_move(&format!("{from}/moved"), to);
        (from, to) = (to, from);
        moves += 1;
    }
    run.check(&mut process);
    assert!(moves > MOVES, "fsx was done after {moves} moves: give it more to do");
    println!("{moves} moves under fsx with seed {seed}");
}

#[test]
fn fsx_reads_what_it_wrote_while_the_file_moves() {
    moving_to_and_fro(Operations::Calls, 11);
}

#[test]
fn fsx_reads_what_it_mapped_while_the_file_moves() {
    moving_to_and_fro(Operations::Mapped, 12);
}
