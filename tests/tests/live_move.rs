//! Moves of files that are in use, with real programs as judges.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use godwit_tests::lab::Lab;
use godwit_tests::process::wait_for;
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Pseudorandom bytes that no compressor or hole detection can shorten.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

#[test]
fn a_closed_file_moves() {
    let lab = Lab::new();
    let content = noise(1, 5 << 20);
    fs::write(lab.path("ds1/f.bin"), &content).expect("write");
    let before = fs::metadata(lab.path("ds1/f.bin")).expect("stat");
    let result = lab.must_move("ds1/f.bin", "ds2");
    assert_eq!(result["ok"], true);
    assert_eq!(result["verified"], "digest");
    assert!(!lab.path("ds1/f.bin").exists(), "the old name is gone");
    assert!(fs::read(lab.path("ds2/f.bin")).expect("read") == content);
    let after = fs::metadata(lab.path("ds2/f.bin")).expect("stat");
    assert_eq!(before.ino(), after.ino(), "the inode number stays");
    assert_eq!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
    assert_eq!(before.mode(), after.mode());
    wait_for("the source's space to be freed", || lab.servers["ds1"].data_files() == 0);
}

#[test]
fn a_directory_tree_moves_with_all_that_is_in_it() {
    let lab = Lab::new();
    let script = "mkdir -p tree/a/b tree/empty && echo one > tree/a/1 && echo two > tree/a/b/2 && ln tree/a/1 tree/a/hard \
        && ln -s a/1 tree/soft && touch -d 2001-02-03T04:05:06 tree/a/b/2 && chmod 640 tree/a/1 \
        && setfattr -n user.note -v hello tree/a/1 && : > tree/zero";
    let status = Command::new("sh").arg("-c").arg(script).current_dir(lab.path("ds1")).status().expect("sh");
    assert!(status.success());
    let list = |ds: &str| {
        let find = "find tree -printf '%P %y %m %n %s %l %T@ %i\\n' | sort; getfattr -Rd tree 2>/dev/null";
        let out = Command::new("sh").arg("-c").arg(find).current_dir(lab.path(ds)).output().expect("find");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let before = list("ds1");
    lab.must_move("ds1/tree", "ds2");
    assert_eq!(before, list("ds2"));
    assert!(!lab.path("ds1/tree").exists());
    assert_eq!(fs::read_to_string(lab.path("ds2/tree/soft")).expect("read"), "one\n");
    lab.must_move("ds2/tree", "ds1");
    assert_eq!(before, list("ds1"), "and back");
}

#[test]
fn an_open_descriptor_goes_on_and_shows_the_new_path() {
    let lab = Lab::new();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(lab.path("ds1/open.bin"))
        .expect("create");
    file.write_all(&noise(2, 3 << 20)).expect("write");
    lab.must_move("ds1/open.bin", "ds2");
    let link =
        fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))).expect("readlink");
    assert_eq!(link, lab.path("ds2/open.bin"));
    file.write_all_at(b"after the move", 100).expect("write through the old descriptor");
    file.sync_all().expect("fsync");
    let mut seen = vec![0; 14];
    File::open(lab.path("ds2/open.bin")).expect("open").read_exact_at(&mut seen, 100).expect("read");
    assert_eq!(seen, b"after the move");
}

#[test]
fn files_above_missing_directories_move_and_names_stay() {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("ds1/images/linux")).expect("mkdir");
    fs::write(lab.path("ds1/images/linux/big.img"), noise(3, 1 << 20)).expect("write");
    fs::write(lab.path("ds1/images/other"), "stays").expect("write");
    lab.must_move("ds1/images/linux/big.img", "ds2");
    assert!(lab.path("ds2/images/linux/big.img").exists());
    assert!(lab.path("ds1/images/other").exists());
}

/// The writer knows what it wrote; every block must be right after the move, whatever moment it hit.
fn a_writer_never_rests(moved: &str, path: &str) {
    const BLOCK: u64 = 4096;
    const BLOCKS: u64 = 8192;
    let lab = Lab::new();
    let first = lab.path(&format!("ds1/{path}"));
    fs::create_dir_all(first.parent().expect("it lies in something")).expect("mkdir");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&first).expect("create");
    file.set_len(BLOCK * BLOCKS).expect("size");
    file.write_all_at(&noise(4, (BLOCK * BLOCKS / 2) as usize), 0).expect("fill");
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = {
        let (stop, written, file) = (stop.clone(), written.clone(), file.try_clone().expect("dup"));
        std::thread::spawn(move || {
            let mut rng = StdRng::seed_from_u64(5);
            let mut last = std::collections::HashMap::new();
            let mut round = 0u64;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let block = rng.random_range(0..BLOCKS);
                let bytes = noise(round, BLOCK as usize);
                file.write_all_at(&bytes, block * BLOCK).expect("a write never fails");
                last.insert(block, round);
                if rng.random_ratio(1, 50) {
                    let mut seen = vec![0; BLOCK as usize];
                    file.read_exact_at(&mut seen, block * BLOCK).expect("a read never fails");
                    assert!(seen == bytes, "block {block} reads back what was written");
                }
                written.store(round, Ordering::Relaxed);
            }
            last
        })
    };
    wait_for("the writer", || written.load(Ordering::Relaxed) > 100);
    let mut results = Vec::new();
    for round in 0..3 {
        let (from, to) = if round % 2 == 0 { ("ds1", "ds2") } else { ("ds2", "ds1") };
        results.push(lab.must_move(&format!("{from}/{moved}"), to));
    }
    let during = written.load(Ordering::Relaxed);
    wait_for("the writer to go on", || written.load(Ordering::Relaxed) > during + 100);
    stop.store(true, Ordering::Relaxed);
    let last = writer.join().expect("the writer saw no error");
    let reread = File::open(lab.path(&format!("ds2/{path}"))).expect("open at its new place");
    for (block, round) in last {
        let mut seen = vec![0; BLOCK as usize];
        reread.read_exact_at(&mut seen, block * BLOCK).expect("read");
        assert!(seen == noise(round, BLOCK as usize), "block {block} holds round {round}");
    }
    for result in results {
        println!(
            "pause {} ms, {} bytes copied, {} mirrored",
            result["pause_ms"], result["bytes_copied"], result["bytes_mirrored"]
        );
    }
}

#[test]
fn a_writer_that_never_rests_loses_nothing_when_its_file_moves() {
    a_writer_never_rests("busy.raw", "busy.raw");
}

/// Here the kernel does not keep writes out of the switchover.
#[test]
fn a_writer_that_never_rests_loses_nothing_when_its_directory_moves() {
    a_writer_never_rests("dir", "dir/sub/busy.raw");
}

/// A verifying fio job on a file, its blocks written each once in an order that the seed gives.
fn fio(lab: &Lab, filename: &str, seed: u64, more: &[&str]) -> Command {
    let mut fio = Command::new("fio");
    fio.args(["--name=verify", "--rw=randwrite", "--bs=4k", "--size=64m", "--direct=1", "--ioengine=libaio"])
        .args(["--iodepth=8", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"])
        .arg(format!("--randseed={seed}"))
        .arg(format!("--filename={filename}"))
        .args(more)
        .current_dir(lab.root())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    fio
}

fn must_verify(what: &str, output: std::process::Output) {
    let words =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && words.contains("err= 0"), "{what}: {words}");
}

#[test]
fn fio_with_verification_runs_through_ten_moves() {
    let lab = Lab::new();
    let (mut here, mut there) = ("ds1", "ds2");
    for round in 0..10 {
        let path = lab.path(&format!("{here}/f"));
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).expect("make");
        file.set_len(64 << 20).expect("size");
        // fio opens its file again before it verifies, so it gets it by a descriptor and not by the old name.
        let open = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&file));
        let running = fio(&lab, &open, 100 + round, &["--verify_backlog=1024", "--rate_iops=8000"])
            .spawn()
            .expect("start fio");
        wait_for("fio to write", || fs::metadata(&path).is_ok_and(|m| m.blocks() > 4 << 11));
        let result = lab.must_move(&format!("{here}/f"), there);
        must_verify(&format!("fio in round {round}"), running.wait_with_output().expect("wait for fio"));
        std::mem::swap(&mut here, &mut there);
        let again = fio(&lab, &lab.arg(&format!("{here}/f")), 100 + round, &["--verify_only=1"]);
        must_verify(&format!("what fio wrote in round {round}"), { again }.output().expect("run fio"));
        println!("round {round}: pause {} ms, {} s", result["pause_ms"], result["seconds"]);
    }
}

#[test]
fn files_may_come_and_go_while_their_directory_moves() {
    let lab = Lab::new();
    fs::create_dir(lab.path("ds1/d")).expect("mkdir");
    fs::write(lab.path("ds1/d/large"), noise(6, 24 << 20)).expect("write");
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicU64::new(0));
    let dir = File::open(lab.path("ds1/d")).expect("open the directory");
    let churn = {
        let (stop, rounds) = (stop.clone(), rounds.clone());
        // Through the open directory, so that the path's change does not matter to it.
        let base = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&dir));
        std::thread::spawn(move || {
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                fs::write(format!("{base}/new"), format!("{n}")).expect("create");
                fs::rename(format!("{base}/new"), format!("{base}/kept-{}", n % 7)).expect("rename");
                if n.is_multiple_of(3) {
                    fs::remove_file(format!("{base}/kept-{}", n % 7)).expect("remove");
                }
                rounds.store(n, Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            n
        })
    };
    wait_for("churn", || rounds.load(Ordering::Relaxed) > 5);
    lab.must_move("ds1/d", "ds2");
    let moved = rounds.load(Ordering::Relaxed);
    wait_for("churn to go on", || rounds.load(Ordering::Relaxed) > moved + 5);
    stop.store(true, Ordering::Relaxed);
    let last = churn.join().expect("no operation failed");
    for slot in 0..7 {
        let newest = (1..=last).rev().find(|n| n % 7 == slot).expect("enough rounds");
        let path = lab.path(&format!("ds2/d/kept-{slot}"));
        if newest % 3 == 0 {
            assert!(!path.exists(), "kept-{slot} was removed last");
        } else {
            assert_eq!(fs::read_to_string(&path).expect("read"), newest.to_string());
        }
    }
    assert!(fs::read(lab.path("ds2/d/large")).expect("read") == noise(6, 24 << 20));
}

#[test]
fn a_sparse_terabyte_moves_as_what_is_in_it() {
    let mut lab = Lab::new();
    let path = lab.path("ds1/sparse.raw");
    let file = File::create(&path).expect("create");
    file.set_len(1 << 40).expect("a terabyte");
    let spots: Vec<u64> = (0..64).map(|i| i * ((1 << 40) / 64)).collect();
    for (i, spot) in spots.iter().enumerate() {
        file.write_all_at(&noise(i as u64, 1 << 18), *spot).expect("write");
    }
    let before = fs::metadata(&path).expect("stat").blocks();
    let result = lab.must_move("ds1/sparse.raw", "ds2");
    let after = fs::metadata(lab.path("ds2/sparse.raw")).expect("stat");
    assert_eq!(after.len(), 1 << 40);
    assert!(
        after.blocks() <= before + before / 8,
        "holes stay holes: {before} blocks became {}",
        after.blocks()
    );
    assert!(result["bytes_copied"].as_u64().expect("number") < 64 << 20, "{result}");
    let moved = File::open(lab.path("ds2/sparse.raw")).expect("open");
    for (i, spot) in spots.iter().enumerate() {
        let mut seen = vec![0; 1 << 18];
        moved.read_exact_at(&mut seen, *spot).expect("read");
        assert!(seen == noise(i as u64, 1 << 18));
    }
    lab.check_memory();
}
