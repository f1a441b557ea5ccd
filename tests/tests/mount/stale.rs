//! Mounting and unmounting.

use std::fs;
use std::process::Command;

use fs_client::{Files, Mount, MountConfig};
use godwit_tests::cluster::Cluster;
use godwit_tests::process::{run, wait_for};

fn is_mounted(path: &std::path::Path) -> bool {
    fs::read_to_string("/proc/self/mounts")
        .unwrap()
        .lines()
        .any(|line| line.split(' ').nth(1) == path.to_str())
}

#[test]
fn a_clean_unmount_leaves_nothing() {
    let cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let path = host.path("");
    fs::write(host.path("ds1/f"), "x").unwrap();
    let again =
        Mount::start(Files::new(Vec::new()), MountConfig::at(&path)).err().expect("is refused").to_string();
    assert!(again.contains("another dshost") && again.contains("hint:"), "{again}");
    host.unmount();
    assert!(fs::read_dir(&path).unwrap().next().is_none());
    assert!(!is_mounted(path.as_path()));
    let host = cluster.host("a");
    assert_eq!(fs::read(host.path("ds1/f")).unwrap(), b"x");
}

#[test]
fn a_mount_in_use_is_detached() {
    let cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let path = host.path("");
    let mut user = Command::new("sleep").arg("1000").current_dir(host.path("ds1")).spawn().unwrap();
    host.unmount();
    assert!(!is_mounted(path.as_path()));
    user.kill().unwrap();
    user.wait().unwrap();
}

#[test]
fn a_stale_mount_is_refused_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mnt");
    fs::create_dir(&path).unwrap();
    // A mount whose process is gone: what a killed dshost leaves.
    run(
        "bash",
        &[
            "-c",
            r#"exec 5<>/dev/fuse && mount -i -t fuse -o fd=5,rootmode=40000,user_id=0,group_id=0 gone "$1""#,
            "bash",
            path.to_str().unwrap(),
        ],
    );
    wait_for("the mount to be stale", || {
        fs::metadata(&path).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
    });
    let refused =
        Mount::start(Files::new(Vec::new()), MountConfig::at(&path)).err().expect("is refused").to_string();
    run("umount", &["-l", path.to_str().unwrap()]);
    assert!(refused.contains("stale") && refused.contains("fusermount3 -u"), "{refused}");
}
