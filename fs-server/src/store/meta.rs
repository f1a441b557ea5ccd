//! The core's tables in redb: one file, one durable transaction per batch of requests.

use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use proto::WireError;
use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase, TableDefinition};

use crate::core::tables::{Change, Pairs, Table, Tables};

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Memory that redb may use for its pages.
const CACHE: usize = 16 << 20;

fn definition(table: Table) -> Definition {
    TableDefinition::new(match table {
        Table::Header => "header",
        Table::Inodes => "inodes",
        Table::Entries => "entries",
        Table::Cookies => "cookies",
        Table::Names => "names",
        Table::Xattrs => "xattrs",
        Table::Sessions => "sessions",
        Table::Replies => "replies",
        Table::Moves => "moves",
        Table::Forwards => "forwards",
        Table::Orphans => "orphans",
        Table::Reserved => "reserved",
        Table::Doomed => "doomed",
    })
}

/// The metadata store.
pub struct MetaStore {
    db: Database,
    snapshot: RwLock<Arc<Snapshot>>,
}

/// The tables as of the last commit.
pub struct Snapshot {
    tables: Vec<ReadOnlyTable<&'static [u8], &'static [u8]>>,
}

fn broken(context: &str, error: impl std::fmt::Display) -> WireError {
    WireError::Failed { reason: format!("{context}: {error}") }
}

impl MetaStore {
    /// Open or create the file.
    pub fn open(path: &Path) -> Result<MetaStore, WireError> {
        let db = Database::builder()
            .set_cache_size(CACHE)
            .create(path)
            .map_err(|e| broken(&format!("open {}", path.display()), e))?;
        let txn = db.begin_write().map_err(|e| broken("begin a transaction", e))?;
        for table in Table::ALL {
            txn.open_table(definition(table)).map_err(|e| broken("open a table", e))?;
        }
        txn.commit().map_err(|e| broken("commit", e))?;
        let snapshot = RwLock::new(Arc::new(Snapshot::take(&db)?));
        Ok(MetaStore { db, snapshot })
    }

    /// The tables as of the last commit. Don't keep it: it holds back the reuse of space.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.read().clone()
    }

    /// Apply changes in one transaction; when this returns they are durable and the next snapshot has them.
    pub fn commit(&self, changes: &[Change]) -> Result<(), WireError> {
        let mut txn = self.db.begin_write().map_err(|e| broken("begin a transaction", e))?;
        txn.set_durability(Durability::Immediate).map_err(|e| broken("set durability", e))?;
        let mut at = 0;
        while at < changes.len() {
            let table = changes[at].table();
            let mut open = txn.open_table(definition(table)).map_err(|e| broken("open a table", e))?;
            while let Some(change) = changes.get(at).filter(|c| c.table() == table) {
                match change {
                    Change::Put { key, value, .. } => open.insert(key.as_slice(), value.as_slice()).map(drop),
                    Change::Delete { key, .. } => open.remove(key.as_slice()).map(drop),
                }
                .map_err(|e| broken("change a table", e))?;
                at += 1;
            }
        }
        txn.commit().map_err(|e| broken("commit", e))?;
        *self.snapshot.write() = Arc::new(Snapshot::take(&self.db)?);
        Ok(())
    }
}

impl Snapshot {
    fn take(db: &Database) -> Result<Snapshot, WireError> {
        let txn = db.begin_read().map_err(|e| broken("begin a read", e))?;
        let tables = Table::ALL
            .iter()
            .map(|t| txn.open_table(definition(*t)).map_err(|e| broken("open a table", e)))
            .collect::<Result<_, _>>()?;
        Ok(Snapshot { tables })
    }
}

impl Snapshot {
    /// Rows of a table.
    pub fn count(&self, table: Table) -> u64 {
        use redb::ReadableTableMetadata;
        self.tables[table as usize].len().unwrap_or(0)
    }
}

impl Tables for Snapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, WireError> {
        let value = self.tables[table as usize].get(key).map_err(|e| broken("read a table", e))?;
        Ok(value.map(|v| v.value().to_vec()))
    }

    fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        exclusive: bool,
        max: usize,
    ) -> Result<Pairs, WireError> {
        use std::ops::Bound;
        let lower = if exclusive { Bound::Excluded(from) } else { Bound::Included(from) };
        let mut out = Vec::new();
        let range = self.tables[table as usize]
            .range::<&[u8]>((lower, Bound::Unbounded))
            .map_err(|e| broken("scan a table", e))?;
        for row in range {
            let (key, value) = row.map_err(|e| broken("scan a table", e))?;
            if out.len() >= max || !key.value().starts_with(prefix) {
                break;
            }
            out.push((key.value().to_vec(), value.value().to_vec()));
        }
        Ok(out)
    }
}
