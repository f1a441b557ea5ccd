//! Disks and network cards of `dsctl vm create`, as they are typed.

use std::path::Path;

use proto::control::vm::{NewDisk, NewNic};

use crate::quantity::parse_size;

/// `20GiB` or `20GiB,format=qcow2`
pub fn parse_disk(text: &str) -> Result<NewDisk, String> {
    let (rest, options) = split_options(text, &["format"])?;
    Ok(NewDisk { size: Some(parse_size(rest)?), from: None, format: format(&options)? })
}

/// `FILE` with `,size=` and `,format=` behind it; a relative path is made absolute, because dshost has
/// another working directory.
pub fn parse_disk_from(text: &str) -> Result<NewDisk, String> {
    let (file, options) = split_options(text, &["size", "format"])?;
    let size = options.iter().find(|(key, _)| *key == "size").map(|(_, v)| parse_size(v)).transpose()?;
    Ok(NewDisk { size, from: Some(absolute(file)?), format: format(&options)? })
}

/// `user`, `bridge=br0`, each with `,mac=52:54:00:…` if wanted.
pub fn parse_nic(text: &str) -> Result<NewNic, String> {
    let (kind, options) = split_options(text, &["mac"])?;
    let bridge = match (kind, kind.strip_prefix("bridge=")) {
        ("user", _) => None,
        (_, Some(bridge)) if !bridge.is_empty() => Some(bridge.to_string()),
        _ => return Err("write `user` or `bridge=NAME`, and `,mac=ADDRESS` behind it if wanted".into()),
    };
    Ok(NewNic { bridge, mac: options.iter().find(|(key, _)| *key == "mac").map(|(_, v)| v.to_string()) })
}

/// A path that means the same to dshost.
pub fn absolute(file: &str) -> Result<String, String> {
    if file.is_empty() {
        return Err("a file is expected".into());
    }
    let path = std::path::absolute(Path::new(file)).map_err(|e| format!("{file}: {e}"))?;
    path.into_os_string().into_string().map_err(|_| format!("{file}: not UTF-8"))
}

type Options<'a> = Vec<(&'a str, &'a str)>;

/// Take `,key=value` off the end while the key is known. (A comma may be part of a file's name.)
fn split_options<'a>(text: &'a str, known: &[&str]) -> Result<(&'a str, Options<'a>), String> {
    let (mut rest, mut options) = (text, Options::new());
    while let Some((before, last)) = rest.rsplit_once(',') {
        let Some((key, value)) = last.split_once('=').filter(|(key, _)| known.contains(key)) else { break };
        if options.iter().any(|(k, _)| *k == key) {
            return Err(format!("{key} is given twice"));
        }
        options.push((key, value));
        rest = before;
    }
    Ok((rest, options))
}

fn format(options: &Options) -> Result<Option<String>, String> {
    match options.iter().find(|(key, _)| *key == "format").map(|(_, v)| *v) {
        None => Ok(None),
        Some(format @ ("raw" | "qcow2")) => Ok(Some(format.to_string())),
        Some(other) => Err(format!("format {other} is not known: raw or qcow2")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks() {
        let new = |size, from: Option<&str>, format: Option<&str>| NewDisk {
            size,
            from: from.map(Into::into),
            format: format.map(Into::into),
        };
        assert_eq!(parse_disk("1GiB"), Ok(new(Some(1 << 30), None, None)));
        assert_eq!(parse_disk("1GiB,format=qcow2"), Ok(new(Some(1 << 30), None, Some("qcow2"))));
        assert_eq!(parse_disk_from("/a,b.raw,size=2GiB"), Ok(new(Some(2 << 30), Some("/a,b.raw"), None)));
        assert!(parse_disk_from("x.raw").is_ok_and(|d| d.from.is_some_and(|f| f.starts_with('/'))));
        assert!(parse_disk("1GiB,format=vmdk").is_err_and(|e| e.contains("raw or qcow2")));
        assert!(parse_disk("1GiB,size=2GiB").is_err());
        assert!(parse_disk_from("/x,size=1GiB,size=2GiB").is_err_and(|e| e.contains("twice")));
        assert!(parse_disk_from("").is_err());
    }

    #[test]
    fn nics() {
        assert_eq!(parse_nic("user"), Ok(NewNic::default()));
        assert_eq!(
            parse_nic("bridge=br0,mac=52:54:00:12:34:56"),
            Ok(NewNic { bridge: Some("br0".into()), mac: Some("52:54:00:12:34:56".into()) })
        );
        assert!(parse_nic("bridge=").is_err());
        assert!(parse_nic("br0").is_err());
    }
}
