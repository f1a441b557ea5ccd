//! Data files of what is gone go too, whenever the server was killed in between.

use std::fs;
use std::time::Duration;

use bytes::Bytes;
use godwit_tests::process::wait_for;
use proto::ops::moves::{
    IncomingBegin, IncomingDrop, IncomingPut, IncomingRemove, MoveBegin, MoveCommit, MoveFinish, MoveList,
    MoveState,
};
use proto::ops::names::{FileKind, NewNode, Rename, Unlink};
use proto::ops::session::Attached;
use proto::ops::{Operation, Request};
use proto::{DatastoreId, FileId, MoveId, WireError};
use rand::Rng;

use super::incoming::entry;
use super::site::{Site, a_write, new_node};
use super::wire::{Host, Wire};

fn with_data(wire: &mut Wire, parent: FileId, name: &str) -> FileId {
    let file = wire.make_file(parent, name);
    wire.write(file, 0, b"data").unwrap();
    file
}

fn begin_move(wire: &mut Wire, attached: &Attached, name: &str, root: FileId) -> MoveId {
    let (id, to, parent) = (MoveId::new(), DatastoreId::new(), attached.root);
    let begin = MoveBegin { id, parent, name: name.into(), root, to, to_name: "ds2".into() };
    wire.call(begin).unwrap();
    wire.call(MoveCommit { id }).unwrap();
    id
}

/// An incoming directory with files and their data; the ids of the directory and of the first file.
fn begin_incoming(wire: &mut Wire, attached: &Attached, id: MoveId, files: u64) -> (FileId, FileId) {
    let own = |n| FileId::of(attached.prefix ^ 2, n).unwrap();
    let (root, parent, from) = (own(2), attached.root, DatastoreId::new());
    let (name, from_name) = ("vm".into(), "ds0".into());
    let begin = IncomingBegin { id, from, from_name, root, parent, name, bytes: 0, check_only: false };
    wire.call(begin).unwrap();
    let mut entries = vec![entry(parent, "vm", root, FileKind::Directory)];
    entries.extend((0..files).map(|n| entry(root, &format!("f{n}"), own(n + 3), FileKind::File)));
    for part in entries.chunks(500) {
        wire.call(IncomingPut { id, entries: part.to_vec() }).unwrap();
    }
    let write = |n| proto::ops::data::Write { incoming: Some(id), ..a_write(own(n + 3), 0) };
    let posted: Vec<_> = (0..files).map(|n| wire.post(write(n), Bytes::from_static(b"data"))).collect();
    for id in posted {
        wire.receive_for(id).unwrap().unwrap();
    }
    (root, own(3))
}

/// A file with data, and the request that will make it go.
fn doomed(wire: &mut Wire, attached: &Attached, how: &str) -> (FileId, Request) {
    let parent = attached.root;
    let id = MoveId::new();
    match how {
        "unlink" => (with_data(wire, parent, "f"), Unlink { parent, name: "f".into() }.request()),
        "rename over" => {
            let file = with_data(wire, parent, "f");
            wire.make_file(parent, "g");
            let (name, new_name, no_replace) = ("g".into(), "f".into(), false);
            let rename = Rename { parent, name, new_parent: parent, new_name, no_replace, exchange: false };
            (file, rename.request())
        }
        "finish" => {
            let file = with_data(wire, parent, "f");
            let id = begin_move(wire, attached, "f", file);
            (file, MoveFinish { id }.request())
        }
        "incoming drop" => (begin_incoming(wire, attached, id, 1).1, IncomingDrop { id }.request()),
        "incoming remove" => {
            let (root, file) = begin_incoming(wire, attached, id, 1);
            (file, IncomingRemove { id, names: vec![(root, "f0".into())] }.request())
        }
        other => panic!("{other}"),
    }
}

/// The removal of the data file is kept from happening until the server is dead: what lies on disk
/// then is what a kill between the commit and the removal leaves.
#[test]
fn data_files_that_were_to_go_go_at_the_next_start() {
    for how in ["unlink", "rename over", "finish", "incoming drop", "incoming remove"] {
        let mut site = Site::with(&["--capacity", "1MiB"], &[]);
        let host = Host::run("a");
        let (mut wire, attached) = site.host(&host);
        let free = wire.space().free;
        let (file, request) = doomed(&mut wire, &attached, how);
        let dir = site.scratch().join("ds1/data").join(format!("{:02x}", file.0 & 0xff));
        let (place, aside) = (dir.join(format!("{:016x}", file.0)), site.scratch().join("aside"));
        fs::rename(&place, &aside).unwrap();
        fs::create_dir(&place).unwrap();
        let id = wire.fresh();
        wire.send(id, &request, Bytes::new()).unwrap();
        wire.receive_for(id).unwrap().expect(how);
        site.kill();
        fs::remove_dir(&place).unwrap();
        fs::rename(&aside, &place).unwrap();
        for _ in 0..2 {
            site.restart();
            assert_eq!(site.server().data_files(), 0, "{how}");
            wire = site.resume(&host, &attached);
            assert_eq!(wire.space().free, free, "{how}");
        }
    }
}

/// A big tree is taken apart in several transactions; the server dies behind the first.
#[test]
fn a_finish_that_was_cut_short_is_finished_after_the_restart() {
    const FILES: u64 = 1_300;
    let mut site = Site::new();
    let host = Host::run("a");
    let (mut wire, attached) = site.host(&host);
    let vm = wire.make_dir(attached.root, "vm");
    let posted: Vec<_> =
        (0..FILES).map(|n| wire.post(new_node(vm, &format!("{n}"), NewNode::File), Bytes::new())).collect();
    for id in posted {
        wire.receive_for(id).unwrap().unwrap();
    }
    let files: Vec<FileId> = wire.list(vm).iter().map(|e| e.attr.file).collect();
    assert_eq!(files.len() as u64, FILES);
    for file in &files {
        wire.post(a_write(*file, 0), Bytes::from_static(b"x"));
    }
    for _ in &files {
        wire.receive().unwrap().1.unwrap();
    }
    let id = begin_move(&mut wire, &attached, "vm", vm);
    site.restart_with(&[("GODWIT_HALT_AT", "finish-mid")]);
    let mut wire = site.resume(&host, &attached);
    wire.post(MoveFinish { id }, Bytes::new());
    site.wait_for_halt();
    let left = site.server().data_files() as u64;
    assert!(0 < left && left < FILES, "{left}");
    site.restart();
    let mut wire = site.resume(&host, &attached);
    let records = wire.call(MoveList { id: None }).unwrap().records;
    assert_eq!(records.iter().map(|r| r.state).collect::<Vec<_>>(), [MoveState::Committed]);
    for file in &files {
        let gone = wire.read(*file, 0, 1);
        assert!(matches!(gone, Err(WireError::Moved { .. })), "{gone:?}");
    }
    assert_eq!(wire.call(MoveFinish { id }).unwrap().state, MoveState::Finished);
    assert_eq!(site.server().data_files(), 0);
    for file in &files {
        let gone = wire.write(*file, 0, b"late");
        assert!(matches!(gone, Err(WireError::Moved { .. })), "{gone:?}");
    }
    assert_eq!(site.server().data_files(), 0);
}

/// The server dies anywhere while a big incoming tree is dropped.
#[test]
fn a_drop_that_was_cut_short_leaves_nothing_in_the_end() {
    const FILES: u64 = 1_300;
    let mut site = Site::with(&["--capacity", "64MiB"], &[]);
    let host = Host::run("a");
    let (mut wire, attached) = site.host(&host);
    let free = wire.space().free;
    let mut cut = 0;
    for _ in 0..8 {
        let id = MoveId::new();
        begin_incoming(&mut wire, &attached, id, FILES);
        assert_eq!(site.server().data_files() as u64, FILES);
        wire.post(IncomingDrop { id }, Bytes::new());
        std::thread::sleep(Duration::from_micros(rand::rng().random_range(0..40_000)));
        site.restart();
        wire = site.resume(&host, &attached);
        let records = wire.call(MoveList { id: Some(id) }).unwrap().records;
        match records.first() {
            Some(_) => cut += 1,
            None => assert_eq!(site.server().data_files(), 0, "what is forgotten has left nothing"),
        }
        wire.call(IncomingDrop { id }).unwrap();
        assert_eq!(site.server().data_files(), 0);
        assert_eq!(wire.space().free, free);
        wire.make_file(attached.root, "vm");
        wire.call(Unlink { parent: attached.root, name: "vm".into() }).unwrap();
    }
    println!("{cut} of 8 drops were cut short");
}

/// Copies that are under way when the tree is dropped leave no data file and take no space.
#[test]
fn copies_under_way_at_a_drop_leave_nothing() {
    for env in super::site::BOTH_PATHS {
        let mut site = Site::with(&["--capacity", "1GiB"], env);
        let host = Host::run("a");
        let (mut wire, attached) = site.host(&host);
        let (mut copies, _) = site.channel(&host, 1);
        let free = wire.space().free;
        for _ in 0..20 {
            let id = MoveId::new();
            let (_, file) = begin_incoming(&mut wire, &attached, id, 1);
            let data = Bytes::from(vec![1; 256 << 10]);
            let write = |at: u64| proto::ops::data::Write { incoming: Some(id), ..a_write(file, at << 18) };
            let posted: Vec<_> = (0..24).map(|at| copies.post(write(at), data.clone())).collect();
            wire.call(IncomingDrop { id }).unwrap();
            for id in posted {
                // Each is written before, or finds no file.
                let _ = copies.receive_for(id).unwrap();
            }
            wait_for("the data files to go", || site.server().data_files() == 0);
        }
        assert_eq!(wire.space().free, free, "{env:?}");
    }
}
