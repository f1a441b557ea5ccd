//! Kills at every named step of a move, and what is there after the restart: exactly one live
//! copy, content right, nothing left behind.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use godwit_tests::lab::Lab;
use godwit_tests::process::{Process, wait_for};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::process::Signal;

/// Who is killed while the move stands still.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Host,
    Source,
    Destination,
    All,
}

const VICTIMS: [Victim; 4] = [Victim::Host, Victim::Source, Victim::Destination, Victim::All];

fn content(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; 3 << 20];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

fn build_vm(lab: &Lab) {
    fs::create_dir_all(lab.path("ds1/vm/sub")).expect("mkdir");
    fs::write(lab.path("ds1/vm/disk0.raw"), content(1)).expect("write");
    fs::write(lab.path("ds1/vm/sub/disk1.raw"), content(2)).expect("write");
    fs::write(lab.path("ds1/vm/vm.toml"), "name = 'vm'\n").expect("write");
    std::os::unix::fs::symlink("disk0.raw", lab.path("ds1/vm/link")).expect("symlink");
}

fn check_vm(dir: &Path) {
    assert!(fs::read(dir.join("disk0.raw")).expect("read") == content(1), "disk0 is right");
    assert!(fs::read(dir.join("sub/disk1.raw")).expect("read") == content(2), "disk1 is right");
    assert_eq!(fs::read_to_string(dir.join("vm.toml")).expect("read"), "name = 'vm'\n");
    assert_eq!(fs::read_link(dir.join("link")).expect("readlink"), Path::new("disk0.raw"));
}

/// Exactly one live copy, right and writable; the other datastore is empty.
fn one_live_copy(lab: &Lab, context: &str) -> &'static str {
    let at = |ds: &str| lab.path(&format!("{ds}/vm")).exists();
    wait_for(&format!("{context}: one live copy"), || at("ds1") != at("ds2"));
    let (here, other) = if at("ds1") { ("ds1", "ds2") } else { ("ds2", "ds1") };
    let dir = lab.path(&format!("{here}/vm"));
    check_vm(&dir);
    wait_for(&format!("{context}: no leftovers on {other}"), || {
        lab.servers[other].data_files() == 0
            && fs::read_dir(lab.path(other)).is_ok_and(|mut entries| entries.next().is_none())
    });
    let disk = fs::OpenOptions::new().write(true).open(dir.join("disk0.raw")).expect("open for writing");
    disk.write_all_at(&content(1)[..4096], 0).expect("writable");
    disk.sync_all().expect("fsync");
    here
}

fn start_move(lab: &Lab) -> Process {
    let dsmove = lab.tool("dsmove", &["ds1/vm", "--to", "ds2", "--json"]);
    Process::start(dsmove, &lab.root().join("dsmove.log"))
}

/// Run a move to `step`, kill `victim` there, start again, look.
fn kill_at(step: &str, victim: Victim) -> &'static str {
    let context = format!("{step}, {victim:?} killed");
    let mut lab = Lab::with(&[("ds1", &[]), ("ds2", &[])], &[("GODWIT_HALT_AT", step)]);
    build_vm(&lab);
    let mut dsmove = start_move(&lab);
    wait_for(&context, || lab.host().is_stopped());
    let host_dies = matches!(victim, Victim::Host | Victim::All);
    if host_dies {
        lab.kill_host();
        dsmove.kill();
    }
    let servers: &[&str] = match victim {
        Victim::Host => &[],
        Victim::Source => &["ds1"],
        Victim::Destination => &["ds2"],
        Victim::All => &["ds1", "ds2"],
    };
    servers.iter().for_each(|name| lab.server(name).kill());
    servers.iter().for_each(|name| lab.server(name).start(&[]));
    if host_dies {
        lab.start_host(&[]);
    } else {
        lab.host().signal(Signal::CONT);
        let ended = dsmove.wait();
        assert!(ended.code().is_some_and(|c| c == 0 || c == 1), "{context}: dsmove ended with {ended}");
    }
    let here = one_live_copy(&lab, &context);
    lab.must_move(&format!("{here}/vm"), if here == "ds1" { "ds2" } else { "ds1" });
    one_live_copy(&lab, &format!("{context}, moved again"));
    println!("{context}: live on {here}");
    here
}

/// Before the commit the source must be live when dshost died, after it the destination.
fn kill_everyone_at(step: &str, committed: bool) {
    for victim in VICTIMS {
        let here = kill_at(step, victim);
        if matches!(victim, Victim::Host | Victim::All) {
            assert_eq!(here, if committed { "ds2" } else { "ds1" }, "{step}, {victim:?} killed");
        }
    }
}

macro_rules! steps {
    ($($name:ident $step:literal $committed:literal;)*) => {
        $(#[test]
        fn $name() {
            kill_everyone_at($step, $committed);
        })*

        #[test]
        fn every_step_has_a_test() {
            assert_eq!(host::moves::STEPS, [$($step),*]);
        }
    };
}

steps! {
    after_begin "move-after-begin" false;
    after_reserve "move-after-reserve" false;
    after_put "move-after-put" false;
    while_copying "move-while-copying" false;
    after_synced "move-after-synced" false;
    after_hold "move-after-hold" false;
    after_flush "move-after-flush" false;
    after_seal "move-after-seal" false;
    after_commit "move-after-commit" true;
    after_publish "move-after-publish" true;
    after_swap "move-after-swap" true;
    before_finish "move-before-finish" true;
    after_finish "move-after-finish" true;
}

/// A server that dies inside its own step, before or after that step became durable.
fn server_dies_inside(server: &str, step: &str) {
    let mut lab = Lab::new();
    build_vm(&lab);
    lab.server(server).kill();
    lab.server(server).start(&[("GODWIT_HALT_AT", step)]);
    wait_for("the datastore", || lab.path(&format!("{server}/")).read_dir().is_ok());
    let mut dsmove = start_move(&lab);
    wait_for(step, || lab.server(server).process().is_stopped());
    lab.server(server).kill();
    lab.server(server).start(&[]);
    let ended = dsmove.wait();
    assert!(ended.success(), "{step}: the move goes on when the server is back, not {ended}");
    assert_eq!(one_live_copy(&lab, step), "ds2");
}

#[test]
fn the_source_dies_in_its_commit() {
    server_dies_inside("ds1", "commit-before-durable");
    server_dies_inside("ds1", "commit-after-durable");
}

#[test]
fn the_source_dies_while_it_frees_its_space() {
    server_dies_inside("ds1", "finish-mid");
}

#[test]
fn the_destination_dies_while_it_seals_and_publishes() {
    server_dies_inside("ds2", "seal-after-durable");
    server_dies_inside("ds2", "publish-before-durable");
    server_dies_inside("ds2", "publish-after-durable");
}
