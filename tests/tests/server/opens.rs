//! How files are open at the server: what that keeps alive, and whom it keeps out.

use bytes::Bytes;
use godwit_tests::process::wait_for;
use proto::ops::names::{Create, NewNode, Unlink};
use proto::ops::session::{Detach, OpenMode, SetOpen};
use proto::ops::{Operation, Reply};
use proto::{FileId, RequestId, WireError};

use super::site::{ENOENT, Site, new_node, posix};
use super::wire::{Host, Wire};

fn set_open(wire: &mut Wire, file: FileId, mode: OpenMode) -> Result<(), WireError> {
    wire.call(SetOpen { file, mode }).map(drop)
}

fn unlink(wire: &mut Wire, parent: FileId, name: &str) {
    wire.call(Unlink { parent, name: name.into() }).unwrap();
}

#[test]
fn an_open_file_outlives_its_last_name_and_goes_when_it_is_closed() {
    let mut site = Site::new();
    let host = Host::run("a");
    let (mut wire, attached) = site.host(&host);
    let file = wire.make_file(attached.root, "f");
    wire.write(file, 0, b"kept").unwrap();
    set_open(&mut wire, file, OpenMode::Read).unwrap();
    let (mut other, _) = site.host(&Host::run("b"));
    unlink(&mut other, attached.root, "f");
    drop(other);
    assert_eq!(posix(wire.lookup(attached.root, "f")), ENOENT);
    assert_eq!(wire.read(file, 0, 9).unwrap(), "kept");

    // A server that starts again knows nothing of who has what open: it waits for its hosts to say so.
    site.restart();
    let mut wire = site.resume(&host, &attached);
    set_open(&mut wire, file, OpenMode::Read).unwrap();
    assert_eq!(wire.read(file, 0, 9).unwrap(), "kept");
    let (mut other, _) = site.host(&Host::run("c"));
    set_open(&mut other, file, OpenMode::Read).unwrap();
    set_open(&mut wire, file, OpenMode::Closed).unwrap();
    assert_eq!(wire.read(file, 0, 9).unwrap(), "kept", "the other one has it open");
    set_open(&mut other, file, OpenMode::Closed).unwrap();
    // Host b is away: what it may have open is kept for two leases.
    wait_for("the data to go", || site.server().data_files() == 0);
    assert_eq!(posix(wire.attr(file)), ENOENT);
}

/// The reply to a Create that opens is lost with the server; sent again, the file is open all the same.
#[test]
fn a_create_that_opens_is_open_after_it_was_sent_again() {
    let mut site = Site::new();
    let host = Host::run("a");
    let (mut wire, attached) = site.host(&host);
    let create = Create { open: OpenMode::Write, ..new_node(attached.root, "f", NewNode::File) };
    let id = RequestId(1);
    wire.send(id, &create.clone().request(), Bytes::new()).unwrap();
    let first = wire.receive_for(id).unwrap().unwrap().0;
    // As if that reply had not come.
    site.restart();
    let mut wire = site.resume(&host, &attached);
    wire.send(id, &create.request(), Bytes::new()).unwrap();
    let second = wire.receive_for(id).unwrap().unwrap().0;
    assert_eq!(first, second);
    let Reply::Create(created) = second else { panic!("{second:?}") };
    let (mut other, _) = site.host(&Host::run("b"));
    unlink(&mut other, attached.root, "f");
    wire.write(created.attr.file, 0, b"goes on").expect("an open file outlives its name");
}

#[test]
fn files_of_the_exclusive_patterns_have_one_writer() {
    let site = Site::new();
    let (mut a, attached) = site.host(&Host::run("a"));
    let (mut b, _) = site.host(&Host::run("b"));
    let disk = a.make_file(attached.root, "d.raw");
    let plain = a.make_file(attached.root, "d.txt");
    for file in [disk, plain] {
        set_open(&mut a, file, OpenMode::Write).unwrap();
        set_open(&mut b, file, OpenMode::Read).unwrap();
    }
    set_open(&mut b, plain, OpenMode::Write).unwrap();
    match set_open(&mut b, disk, OpenMode::Write) {
        Err(WireError::Busy { holder, .. }) => assert!(holder.contains("host a"), "{holder}"),
        other => panic!("{other:?}"),
    }
    set_open(&mut a, disk, OpenMode::Closed).unwrap();
    set_open(&mut b, disk, OpenMode::Write).unwrap();
    set_open(&mut a, disk, OpenMode::Write).expect_err("b has it");
}

/// "End the session in order: drop its opens."
#[test]
fn a_session_that_detached_keeps_nobody_out() {
    let site = Site::new();
    let (mut a, attached) = site.host(&Host::run("a"));
    let (mut b, _) = site.host(&Host::run("b"));
    let disk = a.make_file(attached.root, "d.raw");
    set_open(&mut a, disk, OpenMode::Write).unwrap();
    a.call(Detach {}).unwrap();
    set_open(&mut b, disk, OpenMode::Write).expect("a has ended its session");
}

/// A writer whose lease is over loses the file to one who asks, for good.
#[test]
fn a_fenced_writer_is_fenced_after_a_restart_of_the_server_too() {
    for restart in [false, true] {
        let mut site = Site::new();
        let (first, second) = (Host::run("a"), Host::run("b"));
        let (mut a, old) = site.host(&first);
        let (mut b, new) = site.host(&second);
        let disk = a.make_file(old.root, "d.raw");
        set_open(&mut a, disk, OpenMode::Write).unwrap();
        drop(a);
        wait_for("the lease to end", || set_open(&mut b, disk, OpenMode::Write).is_ok());
        b.write(disk, 0, b"of b").unwrap();
        if restart {
            site.restart();
            b = site.resume(&second, &new);
            set_open(&mut b, disk, OpenMode::Write).unwrap();
        }
        // What the first host had not got an answer to, it sends again.
        let ask = first.attach(0, Some(old.session));
        if let Ok((mut a, _)) = Wire::try_attach(&site.address(), ask).unwrap() {
            let late = a.write(disk, 0, b"of a");
            assert!(matches!(late, Err(WireError::Fenced { .. })), "restart {restart}: {late:?}");
        }
        assert_eq!(b.read(disk, 0, 9).unwrap(), "of b", "restart {restart}");
    }
}
