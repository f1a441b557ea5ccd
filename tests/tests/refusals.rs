//! What can't be done is refused or rolled back with one line, a hint and the right exit code,
//! and nothing has changed.

use std::fs;
use std::process::Output;

use godwit_tests::lab::Lab;
use godwit_tests::process::wait_for;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::process::Signal;

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(len as u64).fill(&mut bytes[..]);
    bytes
}

/// One `error:` line naming the object, a `hint:` line, this exit code.
fn refused(output: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    let errors: Vec<&str> = text.lines().filter(|l| l.contains("error:")).collect();
    assert_eq!(errors.len(), 1, "one error line: {text}");
    assert!(text.lines().any(|l| l.starts_with("hint:")), "a hint: {text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is named in: {text}");
    }
}

fn nothing_left(lab: &Lab, datastore: &str) {
    wait_for("nothing left behind", || {
        lab.servers[datastore].data_files() == 0
            && fs::read_dir(lab.path(datastore)).is_ok_and(|mut entries| entries.next().is_none())
    });
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_starts() {
    let lab = Lab::new();
    fs::write(lab.path("ds1/f"), noise(100_000)).expect("write");
    refused(&lab.dsmove(&["vm99", "--to", "ds2"]), 3, &["vm99"]);
    refused(&lab.dsmove(&["ds1/f", "--to", "ds9"]), 3, &["ds9"]);
    refused(&lab.dsmove(&["ds1/missing", "--to", "ds2"]), 3, &["ds1/missing"]);
    refused(&lab.dsmove(&["ds1/f", "--to", "ds1"]), 3, &["already", "ds1"]);
    refused(&lab.dsmove(&["ds1/", "--to", "ds2"]), 2, &["ds1"]);
    assert_eq!(lab.dsmove(&["ds1/f"]).status.code(), Some(2), "usage");
    nothing_left(&lab, "ds2");
    assert!(fs::read(lab.path("ds1/f")).expect("read") == noise(100_000));
}

#[test]
fn a_taken_name_is_refused() {
    let lab = Lab::new();
    fs::write(lab.path("ds1/f"), "one").expect("write");
    fs::write(lab.path("ds2/f"), "two").expect("write");
    refused(&lab.dsmove(&["ds1/f", "--to", "ds2"]), 3, &["ds2/f", "exists"]);
    assert_eq!(fs::read_to_string(lab.path("ds1/f")).expect("read"), "one");
    assert_eq!(fs::read_to_string(lab.path("ds2/f")).expect("read"), "two");
}

#[test]
fn a_full_destination_is_found_before() {
    let lab = Lab::with(&[("ds1", &[]), ("ds2", &["--capacity", "8MiB"])], &[]);
    fs::write(lab.path("ds1/f"), noise(16 << 20)).expect("write");
    refused(&lab.dsmove(&["ds1/f", "--to", "ds2"]), 3, &["no space", "ds2"]);
    nothing_left(&lab, "ds2");
    assert!(fs::read(lab.path("ds1/f")).expect("read") == noise(16 << 20));
}

#[test]
fn a_destination_that_fills_up_during_the_copy_is_rolled_back() {
    let lab = Lab::with(&[("ds1", &[]), ("ds2", &["--capacity", "64MiB"])], &[]);
    fs::write(lab.path("ds1/f"), noise(40 << 20)).expect("write");
    let child = lab
        .tool("dsmove", &["ds1/f", "--to", "ds2", "--limit", "20MiB/s"])
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("start dsmove");
    wait_for("the copy to begin", || lab.servers["ds2"].allocated() > 1 << 20);
    fs::write(lab.path("ds2/filler"), noise(32 << 20)).expect("fill ds2 up");
    let output = child.wait_with_output().expect("wait for dsmove");
    refused(&output, 1, &["no space", "ds2"]);
    assert!(fs::read(lab.path("ds1/f")).expect("read") == noise(40 << 20));
    assert!(fs::read(lab.path("ds2/filler")).expect("read") == noise(32 << 20));
    wait_for("only the filler", || lab.servers["ds2"].data_files() == 1);
    assert!(!lab.path("ds2/f").exists());
}

#[test]
fn a_server_that_is_down_is_named() {
    let mut lab = Lab::new();
    fs::write(lab.path("ds1/f"), "stays").expect("write");
    lab.server("ds2").kill();
    wait_for("dshost to notice", || {
        String::from_utf8_lossy(&lab.dsctl(&["datastore", "list"]).stdout)
            .lines()
            .any(|l| l.contains("ds2") && !l.contains(" up"))
    });
    refused(&lab.dsmove(&["ds1/f", "--to", "ds2"]), 3, &["ds2", "not reachable"]);
    assert_eq!(fs::read_to_string(lab.path("ds1/f")).expect("read"), "stays");
}

#[test]
fn a_cancelled_move_leaves_nothing_behind() {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("ds1/deep/er")).expect("mkdir");
    fs::write(lab.path("ds1/deep/er/f"), noise(64 << 20)).expect("write");
    let child = lab
        .tool("dsmove", &["ds1/deep/er/f", "--to", "ds2", "--limit", "8MiB/s", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("start dsmove");
    wait_for("the copy to begin", || lab.servers["ds2"].allocated() > 1 << 20);
    let pid = rustix::process::Pid::from_raw(child.id() as i32).expect("pid");
    rustix::process::kill_process(pid, Signal::INT).expect("interrupt dsmove");
    let output = child.wait_with_output().expect("wait for dsmove");
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stdout));
    nothing_left(&lab, "ds2");
    assert!(fs::read(lab.path("ds1/deep/er/f")).expect("read") == noise(64 << 20));
    lab.must_move("ds1/deep/er/f", "ds2");
    assert!(fs::read(lab.path("ds2/deep/er/f")).expect("read") == noise(64 << 20));
}

#[test]
fn a_dry_run_changes_nothing() {
    let lab = Lab::new();
    fs::write(lab.path("ds1/f"), noise(1 << 20)).expect("write");
    let output = lab.dsmove(&["ds1/f", "--to", "ds2", "--dry-run"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(lab.path("ds1/f").exists());
    nothing_left(&lab, "ds2");
}

#[test]
fn a_detached_move_goes_on_by_itself() {
    let lab = Lab::new();
    fs::write(lab.path("ds1/f"), noise(4 << 20)).expect("write");
    let output = lab.dsmove(&["ds1/f", "--to", "ds2", "--detach"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_for("the move", || lab.path("ds2/f").exists() && lab.running_moves().is_empty());
    assert!(fs::read(lab.path("ds2/f")).expect("read") == noise(4 << 20));
}

#[test]
fn a_second_dshost_and_a_stale_mount_are_refused() {
    let mut lab = Lab::new();
    let second = std::process::Command::new(godwit_tests::lab::program("dshost"))
        .args(["run", "--name", "hostB", "--mount"])
        .arg(lab.root())
        .arg("--run")
        .arg(lab.run_dir())
        .arg("--datastore")
        .arg(format!("ds1={}", lab.servers["ds1"].address))
        .output()
        .expect("start a second dshost");
    refused(&second, 1, &["run"]);
    // A killed dshost leaves its mount behind: ENOTCONN to everybody.
    let address = lab.servers["ds1"].address.clone();
    lab.host().kill();
    let stale = std::process::Command::new(godwit_tests::lab::program("dshost"))
        .args(["run", "--name", "hostA", "--mount"])
        .arg(lab.mount())
        .arg("--run")
        .arg(lab.run_dir())
        .arg("--datastore")
        .arg(format!("ds1={address}"))
        .output()
        .expect("start dshost over a stale mount");
    refused(&stale, 1, &["stale", "umount"]);
    lab.kill_host();
    lab.start_host(&[]);
    lab.stop_host();
    let mounts = fs::read_to_string("/proc/self/mounts").expect("read mounts");
    assert!(!mounts.contains(&*lab.mount().to_string_lossy()), "SIGTERM unmounts");
}
