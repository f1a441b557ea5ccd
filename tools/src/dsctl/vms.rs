//! `dsctl vm …`

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use clap::{ArgMatches, Args, Subcommand};
use proto::control::vm::{CreateVm, NewBoot, NewDisk, NewNic, StopVm, VmInfo, VmState};

use super::Context;
use super::vm_disks::{absolute, parse_disk, parse_disk_from, parse_nic};
use crate::exit::{Exit, Failure};
use crate::quantity::{long_time, parse_duration, parse_size, size};
use crate::table::{facts, or_dash, table};

#[derive(Subcommand, Debug)]
pub enum VmCommand {
    /// Make a VM; it is not started
    #[command(after_help = "\
Examples:
  dsctl vm create vm42 --datastore ds1 --memory 1GiB --cpus 2 --disk 20GiB --nic user
  dsctl vm create web --datastore ds1 --disk-from debian-12.raw,size=40GiB --nic bridge=br0
  dsctl vm create tiny --datastore ds1 --disk 1GiB --kernel vmlinuz --initrd initrd.img --append console=ttyS0")]
    Create(Box<Create>),
    /// Start a VM; returns when it runs
    #[command(after_help = "Example:\n  dsctl vm start vm42")]
    Start {
        /// The VM
        name: String,
    },
    /// Press a VM's power button and wait until it is off
    #[command(after_help = "Examples:\n  dsctl vm stop vm42\n  dsctl vm stop vm42 --force")]
    Stop {
        /// The VM
        name: String,
        /// Switch it off without asking the guest
        #[arg(long, conflicts_with = "timeout")]
        force: bool,
        /// How long the guest has to shut down, like 90s
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        timeout: Option<Duration>,
    },
    /// All VMs on the host's datastores
    #[command(after_help = "Example:\n  dsctl vm list")]
    List,
    /// One VM with its disks
    #[command(after_help = "Example:\n  dsctl vm show vm42")]
    Show {
        /// The VM
        name: String,
    },
    /// Delete a stopped VM with its disks
    #[command(after_help = "Example:\n  dsctl vm delete vm42")]
    Delete {
        /// The VM
        name: String,
        /// Don't ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Args, Debug)]
pub struct Create {
    /// The VM's name, and that of its directory
    name: String,
    /// Where its directory and its disks are made
    #[arg(long)]
    datastore: String,
    /// Guest memory
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "512MiB")]
    memory: u64,
    /// Virtual CPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), default_value_t = 1)]
    cpus: u32,
    #[command(flatten)]
    disks: Disks,
    /// A network card: `user` or `bridge=NAME`, with `,mac=ADDRESS` if wanted; may be repeated
    #[arg(long = "nic", value_name = "NIC", value_parser = parse_nic)]
    nics: Vec<NewNic>,
    /// Boot this kernel instead of the first disk
    #[arg(long, value_name = "FILE", value_parser = absolute)]
    kernel: Option<String>,
    /// Initial RAM disk for the kernel
    #[arg(long, value_name = "FILE", value_parser = absolute, requires = "kernel")]
    initrd: Option<String>,
    /// Command line for the kernel
    #[arg(long, value_name = "TEXT", requires = "kernel", allow_hyphen_values = true)]
    append: Option<String>,
    /// QEMU's accelerator
    #[arg(long, value_parser = ["auto", "kvm", "tcg"])]
    accel: Option<String>,
    /// Give it a second serial port, connected to a unix socket; `dsctl vm show` says where
    #[arg(long)]
    serial_socket: bool,
    /// One more argument for QEMU, as it is; may be repeated
    #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
    qemu_args: Vec<String>,
}

/// Disks in the order in which they were given, whichever flag gave them.
#[derive(Debug, Default)]
pub struct Disks(Vec<NewDisk>);

/// How the flags of [`Disks`] are declared.
#[derive(Args, Debug)]
struct DiskFlags {
    /// An empty disk: SIZE, with `,format=qcow2` if wanted; may be repeated
    #[arg(long = "disk", value_name = "SIZE", value_parser = parse_disk)]
    disk: Vec<NewDisk>,
    /// A disk with the content of a file: FILE, with `,size=SIZE` to make it larger; may be repeated
    #[arg(long = "disk-from", value_name = "FILE", value_parser = parse_disk_from)]
    disk_from: Vec<NewDisk>,
}

impl Args for Disks {
    fn augment_args(command: clap::Command) -> clap::Command {
        DiskFlags::augment_args(command)
    }
    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        DiskFlags::augment_args_for_update(command)
    }
}

impl clap::FromArgMatches for Disks {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut placed: Vec<(usize, NewDisk)> = Vec::new();
        for flag in ["disk", "disk_from"] {
            let values = matches.get_many::<NewDisk>(flag).into_iter().flatten().cloned();
            placed.extend(matches.indices_of(flag).into_iter().flatten().zip(values));
        }
        placed.sort_by_key(|(place, _)| *place);
        Ok(Disks(placed.into_iter().map(|(_, disk)| disk).collect()))
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Create {
    fn request(self) -> CreateVm {
        CreateVm {
            name: self.name,
            datastore: self.datastore,
            memory: self.memory,
            cpus: self.cpus,
            disks: self.disks.0,
            nics: self.nics,
            boot: NewBoot { kernel: self.kernel, initrd: self.initrd, append: self.append },
            accel: self.accel,
            serial_socket: self.serial_socket,
            extra_args: self.qemu_args,
        }
    }
}

pub async fn run(context: &Context, command: VmCommand) -> Result<(), Failure> {
    let client = &context.client;
    match command {
        VmCommand::Create(create) => {
            let vm = client.create_vm(&create.request()).await?;
            context.print(&vm, |vm| {
                format!(
                    "made {} in {}\nhint: `dsctl vm start {}` starts it\n",
                    vm.name, vm.directory, vm.name
                )
            })
        }
        VmCommand::Start { name } => {
            let vm = client.start_vm(&name).await?;
            context.print(&vm, |vm| {
                let console = vm.console.as_ref().map(|c| format!(", console in {c}")).unwrap_or_default();
                format!("{} is {} (pid {}{console})\n", vm.name, state(vm.state), or_dash(vm.pid))
            })
        }
        VmCommand::Stop { name, force, timeout } => {
            let how = StopVm { force, timeout_s: timeout.map(|t| t.as_secs()) };
            let vm = client.stop_vm(&name, &how).await?;
            context.print(&vm, |vm| format!("{} is {}\n", vm.name, state(vm.state)))
        }
        VmCommand::List => {
            let vms = client.vms().await?;
            context.print(&vms, |vms| list_text(vms))
        }
        VmCommand::Show { name } => context.print(&client.vm(&name).await?, show_text),
        VmCommand::Delete { name, yes } => delete(context, &name, yes).await,
    }
}

async fn delete(context: &Context, name: &str, yes: bool) -> Result<(), Failure> {
    let vm = context.client.vm(name).await?;
    if !yes {
        if !std::io::stdin().is_terminal() {
            return Err(Failure::new(
                Exit::Usage,
                format!("deleting {name} with its disks needs a yes"),
                format!("`dsctl vm delete {name} --yes`"),
            ));
        }
        eprint!("delete {} with {} disk(s) in {}? (yes/no) ", vm.name, vm.disks.len(), vm.directory);
        let _ = std::io::stderr().flush();
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        if read.is_err() || !matches!(line.trim(), "y" | "yes") {
            return Err(Failure {
                exit: Exit::Cancelled,
                message: format!("{name} is not deleted"),
                hint: None,
            });
        }
    }
    context.client.delete_vm(name).await?;
    context.print(&serde_json::json!({ "deleted": name }), |_| format!("deleted {name}\n"))
}

fn state(state: VmState) -> &'static str {
    match state {
        VmState::Stopped => "stopped",
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::IoError => "paused by an I/O error",
        VmState::Unknown => "unknown",
    }
}

fn list_text(vms: &[VmInfo]) -> String {
    if vms.is_empty() {
        return "no VMs\nhint: `dsctl vm create --help` shows how to make one\n".into();
    }
    let rows: Vec<Vec<String>> = vms
        .iter()
        .map(|vm| {
            vec![
                vm.name.clone(),
                state(vm.state).into(),
                vm.datastore.clone(),
                vm.cpus.to_string(),
                size(vm.memory),
                vm.disks.len().to_string(),
                or_dash(vm.pid),
                or_dash(vm.uptime_s.map(long_time)),
            ]
        })
        .collect();
    table(&["VM", "STATE", "DATASTORE", "CPUS", "MEMORY", "DISKS", "PID", "UP"], &rows)
}

fn show_text(vm: &VmInfo) -> String {
    let mut text = facts(&[
        ("vm", vm.name.clone()),
        ("state", state(vm.state).into()),
        ("datastore", vm.datastore.clone()),
        ("directory", vm.directory.clone()),
        ("cpus", vm.cpus.to_string()),
        ("memory", size(vm.memory)),
        ("pid", or_dash(vm.pid)),
        ("up", or_dash(vm.uptime_s.map(long_time))),
        ("console", or_dash(vm.console.clone())),
        ("serial", or_dash(vm.serial_socket.clone())),
    ]);
    if !vm.disks.is_empty() {
        let row = |d: &proto::control::vm::DiskInfo| {
            vec![
                d.name.clone(),
                d.datastore.clone(),
                d.format.clone(),
                or_dash(d.size.map(size)),
                or_dash(d.allocated.map(size)),
                d.path.clone(),
            ]
        };
        text.push('\n');
        let rows: Vec<_> = vm.disks.iter().map(row).collect();
        text.push_str(&table(&["DISK", "DATASTORE", "FORMAT", "SIZE", "ALLOCATED", "PATH"], &rows));
    }
    if !vm.nics.is_empty() {
        let row = |n: &proto::control::vm::NicInfo| {
            vec![n.mac.clone(), n.bridge.clone().unwrap_or_else(|| "user".into())]
        };
        text.push('\n');
        text.push_str(&table(&["NIC", "NETWORK"], &vm.nics.iter().map(row).collect::<Vec<_>>()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        create: Create,
    }

    #[test]
    fn disks_keep_the_order_of_the_command_line() {
        let line = [
            "x",
            "vm42",
            "--datastore",
            "ds1",
            "--disk",
            "1GiB",
            "--disk-from",
            "/img",
            "--disk",
            "2GiB",
            "--memory",
            "256MiB",
            "--nic",
            "user",
            "--qemu-arg",
            "-snapshot",
        ];
        let request = Only::try_parse_from(line).unwrap().create.request();
        let shapes: Vec<_> = request.disks.iter().map(|d| (d.size, d.from.as_deref())).collect();
        assert_eq!(shapes, [(Some(1 << 30), None), (None, Some("/img")), (Some(2 << 30), None)]);
        assert_eq!((request.memory, request.cpus), (256 << 20, 1));
        assert_eq!((request.nics.len(), request.extra_args), (1, vec!["-snapshot".to_string()]));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            &["x", "vm42"][..],
            &["x", "vm42", "--datastore", "ds1", "--cpus", "0"],
            &["x", "vm42", "--datastore", "ds1", "--memory", "lots"],
            &["x", "vm42", "--datastore", "ds1", "--initrd", "i"],
            &["x", "vm42", "--datastore", "ds1", "--accel", "hax"],
        ] {
            assert!(Only::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_vm_is_shown_with_its_disks() {
        let vm = VmInfo {
            name: "vm42".into(),
            datastore: "ds1".into(),
            directory: "/vmfs/ds1/vm42".into(),
            state: VmState::Running,
            pid: Some(99),
            uptime_s: Some(61),
            memory: 256 << 20,
            cpus: 2,
            disks: vec![proto::control::vm::DiskInfo {
                name: "disk0".into(),
                datastore: "ds1".into(),
                path: "/vmfs/ds1/vm42/disk0.raw".into(),
                format: "raw".into(),
                size: Some(1 << 30),
                allocated: None,
            }],
            nics: Vec::new(),
            console: Some("/vmfs/ds1/vm42/console.log".into()),
            serial_socket: None,
        };
        assert_eq!(
            list_text(std::slice::from_ref(&vm)),
            "\
VM    STATE    DATASTORE  CPUS  MEMORY     DISKS  PID  UP
vm42  running  ds1        2     256.0 MiB  1      99   1m 1s
"
        );
        assert!(show_text(&vm).ends_with(
            "\
serial:    -

DISK   DATASTORE  FORMAT  SIZE     ALLOCATED  PATH
disk0  ds1        raw     1.0 GiB  -          /vmfs/ds1/vm42/disk0.raw
"
        ));
    }
}
