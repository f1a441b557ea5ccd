//! What is to be moved and where to: from the words of a request to ids on two datastores.

use std::sync::Arc;

use fs_client::{CallError, Datastore, Files};
use proto::control::{ApiError, ApiErrorCode, MoveRequest};
use proto::ops::names::{Attr, FileKind, Lookup, Name, StatFs, TreeList};
use proto::{FileId, WireError};

use super::answer::{check_failed, not_found, precheck};
use super::tree::Manifest;

const ENOENT: i32 = 2;
/// Entries of a tree asked for at once.
const PAGE: u32 = 500;

/// Finds the directory of a VM: its datastore and the path below it.
pub type VmLocator = dyn Fn(&str) -> Result<Option<(String, Vec<Name>)>, ApiError> + Send + Sync;

/// A resolved request.
pub struct Target {
    /// Where it is.
    pub from: Arc<Datastore>,
    /// Where it goes.
    pub to: Arc<Datastore>,
    /// Path below the datastore, on both sides.
    pub path: Vec<Name>,
    /// Directories above it on the source, with their attributes.
    pub ancestors: Vec<Attr>,
    /// The file or directory itself.
    pub root: Attr,
    /// The deepest of the directories above it that the destination has.
    pub to_parent: FileId,
    /// How many components of the path above the root the destination has.
    pub to_depth: usize,
}

impl Target {
    /// `ds1/vm42`.
    pub fn source_label(&self) -> String {
        label(&self.from, &self.path)
    }

    /// `ds2/vm42`.
    pub fn destination_label(&self) -> String {
        label(&self.to, &self.path)
    }

    /// The last component of the path.
    pub fn name(&self) -> &Name {
        self.path.last().expect("a target has at least one component: resolve refuses datastores")
    }

    /// The directory that holds the root on the source.
    pub fn source_parent(&self) -> FileId {
        self.ancestors.last().expect("the datastore's root is always above").file
    }
}

fn label(datastore: &Datastore, path: &[Name]) -> String {
    let mut out = datastore.name().to_string();
    for component in path {
        out.push('/');
        out.push_str(&component.lossy());
    }
    out
}

/// Find what a request means. Changes nothing.
pub async fn resolve(files: &Files, vms: &VmLocator, request: &MoveRequest) -> Result<Target, ApiError> {
    let (from_name, path) = split(vms, &request.what)?;
    let from = connected(files, &from_name)?;
    let to = connected(files, &request.to)?;
    if Arc::ptr_eq(&from, &to) {
        return Err(precheck(
            format!("{} is already on datastore {}", request.what, to.name()),
            "name another datastore; `dsctl datastore list` shows them",
        ));
    }
    let source_path =
        format!("{}/{}", from.name(), path.iter().map(Name::lossy).collect::<Vec<_>>().join("/"));
    let mut ancestors = vec![root_of(&from).await?];
    for component in &path {
        let parent = ancestors[ancestors.len() - 1].file;
        match from.call(Lookup { parent, name: component.clone() }).await {
            Ok(attr) => ancestors.push(attr),
            Err(e) if e.errno() == ENOENT => {
                return Err(not_found(
                    format!("{source_path} does not exist"),
                    format!("`ls` below the mount's {} shows what is there", from.name()),
                ));
            }
            Err(e) => return Err(check_failed(&format!("look up {source_path}"), &e)),
        }
    }
    let root = ancestors.pop().expect("the root of the datastore was pushed first");
    let (to_parent, to_depth) = destination_parent(&to, &path).await?;
    Ok(Target { from, to, path, ancestors, root, to_parent, to_depth })
}

/// `ds1/some/path` or the name of a VM.
fn split(vms: &VmLocator, what: &str) -> Result<(String, Vec<Name>), ApiError> {
    let usage = |message: String| ApiError {
        code: ApiErrorCode::Usage,
        message,
        hint: Some("name a VM (vm42) or a path below a datastore (ds1/images/big.img)".into()),
    };
    if !what.contains('/') {
        return vms(what)?.ok_or_else(|| {
            not_found(
                format!("no VM named {what} on any datastore of this host"),
                "`dsctl vm list` shows the VMs; for files and directories write datastore/path",
            )
        });
    }
    let mut parts = what.split('/').filter(|p| !p.is_empty());
    let datastore = parts.next().ok_or_else(|| usage(format!("{what:?} names nothing")))?;
    let path: Vec<Name> = parts.map(Name::from).collect();
    if path.is_empty() {
        return Err(usage(format!("{what} is a whole datastore")));
    }
    if path.iter().any(|c| c.0 == b"." || c.0 == b"..") {
        return Err(usage(format!("{what} contains . or ..")));
    }
    Ok((datastore.to_string(), path))
}

fn connected(files: &Files, name: &str) -> Result<Arc<Datastore>, ApiError> {
    let datastore = files.datastore(name).ok_or_else(|| {
        not_found(
            format!("this host has no datastore {name}"),
            "`dsctl datastore list` shows them; dshost takes more by --datastore NAME=ADDRESS",
        )
    })?;
    let state = datastore.state();
    if !state.connected {
        return Err(precheck(
            format!(
                "datastore {name} is not reachable at {}{}",
                datastore.address(),
                state.error.map(|e| format!(": {e}")).unwrap_or_default()
            ),
            format!("start the dsserver of {name} or check the network, then try again"),
        ));
    }
    Ok(datastore)
}

async fn root_of(datastore: &Datastore) -> Result<Attr, ApiError> {
    let root = datastore
        .info()
        .ok_or_else(|| precheck(format!("datastore {} is not attached", datastore.name()), "try again"))?
        .root;
    datastore
        .call(proto::ops::names::GetAttr { file: root })
        .await
        .map_err(|e| check_failed(&format!("read the root of {}", datastore.name()), &e))
}

/// How much of the path above the root the destination has; refuses a taken name.
async fn destination_parent(to: &Datastore, path: &[Name]) -> Result<(FileId, usize), ApiError> {
    let mut parent = root_of(to).await?.file;
    for (depth, component) in path.iter().enumerate() {
        let last = depth + 1 == path.len();
        match to.call(Lookup { parent, name: component.clone() }).await {
            Ok(_) if last => {
                return Err(precheck(
                    format!("{} exists already", label(to, path)),
                    "rename or remove it, or rename what you move",
                ));
            }
            Ok(attr) if attr.kind == FileKind::Directory => parent = attr.file,
            Ok(_) => {
                return Err(precheck(
                    format!("{} is not a directory", label(to, &path[..=depth])),
                    "rename or remove it",
                ));
            }
            Err(e) if e.errno() == ENOENT => return Ok((parent, depth)),
            Err(e) => return Err(check_failed(&format!("look up {}", label(to, path)), &e)),
        }
    }
    unreachable!("the last component returns")
}

/// List a whole tree on its datastore.
pub async fn list_tree(datastore: &Datastore, root: FileId) -> Result<Manifest, CallError> {
    let (mut listing, mut after) = (Vec::new(), None);
    loop {
        let page = datastore.call(TreeList { root, after, max: PAGE }).await?;
        listing.extend(page.entries);
        match page.next {
            Some(cursor) => after = Some(cursor),
            None => return Ok(Manifest::new(listing)),
        }
    }
}

/// Checks of the tree itself: links that lead out of it, room on the destination. Returns free bytes there.
pub async fn check_tree(target: &Target, manifest: &Manifest) -> Result<u64, ApiError> {
    if let Some(entry) = manifest.linked_from_outside() {
        return Err(precheck(
            format!("{} has hard links outside {}", entry.name.lossy(), target.source_label()),
            "remove the other names first (`find -samefile` lists them)",
        ));
    }
    let space = target
        .to
        .call(StatFs {})
        .await
        .map_err(|e| check_failed(&format!("ask {} for its space", target.to.name()), &e))?;
    let needed = manifest.allocated();
    if needed > space.free {
        return Err(precheck(
            WireError::NoSpace { datastore: target.to.name().to_string(), free: space.free, needed }
                .to_string(),
            format!("free space on {} or choose another datastore", target.to.name()),
        ));
    }
    Ok(space.free)
}
