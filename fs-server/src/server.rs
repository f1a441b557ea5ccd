//! A server process: takes the directory, opens the datastore, accepts connections.

use std::fs::File;
use std::net::{TcpListener, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::config::ServerConfig;
use crate::connection::{Service, serve};
use crate::datastore::Datastore;
use crate::executor::{Executor, Job};

/// How often orphans are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// How long a killed predecessor's directory lock may take to go.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Why a server can't run.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ServeError {
    /// What is wrong, with the object.
    pub message: String,
    /// What to do.
    pub hint: String,
}

fn problem(message: impl Into<String>, hint: impl Into<String>) -> ServeError {
    ServeError { message: message.into(), hint: hint.into() }
}

/// Serve until the process is told to stop; `stopping` blocks until then.
pub fn run(config: &ServerConfig, stopping: impl FnOnce()) -> Result<(), ServeError> {
    raise_file_limit();
    check_directory(&config.path)?;
    let _lock = take_directory(&config.path)?;
    let listener = listen(&config.listen)?;
    let datastore = Datastore::open(&config.path, &config.name, config.capacity, &config.exclusive)
        .map_err(|e| problem(e.message, e.hint))?;
    let datastore = Arc::new(datastore);
    let executor = Executor::start(datastore.clone())
        .map_err(|e| problem(format!("start the metadata thread: {e}"), "raise the limit of threads"))?;
    let address = listener.local_addr().map(|a| a.to_string()).unwrap_or_else(|_| config.listen.clone());
    let service = Service { datastore, executor: executor.clone() };
    start_threads(listener, service, executor)?;
    publish_address(&config.path, &address)?;
    tracing::info!("dsserver {}: serving {} on {address}", config.name, config.path.display());
    stopping();
    let _ = std::fs::remove_file(config.path.join("address"));
    tracing::info!("dsserver {}: stopped", config.name);
    Ok(())
}

fn start_threads(listener: TcpListener, service: Service, executor: Executor) -> Result<(), ServeError> {
    let failed = |e: std::io::Error| problem(format!("start a thread: {e}"), "raise the limit of threads");
    std::thread::Builder::new()
        .name("sweep".into())
        .spawn(move || {
            loop {
                std::thread::sleep(SWEEP);
                executor.submit(Job::Sweep);
            }
        })
        .map_err(failed)?;
    std::thread::Builder::new()
        .name("accept".into())
        .spawn(move || {
            for stream in listener.incoming() {
                let service = service.clone();
                let started = stream.and_then(|stream| {
                    std::thread::Builder::new()
                        .name("connection".into())
                        .spawn(move || serve(service, stream))
                });
                if let Err(e) = started {
                    tracing::warn!("accept: {e}");
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        })
        .map_err(failed)?;
    Ok(())
}

fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// A datastore's directory is one of ours, or an empty one.
fn check_directory(path: &Path) -> Result<(), ServeError> {
    let shown = path.display();
    let entries = std::fs::read_dir(path).map_err(|e| {
        problem(format!("open {shown}: {e}"), "make the directory, or name another by --path")
    })?;
    if path.join("meta.redb").exists() {
        return Ok(());
    }
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !matches!(name.to_str(), Some("lost+found" | "lock" | "data" | "address")) {
            return Err(problem(
                format!("{shown} is neither empty nor a datastore: it has {}", name.to_string_lossy()),
                "give the datastore a directory of its own",
            ));
        }
    }
    Ok(())
}

/// One server a directory; the lock goes with the process.
fn take_directory(path: &Path) -> Result<File, ServeError> {
    let lock =
        File::options().create(true).truncate(false).write(true).open(path.join("lock")).map_err(|e| {
            problem(
                format!("write to {}: {e}", path.display()),
                "the directory must be writable; dsserver usually runs as root",
            )
        })?;
    let deadline = std::time::Instant::now() + LOCK_PATIENCE;
    while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if std::time::Instant::now() > deadline {
            return Err(problem(
                format!("another dsserver already serves {}", path.display()),
                "stop it first; `fuser` on the file `lock` in the directory shows its process",
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(lock)
}

fn listen(address: &str) -> Result<TcpListener, ServeError> {
    let hint = "write --listen ADDRESS:PORT with an address of this machine and a free port";
    let addresses: Vec<_> =
        address.to_socket_addrs().map_err(|e| problem(format!("--listen {address}: {e}"), hint))?.collect();
    TcpListener::bind(&addresses[..]).map_err(|e| problem(format!("listen on {address}: {e}"), hint))
}

/// Whoever asked for port 0 finds the port here.
fn publish_address(path: &Path, address: &str) -> Result<(), ServeError> {
    let (fresh, place) = (path.join("address.new"), path.join("address"));
    std::fs::write(&fresh, address)
        .and_then(|()| std::fs::rename(&fresh, &place))
        .map_err(|e| problem(format!("write {}: {e}", place.display()), "check space and permissions"))
}
