//! `dsctl status` and `dsctl datastore list`.

use clap::Subcommand;
use proto::control::{DatastoreStatus, HostStatus};

use super::Context;
use crate::exit::Failure;
use crate::quantity::{long_time, size};
use crate::table::{facts, or_dash, table};

#[derive(Subcommand, Debug)]
pub enum DatastoreCommand {
    /// All datastores with their state and space
    #[command(after_help = "Example:\n  dsctl datastore list")]
    List,
}

pub async fn status(context: &Context) -> Result<(), Failure> {
    let status = context.client.status().await?;
    context.print(&status, host_text)
}

pub async fn datastores(context: &Context, command: DatastoreCommand) -> Result<(), Failure> {
    let DatastoreCommand::List = command;
    let status = context.client.status().await?;
    context.print(&status.datastores, |list| datastore_text(list))
}

fn host_text(status: &HostStatus) -> String {
    let mut text = facts(&[
        ("host", status.host.clone()),
        ("mount", status.mount.clone()),
        ("dshost", format!("{}, pid {}, up {}", status.version, status.pid, long_time(status.uptime_s))),
        ("moves", if status.moves == 0 { "none".into() } else { format!("{} running", status.moves) }),
    ]);
    text.push('\n');
    text.push_str(&datastore_text(&status.datastores));
    text
}

fn datastore_text(datastores: &[DatastoreStatus]) -> String {
    let rows: Vec<Vec<String>> = datastores
        .iter()
        .map(|d| {
            vec![
                d.name.clone(),
                if d.connected { "up" } else { "down" }.into(),
                d.address.clone(),
                or_dash(d.capacity.map(size)),
                or_dash(d.free.map(size)),
            ]
        })
        .collect();
    let mut text = table(&["DATASTORE", "STATE", "ADDRESS", "CAPACITY", "FREE"], &rows);
    for down in datastores.iter().filter(|d| !d.connected) {
        let why = down.error.as_deref().unwrap_or("not connected yet");
        text.push_str(&format!("{} is down: {why}\n", down.name));
        text.push_str(&format!("hint: see whether its dsserver runs at {}\n", down.address));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_one_datastore_down() {
        let up = DatastoreStatus {
            name: "ds1".into(),
            address: "127.0.0.1:7101".into(),
            connected: true,
            error: None,
            session: 3,
            capacity: Some(100 << 30),
            free: Some(63 << 30),
        };
        let down = DatastoreStatus {
            name: "ds2".into(),
            address: "10.0.0.7:7101".into(),
            connected: false,
            error: Some("connection refused".into()),
            session: 0,
            capacity: None,
            free: None,
        };
        let status = HostStatus {
            host: "hostA".into(),
            version: "0.1.0".into(),
            pid: 77,
            mount: "/vmfs".into(),
            uptime_s: 4000,
            datastores: vec![up, down],
            moves: 1,
        };
        assert_eq!(
            host_text(&status),
            "\
host:   hostA
mount:  /vmfs
dshost: 0.1.0, pid 77, up 1h 6m
moves:  1 running

DATASTORE  STATE  ADDRESS         CAPACITY   FREE
ds1        up     127.0.0.1:7101  100.0 GiB  63.0 GiB
ds2        down   10.0.0.7:7101   -          -
ds2 is down: connection refused
hint: see whether its dsserver runs at 10.0.0.7:7101
"
        );
    }
}
