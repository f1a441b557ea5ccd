//! `vm.toml`: what a VM is made of. Keys, defaults and checks; no I/O.
//!
//! ```toml
//! name = "vm42"
//! memory = "256MiB"
//! cpus = 1
//!
//! [[disk]]
//! file = "disk0.raw"        # below the VM's directory
//!
//! [[disk]]
//! datastore = "ds3"         # then file is a path below that datastore
//! file = "vm42/data.qcow2"
//! format = "qcow2"
//!
//! [[nic]]
//! bridge = "br0"            # left out: QEMU's user-mode network
//! ```

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::identity;
use super::size::Size;

/// The file's name in a VM's directory.
pub const FILE_NAME: &str = "vm.toml";

const MIB: u64 = 1 << 20;
/// QEMU's node names end at 31 characters and the protocol node adds `-file`.
const MAX_ID: usize = 24;
const MAX_NAME: usize = 64;
/// Linux's limit for the name of a network interface.
const MAX_INTERFACE: usize = 15;

/// What is wrong with a `vm.toml`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ConfigError {
    /// The key (`disk[1].file`) or line.
    pub place: String,
    /// What is wrong there.
    pub problem: String,
    /// What to write instead, where known.
    pub hint: Option<String>,
}

impl ConfigError {
    fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into(), hint: None }
    }

    fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A VM. Values that were left out are filled in by [`VmConfig::parse`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// The VM's name, unique among all datastores of a host.
    pub name: String,
    /// What the guest sees as the machine's UUID; left out: derived from the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Guest memory, whole MiB.
    pub memory: Size,
    /// Virtual CPUs.
    #[serde(default = "one")]
    pub cpus: u32,
    /// QEMU's machine type.
    #[serde(default = "q35", skip_serializing_if = "is_q35")]
    pub machine: String,
    /// QEMU's CPU model; left out: the host's with KVM, QEMU's default without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// How guest code runs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub accel: Accel,
    /// Firmware image (`-bios`); left out: QEMU's SeaBIOS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// A second serial port, on a unix socket in the host's run directory.
    #[serde(default, skip_serializing_if = "is_default")]
    pub serial_socket: bool,
    /// More arguments for QEMU, appended as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_args: Vec<String>,
    /// What to boot; nothing: the first disk.
    #[serde(default, skip_serializing_if = "is_default")]
    pub boot: Boot,
    /// Disks, in the order in which the guest finds them.
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Network cards, in order.
    #[serde(default, rename = "nic", skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
}

/// How guest code runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM where the host's CPU and kernel have it, else TCG.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// QEMU's own translator.
    Tcg,
}

/// What a VM boots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// A kernel: absolute path on the host, or below the VM's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Its initial RAM disk, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Its command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// The id of the disk to boot; without it and without a kernel: the first disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its name within the VM; left out: `disk` and its place in the list, from 0.
    #[serde(default, alias = "name")]
    pub id: String,
    /// The datastore it is on; left out: that of the VM's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastore: Option<String>,
    /// Path below the VM's directory or, with `datastore`, below that datastore.
    pub file: String,
    /// What the file holds.
    #[serde(default, skip_serializing_if = "is_default")]
    pub format: Format,
    /// Size to make it with; the file's own size counts once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// How QEMU reaches it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attach: Attach,
    /// The guest may only read it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub readonly: bool,
    /// Whose cache it goes through.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache: Cache,
}

/// What a disk's file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The disk's blocks, one to one.
    #[default]
    Raw,
    /// QEMU's image format.
    Qcow2,
}

impl Format {
    /// As written in `vm.toml` and on QEMU's command line; also the suffix of new files.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// How QEMU reaches a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// As a file below the mount.
    #[default]
    File,
    /// Over NBD on a unix socket. Reserved.
    Nbd,
}

/// Whose cache a disk goes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// No page cache (O_DIRECT); the guest's flushes are passed on.
    #[default]
    None,
    /// The host's page cache; the guest's flushes are passed on.
    Writeback,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Its address; left out: derived from the VM's name.
    #[serde(default)]
    pub mac: String,
    /// Left out: `bridge` when a bridge is named, else `user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<NicMode>,
    /// The bridge it is plugged into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
}

/// What a network card is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NicMode {
    /// QEMU's user-mode network: outgoing only, no rights needed.
    User,
    /// A bridge of the host.
    Bridge,
}

fn one() -> u32 {
    1
}

fn q35() -> String {
    "q35".into()
}

fn is_q35(machine: &str) -> bool {
    machine == "q35"
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl VmConfig {
    /// Read the text of a `vm.toml`, fill in what was left out, and check it.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut config: VmConfig = toml::from_str(text).map_err(|e| explain(text, &e))?;
        config.complete();
        config.check()?;
        Ok(config)
    }

    /// The text of a new `vm.toml`.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a VmConfig has only strings, numbers and tables of them")
    }

    /// The machine's UUID.
    pub fn uuid(&self) -> Uuid {
        self.uuid.unwrap_or_else(|| identity::uuid_of(&self.name))
    }

    /// Fill in ids and addresses that were left out.
    pub fn complete(&mut self) {
        for (i, disk) in self.disks.iter_mut().enumerate() {
            if disk.id.is_empty() {
                disk.id = format!("disk{i}");
            }
        }
        for (i, nic) in self.nics.iter_mut().enumerate() {
            if nic.mac.is_empty() {
                nic.mac = identity::mac_of(&self.name, i);
            }
        }
    }

    /// Everything that can be told wrong without looking at the host.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_name(&self.name).map_err(|problem| ConfigError::new("name", problem))?;
        let memory = self.memory;
        if memory.0 == 0 || !memory.0.is_multiple_of(MIB) {
            let near = Size(memory.0.div_ceil(MIB).max(1) * MIB);
            return Err(ConfigError::new("memory", format!("{memory} is not a whole number of MiB"))
                .with_hint(format!("memory = \"{near}\"")));
        }
        if !(1..=255).contains(&self.cpus) {
            return Err(ConfigError::new("cpus", format!("{} is not between 1 and 255", self.cpus)));
        }
        check_word("machine", &self.machine)?;
        if let Some(cpu) = &self.cpu {
            check_word("cpu", cpu)?;
        }
        if let Some(firmware) = &self.firmware {
            check_host_path("firmware", firmware)?;
        }
        self.check_disks()?;
        self.check_nics()?;
        self.check_boot()
    }

    fn check_disks(&self) -> Result<(), ConfigError> {
        for (i, disk) in self.disks.iter().enumerate() {
            let place = |key: &str| format!("disk[{i}].{key}");
            check_id(&disk.id).map_err(|problem| ConfigError::new(place("id"), problem))?;
            if let Some(datastore) = &disk.datastore {
                check_name(datastore).map_err(|problem| ConfigError::new(place("datastore"), problem))?;
            }
            if !stays_inside(&disk.file) {
                let inside = if disk.datastore.is_some() { "datastore" } else { "VM directory" };
                return Err(ConfigError::new(place("file"), format!("must stay inside the {inside}"))
                    .with_hint(
                        "write a path like \"disk0.raw\"; for one elsewhere add datastore = \"NAME\"",
                    ));
            }
            if disk.attach == Attach::Nbd {
                return Err(ConfigError::new(place("attach"), "\"nbd\" is not available yet")
                    .with_hint("leave attach out, or write attach = \"file\""));
            }
            for (j, other) in self.disks[..i].iter().enumerate() {
                if other.id == disk.id {
                    let problem = format!("\"{}\" is disk[{j}]'s id too", disk.id);
                    return Err(ConfigError::new(place("id"), problem));
                }
                if other.file == disk.file && other.datastore == disk.datastore {
                    return Err(ConfigError::new(place("file"), format!("is disk[{j}]'s file too")));
                }
            }
        }
        Ok(())
    }

    fn check_nics(&self) -> Result<(), ConfigError> {
        for (i, nic) in self.nics.iter().enumerate() {
            let place = |key: &str| format!("nic[{i}].{key}");
            check_mac(&nic.mac).map_err(|problem| {
                ConfigError::new(place("mac"), problem).with_hint("leave mac out to have one derived")
            })?;
            if self.nics[..i].iter().any(|other| other.mac.eq_ignore_ascii_case(&nic.mac)) {
                return Err(ConfigError::new(place("mac"), format!("{} occurs twice", nic.mac)));
            }
            match (nic.mode, &nic.bridge) {
                (Some(NicMode::Bridge), None) => {
                    return Err(ConfigError::new(place("bridge"), "is missing, and mode is \"bridge\""));
                }
                (Some(NicMode::User), Some(_)) => {
                    return Err(ConfigError::new(place("bridge"), "has no meaning with mode = \"user\""));
                }
                _ => {}
            }
            if let Some(bridge) = &nic.bridge {
                let good = !bridge.is_empty()
                    && bridge.len() <= MAX_INTERFACE
                    && !bridge.contains(['/', ' ', ',', ':'])
                    && !bridge.starts_with(['.', '-']);
                if !good {
                    return Err(ConfigError::new(
                        place("bridge"),
                        format!("{bridge:?} can't be a bridge's name"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_boot(&self) -> Result<(), ConfigError> {
        let boot = &self.boot;
        for (key, path) in [("boot.kernel", &boot.kernel), ("boot.initrd", &boot.initrd)] {
            if let Some(path) = path {
                check_host_path(key, path)?;
            }
        }
        if boot.kernel.is_none() {
            for (key, value) in [("boot.initrd", &boot.initrd), ("boot.append", &boot.append)] {
                if value.is_some() {
                    return Err(ConfigError::new(key, "has no meaning without boot.kernel"));
                }
            }
        }
        if let Some(id) = &boot.disk {
            if boot.kernel.is_some() {
                return Err(ConfigError::new("boot.disk", "has no meaning with boot.kernel"));
            }
            if !self.disks.iter().any(|d| d.id == *id) {
                let ids: Vec<_> = self.disks.iter().map(|d| d.id.as_str()).collect();
                return Err(ConfigError::new("boot.disk", format!("there is no disk {id:?}"))
                    .with_hint(format!("the VM's disks are: {}", ids.join(", "))));
            }
        }
        Ok(())
    }
}

impl Disk {
    /// Where its file is, for a VM whose directory is `home` below `mount`.
    pub fn path(&self, mount: &Path, home: &Path) -> PathBuf {
        match &self.datastore {
            Some(datastore) => mount.join(datastore).join(&self.file),
            None => home.join(&self.file),
        }
    }
}

/// Whether `name` can be a VM's (or a datastore's) name; the error says why not.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty".into());
    }
    if name.len() > MAX_NAME {
        return Err(format!("is longer than {MAX_NAME} characters"));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match name.chars().find(|c| !good(*c)) {
        Some(c) => Err(format!("{name:?} contains {c:?}; letters, digits, '-', '_' and '.' are allowed")),
        None if name.starts_with(['.', '-']) => Err(format!("{name:?} must start with a letter or digit")),
        None => Ok(()),
    }
}

fn check_id(id: &str) -> Result<(), String> {
    if id.len() > MAX_ID {
        return Err(format!("{id:?} is longer than {MAX_ID} characters"));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if id.starts_with(|c: char| c.is_ascii_alphabetic()) && id.chars().all(good) {
        Ok(())
    } else {
        Err(format!("{id:?} must be letters, digits, '-' and '_', and start with a letter"))
    }
}

fn check_mac(mac: &str) -> Result<(), String> {
    let bytes: Vec<_> = mac
        .split(':')
        .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten())
        .collect();
    match bytes.first() {
        _ if bytes.len() != 6 || bytes.contains(&None) => {
            Err(format!("{mac:?} is not an address like 52:54:00:12:34:56"))
        }
        Some(Some(first)) if first & 1 == 1 => Err(format!("{mac} is a multicast address")),
        _ => Ok(()),
    }
}

/// Machine types and CPU models go into an option list of QEMU as they are (`q35,smm=off`).
fn check_word(place: &str, word: &str) -> Result<(), ConfigError> {
    if word.is_empty() || word.contains(char::is_whitespace) {
        return Err(ConfigError::new(place, format!("{word:?} is empty or contains spaces")));
    }
    Ok(())
}

fn check_host_path(place: &str, path: &str) -> Result<(), ConfigError> {
    if path.starts_with('/') || stays_inside(path) {
        return Ok(());
    }
    Err(ConfigError::new(place, format!("{path:?} must be absolute or stay inside the VM directory")))
}

/// A relative path of plain components only.
fn stays_inside(path: &str) -> bool {
    let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    plain && !path.is_empty() && !path.ends_with('/') && !path.contains('\0')
}

/// What `toml` says, in one line, with a near known key for an unknown one.
fn explain(text: &str, error: &toml::de::Error) -> ConfigError {
    let message = error.message().lines().collect::<Vec<_>>().join(" ");
    let place = match error.span() {
        Some(span) => {
            let before = text.get(..span.start).unwrap_or(text);
            format!("line {}", before.matches('\n').count() + 1)
        }
        None => "the file".into(),
    };
    let Some(rest) = message.strip_prefix("unknown field `") else {
        return ConfigError::new(place, message);
    };
    let mut quoted = rest.split('`');
    let unknown = quoted.next().unwrap_or_default().to_string();
    let known: Vec<&str> = quoted.skip(1).step_by(2).collect();
    let near = known.iter().map(|k| (distance(&unknown, k), *k)).min();
    let hint = match near {
        Some((steps, key)) if steps <= 2 => format!("did you mean `{key}`?"),
        _ => format!("known keys here: {}", known.join(", ")),
    };
    ConfigError::new(place, format!("unknown key `{unknown}`")).with_hint(hint)
}

/// Insertions, deletions and replacements that lead from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "name = \"vm42\"\nmemory = \"256MiB\"\n";

    const FULL: &str = r#"
name = "db.prod_1-a"
uuid = "6d3e2f10-0000-4000-8000-000000000001"
memory = "2GiB"
cpus = 4
machine = "pc-q35-7.2,smm=off"
cpu = "Skylake-Server,+pdpe1gb"
accel = "kvm"
firmware = "/usr/share/ovmf/OVMF.fd"
serial_socket = true
extra_args = ["-device", "virtio-rng-pci"]

[boot]
disk = "data"

[[disk]]
file = "sub/disk0.raw"
size = "10GiB"
cache = "writeback"

[[disk]]
name = "data"
datastore = "ds3"
file = "vm42/data.qcow2"
format = "qcow2"
attach = "file"
readonly = true

[[nic]]
mac = "52:54:00:aB:cd:01"
bridge = "br0"

[[nic]]
mode = "user"
"#;

    #[test]
    fn what_is_left_out_is_filled_in() {
        let config = VmConfig::parse(&format!("{MINIMAL}[[disk]]\nfile = \"a.raw\"\n[[nic]]\n")).unwrap();
        assert_eq!((config.cpus, config.machine.as_str(), config.accel), (1, "q35", Accel::Auto));
        assert_eq!(config.memory.0, 256 << 20);
        assert_eq!(config.uuid(), identity::uuid_of("vm42"));
        let disk = &config.disks[0];
        assert_eq!(
            (disk.id.as_str(), disk.format, disk.cache, disk.readonly),
            ("disk0", Format::Raw, Cache::None, false)
        );
        assert_eq!(config.nics[0].mac, identity::mac_of("vm42", 0));
    }

    #[test]
    fn all_keys_are_read_and_survive_writing() {
        let config = VmConfig::parse(FULL).unwrap();
        assert_eq!(config.disks[1].id, "data");
        assert_eq!(
            config.disks[1].path(Path::new("/vmfs"), Path::new("/vmfs/ds1/x")),
            Path::new("/vmfs/ds3/vm42/data.qcow2")
        );
        assert_eq!(
            config.disks[0].path(Path::new("/vmfs"), Path::new("/vmfs/ds1/x")),
            Path::new("/vmfs/ds1/x/sub/disk0.raw")
        );
        let text = config.to_toml();
        assert_eq!(VmConfig::parse(&text).unwrap(), config, "{text}");
    }

    #[test]
    fn memory_may_be_a_number_of_bytes() {
        assert_eq!(VmConfig::parse("name = \"a\"\nmemory = 1048576\n").unwrap().memory, Size(MIB));
    }

    #[track_caller]
    fn refused(text: &str, message: &str, hint: Option<&str>) {
        let error = VmConfig::parse(text).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.hint.as_deref()), (message, hint), "{text}");
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest_known_one() {
        refused(
            "name = \"a\"\nmemroy = \"1GiB\"\n",
            "line 2: unknown key `memroy`",
            Some("did you mean `memory`?"),
        );
        refused(
            &format!("{MINIMAL}[[nic]]\nvlan = 7\n"),
            "line 4: unknown key `vlan`",
            Some("known keys here: mac, mode, bridge"),
        );
        refused(
            &format!("{MINIMAL}[[disk]]\nfiel = \"x\"\n"),
            "line 4: unknown key `fiel`",
            Some("did you mean `file`?"),
        );
        refused(
            &format!("{MINIMAL}[[disks]]\nfile = \"x\"\n"),
            "line 3: unknown key `disks`",
            Some("did you mean `disk`?"),
        );
    }

    #[test]
    fn bad_toml_names_its_line() {
        refused(
            "name = \"a\"\nmemory = \n",
            "line 2: string values must be quoted, expected literal string",
            None,
        );
        refused("name = \"a\"\n", "line 1: missing field `memory`", None);
        refused(
            "name = 1\nmemory = \"1GiB\"\n",
            "line 1: invalid type: integer `1`, expected a string",
            None,
        );
        refused(
            &format!("{MINIMAL}accel = \"xen\"\n"),
            "line 3: unknown variant `xen`, expected one of `auto`, `kvm`, `tcg`",
            None,
        );
        refused(
            "name = \"a\"\nmemory = \"lots\"\n",
            "line 2: \"lots\" is not a size; write it like \"256MiB\" or \"10GiB\"",
            None,
        );
    }

    #[test]
    fn values_are_checked_with_their_place() {
        let with = |rest: &str| format!("{MINIMAL}{rest}");
        refused(
            "name = \"a b\"\nmemory = \"1GiB\"\n",
            "name: \"a b\" contains ' '; letters, digits, '-', '_' and '.' are allowed",
            None,
        );
        refused(
            "name = \"a\"\nmemory = \"256MB\"\n",
            "memory: 250000KiB is not a whole number of MiB",
            Some("memory = \"245MiB\""),
        );
        refused(
            "name = \"a\"\nmemory = 0\n",
            "memory: 0 is not a whole number of MiB",
            Some("memory = \"1MiB\""),
        );
        refused(&with("cpus = 0\n"), "cpus: 0 is not between 1 and 255", None);
        refused(&with("machine = \"q 35\"\n"), "machine: \"q 35\" is empty or contains spaces", None);
        refused(
            &with("firmware = \"../x\"\n"),
            "firmware: \"../x\" must be absolute or stay inside the VM directory",
            None,
        );
    }

    #[test]
    fn disks_are_checked_with_their_place() {
        let second = |rest: &str| format!("{MINIMAL}[[disk]]\nfile = \"a.raw\"\n[[disk]]\n{rest}\n");
        let elsewhere = Some("write a path like \"disk0.raw\"; for one elsewhere add datastore = \"NAME\"");
        for file in ["../x.raw", "/x.raw", "", ".", "a/../../x", "a/", "./../x"] {
            let text = second(&format!("file = \"{file}\""));
            refused(&text, "disk[1].file: must stay inside the VM directory", elsewhere);
        }
        refused(
            &second("datastore = \"ds3\"\nfile = \"../x\""),
            "disk[1].file: must stay inside the datastore",
            elsewhere,
        );
        refused(&second("file = \"a.raw\""), "disk[1].file: is disk[0]'s file too", None);
        refused(&second("file = \"b\"\nid = \"disk0\""), "disk[1].id: \"disk0\" is disk[0]'s id too", None);
        refused(
            &second("file = \"b\"\nid = \"0,x\""),
            "disk[1].id: \"0,x\" must be letters, digits, '-' and '_', and start with a letter",
            None,
        );
        refused(
            &second("file = \"b\"\nattach = \"nbd\""),
            "disk[1].attach: \"nbd\" is not available yet",
            Some("leave attach out, or write attach = \"file\""),
        );
        refused(
            &second("file = \"b\"\ndatastore = \"..\""),
            "disk[1].datastore: \"..\" must start with a letter or digit",
            None,
        );
    }

    #[test]
    fn cards_and_boot_are_checked_with_their_place() {
        let with = |rest: &str| format!("{MINIMAL}{rest}");
        let derived = Some("leave mac out to have one derived");
        let nic = |rest: &str| with(&format!("[[nic]]\n{rest}\n"));
        refused(
            &nic("mac = \"52:54:00:1:2:3\""),
            "nic[0].mac: \"52:54:00:1:2:3\" is not an address like 52:54:00:12:34:56",
            derived,
        );
        refused(
            &nic("mac = \"53:54:00:01:02:03\""),
            "nic[0].mac: 53:54:00:01:02:03 is a multicast address",
            derived,
        );
        refused(
            &with("[[nic]]\nmac = \"52:54:00:aa:00:01\"\n[[nic]]\nmac = \"52:54:00:AA:00:01\"\n"),
            "nic[1].mac: 52:54:00:AA:00:01 occurs twice",
            None,
        );
        refused(&nic("mode = \"bridge\""), "nic[0].bridge: is missing, and mode is \"bridge\"", None);
        refused(
            &nic("mode = \"user\"\nbridge = \"br0\""),
            "nic[0].bridge: has no meaning with mode = \"user\"",
            None,
        );
        refused(&nic("bridge = \"../br0\""), "nic[0].bridge: \"../br0\" can't be a bridge's name", None);
        refused(
            &with("[boot]\nappend = \"quiet\"\n"),
            "boot.append: has no meaning without boot.kernel",
            None,
        );
        refused(
            &with("[boot]\ndisk = \"sda\"\n[[disk]]\nfile = \"x\"\n"),
            "boot.disk: there is no disk \"sda\"",
            Some("the VM's disks are: disk0"),
        );
        refused(
            &with("[boot]\nkernel = \"k\"\ndisk = \"disk0\"\n[[disk]]\nfile = \"x\"\n"),
            "boot.disk: has no meaning with boot.kernel",
            None,
        );
    }

    #[test]
    fn distances_are_edits() {
        for (a, b, steps) in
            [("", "", 0), ("abc", "abc", 0), ("fiel", "file", 2), ("kitten", "sitting", 3), ("", "ab", 2)]
        {
            assert_eq!(distance(a, b), steps, "{a} {b}");
        }
    }
}
