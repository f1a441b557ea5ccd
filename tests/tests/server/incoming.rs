//! The destination of a move: a tree that nobody sees before it is published, and that leaves
//! nothing behind when it is dropped.

use bytes::Bytes;
use proto::ops::data::{Discard, Flush, Map, Resize, Zero};
use proto::ops::moves::{
    IncomingBegin, IncomingDrop, IncomingPublish, IncomingPut, IncomingRemove, IncomingSeal, MoveList,
    MoveSide, MoveState,
};
use proto::ops::names::{
    Attr, FileKind, GetXattr, Link, ListXattr, NewNode, Rename, SetAttr, Time, TreeEntry, TreeList,
};
use proto::ops::session::{Attached, OpenMode, SetOpen};
use proto::{DatastoreId, FileId, Generation, MoveId, WireError};

use super::site::{BOTH_PATHS, ENOENT, Env, Site, a_read, a_write, new_node, posix};
use super::wire::{Host, Wire};

const TIME: Time = Time { seconds: 1_000_000_000, nanos: 5 };

pub fn entry(parent: FileId, name: &str, file: FileId, kind: FileKind) -> TreeEntry {
    let (mode, uid, gid, nlink, rdev) = (0o751, 3, 4, 1, 0);
    let (atime, mtime, ctime, btime) = (TIME, TIME, TIME, TIME);
    let (size, blocks) = (0, 0);
    let attr = Attr { file, kind, mode, uid, gid, nlink, rdev, size, blocks, atime, mtime, ctime, btime };
    TreeEntry { parent, name: name.into(), attr, target: None, xattrs: vec![("user.a".into(), "v".into())] }
}

/// A tree `vm` with `disk.raw` and `log` in it comes in from elsewhere.
struct Rig {
    site: Site,
    host: Host,
    attached: Attached,
    wire: Wire,
    vm: FileId,
    disk: FileId,
    log: FileId,
    id: MoveId,
    from: DatastoreId,
}

impl Rig {
    fn new(env: Env) -> Rig {
        let site = Site::with(&["--capacity", "64MiB"], env);
        let host = Host::run("mover");
        let (wire, attached) = site.host(&host);
        let [vm, disk, log] = [2, 3, 4].map(|n| FileId::of(attached.prefix ^ 0x55, n).unwrap());
        let (id, from) = (MoveId::new(), DatastoreId::new());
        Rig { site, host, attached, wire, vm, disk, log, id, from }
    }

    fn ask(&self) -> IncomingBegin {
        IncomingBegin {
            id: self.id,
            from: self.from,
            from_name: "ds0".into(),
            root: self.vm,
            parent: self.attached.root,
            name: "vm".into(),
            bytes: 1 << 20,
            check_only: false,
        }
    }

    fn begin(&mut self) {
        let ask = self.ask();
        self.wire.call(ask).unwrap();
    }

    fn put(&mut self) {
        let entries = vec![
            entry(self.attached.root, "vm", self.vm, FileKind::Directory),
            entry(self.vm, "disk.raw", self.disk, FileKind::File),
            entry(self.vm, "log", self.log, FileKind::File),
        ];
        self.wire.call(IncomingPut { id: self.id, entries }).unwrap();
    }

    fn copy(&mut self) {
        self.wire.write_incoming(self.id, self.disk, 0, b"disk from afar").unwrap();
        self.wire.write_incoming(self.id, self.log, 0, b"log from afar").unwrap();
        for file in [self.disk, self.log] {
            self.wire.call(Flush { file, incoming: Some(self.id) }).unwrap();
        }
    }

    fn state(&mut self) -> Option<MoveState> {
        let records = self.wire.call(MoveList { id: Some(self.id) }).unwrap().records;
        records.first().map(|r| {
            assert_eq!(r.side, MoveSide::Destination);
            r.state
        })
    }

    fn publish(&mut self) -> Result<MoveState, WireError> {
        let ask = IncomingPublish { id: self.id, generation: Generation(7) };
        self.wire.call(ask).map(|record| record.state)
    }

    fn restart_with(&mut self, env: &[(&str, &str)]) {
        self.site.restart_with(env);
        self.wire = self.site.resume(&self.host, &self.attached);
    }

    /// Nobody finds the tree, not even who moves it, unless it names the move.
    fn assert_hidden(&mut self) {
        let root = self.attached.root;
        let (mut other, _) = self.site.host(&Host::run(&MoveId::new().to_string()));
        let (disk, log, vm, offset, len) = (self.disk, self.log, self.vm, 0, 4096);
        for wire in [&mut self.wire, &mut other] {
            let hidden = |what: &str, result: Result<(), WireError>| {
                let errno = matches!(result, Err(WireError::Posix { errno: ENOENT, .. }));
                assert!(errno, "{what}: {result:?}");
            };
            assert_eq!(wire.names(root), ["there before"]);
            hidden("lookup", wire.lookup(root, "vm").map(drop));
            hidden("lookup inside", wire.lookup(vm, "log").map(drop));
            hidden("walk", wire.call(TreeList { root: vm, after: None, max: 9 }).map(drop));
            hidden("create inside", wire.call(new_node(vm, "n", NewNode::File)).map(drop));
            for file in [vm, disk, log] {
                let set = SetAttr { file, mode: Some(0), uid: None, gid: None, atime: None, mtime: None };
                hidden("getattr", wire.attr(file).map(drop));
                hidden("setattr", wire.call(set).map(drop));
                hidden("xattrs", wire.call(ListXattr { file }).map(drop));
                hidden("xattr", wire.call(GetXattr { file, name: "user.a".into() }).map(drop));
                hidden("open", wire.call(SetOpen { file, mode: OpenMode::Read }).map(drop));
                hidden("link", wire.call(Link { file, new_parent: root, new_name: "l".into() }).map(drop));
            }
            for file in [disk, log] {
                for incoming in [None, Some(MoveId::new())] {
                    let read = proto::ops::data::Read { incoming, ..a_read(file, 0, 9) };
                    let write = proto::ops::data::Write { incoming, ..a_write(file, 0) };
                    hidden("read", wire.call_data(read, &[]).map(drop));
                    hidden("write", wire.call_data(write, b"spoilt").map(drop));
                    hidden("flush", wire.call(Flush { file, incoming }).map(drop));
                    hidden("map", wire.call(Map { file, offset, len, incoming }).map(drop));
                    hidden("discard", wire.call(Discard { file, offset, len, incoming }).map(drop));
                    hidden("resize", wire.call(Resize { file, size: 0, incoming }).map(drop));
                    let zero = Zero { file, offset, len, keep_size: true, incoming };
                    hidden("zero", wire.call(zero).map(drop));
                }
            }
            // The name is taken all the same.
            let busy = |result: Result<(), WireError>| assert!(matches!(result, Err(WireError::Busy { .. })));
            busy(wire.call(new_node(root, "vm", NewNode::Directory)).map(drop));
            let (name, new_name) = ("there before".into(), "vm".into());
            let (no_replace, exchange) = (false, false);
            let rename = Rename { parent: root, name, new_parent: root, new_name, no_replace, exchange };
            busy(wire.call(rename).map(drop));
        }
        let (id, incoming) = (self.id, Some(self.id));
        let read = proto::ops::data::Read { incoming, ..a_read(disk, 0, 99) };
        assert_eq!(self.wire.call_data(read, &[]).unwrap(), "disk from afar", "{id}");
    }

    fn assert_live(&mut self) {
        let (root, vm) = (self.attached.root, self.vm);
        let (mut other, _) = self.site.host(&Host::run(&MoveId::new().to_string()));
        let dir = other.lookup(root, "vm").unwrap();
        assert_eq!((dir.file, dir.mode, dir.uid, dir.nlink), (vm, 0o751, 3, 2));
        assert_eq!(other.names(root), ["there before", "vm"]);
        assert_eq!(other.names(vm), ["disk.raw", "log"]);
        let disk = other.lookup(vm, "disk.raw").unwrap();
        assert_eq!((disk.file, disk.nlink, disk.mtime), (self.disk, 1, TIME));
        assert_eq!(other.read(self.disk, 0, 99).unwrap(), "disk from afar");
        assert_eq!(other.read(self.log, 0, 99).unwrap(), "log from afar");
        let value = other.call(GetXattr { file: self.log, name: "user.a".into() }).unwrap().value;
        assert_eq!(value, "v".into());
    }
}

fn move_state(state: &str) -> Result<(), WireError> {
    Err(WireError::MoveState { state: state.into() })
}

#[test]
fn an_incoming_tree_is_hidden_until_it_is_published_whole() {
    for env in BOTH_PATHS {
        let mut rig = Rig::new(env);
        rig.wire.make_file(rig.attached.root, "there before");
        rig.begin();
        rig.begin();
        rig.put();
        rig.put();
        rig.copy();
        rig.assert_hidden();
        assert_eq!(rig.publish().map(drop), move_state("copying"));
        rig.restart_with(&[]);
        rig.assert_hidden();
        rig.wire.call(IncomingSeal { id: rig.id }).unwrap();
        rig.assert_hidden();
        // A switchover that was put off: there is more to come, so the seal is broken.
        rig.put();
        assert_eq!(rig.publish().map(drop), move_state("copying"));
        rig.wire.call(IncomingSeal { id: rig.id }).unwrap();
        rig.restart_with(&[]);
        rig.assert_hidden();
        assert_eq!(rig.publish(), Ok(MoveState::Finished));
        rig.assert_live();
        assert_eq!(rig.publish(), Ok(MoveState::Finished), "said twice");
        assert_eq!(rig.wire.call(IncomingDrop { id: rig.id }).map(drop), move_state("finished"));
        let entries = vec![];
        assert_eq!(rig.wire.call(IncomingPut { id: rig.id, entries }).map(drop), move_state("finished"));
        rig.assert_live();
        rig.restart_with(&[]);
        rig.assert_live();
        rig.wire.write(rig.log, 0, b"LOG").unwrap();
        let names = vec![(rig.vm, "log".into())];
        let removed = rig.wire.call(IncomingRemove { id: rig.id, names }).map(drop);
        assert_eq!(removed, move_state("finished"));
        assert_eq!(rig.wire.read(rig.log, 0, 3).unwrap(), "LOG");
    }
}

/// A copy that was under way for long must not land on what has been written since.
#[test]
fn late_copies_are_refused_after_the_tree_is_published() {
    for env in BOTH_PATHS {
        let mut rig = Rig::new(env);
        rig.wire.make_file(rig.attached.root, "there before");
        rig.begin();
        rig.put();
        rig.copy();
        rig.wire.call(IncomingSeal { id: rig.id }).unwrap();
        rig.publish().unwrap();
        let (file, offset, len) = (rig.disk, 0, 4096);
        for restarted in [false, true] {
            for id in [rig.id, MoveId::new()] {
                let incoming = Some(id);
                let (keep_size, size) = (true, 0);
                let late = move_state("finished");
                assert_eq!(rig.wire.write_incoming(id, file, 0, b"late"), late, "{restarted}");
                assert_eq!(rig.wire.call(Resize { file, size, incoming }).map(drop), late);
                let zero = Zero { file, offset, len, keep_size, incoming };
                assert_eq!(rig.wire.call(zero).map(drop), late);
            }
            rig.assert_live();
            rig.restart_with(&[]);
        }
    }
}

/// A late hole must not fall into what has been written since.
#[test]
fn late_discards_are_refused_after_the_tree_is_published() {
    for env in BOTH_PATHS {
        let mut rig = Rig::new(env);
        rig.begin();
        rig.put();
        rig.copy();
        rig.wire.call(IncomingSeal { id: rig.id }).unwrap();
        rig.publish().unwrap();
        let (file, offset, len, incoming) = (rig.disk, 0, 4096, Some(rig.id));
        let late = rig.wire.call(Discard { file, offset, len, incoming }).map(drop);
        assert_eq!(rig.wire.read(file, 0, 99).unwrap(), "disk from afar", "{env:?}: {late:?}");
        assert_eq!(late, move_state("finished"));
    }
}

#[test]
fn copies_to_files_that_are_not_incoming_are_refused() {
    for env in BOTH_PATHS {
        let mut rig = Rig::new(env);
        let file = rig.wire.make_file(rig.attached.root, "live");
        rig.begin();
        rig.put();
        let id = rig.id;
        assert_eq!(rig.wire.write_incoming(id, file, 0, b"x"), move_state("finished"));
        rig.wire.write(file, 0, b"live").unwrap();
        assert_eq!(rig.wire.write_incoming(id, file, 0, b"x"), move_state("finished"));
        assert_eq!(rig.wire.read(file, 0, 9).unwrap(), "live");
        let nowhere = FileId(rig.disk.0 + 100);
        assert_eq!(posix(rig.wire.write_incoming(id, nowhere, 0, b"x")), ENOENT);
        assert_eq!(rig.site.server().data_files(), 1);
        // Nor can a live inode be put into the tree, or a live directory get an incoming name.
        let entries = vec![entry(rig.vm, "live", file, FileKind::File)];
        let put = rig.wire.call(IncomingPut { id, entries });
        assert!(matches!(put, Err(WireError::Busy { .. })), "{put:?}");
        let entries = vec![entry(rig.attached.root, "x", nowhere, FileKind::File)];
        let put = rig.wire.call(IncomingPut { id, entries });
        assert!(matches!(put, Err(WireError::Invalid { .. })), "{put:?}");
        assert_eq!(rig.wire.names(rig.attached.root), ["live"]);
        // Another move can have neither the name nor the ids.
        let busy = rig.wire.call(IncomingBegin { id: MoveId::new(), ..rig.ask() });
        assert!(matches!(busy, Err(WireError::Busy { .. })), "{busy:?}");
        let busy = rig.wire.call(IncomingBegin { id: MoveId::new(), name: "vm2".into(), ..rig.ask() });
        assert!(matches!(busy, Err(WireError::Busy { .. })), "{busy:?}");
    }
}

#[test]
fn a_dropped_tree_leaves_nothing() {
    for env in BOTH_PATHS {
        let mut rig = Rig::new(env);
        let free = rig.wire.space().free;
        for sealed in [false, true] {
            rig.begin();
            rig.put();
            rig.copy();
            rig.wire.write_incoming(rig.id, rig.disk, 0, &vec![7; 1 << 20]).unwrap();
            if sealed {
                rig.wire.call(IncomingSeal { id: rig.id }).unwrap();
            }
            assert_eq!(rig.site.server().data_files(), 2);
            rig.wire.call(IncomingDrop { id: rig.id }).unwrap();
            rig.wire.call(IncomingDrop { id: rig.id }).expect("said twice");
            assert_eq!(rig.state(), None);
            assert_eq!(rig.site.server().data_files(), 0);
            assert_eq!(rig.wire.space().free, free);
            assert_eq!(posix(rig.wire.write_incoming(rig.id, rig.disk, 0, b"late")), ENOENT);
            assert_eq!(rig.site.server().data_files(), 0, "a late copy makes no file");
            assert_eq!(rig.wire.call(IncomingSeal { id: rig.id }), Err(WireError::NoSuchMove));
            assert_eq!(rig.publish(), Err(WireError::NoSuchMove));
        }
        rig.wire.make_dir(rig.attached.root, "vm");
        rig.restart_with(&[]);
        assert_eq!(rig.wire.names(rig.attached.root), ["vm"]);
        assert_eq!(rig.site.server().data_files(), 0);
    }
}

#[test]
fn names_that_are_removed_take_their_data_along() {
    let mut rig = Rig::new(&[]);
    rig.wire.make_file(rig.attached.root, "there before");
    rig.begin();
    rig.put();
    rig.copy();
    let names = vec![(rig.vm, "log".into())];
    rig.wire.call(IncomingRemove { id: rig.id, names: names.clone() }).unwrap();
    rig.wire.call(IncomingRemove { id: rig.id, names }).expect("said twice");
    assert_eq!(rig.site.server().data_files(), 1);
    // One that has lost its name to another goes when the tree is sealed.
    let entries = vec![entry(rig.vm, "disk.raw", rig.log, FileKind::File)];
    rig.wire.call(IncomingPut { id: rig.id, entries }).unwrap();
    rig.wire.write_incoming(rig.id, rig.log, 0, b"the new disk").unwrap();
    rig.wire.call(IncomingSeal { id: rig.id }).unwrap();
    assert_eq!(rig.site.server().data_files(), 1);
    rig.publish().unwrap();
    assert_eq!(rig.wire.names(rig.vm), ["disk.raw"]);
    assert_eq!(rig.wire.read(rig.log, 0, 99).unwrap(), "the new disk");
    assert_eq!(posix(rig.wire.attr(rig.disk)), ENOENT);
}

#[test]
fn a_move_that_can_not_come_is_refused_before_it_begins() {
    let mut rig = Rig::new(&[]);
    let free = rig.wire.space().free;
    let ask = rig.ask();
    let refused = rig.wire.call(IncomingBegin { bytes: free + 1, ..ask.clone() });
    assert_eq!(refused, Err(WireError::NoSpace { datastore: "ds1".into(), free, needed: free + 1 }));
    rig.wire.call(IncomingBegin { bytes: free, check_only: true, ..ask.clone() }).unwrap();
    assert_eq!(rig.state(), None, "only checked");
    let file = rig.wire.make_file(rig.attached.root, "vm");
    let taken = rig.wire.call(IncomingBegin { check_only: true, ..ask.clone() });
    assert_eq!(posix(taken), libc::EEXIST);
    assert_eq!(posix(rig.wire.call(IncomingBegin { parent: file, ..ask.clone() })), libc::ENOTDIR);
    let nowhere = rig.vm;
    assert_eq!(posix(rig.wire.call(IncomingBegin { parent: nowhere, ..ask })), ENOENT);
    assert_eq!(rig.wire.call(IncomingPut { id: rig.id, entries: vec![] }), Err(WireError::NoSuchMove));
}

/// Killed on either side of a durable step, the server comes back on that side.
#[test]
fn seal_and_publish_are_all_or_nothing_when_the_server_dies() {
    let mut rig = Rig::new(&[]);
    rig.wire.make_file(rig.attached.root, "there before");
    rig.begin();
    rig.put();
    rig.copy();
    rig.restart_with(&[("GODWIT_HALT_AT", "seal-after-durable")]);
    rig.wire.post(IncomingSeal { id: rig.id }, Bytes::new());
    rig.site.wait_for_halt();
    rig.restart_with(&[("GODWIT_HALT_AT", "publish-before-durable")]);
    assert_eq!(rig.state(), Some(MoveState::Sealed));
    rig.assert_hidden();
    let publish = IncomingPublish { id: rig.id, generation: Generation(7) };
    rig.wire.post(publish.clone(), Bytes::new());
    rig.site.wait_for_halt();
    rig.restart_with(&[("GODWIT_HALT_AT", "publish-after-durable")]);
    assert_eq!(rig.state(), Some(MoveState::Sealed));
    rig.assert_hidden();
    rig.wire.post(publish, Bytes::new());
    rig.site.wait_for_halt();
    rig.restart_with(&[]);
    assert_eq!(rig.state(), Some(MoveState::Finished));
    rig.assert_live();
    assert_eq!(rig.publish(), Ok(MoveState::Finished));
    assert_eq!(rig.wire.write_incoming(rig.id, rig.disk, 0, b"late"), move_state("finished"));
}
