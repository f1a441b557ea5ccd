//! Two hosts, one datastore.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

use godwit_tests::cluster::Cluster;
use godwit_tests::process::{run, wait_for};

#[test]
fn what_one_host_writes_the_other_reads_at_once() {
    let cluster = Cluster::new(&["ds1"]);
    let (a, b) = (cluster.host("a"), cluster.host("b"));
    let (on_a, on_b) = (a.path("ds1/f"), b.path("ds1/f"));
    assert!(fs::metadata(&on_b).is_err());
    fs::write(&on_a, "one").unwrap();
    assert_eq!(fs::read(&on_b).unwrap(), b"one");
    assert_eq!(fs::metadata(&on_a).unwrap().ino(), fs::metadata(&on_b).unwrap().ino());
    let (writer, reader) = (OpenOptions::new().write(true).open(&on_a).unwrap(), File::open(&on_b).unwrap());
    for i in 0..200u32 {
        writer.write_all_at(&i.to_le_bytes(), 8).unwrap();
        let mut seen = [0; 4];
        reader.read_exact_at(&mut seen, 8).unwrap();
        assert_eq!(u32::from_le_bytes(seen), i);
        writer.set_len(12 + u64::from(i)).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 12 + u64::from(i));
    }
    fs::rename(&on_b, b.path("ds1/g")).unwrap();
    assert!(fs::metadata(&on_a).is_err());
    assert!(a.path("ds1/g").exists());
    fs::remove_file(a.path("ds1/g")).unwrap();
    assert!(!b.path("ds1/g").exists());
    let mut byte = [0];
    reader.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(&byte, b"o", "open on b, removed by a");
}

#[test]
fn trees_made_on_one_host_are_whole_on_the_other() {
    let cluster = Cluster::new(&["ds1"]);
    let (a, b) = (cluster.host("a"), cluster.host("b"));
    run("cp", &["-r", "/usr/share/doc/fio", &a.arg("ds1/doc")]);
    run("diff", &["-r", "/usr/share/doc/fio", &b.arg("ds1/doc")]);
    run("rm", &["-r", &b.arg("ds1/doc")]);
    assert_eq!(fs::read_dir(a.path("ds1")).unwrap().count(), 0);
}

#[test]
fn a_disk_image_has_one_writing_host() {
    let cluster = Cluster::new(&["ds1"]);
    let (a, b) = (cluster.host("a"), cluster.host("b"));
    let on_a =
        OpenOptions::new().create(true).write(true).truncate(false).open(a.path("ds1/disk.raw")).unwrap();
    let write_on_b = || OpenOptions::new().write(true).open(b.path("ds1/disk.raw"));
    assert_eq!(write_on_b().unwrap_err().raw_os_error(), Some(libc::EBUSY));
    File::open(b.path("ds1/disk.raw")).unwrap();
    let second = OpenOptions::new().write(true).open(a.path("ds1/disk.raw")).unwrap();
    drop(on_a);
    assert!(write_on_b().is_err(), "still open on a");
    drop(second);
    wait_for("b to get it", || write_on_b().is_ok());
    fs::write(a.path("ds1/ordinary"), "x").unwrap();
    let _kept_open = OpenOptions::new().write(true).open(a.path("ds1/ordinary")).unwrap();
    OpenOptions::new().write(true).open(b.path("ds1/ordinary")).unwrap();
}
