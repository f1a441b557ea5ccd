//! A lab: datastore servers and a host on this machine, in a scratch directory of their own.
//!
//! Everything is the real program from the build directory. Dropping the lab kills what it
//! started, unmounts and removes the directory, also when a test fails.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::process::{Process, run, try_run, wait_for};

/// Where the programs are: beside the test's own build, or `GODWIT_BIN`.
pub fn program(name: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os("GODWIT_BIN") {
        return Path::new(&dir).join(name);
    }
    let me = std::env::current_exe().expect("a test knows its own path");
    let build = me.parent().and_then(Path::parent).expect("tests lie in PROFILE/deps");
    let path = build.join(name);
    assert!(
        path.exists(),
        "{} is missing: build the workspace first (cargo build --release)",
        path.display()
    );
    path
}

/// A datastore's server: its directory, its address and, while it runs, its process.
pub struct Server {
    name: String,
    /// The datastore's directory.
    pub dir: PathBuf,
    /// Where it listens; stays the same over restarts.
    pub address: String,
    extra: Vec<String>,
    process: Option<Process>,
    log: PathBuf,
}

impl Server {
    pub(crate) fn start_first(root: &Path, name: &str, extra: &[&str]) -> Server {
        let mut server = Server {
            name: name.into(),
            dir: root.join(name),
            address: "127.0.0.1:0".into(),
            extra: extra.iter().map(|s| s.to_string()).collect(),
            process: None,
            log: root.join(format!("{name}.log")),
        };
        std::fs::create_dir_all(&server.dir).expect("make the datastore's directory");
        server.start(&[]);
        server.address =
            std::fs::read_to_string(server.dir.join("address")).expect("read the address").trim().to_string();
        server
    }

    /// Start it (again), with these environment variables.
    pub fn start(&mut self, env: &[(&str, &str)]) {
        let _ = std::fs::remove_file(self.dir.join("address"));
        let mut command = Command::new(program("dsserver"));
        command.args(["run", "--name", &self.name, "--listen", &self.address, "--path"]).arg(&self.dir);
        command.args(&self.extra).envs(env.iter().copied());
        self.process = Some(Process::start(command, &self.log));
        let address = self.dir.join("address");
        let process = self.process.as_mut().expect("just started");
        wait_for(&format!("dsserver {}", self.name), || {
            assert!(process.ended().is_none(), "dsserver ended:\n{}", process.log());
            std::fs::read_to_string(&address).is_ok_and(|a| a.contains(':'))
        });
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the server runs")
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Allocated bytes in its data directory.
    pub fn allocated(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        fn walk(dir: &Path) -> u64 {
            let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
            entries
                .flatten()
                .map(|e| match e.metadata() {
                    Ok(m) if m.is_dir() => walk(&e.path()),
                    Ok(m) => m.blocks() * 512,
                    Err(_) => 0,
                })
                .sum()
        }
        walk(&self.dir.join("data"))
    }

    /// Data files in its data directory.
    pub fn data_files(&self) -> usize {
        fn walk(dir: &Path) -> usize {
            let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
            entries.flatten().map(|e| if e.path().is_dir() { walk(&e.path()) } else { 1 }).sum()
        }
        walk(&self.dir.join("data"))
    }
}

/// Servers and one host.
pub struct Lab {
    /// Servers by datastore name.
    pub servers: BTreeMap<String, Server>,
    host: Option<Process>,
    root: TempDir,
}

impl Lab {
    /// Two datastores, ds1 and ds2, and a host that mounts both.
    pub fn new() -> Lab {
        Lab::with(&[("ds1", &[]), ("ds2", &[])], &[])
    }

    /// These datastores, with further arguments to their servers; environment for the host.
    pub fn with(datastores: &[(&str, &[&str])], host_env: &[(&str, &str)]) -> Lab {
        Lab::under(None, datastores, host_env)
    }

    /// The same below `base` (a tmpfs, say) instead of the default scratch directory.
    pub fn under(base: Option<&Path>, datastores: &[(&str, &[&str])], host_env: &[(&str, &str)]) -> Lab {
        let builder = tempfile::Builder::new().prefix("godwit-lab-").to_owned();
        let root = match base {
            Some(base) => builder.tempdir_in(base),
            None => builder.tempdir(),
        }
        .expect("make a scratch directory");
        std::fs::create_dir(root.path().join("mnt")).expect("make the mount point");
        let servers = datastores
            .iter()
            .map(|(name, extra)| (name.to_string(), Server::start_first(root.path(), name, extra)))
            .collect();
        let mut lab = Lab { servers, host: None, root };
        lab.start_host(host_env);
        lab
    }

    /// Start dshost (again) and wait until its control socket answers.
    pub fn start_host(&mut self, env: &[(&str, &str)]) {
        let mut command = Command::new(program("dshost"));
        command.args(["run", "--name", "hostA", "--mount"]).arg(self.mount());
        command.arg("--run").arg(self.run_dir());
        for server in self.servers.values() {
            command.arg("--datastore").arg(format!("{}={}", server.name, server.address));
        }
        command.envs(env.iter().copied());
        let mut process = Process::start(command, &self.root.path().join("hostA.log"));
        wait_for("dshost", || {
            assert!(process.ended().is_none(), "dshost ended:\n{}", process.log());
            self.dsctl(&["status", "--json"]).status.success()
        });
        self.host = Some(process);
        let lab = &*self;
        wait_for("the datastores", || {
            lab.servers.keys().all(|name| std::fs::metadata(lab.path(name)).is_ok())
        });
    }

    /// The host's process.
    pub fn host(&mut self) -> &mut Process {
        self.host.as_mut().expect("the host runs")
    }

    /// kill -9 dshost and clear its dead mount away.
    pub fn kill_host(&mut self) {
        self.host = None;
        self.unmount();
    }

    /// SIGTERM dshost and wait.
    pub fn stop_host(&mut self) {
        let status = self.host().terminate();
        assert!(status.success(), "dshost ended with {status}: {}", self.host().log());
        self.host = None;
    }

    fn unmount(&self) {
        let mount = self.mount();
        while std::fs::read_to_string("/proc/self/mounts")
            .is_ok_and(|m| m.lines().any(|l| l.split(' ').nth(1) == mount.to_str()))
        {
            if !try_run("umount", &["-l", &mount.to_string_lossy()]).status.success() {
                break;
            }
        }
    }

    /// A server.
    pub fn server(&mut self, name: &str) -> &mut Server {
        self.servers.get_mut(name).expect("the lab has this datastore")
    }

    /// No daemon has ever taken more than 100 MiB.
    pub fn check_memory(&mut self) {
        let servers =
            self.servers.iter_mut().map(|(name, server)| (name.clone(), server.process().peak_memory()));
        let mut peaks: Vec<(String, u64)> = servers.collect();
        peaks.push(("dshost".into(), self.host().peak_memory()));
        for (name, peak) in peaks {
            println!("{name}: {} MiB at most", peak >> 20);
            assert!(peak < 100 << 20, "{name} took {} MiB", peak >> 20);
        }
    }

    /// The scratch directory.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The mount point.
    pub fn mount(&self) -> PathBuf {
        self.root.path().join("mnt")
    }

    /// A path below the mount point.
    pub fn path(&self, below: &str) -> PathBuf {
        self.mount().join(below)
    }

    /// The same as text, for command lines.
    pub fn arg(&self, below: &str) -> String {
        self.path(below).to_string_lossy().into_owned()
    }

    /// dshost's run directory.
    pub fn run_dir(&self) -> PathBuf {
        self.root.path().join("run")
    }

    /// Run dsctl.
    pub fn dsctl(&self, args: &[&str]) -> Output {
        self.tool("dsctl", args).output().expect("start dsctl")
    }

    /// Run dsmove.
    pub fn dsmove(&self, args: &[&str]) -> Output {
        self.tool("dsmove", args).output().expect("start dsmove")
    }

    /// Run dsmove, which must succeed; returns the object of its last JSON line.
    pub fn must_move(&self, what: &str, to: &str) -> serde_json::Value {
        let output = self.dsmove(&[what, "--to", to, "--json"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "dsmove {what} --to {to}: {}\n{text}{}\nhost log:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.host_log()
        );
        let last = text.lines().last().expect("dsmove --json prints a result");
        serde_json::from_str(last).expect("JSON")
    }

    /// A tool's command, told which host to talk to.
    pub fn tool(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program(name));
        command.args(args).env("GODWIT_RUN", self.run_dir());
        command
    }

    /// What dshost has logged.
    pub fn host_log(&self) -> String {
        std::fs::read_to_string(self.root.path().join("hostA.log")).unwrap_or_default()
    }

    /// Moves that are not over, as dshost lists them.
    pub fn running_moves(&self) -> Vec<serde_json::Value> {
        let output = self.dsctl(&["move", "list", "--json"]);
        let list: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
        list.into_iter()
            .filter(|m| !matches!(m["phase"].as_str(), Some("done" | "failed" | "cancelled")))
            .collect()
    }

    /// SHA-256 of a file below the mount.
    pub fn sha256(&self, below: &str) -> String {
        let text = run("sha256sum", &[&self.arg(below)]);
        text.split(' ').next().unwrap_or_default().to_string()
    }
}

/// A directory of the mount bound to another path: a name that stays while the directory moves.
pub struct Bound {
    /// The other path.
    pub path: PathBuf,
}

impl Lab {
    /// Bind a directory of the mount to `name` in the scratch directory.
    pub fn bind(&self, below: &str, name: &str) -> Bound {
        let path = self.root.path().join(name);
        std::fs::create_dir_all(&path).expect("make the mount point");
        run("mount", &["--bind", &self.arg(below), &path.to_string_lossy()]);
        Bound { path }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        try_run("umount", &["-l", &self.path.to_string_lossy()]);
    }
}

impl Default for Lab {
    fn default() -> Self {
        Lab::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- dshost's log\n{}", self.host_log());
            for server in self.servers.values() {
                eprintln!(
                    "--- {}'s log\n{}",
                    server.name,
                    std::fs::read_to_string(&server.log).unwrap_or_default()
                );
            }
        }
        self.host = None;
        self.unmount();
        self.servers.clear();
    }
}
