//! The source of a move: who may still write, the one commit, and what is left behind.

use std::path::PathBuf;

use bytes::Bytes;
use proto::ops::moves::{
    MoveAbort, MoveBegin, MoveCommit, MoveFinish, MoveList, MoveRecord, MoveSide, MoveState,
};
use proto::ops::names::{
    GetXattr, Link, ListXattr, NewNode, ReadDir, Rename, SetAttr, SetXattr, TreeList, Unlink,
};
use proto::ops::session::{Attached, OpenMode, SetOpen};
use proto::{DatastoreId, FileId, MoveId, WireError};

use super::site::{BOTH_PATHS, ENOENT, Env, Site, a_write, new_node, posix};
use super::wire::{Host, Wire};

/// A tree `vm` with files, the host that moves it and a host that does not.
struct Rig {
    site: Site,
    host: Host,
    attached: Attached,
    mover: Wire,
    other: Wire,
    vm: FileId,
    sub: FileId,
    disk: FileId,
    log: FileId,
    id: MoveId,
    to: DatastoreId,
}

impl Rig {
    fn new(env: Env) -> Rig {
        let site = Site::with(&[], env);
        let host = Host::run("mover");
        let (mut mover, attached) = site.host(&host);
        let (other, _) = site.host(&Host::run("other"));
        let vm = mover.make_dir(attached.root, "vm");
        let disk = mover.make_file(vm, "disk.raw");
        let sub = mover.make_dir(vm, "sub");
        let log = mover.make_file(sub, "log");
        mover.write(disk, 0, b"disk as it was").unwrap();
        mover.write(log, 0, b"log as it was").unwrap();
        let (id, to) = (MoveId::new(), DatastoreId::new());
        Rig { site, host, attached, mover, other, vm, sub, disk, log, id, to }
    }

    fn ask(&self) -> MoveBegin {
        let (parent, name, to_name) = (self.attached.root, "vm".into(), "ds2".into());
        MoveBegin { id: self.id, parent, name, root: self.vm, to: self.to, to_name }
    }

    fn begin(&mut self) -> MoveRecord {
        let ask = self.ask();
        self.mover.call(ask).unwrap()
    }

    fn commit(&mut self) -> Result<MoveRecord, WireError> {
        self.mover.call(MoveCommit { id: self.id })
    }

    fn finish(&mut self) -> Result<MoveRecord, WireError> {
        self.mover.call(MoveFinish { id: self.id })
    }

    fn restart_with(&mut self, env: &[(&str, &str)]) {
        self.site.restart_with(env);
        self.mover = self.site.resume(&self.host, &self.attached);
        self.other = self.site.host(&Host::run("another")).0;
    }

    fn data_path(&self, file: FileId) -> PathBuf {
        let name = format!("data/{:02x}/{:016x}", file.0 & 0xff, file.0);
        self.site.scratch().join("ds1").join(name)
    }

    fn assert_here(&mut self) {
        let (vm, disk, root) = (self.vm, self.disk, self.attached.root);
        assert_eq!(self.other.lookup(root, "vm").unwrap().file, vm);
        assert_eq!(self.other.read(disk, 0, 100).unwrap(), "disk as it was");
        assert_eq!(self.other.read(self.log, 0, 100).unwrap(), "log as it was");
    }

    /// Every request about anything of the tree, by anybody, is sent on to the other datastore.
    fn assert_moved(&mut self) {
        let Rig { vm, sub, disk, log, to, .. } = *self;
        let root = self.attached.root;
        for wire in [&mut self.mover, &mut self.other] {
            let moved = |what: &str, result: Result<(), WireError>| {
                assert_eq!(result, Err(WireError::Moved { to, name: "ds2".into() }), "{what}");
            };
            assert_eq!(posix(wire.lookup(root, "vm")), ENOENT);
            assert!(!wire.names(root).contains(&"vm".to_string()));
            for file in [disk, log] {
                moved("write", wire.write(file, 0, b"late"));
                moved("read", wire.read(file, 0, 4).map(drop));
                moved("flush", wire.flush(file));
                moved("open", wire.call(SetOpen { file, mode: OpenMode::Write }).map(drop));
                let (incoming, keep_size, offset, len) = (None, false, 0, 4096);
                moved("discard", {
                    wire.call(proto::ops::data::Discard { file, offset, len, incoming }).map(drop)
                });
                moved("zero", {
                    wire.call(proto::ops::data::Zero { file, offset, len, keep_size, incoming }).map(drop)
                });
                moved("resize", {
                    wire.call(proto::ops::data::Resize { file, size: 0, incoming }).map(drop)
                });
                moved("map", wire.call(proto::ops::data::Map { file, offset, len, incoming }).map(drop));
                moved("link", wire.call(Link { file, new_parent: root, new_name: "l".into() }).map(drop));
            }
            for file in [vm, sub, disk, log] {
                let set = SetAttr { file, mode: Some(0o600), uid: None, gid: None, atime: None, mtime: None };
                moved("getattr", wire.attr(file).map(drop));
                moved("setattr", wire.call(set).map(drop));
                let (name, value) = ("user.a".into(), "v".into());
                moved("setxattr", {
                    wire.call(SetXattr { file, name, value, create: false, replace: false }).map(drop)
                });
                moved("getxattr", wire.call(GetXattr { file, name: "user.a".into() }).map(drop));
                moved("listxattr", wire.call(ListXattr { file }).map(drop));
            }
            for dir in [vm, sub] {
                moved("lookup", wire.lookup(dir, "log").map(drop));
                moved("readdir", wire.call(ReadDir { dir, after: 0, max: 10 }).map(drop));
                moved("treelist", wire.call(TreeList { root: dir, after: None, max: 10 }).map(drop));
                moved("create", wire.call(new_node(dir, "new", NewNode::File)).map(drop));
                moved("unlink", wire.call(Unlink { parent: dir, name: "log".into() }).map(drop));
                let (name, new_name) = ("log".into(), "out".into());
                let rename = Rename {
                    parent: dir,
                    name,
                    new_parent: root,
                    new_name,
                    no_replace: false,
                    exchange: false,
                };
                moved("rename", wire.call(rename).map(drop));
            }
        }
    }
}

fn assert_busy(what: &str, result: Result<impl std::fmt::Debug, WireError>) {
    assert!(matches!(result, Err(WireError::Busy { .. })), "{what}: {result:?}");
}

#[test]
fn only_the_mover_may_change_a_moving_tree() {
    for env in BOTH_PATHS {
        let mut rig = Rig::new(env);
        let record = rig.begin();
        assert_eq!((record.side, record.state), (MoveSide::Source, MoveState::Copying));
        assert_eq!(record.host, "mover");
        assert_eq!(rig.begin(), record, "said twice");
        for restarted in [false, true] {
            let (disk, sub) = (rig.disk, rig.sub);
            rig.assert_here();
            match rig.other.write(disk, 0, b"x") {
                Err(WireError::Busy { holder, .. }) => {
                    assert!(holder.contains(&rig.id.to_string()) && holder.contains("mover"), "{holder}");
                }
                other => panic!("{other:?}"),
            }
            let (other, incoming) = (&mut rig.other, None);
            assert_busy("resize", other.call(proto::ops::data::Resize { file: disk, size: 0, incoming }));
            assert_busy("open", other.call(SetOpen { file: disk, mode: OpenMode::Write }));
            other.call(SetOpen { file: disk, mode: OpenMode::Read }).unwrap();
            assert_busy("create", other.call(new_node(sub, "n", NewNode::File)));
            assert_busy("unlink", other.call(Unlink { parent: sub, name: "log".into() }));
            rig.assert_here();
            rig.mover.write(disk, 5, b"as").unwrap();
            rig.mover.make_file(sub, &format!("new {restarted}"));
            rig.restart_with(&[]);
        }
        rig.mover.call(MoveAbort { id: rig.id }).unwrap();
        rig.mover.call(MoveAbort { id: rig.id }).expect("said twice");
        rig.assert_here();
        rig.other.write(rig.disk, 0, b"DISK").unwrap();
        rig.other.make_file(rig.sub, "of another");
        assert_eq!(rig.commit(), Err(WireError::NoSuchMove));
        assert_eq!(rig.finish(), Err(WireError::NoSuchMove));
        let id = MoveId::new();
        assert_eq!(rig.mover.call(MoveCommit { id }), Err(WireError::NoSuchMove));
    }
}

/// A hole that the mover knows nothing of would be missing on the other side.
#[test]
fn another_host_can_not_discard_in_a_moving_tree() {
    let mut rig = Rig::new(&[]);
    rig.begin();
    let (file, offset, len, incoming) = (rig.disk, 0, 4096, None);
    let discarded = rig.other.call(proto::ops::data::Discard { file, offset, len, incoming });
    rig.assert_here();
    assert_busy("discard", discarded);
}

#[test]
fn a_move_does_not_begin_over_what_others_use() {
    let mut rig = Rig::new(&[]);
    let (ask, root) = (rig.ask(), rig.attached.root);
    let (file, mode) = (rig.log, OpenMode::Write);
    rig.other.call(SetOpen { file, mode }).unwrap();
    assert_busy("open for writing", rig.mover.call(ask.clone()));
    rig.other.call(SetOpen { file, mode: OpenMode::Read }).unwrap();

    rig.mover.call(Link { file, new_parent: root, new_name: "outside".into() }).unwrap();
    assert_busy("a hard link outside", rig.mover.call(ask.clone()));
    rig.mover.call(Unlink { parent: root, name: "outside".into() }).unwrap();

    assert_eq!(posix(rig.mover.call(MoveBegin { name: "other".into(), ..ask.clone() })), ENOENT);
    assert_eq!(posix(rig.mover.call(MoveBegin { parent: rig.sub, ..ask.clone() })), ENOENT);

    rig.begin();
    let (id, parent) = (MoveId::new(), rig.vm);
    let inside = MoveBegin { id, parent, name: "sub".into(), root: rig.sub, ..ask.clone() };
    assert_busy("a move inside a move", rig.mover.call(inside));
    assert_busy("a second move", rig.mover.call(MoveBegin { id, ..ask }));
    let records = rig.mover.call(MoveList { id: None }).unwrap().records;
    assert_eq!(records.iter().map(|r| r.id).collect::<Vec<_>>(), [rig.id]);
    rig.assert_here();
}

#[test]
fn after_the_commit_everybody_is_sent_to_the_other_datastore() {
    for env in BOTH_PATHS {
        let mut rig = Rig::new(env);
        rig.begin();
        let refused = rig.finish();
        assert_eq!(refused, Err(WireError::MoveState { state: "copying".into() }));
        let record = rig.commit().unwrap();
        assert_eq!(record.state, MoveState::Committed);
        assert!(record.generation.0 > 0);
        rig.assert_moved();
        assert_eq!(rig.commit().unwrap(), record, "said twice");
        assert_eq!(
            rig.mover.call(MoveAbort { id: rig.id }).map(drop),
            Err(WireError::MoveState { state: "committed".into() })
        );
        let (on_disk, was) = (rig.data_path(rig.disk), "disk as it was");
        assert_eq!(std::fs::read_to_string(&on_disk).unwrap(), was);
        rig.restart_with(&[]);
        rig.assert_moved();
        assert_eq!(rig.commit().unwrap(), record);
        assert_eq!(std::fs::read_to_string(&on_disk).unwrap(), was);

        // The name is free for something else.
        let root = rig.attached.root;
        let again = rig.mover.make_dir(root, "vm");
        rig.mover.call(proto::ops::names::Rmdir { parent: root, name: "vm".into() }).unwrap();
        assert_ne!(again, rig.vm);

        assert_eq!(rig.finish().unwrap().state, MoveState::Finished);
        assert_eq!(rig.finish().unwrap().state, MoveState::Finished);
        assert_eq!(rig.site.server().data_files(), 0);
        rig.assert_moved();
        rig.restart_with(&[]);
        rig.assert_moved();
        assert_eq!(rig.site.server().data_files(), 0);
        assert!(rig.mover.call(MoveList { id: None }).unwrap().records.is_empty());
        let one = rig.mover.call(MoveList { id: Some(rig.id) }).unwrap().records;
        assert_eq!(one[0].state, MoveState::Finished);
    }
}

/// The commit waits for what was let in before: nothing lands in the data files after its answer.
#[test]
fn no_write_lands_after_the_commit() {
    const SLOT: usize = 32 << 10;
    for env in BOTH_PATHS {
        for round in 0..6 {
            let mut rig = Rig::new(env);
            rig.begin();
            let (mut copies, _) = rig.site.channel(&rig.host, 1);
            let file = rig.disk;
            // Flushes of much data come first, so that the writes behind them wait for long.
            copies.keep_busy(rig.log, 1);
            let data = |at: u64| Bytes::from(vec![at as u8 + 1; SLOT]);
            let ids: Vec<_> =
                (0..64).map(|at| (at, copies.post(a_write(file, at * SLOT as u64), data(at)))).collect();
            std::thread::sleep(std::time::Duration::from_millis(2 * round));
            rig.commit().unwrap();
            let path = rig.data_path(file);
            let at_commit = std::fs::read(&path).unwrap();
            let mut refused = 0;
            for (at, id) in ids {
                match copies.receive_for(id).unwrap() {
                    Ok(_) => {
                        let start = at as usize * SLOT;
                        let there = at_commit.get(start..start + SLOT);
                        assert!(there == Some(&data(at)[..]), "{env:?}: write {at} was answered");
                    }
                    Err(WireError::Moved { .. }) => refused += 1,
                    Err(other) => panic!("{other}"),
                }
            }
            assert!(std::fs::read(&path).unwrap() == at_commit, "{env:?}: {refused} refused");
        }
    }
}

/// Killed before the record is durable there is no commit; killed behind it there is one.
#[test]
fn a_commit_is_all_or_nothing_when_the_server_dies() {
    let mut rig = Rig::new(&[]);
    rig.begin();
    rig.restart_with(&[("GODWIT_HALT_AT", "commit-before-durable")]);
    let commit = MoveCommit { id: rig.id };
    rig.mover.post(commit.clone(), Bytes::new());
    rig.site.wait_for_halt();
    rig.restart_with(&[("GODWIT_HALT_AT", "commit-after-durable")]);
    rig.assert_here();
    rig.mover.write(rig.disk, 5, b"as").unwrap();
    rig.mover.post(commit, Bytes::new());
    rig.site.wait_for_halt();
    rig.restart_with(&[]);
    rig.assert_moved();
    let record = rig.commit().unwrap();
    assert_eq!(record.state, MoveState::Committed);
    rig.restart_with(&[("GODWIT_HALT_AT", "finish-mid")]);
    rig.mover.post(MoveFinish { id: rig.id }, Bytes::new());
    rig.site.wait_for_halt();
    rig.restart_with(&[]);
    assert_eq!(rig.finish().unwrap().state, MoveState::Finished);
    assert_eq!(rig.site.server().data_files(), 0);
    rig.assert_moved();
}
