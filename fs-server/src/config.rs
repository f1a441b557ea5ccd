//! What `dsserver run` is told: flags, or keys of the same names in a TOML file; flags win.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use serde::Deserialize;

/// Patterns of files that one host at a time may have open for writing.
pub const EXCLUSIVE: &[&str] = &["*.raw", "*.img", "*.qcow2", "*.vmdk", "*.vdi", "*.nvram"];

/// Keys of the configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// The datastore's name.
    pub name: Option<String>,
    /// Its directory.
    pub path: Option<PathBuf>,
    /// Address and port.
    pub listen: Option<String>,
    /// Bytes that it may take.
    pub capacity: Option<ByteSize>,
    /// Patterns of files with one writer.
    pub exclusive: Option<Vec<String>>,
}

/// A server's whole configuration.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The datastore's name.
    pub name: String,
    /// Its directory.
    pub path: PathBuf,
    /// Address and port.
    pub listen: String,
    /// Bytes that it may take; none: what the file system has.
    pub capacity: Option<u64>,
    /// Patterns of files with one writer.
    pub exclusive: Vec<String>,
}

/// Read a configuration file.
pub fn read(path: &Path) -> Result<FileConfig, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("read {}: {e}", path.display()))?;
    toml::from_str(&text).map_err(|e| format!("{}: {}", path.display(), e.message()))
}

impl FileConfig {
    /// The values of `flags` where they are given, else those of this file.
    pub fn merge(self, flags: FileConfig) -> Result<ServerConfig, String> {
        let name = flags.name.or(self.name).ok_or("--name is missing: the datastore's name")?;
        if name.is_empty() || name.len() > 64 || name.contains(['/', '\0']) || name.starts_with('.') {
            return Err(format!("--name {name:?}: 1 to 64 characters, no slash, no dot at the start"));
        }
        Ok(ServerConfig {
            name,
            path: flags.path.or(self.path).ok_or("--path is missing: the datastore's directory")?,
            listen: flags.listen.or(self.listen).ok_or("--listen is missing: address:port")?,
            capacity: flags.capacity.or(self.capacity).map(|c| c.as_u64()),
            exclusive: flags
                .exclusive
                .or(self.exclusive)
                .unwrap_or_else(|| EXCLUSIVE.iter().map(|p| p.to_string()).collect()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file() {
        let file: FileConfig =
            toml::from_str("name='a'\npath='/x'\nlisten='1.2.3.4:5'\ncapacity='1GiB'").expect("parses");
        let flags = FileConfig { name: Some("b".into()), ..FileConfig::default() };
        let merged = file.merge(flags).expect("complete");
        assert_eq!((merged.name.as_str(), merged.listen.as_str()), ("b", "1.2.3.4:5"));
        assert_eq!(merged.capacity, Some(1 << 30));
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let error = FileConfig::default().merge(FileConfig::default()).expect_err("incomplete");
        assert!(error.contains("--name"));
        assert!(toml::from_str::<FileConfig>("nmae='a'").is_err_and(|e| e.message().contains("nmae")));
    }
}
