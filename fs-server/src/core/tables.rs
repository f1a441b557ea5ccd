//! The datastore's tables as ordered maps of bytes, and the one kind of record that changes them.
//!
//! Planning code sees a [`Txn`]: a base plus its own pending changes. What it did comes out as a
//! list of [`Change`]s, which a store applies in one durable transaction.

use std::collections::BTreeMap;
use std::ops::Bound;

use proto::WireError;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Which table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Table {
    /// "format", "id", "name", "prefix", "epoch", "next_file", "position", "session", "generation"
    Header,
    /// FileId → inode.
    Inodes,
    /// (directory, name) → entry.
    Entries,
    /// (directory, cookie) → name.
    Cookies,
    /// (FileId, directory, name) → nothing: an inode's names.
    Names,
    /// (FileId, attribute name) → value.
    Xattrs,
    /// Host name → session.
    Sessions,
    /// (session generation, request id) → encoded reply.
    Replies,
    /// Move id and side → record.
    Moves,
    /// FileId → where it went.
    Forwards,
    /// FileId of an inode without a name: still open, or of an incoming tree that is not sealed.
    Orphans,
    /// (directory, name) reserved for an incoming tree → move id.
    Reserved,
    /// FileId of an inode that is gone and whose data file has to go.
    Doomed,
}

impl Table {
    /// All tables.
    pub const ALL: [Table; 13] = [
        Table::Header,
        Table::Inodes,
        Table::Entries,
        Table::Cookies,
        Table::Names,
        Table::Xattrs,
        Table::Sessions,
        Table::Replies,
        Table::Moves,
        Table::Forwards,
        Table::Orphans,
        Table::Reserved,
        Table::Doomed,
    ];
}

/// One change of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The key has this value now.
    Put {
        /// Where.
        table: Table,
        /// Key bytes; their order is the table's order.
        key: Vec<u8>,
        /// Value bytes.
        value: Vec<u8>,
    },
    /// The key is gone.
    Delete {
        /// Where.
        table: Table,
        /// Key bytes.
        key: Vec<u8>,
    },
}

impl Change {
    /// Which table it changes.
    pub fn table(&self) -> Table {
        match self {
            Change::Put { table, .. } | Change::Delete { table, .. } => *table,
        }
    }
}

/// Read access to all tables.
pub trait Tables {
    /// The value of a key.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, WireError>;
    /// Up to `max` pairs in order of their keys, from `from` on (behind it when `exclusive`), while
    /// keys begin with `prefix`.
    fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        exclusive: bool,
        max: usize,
    ) -> Result<Pairs, WireError>;
}

/// Keys with their values, in order.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// A transaction being planned: reads see the base and what was changed so far.
pub struct Txn<'a> {
    base: &'a dyn Tables,
    pending: BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>,
}

impl<'a> Txn<'a> {
    /// Nothing changed yet.
    pub fn new(base: &'a dyn Tables) -> Self {
        Self { base, pending: BTreeMap::new() }
    }

    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Everything that was changed, in the order of tables and keys.
    pub fn into_changes(self) -> Vec<Change> {
        self.pending
            .into_iter()
            .map(|((table, key), value)| match value {
                Some(value) => Change::Put { table, key, value },
                None => Change::Delete { table, key },
            })
            .collect()
    }

    /// Take over another transaction's changes; it was planned on top of this one.
    pub fn absorb(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put { table, key, value } => self.pending.insert((table, key), Some(value)),
                Change::Delete { table, key } => self.pending.insert((table, key), None),
            };
        }
    }

    /// A typed value.
    pub fn read<T: DeserializeOwned>(&self, table: Table, key: &[u8]) -> Result<Option<T>, WireError> {
        self.get(table, key)?.map(|bytes| decode(&bytes)).transpose()
    }

    /// Set a typed value.
    pub fn write<T: Serialize>(&mut self, table: Table, key: Vec<u8>, value: &T) {
        self.pending.insert((table, key), Some(encode(value)));
    }

    /// Remove a key.
    pub fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.pending.insert((table, key), None);
    }
}

impl Tables for Txn<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, WireError> {
        match self.pending.get(&(table, key.to_vec())) {
            Some(value) => Ok(value.clone()),
            None => self.base.get(table, key),
        }
    }

    fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        exclusive: bool,
        max: usize,
    ) -> Result<Pairs, WireError> {
        let own: BTreeMap<&Vec<u8>, &Option<Vec<u8>>> = self
            .pending
            .range((start(table, from, exclusive), Bound::Unbounded))
            .take_while(|((t, key), _)| *t == table && key.starts_with(prefix))
            .map(|((_, key), value)| (key, value))
            .collect();
        // Enough of the base to make up for what this transaction deletes.
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> = self
            .base
            .scan(table, prefix, from, exclusive, max.saturating_add(own.len()))?
            .into_iter()
            .collect();
        for (key, value) in own {
            match value {
                Some(value) => merged.insert(key.clone(), value.clone()),
                None => merged.remove(key),
            };
        }
        Ok(merged.into_iter().take(max).collect())
    }
}

fn start(table: Table, from: &[u8], exclusive: bool) -> Bound<(Table, Vec<u8>)> {
    let key = (table, from.to_vec());
    if exclusive { Bound::Excluded(key) } else { Bound::Included(key) }
}

/// Tables in memory, for tests and as the smallest example of a store.
#[derive(Clone, Debug, Default)]
pub struct MemoryTables {
    rows: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
}

impl MemoryTables {
    /// Apply a transaction.
    pub fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change.clone() {
                Change::Put { table, key, value } => self.rows.insert((table, key), value),
                Change::Delete { table, key } => self.rows.remove(&(table, key)),
            };
        }
    }
}

impl Tables for MemoryTables {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, WireError> {
        Ok(self.rows.get(&(table, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        exclusive: bool,
        max: usize,
    ) -> Result<Pairs, WireError> {
        Ok(self
            .rows
            .range((start(table, from, exclusive), Bound::Unbounded))
            .take_while(|((t, key), _)| *t == table && key.starts_with(prefix))
            .take(max)
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect())
    }
}

/// Encode a value of a table.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain structures in memory always encode")
}

/// Decode a value of a table.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    postcard::from_bytes(bytes).map_err(|e| WireError::Failed {
        reason: format!("a record of the metadata store does not decode: {e}; the store is damaged, docs/STORE.md says how to get disks out of it"),
    })
}
