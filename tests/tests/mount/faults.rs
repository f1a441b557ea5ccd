//! What a program sees when a server dies: a pause, never an error.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use godwit_tests::cluster::Cluster;
use godwit_tests::process::{Process, run, wait_for};
use rustix::process::Signal;

#[test]
fn fio_verifies_while_the_server_is_killed_again_and_again() {
    let mut cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let mut command = Command::new("fio");
    command.args(["--name=v", "--size=32m", "--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=libaio"]);
    command.args(["--iodepth=8", "--verify=crc32c", "--verify_fatal=1", "--loops=40", "--do_verify=1"]);
    command.arg("--verify_state_save=0");
    command.arg(format!("--filename={}", host.arg("ds1/f")));
    let mut fio = Process::start(command, &cluster.scratch().join("fio.log"));
    let mut kills = 0;
    let status = loop {
        if let Some(status) = fio.ended() {
            break status;
        }
        if kills < 12 {
            std::thread::sleep(Duration::from_millis(100 + 70 * (kills % 4)));
            cluster.server("ds1").kill();
            cluster.server("ds1").start(&[]);
            kills += 1;
        } else {
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    assert!(status.success(), "after {kills} kills:\n{}", fio.log());
    assert!(kills >= 3, "the server was killed only {kills} times while fio ran");
}

/// Every change of names that was answered is there, exactly once, however often the server died.
#[test]
fn names_survive_a_killed_server_exactly_once() {
    let mut cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let done = AtomicBool::new(false);
    let base: PathBuf = host.path("ds1");
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let (base, done) = (&base, &done);
                scope.spawn(move || {
                    let dir = base.join(format!("w{worker}"));
                    fs::create_dir(&dir).unwrap();
                    let mut kept = 0;
                    while !done.load(Ordering::Relaxed) {
                        // Each fails when it is done twice: EEXIST, ENOENT, a third name.
                        let (new, next, linked) =
                            (dir.join("new"), dir.join(format!("kept-{kept}")), dir.join("linked"));
                        drop(File::create_new(&new).unwrap());
                        fs::hard_link(&new, &linked).unwrap();
                        fs::rename(&new, &next).unwrap();
                        assert_eq!(fs::metadata(&next).unwrap().nlink(), 2);
                        fs::remove_file(&linked).unwrap();
                        fs::create_dir(dir.join("d")).unwrap();
                        fs::remove_dir(dir.join("d")).unwrap();
                        kept += 1;
                    }
                    (dir, kept)
                })
            })
            .collect();
        for round in 0..8 {
            std::thread::sleep(Duration::from_millis(150 + 60 * (round % 3)));
            cluster.server("ds1").kill();
            cluster.server("ds1").start(&[]);
        }
        done.store(true, Ordering::Relaxed);
        for worker in workers {
            let (dir, kept) = worker.join().unwrap();
            assert!(kept > 0);
            assert_eq!(fs::read_dir(&dir).unwrap().count(), kept);
        }
    });
}

/// The restarted server has forgotten what is open; the client says it again.
#[test]
fn an_unlinked_open_file_survives_a_killed_server() {
    let mut cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let path = host.path("ds1/f");
    let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
    file.write_all_at(&vec![7; 100_000], 0).unwrap();
    fs::remove_file(&path).unwrap();
    for round in 0..3u8 {
        cluster.server("ds1").kill();
        cluster.server("ds1").start(&[]);
        let mut back = vec![0; 100_000];
        file.read_exact_at(&mut back, 0).unwrap();
        assert!(back.iter().skip(1).all(|&b| b == 7));
        file.write_all_at(&[round], 0).unwrap();
        // Somebody else's closing makes the server look for what nobody has open.
        fs::write(host.path("ds1/other"), "x").unwrap();
        fs::remove_file(host.path("ds1/other")).unwrap();
    }
    assert_eq!(file.metadata().unwrap().len(), 100_000);
    drop(file);
    wait_for("the space to be given back", || cluster.server("ds1").allocated() == 0);
}

#[test]
fn a_silent_server_only_delays() {
    let mut cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    fs::write(host.path("ds1/f"), "before").unwrap();
    let ds1 = cluster.server("ds1");
    ds1.process().signal(Signal::STOP);
    let path = host.path("ds1/f");
    let reader = std::thread::spawn(move || fs::read(path));
    std::thread::sleep(Duration::from_secs(12));
    assert!(!reader.is_finished());
    cluster.server("ds1").process().signal(Signal::CONT);
    assert_eq!(reader.join().unwrap().unwrap(), b"before");
    run("stat", &[&host.arg("ds1/f")]);
}

#[test]
fn a_datastore_that_was_never_reached_is_listed_and_down() {
    let mut cluster = Cluster::new(&["ds1", "ds2"]);
    cluster.server("ds2").kill();
    let host = cluster.host_without_waiting("a");
    wait_for("ds1", || fs::metadata(host.path("ds1")).is_ok());
    let names: Vec<_> = fs::read_dir(host.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["ds1", "ds2"]);
    assert_eq!(fs::metadata(host.path("ds2")).unwrap_err().raw_os_error(), Some(libc::EHOSTDOWN));
    fs::write(host.path("ds1/f"), "the other one works").unwrap();
    let state = host.files.datastore("ds2").unwrap().state();
    assert!(!state.connected && state.error.unwrap().contains("refused"));
    cluster.server("ds2").start(&[]);
    wait_for("ds2", || fs::metadata(host.path("ds2")).is_ok());
    fs::write(host.path("ds2/f"), "x").unwrap();
}
