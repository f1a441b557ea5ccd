//! Real datastore servers, and hosts' mounts inside the test's own process: for tests of the mount
//! that need no moves, VMs or control API.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_client::{Datastore, DatastoreConfig, Files, Mount, MountConfig};
use proto::InstanceId;
use tempfile::TempDir;

use crate::lab::Server;
use crate::process::wait_for;

/// Servers in a scratch directory; killed and removed when dropped.
pub struct Cluster {
    servers: BTreeMap<String, Server>,
    root: TempDir,
}

impl Cluster {
    /// Datastores of these names.
    pub fn new(datastores: &[&str]) -> Cluster {
        Cluster::with(&datastores.iter().map(|name| (*name, &[][..])).collect::<Vec<_>>())
    }

    /// The same, with further arguments to their servers.
    pub fn with(datastores: &[(&str, &[&str])]) -> Cluster {
        let root =
            tempfile::Builder::new().prefix("godwit-mount-").tempdir().expect("make a scratch directory");
        let servers = datastores
            .iter()
            .map(|(name, extra)| (name.to_string(), Server::start_first(root.path(), name, extra)))
            .collect();
        Cluster { servers, root }
    }

    /// A server.
    pub fn server(&mut self, name: &str) -> &mut Server {
        self.servers.get_mut(name).expect("the cluster has this datastore")
    }

    /// The scratch directory, outside of all mounts.
    pub fn scratch(&self) -> &Path {
        self.root.path()
    }

    /// Mount all datastores as the host `name` and wait until they are there.
    pub fn host(&self, name: &str) -> HostMount {
        let host = self.host_without_waiting(name);
        wait_for("the datastores", || {
            self.servers.keys().all(|name| std::fs::metadata(host.path(name)).is_ok())
        });
        host
    }

    /// Mount all datastores as the host `name`, reached or not.
    pub fn host_without_waiting(&self, name: &str) -> HostMount {
        let path = self.root.path().join(format!("mnt-{name}"));
        std::fs::create_dir_all(&path).expect("make the mount point");
        let instance = InstanceId::new();
        let datastores = self
            .servers
            .iter()
            .map(|(datastore, server)| {
                Datastore::start(DatastoreConfig {
                    name: datastore.clone(),
                    address: server.address.clone(),
                    host: name.into(),
                    instance,
                })
            })
            .collect();
        let files = Files::new(datastores);
        let mount = Mount::start(files.clone(), MountConfig::at(&path)).expect("mount");
        HostMount { files, path, mount: Some(mount) }
    }
}

/// A host's mount; unmounted when dropped.
pub struct HostMount {
    /// What is mounted.
    pub files: Arc<Files>,
    path: PathBuf,
    mount: Option<Mount>,
}

impl HostMount {
    /// A path below the mount point.
    pub fn path(&self, below: &str) -> PathBuf {
        self.path.join(below)
    }

    /// The same as text, for command lines.
    pub fn arg(&self, below: &str) -> String {
        self.path(below).to_string_lossy().into_owned()
    }

    /// Unmount in order.
    pub fn unmount(mut self) {
        if let Some(mount) = self.mount.take() {
            mount.unmount().expect("unmount");
        }
    }
}
