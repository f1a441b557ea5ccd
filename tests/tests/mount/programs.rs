//! Real programs are the last word.

use godwit_tests::cluster::Cluster;
use godwit_tests::process::{run, try_run};

#[test]
fn fio_verifies() {
    let cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    for (name, extra) in [
        (
            "direct",
            &["--ioengine=libaio", "--direct=1", "--iodepth=8", "--bsrange=4k-64k", "--bs_unaligned=0"][..],
        ),
        ("buffered", &["--ioengine=psync", "--bs=4k"]),
        (
            "two jobs",
            &[
                "--ioengine=libaio",
                "--direct=1",
                "--iodepth=8",
                "--bs=8k",
                "--numjobs=2",
                "--offset_increment=32m",
            ],
        ),
    ] {
        let mut arguments = vec![
            "--name=verify",
            "--rw=randwrite",
            "--size=32m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--randrepeat=0",
        ];
        let file = format!("--filename={}", host.arg("ds1/f"));
        arguments.push(&file);
        arguments.extend(extra);
        println!("{name}");
        run("fio", &arguments);
    }
}

#[test]
fn sqlite_in_both_journal_modes_with_two_writers() {
    let cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    for mode in ["wal", "delete"] {
        let db = host.arg(&format!("ds1/{mode}.db"));
        let setup = run("sqlite3", &[&db, &format!("pragma journal_mode={mode}; create table t(a, b);")]);
        assert_eq!(setup.trim(), mode);
        let insert = r#"
            for i in $(seq 1 40); do
                sqlite3 -cmd '.timeout 60000' "$1" "begin immediate; insert into t values($2, $i); commit;" || exit 1
            done"#;
        std::thread::scope(|scope| {
            for writer in ["1", "2"] {
                let db = &db;
                scope.spawn(move || run("bash", &["-c", insert, "bash", db, writer]));
            }
        });
        let check = run(
            "sqlite3",
            &[&db, "pragma integrity_check; select count(*), count(distinct a*1000+b) from t;"],
        );
        assert_eq!(check.trim(), "ok\n80|80", "{mode}");
    }
}

#[test]
fn qemu_img_creates_converts_and_compares() {
    let cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let raw = cluster.scratch().join("source.raw");
    let raw = raw.to_str().unwrap();
    run(
        "bash",
        &[
            "-c",
            &format!(
                "truncate -s 64M {raw}; dd if=/dev/urandom of={raw} bs=1M seek=5 count=9 conv=notrunc status=none"
            ),
        ],
    );
    let (qcow2, copy) = (host.arg("ds1/i.qcow2"), host.arg("ds1/i.raw"));
    run("qemu-img", &["convert", "-t", "none", "-f", "raw", "-O", "qcow2", raw, &qcow2]);
    run("qemu-img", &["check", &qcow2]);
    run("qemu-img", &["convert", "-t", "none", "-T", "none", "-f", "qcow2", "-O", "raw", &qcow2, &copy]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", raw, &copy]);
    run("cmp", &[raw, &copy]);
    run("qemu-img", &["create", "-f", "raw", "-o", "preallocation=falloc", &host.arg("ds1/p.raw"), "8M"]);
    run("qemu-img", &["resize", "-f", "qcow2", &qcow2, "128M"]);
}

#[test]
fn a_file_system_in_a_file_stays_clean() {
    let cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let image = host.arg("ds1/e.img");
    run("truncate", &["-s", "256M", &image]);
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", "/usr/share/doc/fio", &image]);
    let check = try_run("e2fsck", &["-f", "-n", &image]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}
