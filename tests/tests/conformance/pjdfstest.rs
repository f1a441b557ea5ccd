//! Each case of `pjdfstest` passes, but for those that are listed here with the reason.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use godwit_tests::lab::Lab;

use super::judge;

/// Cases that don't pass, the verdict on them, and why that is right for this file system or not its
/// doing.
const EXCEPTIONS: &[(&str, &str, &str)] = &[(
    "link::link_count_max",
    "skipped",
    "asks pathconf(3) for the most names of a file, which the C library does not know of any FUSE file system",
)];

/// Fewer cases than this would mean that the judge left something out.
const CASES: usize = 390;

/// What the judge is told of the file system. Users and groups are such as every Debian has.
fn config(lab: &Lab, remount: bool) -> String {
    format!(
        r#"
[features]
secondary_fs = "{}"
posix_fallocate = {{}}
rename_ctime = {{}}
stat_st_birthtime = {{}}
utime_now = {{}}
utimensat = {{}}

[settings]
naptime = 0.02
allow_remount = {remount}

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#,
        lab.arg("ds2")
    )
}

/// The verdict on each case, `ok`, `FAILED` or `skipped`, and the words that follow it.
fn verdicts(output: &str) -> BTreeMap<String, (String, String)> {
    let mut verdicts = BTreeMap::new();
    let mut last = None;
    for line in output.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [case, verdict @ ("ok" | "FAILED" | "skipped")] => {
                verdicts.insert(case.to_string(), (verdict.to_string(), String::new()));
                last = Some(case.to_string());
            }
            _ => {
                if let Some((_, why)) = last.as_ref().and_then(|case| verdicts.get_mut(case)) {
                    why.push_str(line);
                    why.push('\n');
                }
            }
        }
    }
    verdicts
}

/// mount(8) would leave a remount of a FUSE file system to a helper that wants to start the file
/// system's program anew; `-i` has it ask the kernel.
fn with_plain_mount(lab: &Lab) -> String {
    let programs = lab.root().join("programs");
    fs::create_dir_all(&programs).unwrap();
    let path = std::env::var("PATH").unwrap();
    let wrapper = format!("#!/bin/sh\nPATH='{path}' exec mount -i \"$@\"\n");
    fs::write(programs.join("mount"), wrapper).unwrap();
    fs::set_permissions(programs.join("mount"), Permissions::from_mode(0o755)).unwrap();
    format!("{}:{path}", programs.display())
}

/// Have it judge the cases whose names contain `pattern`.
fn judged(lab: &Lab, pattern: &str, remount: bool) -> BTreeMap<String, (String, String)> {
    let config_file = lab.root().join("pjdfstest.toml");
    fs::write(&config_file, config(lab, remount)).unwrap();
    let output = Command::new(judge("pjdfstest"))
        .arg("--configuration-file")
        .arg(&config_file)
        .arg("--path")
        .arg(lab.path("ds1/cases"))
        .arg(pattern)
        .env("PATH", with_plain_mount(lab))
        .env("NO_COLOR", "1")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("\nSummary: "), "it did not come to its end:\n{text}{complaints}");
    verdicts(&text)
}

#[test]
fn pjdfstest_has_nothing_to_say() {
    let lab = Lab::new();
    // Its users have to come by.
    fs::set_permissions(lab.root(), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(lab.path("ds1/cases")).unwrap();
    let mut verdicts = judged(&lab, "", false);
    // By itself: it leaves files open for writing in other cases, which forbids a read-only mount.
    verdicts.extend(judged(&lab, "erofs", true));
    let expected =
        |case: &str| EXCEPTIONS.iter().find(|(name, ..)| *name == case).map_or("ok", |(_, v, _)| v);
    let mut wrong: Vec<String> = verdicts
        .iter()
        .filter(|(case, (verdict, _))| expected(case) != verdict)
        .map(|(case, (verdict, why))| format!("{case}: {verdict}, not {}\n{why}", expected(case)))
        .collect();
    let unheard = EXCEPTIONS.iter().filter(|(case, ..)| !verdicts.contains_key(*case));
    wrong.extend(unheard.map(|(case, ..)| format!("{case}: there is no such case")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(verdicts.len() >= CASES, "only {} cases", verdicts.len());
    println!("{} cases", verdicts.len());
}
