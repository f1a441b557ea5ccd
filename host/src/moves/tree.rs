//! The manifest of a moving tree: what is in it, and how two states of it differ.
//!
//! While data is being copied the tree may change. Before the switchover its listing is compared
//! with what the destination was last told, and only the difference is sent. No I/O here.

use std::collections::{BTreeMap, BTreeSet};

use proto::FileId;
use proto::ops::names::{Attr, FileKind, Name, TreeEntry};

/// All names of a tree and the inodes behind them, as of one listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    entries: BTreeMap<(FileId, Name), TreeEntry>,
    /// Parents before children, as listed.
    order: Vec<(FileId, Name)>,
    /// Names of which it is not known how, or whether, the destination has them.
    unsure: BTreeSet<(FileId, Name)>,
}

/// What must be told to the destination so that it has a newer state of the tree.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Entries that are new or changed, parents before children. To be sent before the removals,
    /// so that an inode that only changed its name never loses its last one.
    pub puts: Vec<TreeEntry>,
    /// Names that are gone, children before parents.
    pub removals: Vec<(FileId, Name)>,
    /// Inodes that are new in the tree.
    pub arrived: Vec<FileId>,
    /// Inodes that are in the tree no more.
    pub departed: Vec<FileId>,
}

impl Difference {
    /// Whether the two states are the same.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.removals.is_empty()
    }
}

impl Manifest {
    /// A manifest of the entries of a listing, in its order.
    pub fn new(listing: Vec<TreeEntry>) -> Self {
        let order = listing.iter().map(|e| (e.parent, e.name.clone())).collect();
        let entries = listing.into_iter().map(|e| ((e.parent, e.name.clone()), e)).collect();
        Self { entries, order, unsure: BTreeSet::new() }
    }

    /// Entries, parents before children.
    pub fn entries(&self) -> impl Iterator<Item = &TreeEntry> {
        self.order.iter().filter_map(|key| self.entries.get(key))
    }

    /// Inodes in the tree.
    pub fn ids(&self) -> BTreeSet<FileId> {
        self.entries.values().map(|e| e.attr.file).collect()
    }

    /// Regular files of the tree, each once.
    pub fn regular_files(&self) -> BTreeMap<FileId, &TreeEntry> {
        self.entries.values().filter(|e| e.attr.kind == FileKind::File).map(|e| (e.attr.file, e)).collect()
    }

    /// Allocated bytes of all regular files.
    pub fn allocated(&self) -> u64 {
        self.regular_files().values().map(|e| e.attr.blocks * 512).sum()
    }

    /// A file that has names outside the tree, if there is one.
    pub fn linked_from_outside(&self) -> Option<&TreeEntry> {
        let mut names: BTreeMap<FileId, u32> = BTreeMap::new();
        for entry in self.entries.values() {
            *names.entry(entry.attr.file).or_default() += 1;
        }
        self.entries
            .values()
            .find(|e| e.attr.kind != FileKind::Directory && e.attr.nlink > names[&e.attr.file])
    }

    /// What the destination may have while it is being told of `newer`: every name of either state,
    /// each of them in doubt where the two differ.
    pub fn on_the_way_to(&self, newer: &Manifest) -> Manifest {
        let mut between = self.clone();
        for entry in newer.entries() {
            let key = (entry.parent, entry.name.clone());
            if !self.entries.get(&key).is_some_and(|old| same(old, entry)) {
                between.unsure.insert(key.clone());
            }
            if between.entries.insert(key.clone(), entry.clone()).is_none() {
                between.order.push(key);
            }
        }
        between
    }

    /// What leads from `self` to `newer`.
    pub fn difference(&self, newer: &Manifest) -> Difference {
        let (before, after) = (self.ids(), newer.ids());
        Difference {
            puts: newer
                .entries()
                .filter(|e| {
                    let key = (e.parent, e.name.clone());
                    self.unsure.contains(&key) || !self.entries.get(&key).is_some_and(|old| same(old, e))
                })
                .cloned()
                .collect(),
            removals: self
                .order
                .iter()
                .rev()
                .filter(|key| !newer.entries.contains_key(*key))
                .cloned()
                .collect(),
            arrived: after.difference(&before).copied().collect(),
            departed: before.difference(&after).copied().collect(),
        }
    }
}

/// Whether the destination need not be told. Space and the count of names are its own business,
/// reading changes only atime, and ctime moves with any of the rest.
fn same(a: &TreeEntry, b: &TreeEntry) -> bool {
    let essence = |attr: &Attr| Attr {
        blocks: 0,
        nlink: 0,
        size: if attr.kind == FileKind::File { attr.size } else { 0 },
        atime: Default::default(),
        ctime: Default::default(),
        ..*attr
    };
    essence(&a.attr) == essence(&b.attr) && a.target == b.target && a.xattrs == b.xattrs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::ops::names::Time;

    fn entry(parent: u64, name: &str, file: u64, kind: FileKind, mtime: i64) -> TreeEntry {
        let at = |seconds| Time { seconds, nanos: 0 };
        TreeEntry {
            parent: FileId(parent),
            name: name.into(),
            attr: Attr {
                file: FileId(file),
                kind,
                mode: 0o644,
                uid: 0,
                gid: 0,
                nlink: 1,
                rdev: 0,
                size: 10,
                blocks: 8,
                atime: at(0),
                mtime: at(mtime),
                ctime: at(mtime),
                btime: at(0),
            },
            target: None,
            xattrs: Vec::new(),
        }
    }

    fn base() -> Vec<TreeEntry> {
        vec![
            entry(1, "vm", 2, FileKind::Directory, 1),
            entry(2, "a", 3, FileKind::File, 1),
            entry(2, "sub", 4, FileKind::Directory, 1),
            entry(4, "b", 5, FileKind::File, 1),
        ]
    }

    #[test]
    fn equal_trees_do_not_differ() {
        let old = Manifest::new(base());
        let mut touched = base();
        touched[1].attr.blocks = 99;
        touched[1].attr.atime.seconds = 7;
        assert!(old.difference(&Manifest::new(touched)).is_empty());
    }

    #[test]
    fn a_rename_inside_keeps_the_inode() {
        let old = Manifest::new(base());
        let mut listing = base();
        listing[1] = entry(4, "renamed", 3, FileKind::File, 1);
        listing.swap(1, 3);
        let diff = old.difference(&Manifest::new(listing));
        assert_eq!(diff.puts.iter().map(|e| e.attr.file.0).collect::<Vec<_>>(), [3]);
        assert_eq!(diff.removals, [(FileId(2), Name::from("a"))]);
        assert!(diff.arrived.is_empty() && diff.departed.is_empty());
    }

    #[test]
    fn a_replaced_name_departs_and_arrives() {
        let old = Manifest::new(base());
        let mut listing = base();
        listing[3] = entry(4, "b", 6, FileKind::File, 2);
        let diff = old.difference(&Manifest::new(listing));
        assert_eq!((diff.arrived, diff.departed), (vec![FileId(6)], vec![FileId(5)]));
        assert!(diff.removals.is_empty());
    }

    #[test]
    fn removals_go_children_first() {
        let old = Manifest::new(base());
        let diff = old.difference(&Manifest::new(base()[..2].to_vec()));
        assert_eq!(diff.removals, [(FileId(4), Name::from("b")), (FileId(2), Name::from("sub"))]);
    }

    #[test]
    fn what_may_have_been_told_is_told_again_and_taken_back() {
        let told = Manifest::new(base());
        let mut listing = base();
        listing.push(entry(4, "passing", 7, FileKind::File, 2));
        listing[1] = entry(2, "a", 3, FileKind::File, 5);
        let attempted = Manifest::new(listing);
        let between = told.on_the_way_to(&attempted);
        let diff = between.difference(&Manifest::new(base()));
        assert_eq!(diff.removals, [(FileId(4), Name::from("passing"))], "it may be there");
        assert_eq!(
            diff.puts.iter().map(|e| e.attr.file.0).collect::<Vec<_>>(),
            [3],
            "which state is unknown"
        );
        let diff = between.difference(&attempted);
        assert_eq!(diff.puts.iter().map(|e| e.attr.file.0).collect::<Vec<_>>(), [3, 7]);
        assert!(diff.removals.is_empty());
    }

    #[test]
    fn names_outside_are_found() {
        let mut listing = base();
        listing[1].attr.nlink = 2;
        assert_eq!(
            Manifest::new(listing.clone()).linked_from_outside().map(|e| e.attr.file),
            Some(FileId(3))
        );
        listing.push(entry(4, "a-again", 3, FileKind::File, 1));
        listing[4].attr.nlink = 2;
        assert_eq!(Manifest::new(listing).linked_from_outside(), None);
    }
}
