//! Reads: look-ups, directory pages, walks of a tree.

use proto::ops::names::{
    Attr, DirEntry, DirPage, FileKind, Lookup, Name, ReadDir, ReadLink, Target, TreeCursor, TreeEntry,
    TreeList, TreePage,
};
use proto::{FileId, WireError};

use super::plan::{errno::*, posix};
use super::records::{Records, cookie_key, file_key};
use super::tables::{Table, Tables, decode};

/// Completes attributes with what the data file says.
pub type Complete<'a> = &'a dyn Fn(Attr) -> Result<Attr, WireError>;

const MAX_PAGE: usize = 2_000;
/// A page of a tree ends behind the entry that reaches this many bytes.
const PAGE_BYTES: usize = 512 << 10;

/// LOOKUP.
pub fn lookup(tables: &dyn Tables, complete: Complete, ask: &Lookup) -> Result<Attr, WireError> {
    let dir = tables.inode(ask.parent)?;
    if dir.kind != FileKind::Directory {
        return Err(posix(ENOTDIR, format!("file {}", ask.parent)));
    }
    let entry = tables.entry(ask.parent, &ask.name)?.ok_or_else(|| posix(ENOENT, ask.name.lossy()))?;
    complete(tables.inode(entry.file)?.attr(entry.file))
}

/// READLINK.
pub fn read_link(tables: &dyn Tables, ask: &ReadLink) -> Result<Target, WireError> {
    let target = tables
        .inode(ask.file)?
        .target
        .ok_or_else(|| posix(EINVAL, format!("file {} is no symlink", ask.file)))?;
    Ok(Target { target })
}

/// READDIR.
pub fn read_dir(tables: &dyn Tables, complete: Complete, ask: &ReadDir) -> Result<DirPage, WireError> {
    let dir = tables.inode(ask.dir)?;
    if dir.kind != FileKind::Directory {
        return Err(posix(ENOTDIR, format!("file {}", ask.dir)));
    }
    let max = (ask.max as usize).clamp(1, MAX_PAGE);
    let rows = page(tables, ask.dir, ask.after, max)?;
    let end = rows.len() < max;
    let mut entries = Vec::with_capacity(rows.len());
    for (cookie, name) in rows {
        let Some(entry) = tables.entry(ask.dir, &name)? else { continue };
        let attr = complete(tables.inode(entry.file)?.attr(entry.file))?;
        entries.push(DirEntry { name, cookie, attr });
    }
    Ok(DirPage { entries, end, parent: dir.parent, next_cookie: dir.next_cookie })
}

fn page(tables: &dyn Tables, dir: FileId, after: u64, max: usize) -> Result<Vec<(u64, Name)>, WireError> {
    tables
        .scan(Table::Cookies, &file_key(dir), &cookie_key(dir, after), true, max)?
        .into_iter()
        .map(|(key, value)| {
            let cookie = key.get(8..16).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
            Ok((cookie.ok_or_else(|| posix(EIO, "a directory's cookie"))?, decode(&value)?))
        })
        .collect()
}

/// Everything about one name of a tree.
fn tree_entry(
    tables: &dyn Tables,
    complete: Complete,
    parent: FileId,
    name: Name,
    file: FileId,
) -> Result<TreeEntry, WireError> {
    let inode = tables.inode(file)?;
    let prefix = file_key(file);
    let xattrs = tables
        .scan(Table::Xattrs, &prefix, &prefix, false, usize::MAX)?
        .into_iter()
        .map(|(key, value)| Ok((Name(key[prefix.len()..].to_vec()), decode(&value)?)))
        .collect::<Result<_, WireError>>()?;
    let attr = complete(inode.attr(file))?;
    Ok(TreeEntry { parent, name, attr, target: inode.target, xattrs })
}

/// About how many bytes an entry takes on the wire.
fn weight(entry: &TreeEntry) -> usize {
    let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.0.len() + value.0.len() + 8).sum();
    entry.name.0.len() + entry.target.as_ref().map_or(0, |t| t.0.len()) + xattrs + 128
}

/// Walk a tree, depth first, each directory before what is in it.
pub fn tree_list(tables: &dyn Tables, complete: Complete, ask: &TreeList) -> Result<TreePage, WireError> {
    let max = (ask.max as usize).clamp(1, MAX_PAGE);
    let (mut entries, mut bytes) = (Vec::new(), 0);
    let mut add = |entry: TreeEntry| {
        bytes += weight(&entry);
        entries.push(entry);
        entries.len() >= max || bytes >= PAGE_BYTES
    };
    let (mut pending, mut full) = match &ask.after {
        Some(cursor) => (cursor.pending.clone(), false),
        None => {
            let root = tables.inode(ask.root)?;
            let (parent, name) = tables
                .a_name(ask.root)?
                .ok_or_else(|| posix(ENOENT, format!("a name of file {}", ask.root)))?;
            let full = add(tree_entry(tables, complete, parent, name, ask.root)?);
            (if root.kind == FileKind::Directory { vec![(ask.root, 0)] } else { vec![] }, full)
        }
    };
    while !full && let Some((dir, after)) = pending.pop() {
        let rows = page(tables, dir, after, max)?;
        let mut rest = if rows.len() < max { None } else { rows.last().map(|(cookie, _)| *cookie) };
        let mut below = None;
        for (cookie, name) in rows {
            let Some(entry) = tables.entry(dir, &name)? else { continue };
            let found = tree_entry(tables, complete, dir, name, entry.file)?;
            below = (found.attr.kind == FileKind::Directory).then_some(entry.file);
            full = add(found);
            if full || below.is_some() {
                rest = Some(cookie);
                break;
            }
        }
        pending.extend(rest.map(|cookie| (dir, cookie)));
        pending.extend(below.map(|file| (file, 0)));
    }
    Ok(TreePage { entries, next: (!pending.is_empty()).then_some(TreeCursor { pending }) })
}
