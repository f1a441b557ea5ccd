//! Names and attributes: what a shell and the usual tools do.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use godwit_tests::cluster::Cluster;
use godwit_tests::process::{run, try_run};
use rustix::fs::{CWD, RenameFlags, renameat_with};

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("is refused").raw_os_error().expect("an errno")
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn shell_tools_work() {
    let cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let script = r#"
        set -e
        cd "$1"
        mkdir -p a/b/c
        for i in 1 2 3 4 5 6 7 8 9; do seq 1 $((i * 1000)) > a/b/f$i; done
        cp -a a copy
        diff -r a copy
        mv copy/b/f1 copy/b/c/moved
        cmp a/b/f1 copy/b/c/moved
        tar cf t.tar a
        mkdir out
        tar xf t.tar -C out
        diff -r a out/a
        dd if=/dev/urandom of=rnd bs=64k count=50 status=none
        dd if=rnd of=rnd2 bs=4k iflag=direct oflag=direct status=none
        cmp rnd rnd2
        ls -laR > /dev/null
        find . -type f | wc -l
        touch -d '2001-02-03 04:05:06' rnd
        test "$(stat -c %Y rnd)" = "$(date -d '2001-02-03 04:05:06' +%s)"
        chmod 640 rnd; test "$(stat -c %a rnd)" = 640
        chown 12:34 rnd; test "$(stat -c %u:%g rnd)" = 12:34
        echo one > log; echo two >> log; test "$(cat log)" = "$(printf 'one\ntwo')"
        cat rnd >> log; test "$(stat -c %s log)" = $((8 + 3276800))
        rm -r a copy out t.tar rnd rnd2 log
        test -z "$(ls -A)"
    "#;
    let out = run("bash", &["-c", script, "bash", &host.arg("ds1")]);
    assert_eq!(out.trim(), (9 * 3 + 3).to_string());
}

#[test]
fn renames_of_all_kinds() {
    let cluster = Cluster::new(&["ds1", "ds2"]);
    let host = cluster.host("a");
    let at = |name: &str| host.path("ds1").join(name);
    fs::create_dir_all(at("d/sub")).unwrap();
    fs::write(at("x"), "x").unwrap();
    fs::write(at("y"), "y").unwrap();
    let inode = fs::metadata(at("x")).unwrap().ino();
    fs::rename(at("x"), at("d/x")).unwrap();
    assert_eq!(fs::metadata(at("d/x")).unwrap().ino(), inode, "a rename keeps the inode");
    fs::rename(at("d/x"), at("y")).unwrap();
    assert_eq!(fs::read(at("y")).unwrap(), b"x", "replaces");

    fs::write(at("z"), "z").unwrap();
    let with =
        |flags, a: &str, b: &str| renameat_with(CWD, at(a), CWD, at(b), flags).map_err(std::io::Error::from);
    assert_eq!(errno(with(RenameFlags::NOREPLACE, "z", "y")), libc::EEXIST);
    with(RenameFlags::NOREPLACE, "z", "new").unwrap();
    with(RenameFlags::EXCHANGE, "new", "d/sub").unwrap();
    assert!(at("new").is_dir() && fs::read(at("d/sub")).unwrap() == b"z");

    assert_eq!(errno(fs::rename(at("d"), at("d/below"))), libc::EINVAL);
    fs::create_dir_all(at("full/x")).unwrap();
    assert_eq!(errno(fs::rename(at("new"), at("full"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::rename(at("y"), at("new"))), libc::EISDIR);
    assert_eq!(errno(fs::rename(at("new"), at("y"))), libc::ENOTDIR);
    assert_eq!(errno(fs::rename(at("y"), host.path("ds2/y"))), libc::EXDEV, "no move has prepared it");
    assert_eq!(errno(fs::hard_link(at("y"), host.path("ds2/y"))), libc::EXDEV);
    run("mv", &[&host.arg("ds1/y"), &host.arg("ds2/y")]);
    assert_eq!(fs::read(host.path("ds2/y")).unwrap(), b"x", "mv copies then");
}

#[test]
fn the_mount_root_is_read_only_and_lists_datastores() {
    let cluster = Cluster::new(&["ds1", "ds2"]);
    let host = cluster.host("a");
    assert_eq!(names_in(&host.path("")), ["ds1", "ds2"].map(String::from).into());
    assert_eq!(errno(fs::create_dir(host.path("new"))), libc::EPERM);
    assert_eq!(errno(File::create(host.path("new"))), libc::EPERM);
    assert_eq!(errno(fs::rename(host.path("ds1"), host.path("ds3"))), libc::EPERM);
    assert_eq!(errno(fs::remove_dir(host.path("ds1"))), libc::EPERM);
    assert_eq!(errno(fs::metadata(host.path("ds3"))), libc::ENOENT);
    let root = fs::metadata(host.path("")).unwrap().ino();
    assert_eq!(root, 1);
    assert_eq!(fs::metadata(host.path("ds1/..")).unwrap().ino(), root);
    run("ls", &["-laR", &host.arg("")]);
    let df = run("df", &["--output=size", "-B1", &host.arg("ds1")]);
    assert!(df.lines().last().unwrap().trim().parse::<u64>().unwrap() > 0);
}

#[test]
fn links_count_and_symlinks_lead() {
    let cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let at = |name: &str| host.path("ds1").join(name);
    fs::write(at("f"), "content").unwrap();
    fs::hard_link(at("f"), at("g")).unwrap();
    let (f, g) = (fs::metadata(at("f")).unwrap(), fs::metadata(at("g")).unwrap());
    assert_eq!((f.ino(), f.nlink()), (g.ino(), 2));
    fs::remove_file(at("f")).unwrap();
    assert_eq!(
        (fs::read(at("g")).unwrap(), fs::metadata(at("g")).unwrap().nlink()),
        (b"content".to_vec(), 1)
    );
    assert_eq!(errno(fs::hard_link(at("g"), at("g"))), libc::EEXIST);

    symlink("g", at("s")).unwrap();
    assert_eq!(fs::read_link(at("s")).unwrap(), Path::new("g"));
    assert_eq!(fs::read(at("s")).unwrap(), b"content");
    symlink("/nowhere/at/all", at("dangling")).unwrap();
    assert_eq!(errno(fs::read(at("dangling"))), libc::ENOENT);
    run("mkfifo", &[&host.arg("ds1/fifo")]);
    assert_eq!(run("stat", &["-c", "%F", &host.arg("ds1/fifo")]).trim(), "fifo");

    fs::create_dir_all(at("dir/one")).unwrap();
    fs::create_dir(at("dir/two")).unwrap();
    assert_eq!(fs::metadata(at("dir")).unwrap().nlink(), 4);
}

#[test]
fn extended_attributes() {
    let cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let file = host.path("ds1/f");
    fs::write(&file, "x").unwrap();
    let attr = |args: &[&str]| run("setfattr", &[args, &[file.to_str().unwrap()]].concat());
    attr(&["-n", "user.one", "-v", "first"]);
    attr(&["-n", "user.two", "-v", "second"]);
    let all = run("getfattr", &["-d", "--absolute-names", file.to_str().unwrap()]);
    assert!(all.contains("user.one=\"first\"") && all.contains("user.two=\"second\""), "{all}");
    attr(&["-x", "user.one"]);
    let one = try_run("getfattr", &["-n", "user.one", file.to_str().unwrap()]);
    assert!(!one.status.success());
    let path = CString::new(file.as_os_str().as_bytes()).unwrap();
    let set = |flags| rustix::fs::setxattr(&path, c"user.two", b"again", flags);
    assert_eq!(set(rustix::fs::XattrFlags::CREATE), Err(rustix::io::Errno::EXIST));
    set(rustix::fs::XattrFlags::REPLACE).unwrap();
    let mut small = [0u8; 2];
    assert_eq!(rustix::fs::getxattr(&path, c"user.two", &mut small), Err(rustix::io::Errno::RANGE));
    let acl = try_run("setfacl", &["-m", "u:1234:r", file.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&acl.stderr).contains("not supported"), "{acl:?}");
}

#[test]
fn permissions_hold_for_other_users() {
    let cluster = Cluster::new(&["ds1"]);
    rustix::fs::chmod(cluster.scratch(), 0o755.into()).unwrap();
    let host = cluster.host("a");
    let at = |name: &str| host.path("ds1").join(name);
    fs::create_dir(at("private")).unwrap();
    fs::set_permissions(at("private"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(at("private/f"), "x").unwrap();
    fs::write(at("secret"), "x").unwrap();
    fs::set_permissions(at("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(at("theirs")).unwrap();
    std::os::unix::fs::chown(at("theirs"), Some(1234), Some(1234)).unwrap();
    let script = r#"
        cd "$1" || exit 9
        cat private/f 2>/dev/null && exit 1
        cat secret 2>/dev/null && exit 2
        touch mine 2>/dev/null && exit 3
        touch theirs/mine || exit 4
        test "$(stat -c %u:%g theirs/mine)" = 1234:1234 || exit 5
        chmod u+s theirs/mine && echo changed >> theirs/mine
        exit 0
    "#;
    let output = std::process::Command::new("setpriv")
        .args([
            "--reuid=1234",
            "--regid=1234",
            "--clear-groups",
            "bash",
            "-c",
            script,
            "bash",
            &host.arg("ds1"),
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let mode = fs::metadata(at("theirs/mine")).unwrap().mode();
    assert_eq!(mode & 0o4000, 0, "a write by an ordinary user takes the setuid bit away");
}

#[test]
fn an_unlinked_open_file_lives_until_it_is_closed() {
    let mut cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let path = host.path("ds1/f");
    let mut file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
    file.write_all(&vec![7; 300_000]).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(errno(fs::metadata(&path)), libc::ENOENT);
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.nlink()), (300_000, 0));
    let mut back = Vec::new();
    use std::io::Seek;
    file.rewind().unwrap();
    file.read_to_end(&mut back).unwrap();
    assert!(back.len() == 300_000 && back.iter().all(|&b| b == 7));
    assert!(cluster.server("ds1").allocated() > 0);
    drop(file);
    godwit_tests::process::wait_for("the space to be given back", || cluster.server("ds1").allocated() == 0);
}

#[test]
fn a_listing_of_thousands_misses_and_doubles_nothing_while_entries_come_and_go() {
    const STAYING: usize = 5000;
    let cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let dir = host.path("ds1/many");
    fs::create_dir(&dir).unwrap();
    for i in 0..STAYING {
        File::create(dir.join(format!("stays-{i}"))).unwrap();
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let path = dir.join(format!("comes-and-goes-{n}"));
                File::create(&path).unwrap();
                if n % 3 == 0 {
                    fs::rename(&path, dir.join("comes-and-goes")).unwrap();
                } else {
                    fs::remove_file(&path).unwrap();
                }
                n += 1;
            }
        });
        for round in 0..8 {
            // Alternately with and without attributes.
            let seen: Vec<String> = if round % 2 == 0 {
                fs::read_dir(&dir)
                    .unwrap()
                    .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
                    .collect()
            } else {
                run("ls", &["-U", "--color=never", "-l", dir.to_str().unwrap()])
                    .lines()
                    .filter_map(|l| l.split(' ').next_back().map(String::from))
                    .collect()
            };
            let staying: Vec<&String> = seen.iter().filter(|n| n.starts_with("stays-")).collect();
            let distinct: BTreeSet<&String> = staying.iter().copied().collect();
            assert_eq!((staying.len(), distinct.len()), (STAYING, STAYING));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(fs::metadata(&dir).expect_err("gone").kind(), ErrorKind::NotFound);
}

#[test]
fn the_kernel_forgets_nodes() {
    let cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    for i in 0..500 {
        fs::write(host.path(&format!("ds1/f{i}")), "x").unwrap();
    }
    run("ls", &["-l", &host.arg("ds1")]);
    assert!(host.files.node_count() > 100);
    for i in 0..500 {
        fs::remove_file(host.path(&format!("ds1/f{i}"))).unwrap();
    }
    godwit_tests::process::wait_for("the nodes to be forgotten", || host.files.node_count() <= 2);
}
