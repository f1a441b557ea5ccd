//! A running VM's disk moves, and the VM does not notice.

use godwit_tests::guest::GuestVm;
use godwit_tests::lab::Lab;
use godwit_tests::process::{Process, wait_for};

fn wait_for_records(vm: &GuestVm, more: u64) {
    let before = vm.figure("acked");
    wait_for("the guest to write records", || vm.figure("acked") >= before + more);
}

#[test]
fn a_running_vm_moves_under_load_and_back() {
    let mut lab = Lab::new();
    let vm = GuestVm::boot(&lab, "vm42", "ds1", "1G", "256M");
    vm.ask("load 8");
    wait_for_records(&vm, 20);
    for (from, to) in [("ds1", "ds2"), ("ds2", "ds1")] {
        let before = vm.figure("acked");
        let result = lab.must_move("vm42", to);
        assert_eq!(result["verified"], "digest", "{result}");
        assert!(result["bytes_copied"].as_u64().is_some_and(|b| b >= 256 << 20), "{result}");
        assert!(vm.runs(), "the same QEMU goes on");
        assert_eq!(vm.open_disk(), lab.path(&format!("{to}/vm42/disk0.raw")));
        assert!(!lab.path(&format!("{from}/vm42")).exists(), "the old path is gone");
        wait_for("the source's space to be freed", || lab.servers[from].data_files() == 0);
        assert!(vm.figure("acked") > before, "records went on");
        wait_for_records(&vm, 20);
        let verified = vm.ask("verify");
        println!("to {to}: pause {} ms, {} s; the guest: {verified}", result["pause_ms"], result["seconds"]);

        let shown = vm.show(&lab);
        assert_eq!((shown["datastore"].as_str(), shown["state"].as_str()), (Some(to), Some("running")));
        assert_eq!(shown["disks"][0]["datastore"].as_str(), Some(to), "{shown}");
        let toml =
            std::fs::read_to_string(lab.path(&format!("{to}/vm42/vm.toml"))).expect("vm.toml moved along");
        assert!(!toml.contains(&format!("\"{from}\"")), "vm.toml names the old datastore: {toml}");
    }
    lab.check_memory();
    vm.power_off_and_check();
    let again = lab.dsctl(&["vm", "start", "vm42"]);
    assert!(again.status.success(), "it starts from its new place: {again:?}");
    let stopped = lab.dsctl(&["vm", "stop", "vm42", "--force"]);
    assert!(stopped.status.success(), "{stopped:?}");
}

/// A move of it is cancelled first, and it runs on where it was. For the next one
/// the copy is limited to less than what the guest overwrites: only mirroring can end it.
#[test]
fn a_vm_that_writes_faster_than_the_copy_ends_its_move() {
    let lab = Lab::new();
    let vm = GuestVm::boot(&lab, "vm42", "ds1", "512M", "64M");
    vm.ask("load max 64");
    wait_for_records(&vm, 5);

    let slow = lab.tool("dsmove", &["vm42", "--to", "ds2", "--limit", "5MiB/s", "--json"]);
    let mut cancelled = Process::start(slow, &lab.root().join("cancelled.log"));
    wait_for("the copy to begin", || lab.servers["ds2"].allocated() > 1 << 20);
    assert_eq!(cancelled.terminate().code(), Some(4), "{}", cancelled.log());
    wait_for("nothing to be left on ds2", || lab.servers["ds2"].data_files() == 0);
    assert_eq!(std::fs::read_dir(lab.path("ds2")).expect("list ds2").count(), 0);
    assert_eq!(vm.open_disk(), lab.path("ds1/vm42/disk0.raw"));
    wait_for_records(&vm, 5);

    let output = lab.dsmove(&["vm42", "--to", "ds2", "--limit", "20MiB/s", "--json"]);
    assert!(output.status.success(), "{output:?}\n{}", lab.host_log());
    let text = String::from_utf8_lossy(&output.stdout);
    let phases: Vec<&str> = ["bulk", "converge", "mirror", "switchover"]
        .into_iter()
        .filter(|p| text.contains(&format!("\"phase\":\"{p}\"")))
        .collect();
    println!("phases seen: {phases:?}; {}", text.lines().last().unwrap_or_default());
    vm.ask("load off");
    vm.ask("verify");
    vm.power_off_and_check();
}

/// Both servers are killed and started again under the running VM, during its move and after it.
#[test]
fn a_vm_outlives_its_datastores_servers() {
    let mut lab = Lab::new();
    let vm = GuestVm::boot(&lab, "vm42", "ds1", "512M", "128M");
    vm.ask("load 8");
    let dsmove = lab.tool("dsmove", &["vm42", "--to", "ds2", "--limit", "40MiB/s", "--json"]);
    let mut dsmove = Process::start(dsmove, &lab.root().join("dsmove.log"));
    wait_for("the move", || lab.running_moves().iter().any(|m| m["bytes_copied"].as_u64() > Some(16 << 20)));
    for server in ["ds2", "ds1"] {
        lab.server(server).kill();
        std::thread::sleep(std::time::Duration::from_millis(300));
        lab.server(server).start(&[]);
        wait_for_records(&vm, 5);
    }
    let ended = dsmove.wait();
    assert!(ended.success(), "{ended}\n{}", lab.host_log());
    assert_eq!(vm.open_disk(), lab.path("ds2/vm42/disk0.raw"));
    lab.server("ds2").kill();
    std::thread::sleep(std::time::Duration::from_millis(300));
    lab.server("ds2").start(&[]);
    wait_for_records(&vm, 5);
    vm.ask("verify");
    vm.power_off_and_check();
}
