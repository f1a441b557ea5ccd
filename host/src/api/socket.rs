//! The control socket: binding it and serving on it.

use std::fs::{Permissions, rename, set_permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use tokio::net::UnixListener;
use tracing::warn;

/// The socket's name in the run directory.
pub const NAME: &str = "dshost.sock";
/// The longest path that a unix socket can have.
const MAX_PATH: usize = 107;
/// How long requests under way may take after serving was told to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// A bound control socket; its file goes when it is dropped.
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Bind `RUN/dshost.sock`, which may be left over from a dshost that is gone: the caller holds
    /// the run directory's lock. The socket appears in one step, usable and for its owner only.
    pub fn bind(run: &Path) -> io::Result<Self> {
        let (path, fresh) = (run.join(NAME), run.join(format!("{NAME}.new")));
        if fresh.as_os_str().len() > MAX_PATH {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is longer than a unix socket's path can be ({MAX_PATH} bytes)", fresh.display()),
            ));
        }
        match std::fs::remove_file(&fresh) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        set_permissions(&fresh, Permissions::from_mode(0o600))?;
        rename(&fresh, &path)?;
        Ok(Listener { listener, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Serve until `end` is ready, then let requests under way finish for a moment.
pub async fn serve(listener: Listener, router: Router, end: impl Future<Output = ()> + Send + 'static) {
    let Listener { listener, path } = listener;
    let (ending, mut ended) = tokio::sync::watch::channel(false);
    let shutdown = async move {
        end.await;
        // From here on a client finds no dshost instead of one that does not answer.
        let _ = std::fs::remove_file(&path);
        let _ = ending.send(true);
    };
    let serving = async { axum::serve(listener, router).with_graceful_shutdown(shutdown).await };
    tokio::select! {
        result = serving => {
            if let Err(e) = result {
                warn!("control API: {e}");
            }
        }
        () = async {
            let _ = ended.wait_for(|ended| *ended).await;
            tokio::time::sleep(PATIENCE).await;
        } => warn!("control API: left requests unanswered"),
    }
}
