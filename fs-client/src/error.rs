//! How a call to a datastore can fail, and what that means to a disk or a file system.

use block_mirror::DiskError;
use proto::WireError;

/// Why a call has no reply. Lost connections are not among the reasons: calls wait for the server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The server's own words.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The datastore was shut down on this host while the call was waiting.
    #[error("the connection to the datastore was closed by this host")]
    Closed,
    /// This host's session is over; nothing may be done under it any more.
    #[error("this host's session is over: {0}")]
    Fenced(String),
}

impl CallError {
    /// The errno that a file system adapter answers with.
    pub fn errno(&self) -> i32 {
        match self {
            CallError::Wire(error) => error.errno(),
            CallError::Closed | CallError::Fenced(_) => libc::EIO,
        }
    }

    /// As a disk's failure. `keeper` is who keeps the data ("datastore ds1"), `object` the file.
    pub fn into_disk_error(self, keeper: &str, object: &str) -> DiskError {
        match self {
            CallError::Closed => DiskError::Closed,
            CallError::Fenced(reason) | CallError::Wire(WireError::Fenced { reason }) => {
                DiskError::Fenced { reason }
            }
            CallError::Wire(WireError::NoSpace { .. }) => DiskError::NoSpace { keeper: keeper.to_string() },
            CallError::Wire(WireError::Digest { offset, len }) => DiskError::Digest { offset, len },
            CallError::Wire(e) if e.errno() == libc::ESTALE => {
                DiskError::Stale { reason: format!("{object} on {keeper}: {e}") }
            }
            CallError::Wire(e) => {
                DiskError::Io { errno: e.errno(), context: format!("{object} on {keeper}: {e}") }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::DatastoreId;

    #[test]
    fn errnos_survive_the_way_to_a_disk() {
        for (wire, errno) in [
            (WireError::posix(libc::ENOENT, "x"), libc::ENOENT),
            (WireError::NoSpace { datastore: "ds1".into(), free: 0, needed: 1 }, libc::ENOSPC),
            (WireError::Moved { to: DatastoreId::new(), name: "ds2".into() }, libc::ESTALE),
            (WireError::Fenced { reason: "r".into() }, libc::EIO),
            (WireError::Digest { offset: 1, len: 2 }, libc::EIO),
        ] {
            let call = CallError::from(wire);
            assert_eq!(call.errno(), errno, "{call}");
            assert_eq!(call.into_disk_error("datastore ds1", "f").errno(), errno);
        }
    }
}
