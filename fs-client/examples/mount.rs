//! Mount datastores without moves and control API, for trying the mount and measuring it:
//! `cargo run --release -p godwit-fs-client --example mount -- /mnt ds1=127.0.0.1:7101 ds2=…`
//! Unmounts and ends when its standard input ends.

use std::io::Read;

use fs_client::{Datastore, DatastoreConfig, Files, Mount, MountConfig};
use proto::InstanceId;

fn main() -> std::io::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let usage = || std::io::Error::other("usage: mount PATH NAME=ADDRESS…");
    let path = arguments.next().ok_or_else(usage)?;
    let instance = InstanceId::new();
    let datastores = arguments
        .map(|argument| {
            let (name, address) = argument.split_once('=').ok_or_else(usage)?;
            let host = format!("example-{}", std::process::id());
            Ok(Datastore::start(DatastoreConfig {
                name: name.into(),
                address: address.into(),
                host,
                instance,
            }))
        })
        .collect::<std::io::Result<Vec<_>>>()?;
    let mount = Mount::start(Files::new(datastores), MountConfig::at(path))?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    mount.unmount()
}
