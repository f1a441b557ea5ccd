//! Random operations on the core against a small model of a directory tree, and moves between two
//! cores; after each step the tables must be sound.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proto::ops::Reply;
use proto::ops::moves::{
    IncomingBegin, IncomingDrop, IncomingPublish, IncomingPut, IncomingSeal, MoveBegin, MoveState,
};
use proto::ops::names::{Create, FileKind, Link, Name, NewNode, Rename, Rmdir, Time, TreeList, Unlink};
use proto::ops::session::OpenMode;
use proto::{DatastoreId, FileId, MoveId, WireError};

use super::names::Planned;
use super::plan::{Context, Mover};
use super::records::{Inode, Records};
use super::tables::{MemoryTables, Txn};
use super::{incoming, invariants, listing, moves, names, rename, trees};

pub(super) struct Core {
    pub tables: MemoryTables,
    prefix: u32,
    pub open: RefCell<BTreeSet<FileId>>,
    /// Files of moving trees, with the hosts that move them.
    pub moving: RefCell<BTreeMap<FileId, Mover>>,
}

impl Core {
    pub fn new(prefix: u32) -> Core {
        let mut core = Core {
            tables: MemoryTables::default(),
            prefix,
            open: RefCell::default(),
            moving: RefCell::default(),
        };
        let root = core.root();
        let inode = Inode {
            kind: FileKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            nlink: 2,
            rdev: 0,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            btime: Time::default(),
            target: None,
            parent: root,
            entries: 0,
            next_cookie: 1,
            exclusive: false,
            incoming: None,
        };
        let mut txn = Txn::new(&core.tables);
        txn.put_inode(root, &inode);
        let changes = txn.into_changes();
        core.tables.apply(&changes);
        core
    }

    pub fn root(&self) -> FileId {
        FileId::datastore_root(self.prefix).expect("a good prefix")
    }

    pub fn run<T>(
        &mut self,
        plan: impl FnOnce(&Context, &mut Txn) -> Result<T, WireError>,
    ) -> Result<T, WireError> {
        let is_open = |file| self.open.borrow().contains(&file);
        let exclusive = |_: &Name| false;
        let moving = |file| self.moving.borrow().get(&file).cloned();
        let ctx = Context {
            now: Time::default(),
            host: "hostA",
            is_open: &is_open,
            exclusive: &exclusive,
            moving: &moving,
            prefix: self.prefix,
        };
        let mut txn = Txn::new(&self.tables);
        let result = plan(&ctx, &mut txn)?;
        let changes = txn.into_changes();
        self.tables.apply(&changes);
        Ok(result)
    }

    pub fn check(&self) {
        let wrong = invariants::violations(&self.tables).expect("tables in memory decode");
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    pub fn find(&self, path: &[u8]) -> Option<FileId> {
        path.iter()
            .try_fold(self.root(), |dir, step| self.tables.entry(dir, &name(*step)).ok()?.map(|e| e.file))
    }

    /// Paths of everything that can be seen, with what it is.
    pub fn seen(&self) -> BTreeMap<Vec<u8>, (FileId, FileKind)> {
        let mut out = BTreeMap::new();
        let mut dirs = vec![(Vec::new(), self.root())];
        while let Some((path, dir)) = dirs.pop() {
            let complete = |attr| Ok(attr);
            let ask = proto::ops::names::ReadDir { dir, after: 0, max: 1000 };
            for entry in listing::read_dir(&self.tables, &complete, &ask).expect("a directory lists").entries
            {
                let mut below: Vec<u8> = path.clone();
                below.push(entry.name.0[0] - b'a');
                if entry.attr.kind == FileKind::Directory {
                    dirs.push((below.clone(), entry.attr.file));
                }
                out.insert(below, (entry.attr.file, entry.attr.kind));
            }
        }
        out
    }
}

fn name(step: u8) -> Name {
    Name(vec![b'a' + step])
}

#[derive(Clone, Debug)]
enum Op {
    Create(Vec<u8>, bool),
    Remove(Vec<u8>),
    Rename(Vec<u8>, Vec<u8>, bool, bool),
    Link(Vec<u8>, Vec<u8>),
    Open(Vec<u8>),
    Close,
    Move(Vec<u8>, bool),
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(0u8..4, 1..4)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (path(), any::<bool>()).prop_map(|(p, d)| Op::Create(p, d)),
        3 => path().prop_map(Op::Remove),
        4 => (path(), path(), any::<bool>(), any::<bool>()).prop_map(|(a, b, n, x)| Op::Rename(a, b, n, x)),
        2 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        1 => path().prop_map(Op::Open),
        1 => Just(Op::Close),
        2 => (path(), any::<bool>()).prop_map(|(p, c)| Op::Move(p, c)),
    ]
}

fn create(core: &mut Core, path: &[u8], dir: bool) -> Planned {
    let (step, above) = path.split_last().expect("paths are not empty");
    let Some(parent) = core.find(above) else { return Err(WireError::posix(2, "")) };
    let node = if dir { NewNode::Directory } else { NewNode::File };
    let ask = Create {
        parent,
        name: name(*step),
        node,
        mode: 0o644,
        uid: 0,
        gid: 0,
        exclusive: true,
        open: OpenMode::Closed,
    };
    core.run(|ctx, txn| names::create(ctx, txn, &ask))
}

/// What the model knows: which path names which inode, and what that is.
type Model = BTreeMap<Vec<u8>, (FileId, FileKind)>;

fn step(core: &mut Core, other: &mut Core, model: &mut Model, op: &Op) {
    let kind = |model: &Model, path: &[u8]| model.get(path).map(|(_, k)| *k);
    let is_dir =
        |model: &Model, path: &[u8]| path.is_empty() || kind(model, path) == Some(FileKind::Directory);
    let has_below =
        |model: &Model, path: &[u8]| model.keys().any(|p| p.len() > path.len() && p.starts_with(path));
    match op {
        Op::Create(path, dir) => {
            let may = is_dir(model, &path[..path.len() - 1]) && !model.contains_key(path);
            let result = create(core, path, *dir);
            assert_eq!(result.is_ok(), may, "create {path:?}: {result:?}");
            if let Ok((Reply::Create(created), _)) = result {
                model.insert(path.clone(), (created.attr.file, created.attr.kind));
            }
        }
        Op::Remove(path) => {
            let (step, above) = path.split_last().expect("not empty");
            let Some(parent) = core.find(above) else { return };
            let may = model.contains_key(path) && !has_below(model, path);
            let result = if is_dir(model, path) {
                core.run(|ctx, txn| names::rmdir(ctx, txn, &Rmdir { parent, name: name(*step) }))
            } else {
                core.run(|ctx, txn| names::unlink(ctx, txn, &Unlink { parent, name: name(*step) }))
            };
            assert_eq!(result.is_ok(), may, "remove {path:?}: {result:?}");
            if may {
                model.remove(path);
            }
        }
        Op::Rename(from, to, no_replace, exchange) => {
            rename(core, model, from, to, *no_replace, *exchange && !no_replace)
        }
        Op::Link(from, to) => {
            let (step, above) = to.split_last().expect("not empty");
            let (Some(file), Some(new_parent)) = (core.find(from), core.find(above)) else { return };
            let may = is_dir(model, above) && !model.contains_key(to) && !is_dir(model, from);
            let result =
                core.run(|ctx, txn| names::link(ctx, txn, &Link { file, new_parent, new_name: name(*step) }));
            assert_eq!(result.is_ok(), may, "link {from:?} {to:?}: {result:?}");
            if may {
                let known = model[from];
                model.insert(to.clone(), known);
            }
        }
        Op::Open(path) => {
            if let Some(file) = core.find(path) {
                core.open.borrow_mut().insert(file);
            }
        }
        Op::Close => core.open.borrow_mut().clear(),
        Op::Move(path, commit) => move_tree(core, other, model, path, *commit),
    }
}

fn rename(core: &mut Core, model: &mut Model, from: &[u8], to: &[u8], no_replace: bool, exchange: bool) {
    let ((old, above), (new, new_above)) = (from.split_last().expect("path"), to.split_last().expect("path"));
    let (Some(parent), Some(new_parent)) = (core.find(above), core.find(new_above)) else { return };
    let ask = Rename { parent, name: name(*old), new_parent, new_name: name(*new), no_replace, exchange };
    let result = core.run(|ctx, txn| rename::rename(ctx, txn, &ask));
    let dir = |p: &[u8]| p.is_empty() || model.get(p).is_some_and(|(_, k)| *k == FileKind::Directory);
    let below = |p: &[u8], root: &[u8]| p.len() > root.len() && p.starts_with(root);
    let full = |p: &[u8]| model.keys().any(|q| below(q, p));
    let there = model.get(to).copied();
    let Some(moved) = model.get(from).copied() else {
        assert!(result.is_err(), "rename of nothing");
        return;
    };
    let into_itself = moved.1 == FileKind::Directory && below(to, from);
    let may = dir(above)
        && dir(new_above)
        && !into_itself
        && match there {
            None => !exchange,
            Some(_) if no_replace => false,
            Some(other) if exchange => !(other.1 == FileKind::Directory && below(from, to)),
            Some(other) if other.0 == moved.0 => true,
            Some(other) => match (moved.1 == FileKind::Directory, other.1 == FileKind::Directory) {
                (true, true) => !full(to),
                (false, false) => true,
                _ => false,
            },
        };
    assert_eq!(result.is_ok(), may, "rename {from:?} {to:?} {no_replace} {exchange}: {result:?}");
    if !may || from == to || (!exchange && there.is_some_and(|t| t.0 == moved.0)) {
        return;
    }
    let rebase = |p: &[u8], a: &[u8], b: &[u8]| [b, &p[a.len()..]].concat();
    let take = |model: &mut Model, root: &[u8]| {
        let keys: Vec<_> = model.keys().filter(|p| p.starts_with(root)).cloned().collect();
        keys.into_iter().filter_map(|k| model.remove_entry(&k)).collect::<Vec<_>>()
    };
    let (ours, theirs) = (take(model, from), take(model, to));
    model.extend(ours.into_iter().map(|(p, f)| (rebase(&p, from, to), f)));
    if exchange {
        model.extend(theirs.into_iter().map(|(p, f)| (rebase(&p, to, from), f)));
    }
}

/// A whole move to the other core, committed or undone; the model forgets what has moved.
fn move_tree(core: &mut Core, other: &mut Core, model: &mut Model, path: &[u8], commit: bool) {
    let (step, above) = path.split_last().expect("path");
    let (Some(parent), Some(root)) = (core.find(above), core.find(path)) else { return };
    let id = MoveId::new();
    let begin =
        MoveBegin { id, parent, name: name(*step), root, to: DatastoreId::new(), to_name: "ds2".into() };
    let begun = core.run(|ctx, txn| moves::begin(ctx, txn, &begin, &|_| None));
    let ids = trees::inodes_of(&core.tables, root).expect("walk");
    let outside = ids.iter().any(|(f, n)| {
        let inode = core.tables.inode(*f).expect("live");
        inode.kind != FileKind::Directory && inode.nlink > *n
    });
    assert_eq!(begun.is_ok(), !outside, "{begun:?}");
    if outside {
        return;
    }
    let taken = other.tables.entry(other.root(), &name(*step)).expect("tables").is_some();
    let there = IncomingBegin {
        id,
        from: DatastoreId::new(),
        from_name: "ds1".into(),
        root,
        parent: other.root(),
        name: name(*step),
        bytes: 0,
        check_only: false,
    };
    let reserved = other.run(|ctx, txn| incoming::begin(ctx, txn, &there, 1 << 30, "ds2"));
    assert_eq!(reserved.is_ok(), !taken, "{reserved:?}");
    core.check();
    if taken {
        core.run(|_, txn| moves::abort(txn, id)).expect("abort");
        return;
    }
    let complete = |attr| Ok(attr);
    let listed = listing::tree_list(&core.tables, &complete, &TreeList { root, after: None, max: 1000 })
        .expect("list");
    let mut entries = listed.entries;
    entries[0].parent = other.root();
    let put = IncomingPut { id, entries };
    for _ in 0..2 {
        other.run(|ctx, txn| incoming::put_entries(ctx, txn, &put, &mut Vec::new())).expect("put");
        other.check();
    }
    assert!(!other.seen().values().any(|(f, _)| *f == root), "an incoming tree is invisible");
    if !commit {
        core.run(|_, txn| moves::abort(txn, id)).expect("abort");
        while !other
            .run(|_, txn| incoming::drop_some(txn, &IncomingDrop { id }, &mut Vec::new()))
            .expect("drop")
        {}
        return;
    }
    other.run(|ctx, txn| incoming::seal(ctx, txn, &IncomingSeal { id }, &mut Vec::new())).expect("seal");
    let record = core.run(|ctx, txn| moves::commit(ctx, txn, id)).expect("commit");
    core.check();
    let publish = IncomingPublish { id, generation: record.generation };
    for _ in 0..2 {
        other.run(|ctx, txn| incoming::publish(ctx, txn, &publish, &mut Vec::new())).expect("publish");
    }
    other.check();
    loop {
        let (record, done) =
            core.run(|ctx, txn| moves::finish(ctx, txn, id, &mut Vec::new())).expect("finish");
        if done {
            assert_eq!(record.state, MoveState::Finished);
            break;
        }
    }
    let moved: Vec<_> = model.keys().filter(|p| p.starts_with(path)).cloned().collect();
    let arrived = other.seen();
    for old in moved {
        let known = model.remove(&old).expect("was there");
        let new = [&[*step], &old[path.len()..]].concat();
        assert_eq!(arrived.get(&new), Some(&known), "{old:?} arrived with its id");
        assert!(matches!(core.tables.inode(known.0), Err(WireError::Moved { .. })), "and leaves an address");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_agree_with_the_model(ops in proptest::collection::vec(op(), 1..80)) {
        let (mut core, mut other) = (Core::new(1), Core::new(2));
        let mut model = Model::new();
        for op in &ops {
            step(&mut core, &mut other, &mut model, op);
            core.check();
            other.check();
            prop_assert_eq!(&core.seen(), &model, "after {:?}", op);
        }
    }
}
