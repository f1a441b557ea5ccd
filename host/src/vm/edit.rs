//! Changing one key of a `vm.toml` and nothing else: comments, order and spacing stay.

use toml_edit::{DocumentMut, Item, Table, value};

use super::config::{ConfigError, VmConfig};

/// Say where a disk is: on `datastore` at the path `file`, or with none below the VM's directory.
/// `id` is the disk's id, written or implied. The new text is checked before it is returned.
pub fn set_disk_location(
    text: &str,
    id: &str,
    datastore: Option<&str>,
    file: &str,
) -> Result<String, ConfigError> {
    let config = VmConfig::parse(text)?;
    let index = config.disks.iter().position(|d| d.id == id).ok_or_else(|| ConfigError {
        place: "disk".into(),
        problem: format!("there is no disk {id:?}"),
        hint: None,
    })?;
    let mut document = document(text)?;
    let disk = disk_table(&mut document, index)?;
    replace(disk, "file", file);
    match datastore {
        Some(datastore) => replace(disk, "datastore", datastore),
        None => {
            disk.remove("datastore");
        }
    }
    checked(document)
}

/// Give the VM another name.
pub fn set_name(text: &str, name: &str) -> Result<String, ConfigError> {
    let mut document = document(text)?;
    replace(document.as_table_mut(), "name", name);
    checked(document)
}

fn document(text: &str) -> Result<DocumentMut, ConfigError> {
    text.parse().map_err(|e: toml_edit::TomlError| ConfigError {
        place: "the file".into(),
        problem: e.message().to_string(),
        hint: None,
    })
}

fn checked(document: DocumentMut) -> Result<String, ConfigError> {
    let text = document.to_string();
    VmConfig::parse(&text)?;
    Ok(text)
}

fn disk_table(
    document: &mut DocumentMut,
    index: usize,
) -> Result<&mut dyn toml_edit::TableLike, ConfigError> {
    // Written as `[[disk]]` or as `disk = [{…}]`.
    let table = match document.get_mut("disk") {
        Some(Item::ArrayOfTables(tables)) => {
            tables.get_mut(index).map(|t: &mut Table| t as &mut dyn toml_edit::TableLike)
        }
        Some(Item::Value(toml_edit::Value::Array(array))) => array
            .get_mut(index)
            .and_then(|v| v.as_inline_table_mut())
            .map(|t| t as &mut dyn toml_edit::TableLike),
        _ => None,
    };
    table.ok_or_else(|| ConfigError {
        place: format!("disk[{index}]"),
        problem: "is not a table".into(),
        hint: None,
    })
}

/// Set a string and keep what stands around it (a comment at the line's end).
fn replace(table: &mut dyn toml_edit::TableLike, key: &str, new: &str) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            let decor = old.decor().clone();
            *old = toml_edit::Value::from(new);
            *old.decor_mut() = decor;
        }
        None => {
            table.insert(key, value(new));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# the mail server
name = "vm42"   # as in the DNS
memory = "1GiB"

[[disk]]
file = "disk0.raw"

# grows fast
[[disk]]
id = "data"
file    = "data.raw"   # 3 TiB
cache = "none"
"#;

    #[test]
    fn only_the_named_disk_changes_and_comments_stay() {
        let to_ds3 = set_disk_location(TEXT, "data", Some("ds3"), "vm42/data.raw").unwrap();
        let expected = TEXT
            .replace("\"data.raw\"", "\"vm42/data.raw\"")
            .replace("cache = \"none\"\n", "cache = \"none\"\ndatastore = \"ds3\"\n");
        assert_eq!(to_ds3, expected);

        let to_ds4 = set_disk_location(&to_ds3, "data", Some("ds4"), "vm42/data.raw").unwrap();
        assert_eq!(to_ds4, expected.replace("ds3", "ds4"));

        let back = set_disk_location(&to_ds4, "data", None, "data.raw").unwrap();
        assert_eq!(back, TEXT);
    }

    #[test]
    fn an_implied_id_names_its_disk() {
        let text = set_disk_location(TEXT, "disk0", Some("ds2"), "a/b.raw").unwrap();
        let config = VmConfig::parse(&text).unwrap();
        assert_eq!(config.disks[0].datastore.as_deref(), Some("ds2"));
        assert_eq!(config.disks[1].datastore, None);
    }

    #[test]
    fn inline_tables_are_edited_too() {
        let text = "name = \"a\"\nmemory = \"1GiB\"\ndisk = [{ file = \"x.raw\" }] # one\n";
        let text = set_disk_location(text, "disk0", Some("ds2"), "y.raw").unwrap();
        assert!(text.ends_with("] # one\n"), "{text}");
        let config = VmConfig::parse(&text).unwrap();
        assert_eq!(
            (config.disks[0].file.as_str(), config.disks[0].datastore.as_deref()),
            ("y.raw", Some("ds2"))
        );
    }

    #[test]
    fn what_would_make_a_bad_file_is_refused() {
        let error = set_disk_location(TEXT, "data", None, "../x").unwrap_err();
        assert_eq!(error.to_string(), "disk[1].file: must stay inside the VM directory");
        assert_eq!(
            set_disk_location(TEXT, "sda", None, "x").unwrap_err().to_string(),
            "disk: there is no disk \"sda\""
        );
        assert!(set_name(TEXT, "a/b").is_err());
    }

    #[test]
    fn a_new_name_keeps_its_comment() {
        assert!(set_name(TEXT, "vm43").unwrap().contains("name = \"vm43\"   # as in the DNS\n"));
    }
}
