//! QEMU's command line, from a `vm.toml`. No I/O.
//!
//! Choices that matter to the rest of Godwit:
//! - `werror=stop,rerror=stop`: a write that the datastore refuses pauses the guest. The default
//!   would hand it an I/O error, and a fenced guest would run on.
//! - QEMU's image locking stays on: it reaches other hosts through the mount.
//! - `-S`: nothing of the guest runs before the daemon has seen QEMU come up.
//! - Paths in the VM's directory are only opened at the start: the directory may move later.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::config::{Accel, Cache, Disk, Nic, VmConfig};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// `sun_path` of a unix socket, without its closing zero.
pub const MAX_SOCKET_PATH: usize = 107;

/// The files of a running QEMU: `RUN/vm/NAME/`.
#[derive(Clone, Debug)]
pub struct RunFiles {
    /// The directory.
    pub directory: PathBuf,
}

impl RunFiles {
    /// Control socket.
    pub fn qmp(&self) -> PathBuf {
        self.directory.join("qmp.sock")
    }

    /// Written and locked by QEMU for as long as it lives.
    pub fn pid(&self) -> PathBuf {
        self.directory.join("pid")
    }

    /// QEMU's messages.
    pub fn log(&self) -> PathBuf {
        self.directory.join("qemu.log")
    }

    /// The socket of the second serial port.
    pub fn serial(&self) -> PathBuf {
        self.directory.join("serial.sock")
    }
}

/// How guest code will run, with `auto` decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// KVM or nothing.
    Kvm,
    /// KVM, and TCG should it fail after all.
    KvmThenTcg,
    /// QEMU's translator.
    Tcg,
}

impl Engine {
    /// What `accel` means on a host where KVM is usable or not.
    pub fn choose(accel: Accel, kvm_usable: bool) -> Self {
        match accel {
            Accel::Kvm => Engine::Kvm,
            Accel::Tcg => Engine::Tcg,
            Accel::Auto if kvm_usable => Engine::KvmThenTcg,
            Accel::Auto => Engine::Tcg,
        }
    }
}

/// Where a VM's console is logged, in its directory.
pub fn console_log(home: &Path) -> PathBuf {
    home.join("console.log")
}

/// The name of the tap interface that QEMU makes for a card; it goes away with QEMU.
pub fn tap_name(nic: &Nic) -> String {
    format!("gw{}", nic.mac.replace(':', "").to_ascii_lowercase())
}

/// QEMU's arguments for a VM whose directory is `home` below `mount`.
pub fn arguments(
    config: &VmConfig,
    mount: &Path,
    home: &Path,
    run: &RunFiles,
    engine: Engine,
) -> Vec<String> {
    let mut args = Vec::new();
    machine(&mut args, config, home, engine);
    channels(&mut args, config, home, run);
    for (i, disk) in config.disks.iter().enumerate() {
        let boots = match (&config.boot.kernel, &config.boot.disk) {
            (Some(_), _) => false,
            (None, Some(id)) => *id == disk.id,
            (None, None) => i == 0,
        };
        add_disk(&mut args, disk, &disk.path(mount, home), boots);
    }
    for (i, nic) in config.nics.iter().enumerate() {
        add_nic(&mut args, i, nic);
    }
    boot(&mut args, config, home);
    args.extend(config.extra_args.iter().cloned());
    args
}

fn push<const N: usize>(args: &mut Vec<String>, new: [&str; N]) {
    args.extend(new.map(String::from));
}

/// A value inside an option list: a comma would end it.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

fn machine(args: &mut Vec<String>, config: &VmConfig, home: &Path, engine: Engine) {
    push(args, ["-name", &format!("guest={},debug-threads=on", config.name)]);
    push(args, ["-uuid", &config.uuid().to_string()]);
    push(args, ["-no-user-config", "-nodefaults", "-display", "none", "-S"]);
    push(args, ["-machine", &config.machine]);
    let (accels, cpu): (&[&str], _) = match engine {
        Engine::Kvm => (&["kvm"], Some("host")),
        // The only model that means "all the host has" to both.
        Engine::KvmThenTcg => (&["kvm", "tcg"], Some("max")),
        Engine::Tcg => (&["tcg"], None),
    };
    for accel in accels {
        push(args, ["-accel", accel]);
    }
    if let Some(cpu) = config.cpu.as_deref().or(cpu) {
        push(args, ["-cpu", cpu]);
    }
    push(args, ["-m", &format!("size={}M", config.memory.0 >> 20)]);
    push(args, ["-smp", &config.cpus.to_string()]);
    if let Some(firmware) = &config.firmware {
        push(args, ["-bios", &home.join(firmware).to_string_lossy()]);
    }
}

fn channels(args: &mut Vec<String>, config: &VmConfig, home: &Path, run: &RunFiles) {
    push(args, ["-pidfile", &run.pid().to_string_lossy()]);
    let qmp = escaped(&run.qmp());
    push(args, ["-chardev", &format!("socket,id=qmp,path={qmp},server=on,wait=off")]);
    push(args, ["-mon", "chardev=qmp,mode=control"]);
    let console = escaped(&console_log(home));
    push(args, ["-chardev", &format!("file,id=console,path={console},append=on")]);
    push(args, ["-device", "isa-serial,chardev=console,index=0"]);
    if config.serial_socket {
        let serial = escaped(&run.serial());
        push(args, ["-chardev", &format!("socket,id=serial,path={serial},server=on,wait=off")]);
        push(args, ["-device", "isa-serial,chardev=serial,index=1"]);
    }
}

fn add_disk(args: &mut Vec<String>, disk: &Disk, path: &Path, boots: bool) {
    let id = &disk.id;
    let cache = json!({ "direct": disk.cache == Cache::None, "no-flush": false });
    let file = json!({
        "driver": "file",
        "node-name": format!("{id}-file"),
        "filename": path.to_string_lossy(),
        "aio": "threads",
        "cache": cache,
        "discard": "unmap",
        "read-only": disk.readonly,
    });
    let format = json!({
        "driver": disk.format.as_str(),
        "node-name": id,
        "file": format!("{id}-file"),
        "cache": cache,
        "discard": "unmap",
        "read-only": disk.readonly,
    });
    push(args, ["-blockdev", &file.to_string(), "-blockdev", &format.to_string()]);
    let boot = if boots { ",bootindex=1" } else { "" };
    push(args, ["-device", &format!("virtio-blk-pci,id=dev-{id},drive={id},werror=stop,rerror=stop{boot}")]);
}

fn add_nic(args: &mut Vec<String>, index: usize, nic: &Nic) {
    let backend = match nic.bridge {
        Some(_) => format!("tap,id=net{index},ifname={},script=no,downscript=no", tap_name(nic)),
        None => format!("user,id=net{index}"),
    };
    push(args, ["-netdev", &backend]);
    // No boot ROM: it would have to be the same on every host.
    push(
        args,
        ["-device", &format!("virtio-net-pci,id=nic{index},netdev=net{index},mac={},romfile=", nic.mac)],
    );
}

fn boot(args: &mut Vec<String>, config: &VmConfig, home: &Path) {
    let boot = &config.boot;
    for (option, path) in [("-kernel", &boot.kernel), ("-initrd", &boot.initrd)] {
        if let Some(path) = path {
            push(args, [option, &home.join(path).to_string_lossy()]);
        }
    }
    if let Some(append) = &boot.append {
        push(args, ["-append", append]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(toml: &str, engine: Engine) -> String {
        let config = VmConfig::parse(toml).unwrap();
        let run = RunFiles { directory: "/run/godwit/vm/vm42".into() };
        arguments(&config, Path::new("/vmfs"), Path::new("/vmfs/ds1/vm42"), &run, engine)
            .iter()
            .map(|arg| if arg.starts_with('-') { format!("\n{arg}") } else { format!(" {arg}") })
            .collect()
    }

    #[test]
    fn a_small_vm() {
        let toml = r#"
            name = "vm42"
            uuid = "6d3e2f10-0000-4000-8000-000000000001"
            memory = "256MiB"
            serial_socket = true
            [boot]
            kernel = "/boot/vmlinux"
            initrd = "initrd.img"
            append = "console=ttyS0 quiet"
            [[disk]]
            file = "disk0.raw"
            [[nic]]
            mac = "52:54:00:00:00:01"
        "#;
        let expected = r#"
-name guest=vm42,debug-threads=on
-uuid 6d3e2f10-0000-4000-8000-000000000001
-no-user-config
-nodefaults
-display none
-S
-machine q35
-accel tcg
-m size=256M
-smp 1
-pidfile /run/godwit/vm/vm42/pid
-chardev socket,id=qmp,path=/run/godwit/vm/vm42/qmp.sock,server=on,wait=off
-mon chardev=qmp,mode=control
-chardev file,id=console,path=/vmfs/ds1/vm42/console.log,append=on
-device isa-serial,chardev=console,index=0
-chardev socket,id=serial,path=/run/godwit/vm/vm42/serial.sock,server=on,wait=off
-device isa-serial,chardev=serial,index=1
-blockdev {"aio":"threads","cache":{"direct":true,"no-flush":false},"discard":"unmap","driver":"file","filename":"/vmfs/ds1/vm42/disk0.raw","node-name":"disk0-file","read-only":false}
-blockdev {"cache":{"direct":true,"no-flush":false},"discard":"unmap","driver":"raw","file":"disk0-file","node-name":"disk0","read-only":false}
-device virtio-blk-pci,id=dev-disk0,drive=disk0,werror=stop,rerror=stop
-netdev user,id=net0
-device virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:00:00:01,romfile=
-kernel /boot/vmlinux
-initrd /vmfs/ds1/vm42/initrd.img
-append console=ttyS0 quiet"#;
        assert_eq!(line(toml, Engine::Tcg), expected);
    }

    #[test]
    fn a_large_vm() {
        let toml = r#"
            name = "db"
            uuid = "6d3e2f10-0000-4000-8000-000000000002"
            memory = "2GiB"
            cpus = 4
            machine = "pc-q35-7.2"
            firmware = "/usr/share/ovmf/OVMF.fd"
            extra_args = ["-device", "virtio-rng-pci"]
            [boot]
            disk = "data"
            [[disk]]
            file = "cd.iso"
            readonly = true
            cache = "writeback"
            [[disk]]
            id = "data"
            datastore = "ds3"
            file = "db/data.qcow2"
            format = "qcow2"
            [[nic]]
            mac = "52:54:00:AB:cd:01"
            bridge = "br0"
        "#;
        let expected = r#"
-name guest=db,debug-threads=on
-uuid 6d3e2f10-0000-4000-8000-000000000002
-no-user-config
-nodefaults
-display none
-S
-machine pc-q35-7.2
-accel kvm
-accel tcg
-cpu max
-m size=2048M
-smp 4
-bios /usr/share/ovmf/OVMF.fd
-pidfile /run/godwit/vm/vm42/pid
-chardev socket,id=qmp,path=/run/godwit/vm/vm42/qmp.sock,server=on,wait=off
-mon chardev=qmp,mode=control
-chardev file,id=console,path=/vmfs/ds1/vm42/console.log,append=on
-device isa-serial,chardev=console,index=0
-blockdev {"aio":"threads","cache":{"direct":false,"no-flush":false},"discard":"unmap","driver":"file","filename":"/vmfs/ds1/vm42/cd.iso","node-name":"disk0-file","read-only":true}
-blockdev {"cache":{"direct":false,"no-flush":false},"discard":"unmap","driver":"raw","file":"disk0-file","node-name":"disk0","read-only":true}
-device virtio-blk-pci,id=dev-disk0,drive=disk0,werror=stop,rerror=stop
-blockdev {"aio":"threads","cache":{"direct":true,"no-flush":false},"discard":"unmap","driver":"file","filename":"/vmfs/ds3/db/data.qcow2","node-name":"data-file","read-only":false}
-blockdev {"cache":{"direct":true,"no-flush":false},"discard":"unmap","driver":"qcow2","file":"data-file","node-name":"data","read-only":false}
-device virtio-blk-pci,id=dev-data,drive=data,werror=stop,rerror=stop,bootindex=1
-netdev tap,id=net0,ifname=gw525400abcd01,script=no,downscript=no
-device virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:AB:cd:01,romfile=
-device virtio-rng-pci"#;
        assert_eq!(line(toml, Engine::KvmThenTcg), expected);
    }

    #[test]
    fn without_a_kernel_the_first_disk_boots() {
        let text = line(
            "name = \"a\"\nmemory = \"64MiB\"\n[[disk]]\nfile = \"x\"\n[[disk]]\nfile = \"y\"\n",
            Engine::Tcg,
        );
        assert!(text.contains("drive=disk0,werror=stop,rerror=stop,bootindex=1\n"), "{text}");
        assert_eq!(text.matches("bootindex").count(), 1);
    }

    #[test]
    fn commas_in_paths_end_no_option() {
        let config = VmConfig::parse("name = \"a\"\nmemory = \"64MiB\"\n").unwrap();
        let run = RunFiles { directory: "/r,un".into() };
        let args = arguments(&config, Path::new("/m,nt"), Path::new("/m,nt/ds1/a"), &run, Engine::Tcg);
        assert!(args.iter().any(|a| a.contains("path=/r,,un/qmp.sock,server=on")));
        assert!(args.iter().any(|a| a.contains("path=/m,,nt/ds1/a/console.log,append=on")));
    }

    #[test]
    fn the_engine_follows_the_configuration_before_the_host() {
        for (accel, usable, engine) in [
            (Accel::Auto, true, Engine::KvmThenTcg),
            (Accel::Auto, false, Engine::Tcg),
            (Accel::Kvm, false, Engine::Kvm),
            (Accel::Tcg, true, Engine::Tcg),
        ] {
            assert_eq!(Engine::choose(accel, usable), engine);
        }
        assert!(
            line("name = \"a\"\nmemory = \"64MiB\"\n", Engine::Kvm).contains("\n-accel kvm\n-cpu host\n")
        );
    }

    #[test]
    fn tap_names_fit_the_kernel() {
        let config =
            VmConfig::parse("name = \"a\"\nmemory = \"64MiB\"\n[[nic]]\nbridge = \"br0\"\n").unwrap();
        assert!(tap_name(&config.nics[0]).len() <= 15);
    }
}
