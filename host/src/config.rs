//! What dshost is told: flags over a TOML file over defaults.
//!
//! ```toml
//! name = "hostA"
//! mount = "/vmfs"
//! run = "/run/godwit"          # default
//! threads = 4                  # default
//!
//! [datastore]
//! ds1 = "storage1:7101"
//! ds2 = "storage2:7101"
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

/// The file read when `--config` names none; it need not be there.
pub const DEFAULT_FILE: &str = "/etc/godwit/host.toml";
/// Where sockets and volatile state live by default.
pub const DEFAULT_RUN: &str = "/run/godwit";
/// FUSE threads by default.
pub const DEFAULT_THREADS: usize = 4;
const MAX_THREADS: usize = 64;
const MAX_NAME: usize = 64;

/// The flags of `dshost run`, each also a key of the file.
#[derive(Args, Clone, Debug, Default)]
pub struct Flags {
    /// This host's name; the datastores know it by that
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Where the datastores are mounted: an empty directory
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// A datastore and where its server listens; repeat it for each. Replaces all of the file's
    #[arg(long = "datastore", value_name = "NAME=HOST:PORT")]
    pub datastores: Vec<String>,
    /// Where sockets and volatile state live [default: /run/godwit]
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Threads that serve the mount [default: 4]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Read this file [default: /etc/godwit/host.toml when it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What dshost shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This host's name.
    pub name: String,
    /// Mount point.
    pub mount: PathBuf,
    /// Name and address of each datastore; names are unique.
    pub datastores: Vec<(String, String)>,
    /// Where sockets and volatile state live.
    pub run: PathBuf,
    /// FUSE threads.
    pub threads: usize,
}

/// What is wrong with flags or file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ConfigError {
    /// The flag, or the file with line or key.
    pub place: String,
    /// What is wrong there.
    pub problem: String,
    /// What to do.
    pub hint: Option<String>,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    mount: Option<PathBuf>,
    run: Option<PathBuf>,
    threads: Option<usize>,
    #[serde(default)]
    datastore: BTreeMap<String, String>,
}

/// A value and where it was found, for errors.
struct Found<T> {
    value: T,
    place: String,
}

impl Config {
    /// Flags over the file over defaults.
    pub fn load(flags: &Flags) -> Result<Config, ConfigError> {
        let (path, must_exist) = match &flags.config {
            Some(path) => (path.as_path(), true),
            None => (Path::new(DEFAULT_FILE), false),
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !must_exist => String::new(),
            Err(e) => return Err(error(path.display(), e, None)),
        };
        Config::merge(flags, path, &text)
    }

    fn merge(flags: &Flags, path: &Path, text: &str) -> Result<Config, ConfigError> {
        let file: File = toml::from_str(text).map_err(|e| not_toml(path, text, &e))?;
        let key = |key: &str| format!("{}: {key}", path.display());
        let name = pick(flags.name.clone(), "--name", file.name, key("name"))
            .ok_or_else(|| missing("name", "give this host a name: --name hostA"))?;
        check_name("a host's name", &name)?;
        let mount = pick(flags.mount.clone(), "--mount", file.mount, key("mount"))
            .ok_or_else(|| missing("mount", "say where the datastores shall appear: --mount /vmfs"))?;
        let run = pick(flags.run.clone(), "--run", file.run, key("run"))
            .unwrap_or(Found { value: DEFAULT_RUN.into(), place: "--run".into() });
        let threads = pick(flags.threads, "--threads", file.threads, key("threads"))
            .unwrap_or(Found { value: DEFAULT_THREADS, place: "--threads".into() });
        if !(1..=MAX_THREADS).contains(&threads.value) {
            return Err(error(threads.place, format!("must be from 1 to {MAX_THREADS}"), None));
        }
        let datastores = match flags.datastores.as_slice() {
            [] => file
                .datastore
                .into_iter()
                .map(|pair| Found { place: key(&format!("datastore.{}", pair.0)), value: pair })
                .collect(),
            given => given.iter().map(|text| parse_datastore(text)).collect::<Result<Vec<_>, _>>()?,
        };
        Ok(Config {
            name: name.value,
            mount: absolute(mount)?,
            datastores: check_datastores(datastores)?,
            run: absolute(run)?,
            threads: threads.value,
        })
    }
}

fn pick<T>(flag: Option<T>, flag_name: &str, in_file: Option<T>, key: String) -> Option<Found<T>> {
    let from_flag = flag.map(|value| Found { value, place: flag_name.into() });
    from_flag.or_else(|| in_file.map(|value| Found { value, place: key }))
}

fn error(place: impl ToString, problem: impl ToString, hint: Option<&str>) -> ConfigError {
    ConfigError { place: place.to_string(), problem: problem.to_string(), hint: hint.map(Into::into) }
}

fn missing(key: &str, hint: &str) -> ConfigError {
    error(format!("--{key}"), "is missing", Some(hint))
}

fn not_toml(path: &Path, text: &str, e: &toml::de::Error) -> ConfigError {
    let line = e.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let place = match line {
        Some(line) => format!("{}: line {line}", path.display()),
        None => path.display().to_string(),
    };
    error(place, e.message().lines().next().unwrap_or_default(), None)
}

fn parse_datastore(text: &str) -> Result<Found<(String, String)>, ConfigError> {
    let place = format!("--datastore {text}");
    match text.split_once('=') {
        Some((name, address)) => Ok(Found { value: (name.into(), address.into()), place }),
        None => Err(error(
            place,
            "no `=` in it",
            Some("write --datastore NAME=HOST:PORT, like ds1=storage1:7101"),
        )),
    }
}

fn check_datastores(found: Vec<Found<(String, String)>>) -> Result<Vec<(String, String)>, ConfigError> {
    let mut datastores: Vec<(String, String)> = Vec::new();
    for Found { value: (name, address), place } in found {
        check_name("a datastore's name", &Found { value: name.clone(), place: place.clone() })?;
        let good = address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0));
        if !good {
            let problem = format!("{address:?} is no HOST:PORT");
            return Err(error(place, problem, Some("write the address of its dsserver, like storage1:7101")));
        }
        if datastores.iter().any(|(other, _)| *other == name) {
            return Err(error(place, format!("datastore {name} is named twice"), None));
        }
        datastores.push((name, address));
    }
    if datastores.is_empty() {
        return Err(missing("datastore", "name at least one: --datastore ds1=HOST:PORT"));
    }
    Ok(datastores)
}

/// Names become directories, labels and parts of commands.
fn check_name(what: &str, found: &Found<String>) -> Result<(), ConfigError> {
    let name = &found.value;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) || name.starts_with(['.', '-']) {
        let problem = format!("{name:?} can't be {what}");
        let hint = "letters, digits, `-`, `_` and `.`, 64 at most, a letter or digit first";
        return Err(error(&found.place, problem, Some(hint)));
    }
    Ok(())
}

fn absolute(found: Found<PathBuf>) -> Result<PathBuf, ConfigError> {
    std::path::absolute(&found.value).map_err(|e| error(found.place, e, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
name = \"hostA\"
mount = \"/vmfs\"
threads = 2

[datastore]
ds2 = \"storage2:7101\"
ds1 = \"[::1]:7101\"
";

    fn merged(flags: &Flags, text: &str) -> Result<Config, String> {
        Config::merge(flags, Path::new("host.toml"), text).map_err(|e| e.to_string())
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
    }

    #[test]
    fn the_file_alone() {
        let config = merged(&Flags::default(), FILE).unwrap();
        assert_eq!(
            config,
            Config {
                name: "hostA".into(),
                mount: "/vmfs".into(),
                datastores: pairs(&[("ds1", "[::1]:7101"), ("ds2", "storage2:7101")]),
                run: "/run/godwit".into(),
                threads: 2,
            }
        );
    }

    #[test]
    fn flags_win_and_replace_all_datastores() {
        let flags = Flags {
            name: Some("hostB".into()),
            mount: Some("/mnt".into()),
            datastores: vec!["ds3=c:3".into(), "ds1=d:4".into()],
            run: Some("/tmp/r".into()),
            threads: Some(8),
            config: None,
        };
        let config = merged(&flags, FILE).unwrap();
        assert_eq!(config.name, "hostB");
        assert_eq!((config.mount, config.run), ("/mnt".into(), "/tmp/r".into()));
        assert_eq!((config.datastores, config.threads), (pairs(&[("ds3", "c:3"), ("ds1", "d:4")]), 8));
        assert!(merged(&flags, "").is_ok(), "flags alone are enough");
    }

    #[test]
    fn errors_name_the_place() {
        let with = |from: &str, to: &str| merged(&Flags::default(), &FILE.replace(from, to)).unwrap_err();
        assert_eq!(
            with("mount =", "mont ="),
            "host.toml: line 3: unknown field `mont`, expected one of `name`, `mount`, `run`, `threads`, `datastore`"
        );
        assert!(with("threads = 2", "threads = \"2\"").starts_with("host.toml: line 4: invalid type"));
        assert_eq!(with("threads = 2", "threads = 0"), "host.toml: threads: must be from 1 to 64");
        assert!(with("name = \"hostA\"", "name = ").starts_with("host.toml: line 2: "));
        assert_eq!(with("hostA", "host A"), "host.toml: name: \"host A\" can't be a host's name");
        assert_eq!(with("name = \"hostA\"", ""), "--name: is missing");
        assert_eq!(with("mount = \"/vmfs\"", ""), "--mount: is missing");
        assert_eq!(
            with("storage2:7101", "storage2"),
            "host.toml: datastore.ds2: \"storage2\" is no HOST:PORT"
        );
        assert_eq!(with("storage2:7101", ":7101"), "host.toml: datastore.ds2: \":7101\" is no HOST:PORT");
        assert_eq!(with("storage2:7101", "s:0"), "host.toml: datastore.ds2: \"s:0\" is no HOST:PORT");
        assert_eq!(with("ds2 =", "\"..\" ="), "host.toml: datastore...: \"..\" can't be a datastore's name");

        let flags = |list: &[&str]| Flags {
            datastores: list.iter().map(|s| s.to_string()).collect(),
            ..Flags::default()
        };
        assert_eq!(merged(&flags(&["ds1"]), FILE).unwrap_err(), "--datastore ds1: no `=` in it");
        assert_eq!(
            merged(&flags(&["ds1=a:1", "ds1=b:1"]), FILE).unwrap_err(),
            "--datastore ds1=b:1: datastore ds1 is named twice"
        );
        assert_eq!(
            merged(&Flags { threads: Some(65), ..Flags::default() }, FILE).unwrap_err(),
            "--threads: must be from 1 to 64"
        );
        assert_eq!(merged(&Flags::default(), "name='a'\nmount='/m'").unwrap_err(), "--datastore: is missing");
    }

    #[test]
    fn a_named_file_must_be_there() {
        let flags = Flags { config: Some("/nonexistent/host.toml".into()), ..Flags::default() };
        let error = Config::load(&flags).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/host.toml: No such file"), "{error}");
    }
}
