//! One QMP connection per running VM.
//!
//! QEMU serves one client at a time, so all of this daemon share one connection, made when it is
//! first needed and again when QEMU was restarted. A daemon that starts while VMs run gets theirs
//! the same way.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;

use super::qmp::{Qmp, QmpError};

/// The connections, by VM.
#[derive(Default)]
pub struct Links {
    by_name: Mutex<HashMap<String, Arc<Link>>>,
}

#[derive(Default)]
struct Link {
    /// Held while connecting, and for no other await: a second connection made meanwhile would
    /// get no greeting.
    slot: tokio::sync::Mutex<Option<(u32, Arc<Qmp>)>>,
}

impl Links {
    /// The connection to VM `name`, whose QEMU is `pid` and listens at `socket`.
    pub async fn get(&self, name: &str, pid: u32, socket: &Path) -> Result<Arc<Qmp>, QmpError> {
        let link = self.by_name.lock().entry(name.to_string()).or_default().clone();
        let mut slot = link.slot.lock().await;
        if let Some((of, qmp)) = &*slot
            && *of == pid
            && !qmp.is_closed()
        {
            return Ok(qmp.clone());
        }
        let qmp = Arc::new(Qmp::connect(socket).await?);
        log_events(name.to_string(), &qmp);
        *slot = Some((pid, qmp.clone()));
        Ok(qmp)
    }

    /// Forget a VM that is gone.
    pub fn forget(&self, name: &str) {
        self.by_name.lock().remove(name);
    }
}

/// What an administrator would look for in the log afterwards.
fn log_events(vm: String, qmp: &Qmp) {
    let mut events = qmp.events();
    tokio::spawn(async move {
        loop {
            match events.recv().await {
                Ok(event) => match event.name.as_str() {
                    "BLOCK_IO_ERROR" => {
                        let (node, reason) = (&event.data["node-name"], &event.data["reason"]);
                        tracing::warn!(%vm, %node, %reason, "disk I/O failed, the VM is paused");
                    }
                    "SHUTDOWN" => tracing::info!(%vm, reason = %event.data["reason"], "VM shuts down"),
                    "GUEST_PANICKED" => tracing::warn!(%vm, "guest panicked"),
                    name => tracing::debug!(%vm, name, data = %event.data, "QEMU event"),
                },
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{UnixListener, UnixStream};

    /// Greets one client and agrees to its capabilities.
    async fn welcome(listener: &UnixListener) -> BufReader<UnixStream> {
        let mut stream = BufReader::new(listener.accept().await.unwrap().0);
        stream.write_all(b"{\"QMP\": {}}\n").await.unwrap();
        stream.read_line(&mut String::new()).await.unwrap();
        stream.write_all(b"{\"return\": {}, \"id\": 1}\n").await.unwrap();
        stream
    }

    #[tokio::test]
    async fn one_connection_serves_all_until_it_breaks_or_qemu_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("q.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let links = Links::default();

        let (first, again, stream) =
            tokio::join!(links.get("a", 7, &socket), links.get("a", 7, &socket), welcome(&listener));
        let first = first.unwrap();
        assert!(Arc::ptr_eq(&first, &again.unwrap()), "two who ask at once share it");

        drop(stream);
        first.closed().await;
        let (second, _stream) = tokio::join!(links.get("a", 7, &socket), welcome(&listener));
        let second = second.unwrap();
        assert!(!Arc::ptr_eq(&first, &second), "a broken one is made anew");

        let (third, _stream) = tokio::join!(links.get("a", 8, &socket), welcome(&listener));
        assert!(!Arc::ptr_eq(&second, &third.unwrap()), "another process, another connection");
    }
}
