//! The tree's own rules: which crate may know which, how large a file may get, what cores and
//! names must not contain.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Lines of a file without its tests.
const MAX_LINES: usize = 550;
/// Words that name no subject.
const HOMELESS: &[&str] = &["utils", "util", "common", "helpers", "helper", "misc"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

fn rust_files(below: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(below) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            rust_files(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

fn all_rust_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    rust_files(&root(), &mut found);
    assert!(found.len() > 20, "the walk found the tree");
    found
}

/// The part of a source file before its tests.
fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod ").map_or(text, |at| &text[..at])
}

/// Godwit crates that a crate's manifest names outside of its dev-dependencies.
fn arrows(manifest: &str) -> BTreeSet<String> {
    let table: toml::Table = manifest.parse().expect("a manifest is TOML");
    let ours = ["proto", "block-mirror", "fs-server", "fs-client", "host", "tools"];
    table
        .get("dependencies")
        .and_then(|d| d.as_table())
        .map(|d| d.keys().filter(|k| ours.contains(&k.as_str())).cloned().collect())
        .unwrap_or_default()
}

#[test]
fn arrows_between_crates_are_those_of_the_design() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("proto", &[] as &[&str]),
        ("block-mirror", &[]),
        ("fs-server", &["proto", "block-mirror"]),
        ("fs-client", &["proto", "block-mirror"]),
        ("host", &["proto", "block-mirror", "fs-client"]),
        ("tools", &["proto"]),
    ]);
    let mut wrong = Vec::new();
    for (krate, may) in allowed {
        let manifest = std::fs::read_to_string(root().join(krate).join("Cargo.toml")).expect("read manifest");
        for arrow in arrows(&manifest) {
            if !may.contains(&arrow.as_str()) {
                wrong.push(format!("{krate} must not know {arrow}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_keep_to_one_subject() {
    let mut wrong = Vec::new();
    for path in all_rust_files() {
        let text = std::fs::read_to_string(&path).expect("read source");
        let in_tests = path.components().any(|c| c.as_os_str() == "tests");
        let lines = without_tests(&text).lines().count();
        if lines > MAX_LINES && !in_tests {
            wrong.push(format!("{}: {lines} lines", path.display()));
        }
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        if HOMELESS.contains(&stem.as_str()) {
            wrong.push(format!("{}: the name says nothing", path.display()));
        }
        if !text.starts_with("//!") && !text.starts_with("#!") {
            wrong.push(format!("{}: no doc comment says what it is", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn cores_have_no_clock_thread_socket_or_file() {
    let forbidden = [
        "Instant::now",
        "SystemTime::now",
        "std::thread",
        "std::net",
        "std::fs",
        "tokio::",
        "rustix::fs",
        "rustix::net",
        "thread::sleep",
    ];
    let mut cores = Vec::new();
    for path in all_rust_files() {
        let is_core = path.file_name().is_some_and(|n| n == "core.rs")
            || path.components().any(|c| c.as_os_str() == "core")
            || path.components().any(|c| c.as_os_str() == "proto");
        if is_core && !path.components().any(|c| c.as_os_str() == "tests") {
            cores.push(path);
        }
    }
    let crates: BTreeSet<_> = cores
        .iter()
        .filter_map(|p| p.strip_prefix(root()).ok()?.components().next().map(|c| c.as_os_str().to_owned()))
        .collect();
    for krate in ["fs-server", "fs-client", "block-mirror"] {
        assert!(crates.iter().any(|c| c == krate), "{krate} has a core");
    }
    let mut wrong = Vec::new();
    for path in cores {
        let text = std::fs::read_to_string(&path).expect("read source");
        for word in forbidden {
            if without_tests(&text).contains(word) {
                wrong.push(format!("{}: {word}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_code_is_forbidden_or_argued_for() {
    let starts = ["{", "impl"].map(|what| ["unsafe", what].join(" "));
    let mut wrong = Vec::new();
    for path in all_rust_files() {
        let text = std::fs::read_to_string(&path).expect("read source");
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if starts.iter().any(|start| code.contains(start)) {
                let argued = (at.saturating_sub(12)..=at).any(|i| lines[i].contains("SAFETY:"));
                if !argued {
                    wrong.push(format!("{}:{}", path.display(), at + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe without a SAFETY comment: {wrong:#?}");
}
