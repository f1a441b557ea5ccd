//! Cases of moves that random operations don't reach: trees that change while they move.

use proto::ops::Reply;
use proto::ops::moves::{
    IncomingBegin, IncomingDrop, IncomingPublish, IncomingPut, IncomingRemove, IncomingSeal, MoveBegin,
};
use proto::ops::names::{Create, Link, Name, NewNode, Rename, TreeEntry, TreeList, Unlink};
use proto::ops::session::OpenMode;
use proto::{DatastoreId, FileId, MoveId, WireError};

use super::model_test::Core;
use super::plan::{Effect, Mover};
use super::records::Records;
use super::{incoming, listing, moves, names, rename, trees};

fn make(core: &mut Core, parent: FileId, name: &str, node: NewNode) -> FileId {
    let ask = Create {
        parent,
        name: name.into(),
        node,
        mode: 0o644,
        uid: 0,
        gid: 0,
        exclusive: true,
        open: OpenMode::Closed,
    };
    match core.run(|ctx, txn| names::create(ctx, txn, &ask)) {
        Ok((Reply::Create(created), _)) => created.attr.file,
        other => panic!("create {name}: {other:?}"),
    }
}

fn list(core: &Core, root: FileId) -> Vec<TreeEntry> {
    let complete = |attr| Ok(attr);
    let (mut entries, mut after) = (Vec::new(), None);
    loop {
        let page = listing::tree_list(&core.tables, &complete, &TreeList { root, after, max: 3 })
            .expect("list a tree");
        entries.extend(page.entries);
        match page.next {
            Some(next) => after = Some(next),
            None => return entries,
        }
    }
}

fn mover(id: MoveId, host: &str) -> Mover {
    Mover { id, host: host.into() }
}

/// A source and a destination with a move of `root`, which lies in the source's root directory.
struct Moving {
    source: Core,
    destination: Core,
    id: MoveId,
    root: FileId,
}

impl Moving {
    fn begin(mut source: Core, name: &str, root: FileId) -> Moving {
        let (mut destination, id) = (Core::new(2), MoveId::new());
        let begin = MoveBegin {
            id,
            parent: source.root(),
            name: name.into(),
            root,
            to: DatastoreId::new(),
            to_name: "ds2".into(),
        };
        let (_, files) = source.run(|ctx, txn| moves::begin(ctx, txn, &begin, &|_| None)).expect("begin");
        source.moving.borrow_mut().extend(files.into_iter().map(|f| (f, mover(id, "hostA"))));
        let parent = destination.root();
        let ask = IncomingBegin {
            id,
            from: DatastoreId::new(),
            from_name: "ds1".into(),
            root,
            parent,
            name: name.into(),
            bytes: 0,
            check_only: false,
        };
        destination.run(|ctx, txn| incoming::begin(ctx, txn, &ask, 1 << 30, "ds2")).expect("reserve");
        let mut moving = Moving { source, destination, id, root };
        let all = list(&moving.source, root);
        moving.put(all).expect("put");
        moving
    }

    fn put(&mut self, mut entries: Vec<TreeEntry>) -> Result<(), WireError> {
        for entry in entries.iter_mut().filter(|e| e.attr.file == self.root) {
            entry.parent = self.destination.root();
        }
        let ask = IncomingPut { id: self.id, entries };
        self.destination.run(|ctx, txn| incoming::put_entries(ctx, txn, &ask, &mut Vec::new()))?;
        self.destination.check();
        Ok(())
    }

    fn remove(&mut self, names: Vec<(FileId, Name)>) -> Vec<Effect> {
        let ask = IncomingRemove { id: self.id, names };
        let mut effects = Vec::new();
        self.destination.run(|ctx, txn| incoming::remove(ctx, txn, &ask, &mut effects)).expect("remove");
        self.destination.check();
        effects
    }

    fn rename(&mut self, from: (FileId, &str), to: (FileId, &str), exchange: bool) -> Result<(), WireError> {
        let ask = Rename {
            parent: from.0,
            name: from.1.into(),
            new_parent: to.0,
            new_name: to.1.into(),
            no_replace: false,
            exchange,
        };
        let result = self.source.run(|ctx, txn| rename::rename(ctx, txn, &ask)).map(drop);
        self.source.check();
        result
    }

    fn link(&mut self, file: FileId, dir: FileId, name: &str) -> Result<(), WireError> {
        let ask = Link { file, new_parent: dir, new_name: name.into() };
        self.source.run(|ctx, txn| names::link(ctx, txn, &ask)).map(drop)
    }

    /// Seal, commit, publish; the destination then has the tree as the source lists it now.
    fn finish(&mut self) -> Vec<Effect> {
        let expected: Vec<_> =
            list(&self.source, self.root).into_iter().map(|e| (e.name, e.attr.file, e.attr.nlink)).collect();
        let (id, mut effects) = (self.id, Vec::new());
        let seal = IncomingSeal { id };
        self.destination.run(|ctx, txn| incoming::seal(ctx, txn, &seal, &mut effects)).expect("seal");
        self.destination.check();
        let record = self.source.run(|ctx, txn| moves::commit(ctx, txn, id)).expect("commit");
        let ask = IncomingPublish { id, generation: record.generation };
        self.destination.run(|ctx, txn| incoming::publish(ctx, txn, &ask, &mut effects)).expect("publish");
        self.destination.check();
        let arrived: Vec<_> = list(&self.destination, self.root)
            .into_iter()
            .map(|e| (e.name, e.attr.file, e.attr.nlink))
            .collect();
        assert_eq!(arrived, expected);
        effects
    }
}

fn removed(effects: &[Effect]) -> Vec<FileId> {
    effects.iter().filter_map(|e| if let Effect::RemoveData(file) = e { Some(*file) } else { None }).collect()
}

#[test]
fn two_files_that_swap_names_keep_their_data() {
    let mut source = Core::new(1);
    let top = source.root();
    let vm = make(&mut source, top, "vm", NewNode::Directory);
    let f = make(&mut source, vm, "f", NewNode::File);
    let g = make(&mut source, vm, "g", NewNode::File);
    let mut moving = Moving::begin(source, "vm", vm);
    moving.rename((vm, "f"), (vm, "g"), true).expect("exchange");
    let told: Vec<_> = list(&moving.source, vm).into_iter().filter(|e| e.attr.file != vm).collect();
    // One at a time, as when the batch ends between the two.
    for entry in told {
        moving.put(vec![entry]).expect("put");
    }
    assert_eq!(removed(&moving.finish()), [], "data of {f} and {g} stays");
}

#[test]
fn two_directories_that_swap_names_keep_what_is_in_them() {
    let mut source = Core::new(1);
    let top = source.root();
    let vm = make(&mut source, top, "vm", NewNode::Directory);
    let a = make(&mut source, vm, "a", NewNode::Directory);
    let b = make(&mut source, vm, "b", NewNode::Directory);
    make(&mut source, a, "x", NewNode::File);
    make(&mut source, b, "y", NewNode::File);
    let mut moving = Moving::begin(source, "vm", vm);
    moving.rename((vm, "a"), (vm, "b"), true).expect("exchange");
    let told: Vec<_> =
        list(&moving.source, vm).into_iter().filter(|e| e.attr.file == a || e.attr.file == b).collect();
    for entry in told {
        moving.put(vec![entry]).expect("put");
    }
    assert_eq!(removed(&moving.finish()), []);
}

#[test]
fn a_file_that_lost_its_name_to_another_is_gone_when_sealed() {
    let mut source = Core::new(1);
    let top = source.root();
    let vm = make(&mut source, top, "vm", NewNode::Directory);
    let f = make(&mut source, vm, "f", NewNode::File);
    make(&mut source, vm, "g", NewNode::File);
    let mut moving = Moving::begin(source, "vm", vm);
    moving.rename((vm, "g"), (vm, "f"), false).expect("replace");
    let told: Vec<_> = list(&moving.source, vm).into_iter().filter(|e| e.attr.file != vm).collect();
    moving.put(told).expect("put");
    moving.remove(vec![(vm, "g".into())]);
    assert_eq!(removed(&moving.finish()), [f]);
}

#[test]
fn an_incoming_tree_is_dropped_with_what_has_no_name_in_it() {
    let mut source = Core::new(1);
    let top = source.root();
    let vm = make(&mut source, top, "vm", NewNode::Directory);
    let f = make(&mut source, vm, "f", NewNode::File);
    let g = make(&mut source, vm, "g", NewNode::File);
    let mut moving = Moving::begin(source, "vm", vm);
    moving.rename((vm, "g"), (vm, "f"), false).expect("replace");
    let told: Vec<_> = list(&moving.source, vm).into_iter().filter(|e| e.attr.file != vm).collect();
    moving.put(told).expect("put");
    let (ask, mut effects) = (IncomingDrop { id: moving.id }, Vec::new());
    while !moving.destination.run(|_, txn| incoming::drop_some(txn, &ask, &mut effects)).expect("drop") {}
    moving.destination.check();
    let mut gone = removed(&effects);
    gone.sort();
    assert_eq!(gone, [f, g]);
}

#[test]
fn links_don_t_cross_the_border_of_a_moving_tree() {
    let mut source = Core::new(1);
    let top = source.root();
    let vm = make(&mut source, top, "vm", NewNode::Directory);
    let f = make(&mut source, vm, "f", NewNode::File);
    let outside = make(&mut source, top, "outside", NewNode::File);
    let mut moving = Moving::begin(source, "vm", vm);
    let is_busy = |r: Result<(), WireError>| matches!(r, Err(WireError::Busy { .. }));
    assert!(is_busy(moving.link(f, top, "f2")), "out");
    assert!(is_busy(moving.link(outside, vm, "in")), "in");
    moving.link(f, vm, "second").expect("inside");
    assert!(is_busy(moving.rename((vm, "f"), (top, "f"), false)), "one of two names can't leave");
    let sub = make(&mut moving.source, vm, "sub", NewNode::Directory);
    moving.source.moving.borrow_mut().insert(sub, mover(moving.id, "hostA"));
    assert!(is_busy(moving.rename((vm, "sub"), (top, "sub"), false)), "a directory can't leave");
    moving.rename((top, "outside"), (vm, "inside"), false).expect("a file may come in");
}

#[test]
fn a_tree_with_a_name_outside_does_not_commit() {
    let mut source = Core::new(1);
    let top = source.root();
    let vm = make(&mut source, top, "vm", NewNode::Directory);
    let f = make(&mut source, vm, "f", NewNode::File);
    let mut moving = Moving::begin(source, "vm", vm);
    moving.source.moving.borrow_mut().clear();
    moving.link(f, top, "outside").expect("the border was not watched");
    let id = moving.id;
    let refused = moving.source.run(|ctx, txn| moves::commit(ctx, txn, id));
    assert!(matches!(refused, Err(WireError::Busy { .. })), "{refused:?}");
}

#[test]
fn another_host_can_t_take_the_root_s_name() {
    let mut source = Core::new(1);
    let top = source.root();
    let f = make(&mut source, top, "f", NewNode::File);
    make(&mut source, top, "g", NewNode::File);
    let moving = Moving::begin(source, "f", f);
    let mut source = moving.source;
    source.moving.borrow_mut().insert(f, mover(moving.id, "hostB"));
    let is_busy = |r: Result<(), WireError>| matches!(r, Err(WireError::Busy { .. }));
    let unlink = Unlink { parent: top, name: "f".into() };
    assert!(is_busy(source.run(|ctx, txn| names::unlink(ctx, txn, &unlink)).map(drop)));
    for (name, new_name) in [("f", "h"), ("g", "f")] {
        let ask = Rename {
            parent: top,
            name: name.into(),
            new_parent: top,
            new_name: new_name.into(),
            no_replace: false,
            exchange: false,
        };
        assert!(
            is_busy(source.run(|ctx, txn| rename::rename(ctx, txn, &ask)).map(drop)),
            "{name} to {new_name}"
        );
    }
}

#[test]
fn a_file_is_listed_by_the_name_that_is_left() {
    let mut core = Core::new(1);
    let top = core.root();
    let (a, b) =
        (make(&mut core, top, "a", NewNode::Directory), make(&mut core, top, "b", NewNode::Directory));
    let f = make(&mut core, a, "f", NewNode::File);
    let link = Link { file: f, new_parent: b, new_name: "g".into() };
    core.run(|ctx, txn| names::link(ctx, txn, &link)).expect("link");
    let unlink = Unlink { parent: a, name: "f".into() };
    core.run(|ctx, txn| names::unlink(ctx, txn, &unlink)).expect("unlink");
    let entries = list(&core, f);
    assert_eq!((entries.len(), entries[0].parent, &entries[0].name), (1, b, &Name::from("g")));
}

#[test]
fn erasing_in_parts_leaves_sound_tables_each_time() {
    let mut source = Core::new(1);
    let top = source.root();
    let vm = make(&mut source, top, "vm", NewNode::Directory);
    let mut dir = vm;
    for depth in 0..4 {
        let f = make(&mut source, dir, "f", NewNode::File);
        let link = Link { file: f, new_parent: vm, new_name: format!("l{depth}").as_str().into() };
        source.run(|ctx, txn| names::link(ctx, txn, &link)).expect("link");
        dir = make(&mut source, dir, "sub", NewNode::Directory);
    }
    let mut moving = Moving::begin(source, "vm", vm);
    let (mut effects, mut rounds) = (Vec::new(), 0);
    let core = &mut moving.destination;
    let total = trees::inodes_of(&core.tables, vm).expect("walk").len();
    loop {
        let done =
            core.run(|_, txn| trees::erase_some(txn, vm, 1, &mut effects, &mut |_, _| {})).expect("erase");
        rounds += 1;
        core.check();
        if done {
            break;
        }
    }
    assert!(rounds >= total, "{rounds} rounds for {total} inodes");
    assert!(core.tables.find_inode(vm).expect("tables").is_none());
    assert_eq!(removed(&effects).len(), 4);
}
