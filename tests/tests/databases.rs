//! Databases run directly on the mount, under load, while their directory moves.
//!
//! A program that opens files by their absolute path after the move needs a name that stays: a bind
//! mount of the directory does that, as it follows the directory.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use godwit_tests::lab::Lab;
use godwit_tests::process::{Process, run, wait_for};
use rustix::process::Signal;

#[test]
fn sqlite_under_load_moves_with_its_directory() {
    let lab = Lab::new();
    fs::create_dir(lab.path("ds1/db")).expect("mkdir");
    let script = r#"
import sqlite3, sys, os
db = sqlite3.connect(sys.argv[1], timeout=60)
# Where its directory gets another path it must not open its journal anew by the old one.
if sys.argv[2] != "delete":
    db.execute("pragma locking_mode=exclusive")
db.execute("pragma journal_mode=" + sys.argv[2])
db.execute("create table if not exists t(id integer primary key, body text, n integer)")
db.commit()
stop, n = sys.argv[3], 0
while not os.path.exists(stop):
    with db:
        for _ in range(5):
            n += 1
            db.execute("insert into t(body, n) values (?, ?)", ("x" * (n % 700), n))
        db.execute("update t set body = body || 'y' where id = abs(random()) % ?", (n,))
    print(n, flush=True)
db.close()
"#;
    for (round, mode) in ["persist", "wal", "delete"].iter().enumerate() {
        let (from, to) = if round % 2 == 0 { ("ds1", "ds2") } else { ("ds2", "ds1") };
        let bound = lab.bind(&format!("{from}/db"), "bound");
        let stop = lab.root().join(format!("stop-{mode}"));
        let database = match *mode {
            "delete" => bound.path.join("delete.sqlite").to_string_lossy().into_owned(),
            mode => lab.arg(&format!("{from}/db/{mode}.sqlite")),
        };
        let mut child = Command::new("python3")
            .args(["-c", script, &database, mode])
            .arg(&stop)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start python3");
        let mut out = child.stdout.take().expect("piped");
        let count = Arc::new(AtomicU64::new(0));
        let reader = {
            let count = count.clone();
            std::thread::spawn(move || {
                let mut text = String::new();
                let mut chunk = [0; 4096];
                while let Ok(n @ 1..) = out.read(&mut chunk) {
                    text.push_str(&String::from_utf8_lossy(&chunk[..n]));
                    count.fetch_add(text.matches('\n').count() as u64, Ordering::Relaxed);
                    text.clear();
                }
            })
        };
        wait_for("sqlite to commit", || count.load(Ordering::Relaxed) > 20);
        lab.must_move(&format!("{from}/db"), to);
        let moved = count.load(Ordering::Relaxed);
        wait_for("sqlite to go on", || count.load(Ordering::Relaxed) > moved + 20);
        fs::write(&stop, "").expect("stop");
        let output = child.wait_with_output().expect("wait");
        reader.join().expect("reader");
        assert!(output.status.success(), "{mode}: {}", String::from_utf8_lossy(&output.stderr));
        let database = lab.arg(&format!("{to}/db/{mode}.sqlite"));
        assert_eq!(run("sqlite3", &[&database, "pragma integrity_check"]).trim(), "ok", "{mode}");
        let gaps = run("sqlite3", &[&database, "select count(*) - max(n) from t"]);
        assert_eq!(gaps.trim(), "0", "{mode}: every committed row is there");
    }
}

/// A PostgreSQL server with its data on the mount, and pgbench's tables in it.
struct Postgres {
    programs: PathBuf,
    sockets: PathBuf,
    server: Process,
}

/// A command of PostgreSQL's, as its user.
fn as_postgres(programs: &Path, program: &str, sockets: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(programs.join(program));
    command.env("PGHOST", sockets).env("PGDATABASE", "postgres").env("LC_ALL", "C").current_dir("/");
    command
}

fn must_run(mut command: Command) -> String {
    let output = command.output().expect("start it");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?} ended with {}: {words}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn programs_of_postgres() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("make setup installs PostgreSQL");
    let newest =
        versions.flatten().map(|v| v.path().join("bin")).filter(|b| b.join("postgres").exists()).max();
    newest.expect("make setup installs PostgreSQL")
}

impl Postgres {
    fn start(lab: &Lab, data: &Path) -> Postgres {
        let (programs, sockets) = (programs_of_postgres(), lab.root().join("sockets"));
        let mut command = as_postgres(&programs, "postgres", &sockets);
        command.arg("-D").arg(data).arg("-k").arg(&sockets);
        for setting in
            ["listen_addresses=", "shared_buffers=16MB", "max_connections=20", "checkpoint_timeout=30s"]
        {
            command.args(["-c", setting]);
        }
        let server = Process::start(command, &lab.root().join("postgres.log"));
        let postgres = Postgres { programs, sockets, server };
        wait_for("PostgreSQL", || postgres.command("pg_isready").output().is_ok_and(|o| o.status.success()));
        postgres
    }

    fn command(&self, program: &str) -> Command {
        as_postgres(&self.programs, program, &self.sockets)
    }

    fn query(&self, sql: &str) -> String {
        let mut psql = self.command("psql");
        psql.args(["-XAtqc", sql]);
        must_run(psql).trim().to_string()
    }

    /// Money is neither made nor lost, and every index agrees with its table.
    fn check(&self) {
        let sums = self.query(
            "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history) \
             and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history) \
             and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)",
        );
        assert_eq!(sums, "t", "pgbench's balances agree");
        let mut amcheck = self.command("pg_amcheck");
        amcheck.args(["--install-missing", "--heapallindexed", "--database=postgres"]);
        must_run(amcheck);
    }

    /// A fast shutdown.
    fn stop(mut self) {
        self.server.signal(Signal::INT);
        let status = self.server.wait();
        assert!(status.success(), "PostgreSQL ended with {status}:\n{}", self.server.log());
    }
}

#[test]
fn postgresql_under_load_moves_with_its_directory() {
    let lab = Lab::new();
    fs::set_permissions(lab.root(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let sockets = lab.root().join("sockets");
    for dir in [lab.path("ds1/pg"), sockets.clone()] {
        fs::create_dir(&dir).expect("mkdir");
        run("chown", &["postgres:postgres", &dir.to_string_lossy()]);
    }
    let mut initdb = as_postgres(&programs_of_postgres(), "initdb", &sockets);
    initdb.args(["--auth=trust", "--no-instructions", "-D"]).arg(lab.path("ds1/pg"));
    must_run(initdb);
    let bound = lab.bind("ds1/pg", "bound");
    let postgres = Postgres::start(&lab, &bound.path);
    let mut fill = postgres.command("pgbench");
    fill.args(["-i", "-q", "-s", "2"]);
    must_run(fill);
    let mut load = postgres.command("pgbench");
    load.args(["-n", "-c", "4", "-j", "2", "-T", "600"]);
    let mut load = Process::start(load, &lab.root().join("pgbench.log"));
    let done = || postgres.query("select count(*) from pgbench_history").parse::<u64>().expect("a count");
    wait_for("transactions", || done() > 50);
    for to in ["ds2", "ds1", "ds2"] {
        let result = lab.must_move(if to == "ds2" { "ds1/pg" } else { "ds2/pg" }, to);
        println!("to {to}: pause {} ms, {} s", result["pause_ms"], result["seconds"]);
        let moved = done();
        wait_for("transactions to go on", || done() > moved + 50);
        assert!(load.ended().is_none(), "pgbench ended: {}", load.log());
    }
    load.signal(Signal::INT);
    load.wait();
    assert!(!load.log().contains("aborted") && !load.log().contains("ERROR"), "{}", load.log());
    postgres.check();
    let committed = done();
    postgres.stop();
    let postgres = Postgres::start(&lab, &lab.path("ds2/pg"));
    assert_eq!(postgres.query("select count(*) from pgbench_history"), committed.to_string());
    postgres.check();
    let log = postgres.server.log();
    for bad in ["PANIC", "could not open", "could not read", "could not write", "could not fsync"] {
        assert!(!log.contains(bad), "{bad}: {log}");
    }
    postgres.stop();
}
