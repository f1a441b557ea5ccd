//! Attributes and extended attributes.

use proto::WireError;
use proto::ops::names::{
    FileKind, GetXattr, ListXattr, MAX_XATTR, Name, RemoveXattr, SetAttr, SetTime, SetXattr, XattrNames,
    XattrValue,
};
use proto::ops::{Done, Reply};

use super::names::Planned;
use super::plan::{Context, Effect, errno::*, posix};
use super::records::{Records, file_key, name_key};
use super::tables::{Table, Tables, Txn, decode};

/// Bytes of all extended attributes of a file together: they travel in one request when it moves.
const MAX_XATTRS: usize = 512 << 10;

/// SETATTR without the size.
pub fn set_attr(ctx: &Context, txn: &mut Txn, ask: &SetAttr) -> Planned {
    let mut inode = txn.inode(ask.file)?;
    ctx.may_change(ask.file)?;
    let at = |time: SetTime| match time {
        SetTime::Now => ctx.now,
        SetTime::At(time) => time,
    };
    inode.mode = ask.mode.map_or(inode.mode, |m| m & 0o7777);
    inode.uid = ask.uid.unwrap_or(inode.uid);
    inode.gid = ask.gid.unwrap_or(inode.gid);
    inode.atime = ask.atime.map_or(inode.atime, at);
    let mut effects = Vec::new();
    if let Some(time) = ask.mtime {
        inode.mtime = at(time);
        if inode.kind == FileKind::File {
            effects.push(Effect::SetMtime(ask.file, inode.mtime));
        }
    }
    inode.ctime = ctx.now;
    txn.put_inode(ask.file, &inode);
    Ok((Reply::SetAttr(inode.attr(ask.file)), effects))
}

/// SETXATTR.
pub fn set_xattr(ctx: &Context, txn: &mut Txn, ask: &SetXattr) -> Planned {
    let mut inode = txn.inode(ask.file)?;
    ctx.may_change(ask.file)?;
    if ask.name.0.len() > 255 || ask.value.0.len() > MAX_XATTR {
        return Err(posix(ERANGE, ask.name.lossy()));
    }
    let key = name_key(ask.file, &ask.name);
    let all = file_key(ask.file);
    let others = txn.scan(Table::Xattrs, &all, &all, false, usize::MAX)?;
    let taken: usize = others.iter().filter(|(k, _)| *k != key).map(|(k, v)| k.len() + v.len()).sum();
    if taken + key.len() + ask.value.0.len() > MAX_XATTRS {
        return Err(posix(ENOSPC, format!("extended attributes of file {}", ask.file)));
    }
    let there = txn.get(Table::Xattrs, &key)?.is_some();
    match there {
        true if ask.create => return Err(posix(EEXIST, ask.name.lossy())),
        false if ask.replace => return Err(posix(ENODATA, ask.name.lossy())),
        _ => {}
    }
    txn.write(Table::Xattrs, key, &ask.value);
    inode.ctime = ctx.now;
    txn.put_inode(ask.file, &inode);
    Ok((Reply::SetXattr(Done {}), vec![]))
}

/// REMOVEXATTR.
pub fn remove_xattr(ctx: &Context, txn: &mut Txn, ask: &RemoveXattr) -> Planned {
    let mut inode = txn.inode(ask.file)?;
    ctx.may_change(ask.file)?;
    let key = name_key(ask.file, &ask.name);
    if txn.get(Table::Xattrs, &key)?.is_none() {
        return Err(posix(ENODATA, ask.name.lossy()));
    }
    txn.delete(Table::Xattrs, key);
    inode.ctime = ctx.now;
    txn.put_inode(ask.file, &inode);
    Ok((Reply::RemoveXattr(Done {}), vec![]))
}

/// GETXATTR.
pub fn get_xattr(tables: &dyn Tables, ask: &GetXattr) -> Result<XattrValue, WireError> {
    tables.inode(ask.file)?;
    match tables.get(Table::Xattrs, &name_key(ask.file, &ask.name))? {
        Some(bytes) => Ok(XattrValue { value: decode(&bytes)? }),
        None => Err(posix(ENODATA, ask.name.lossy())),
    }
}

/// LISTXATTR.
pub fn list_xattr(tables: &dyn Tables, ask: &ListXattr) -> Result<XattrNames, WireError> {
    tables.inode(ask.file)?;
    let prefix = file_key(ask.file);
    let pairs = tables.scan(Table::Xattrs, &prefix, &prefix, false, usize::MAX)?;
    Ok(XattrNames { names: pairs.into_iter().map(|(key, _)| Name(key[prefix.len()..].to_vec())).collect() })
}
