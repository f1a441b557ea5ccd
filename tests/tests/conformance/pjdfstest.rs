//! Each case of `pjdfstest` passes, but for those that are listed here with the reason.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use godwit_tests::lab::Lab;

use super::judge;

/// Cases that fail, and why that is right for this file system or not its doing.
const FAILING: &[(&str, &str)] = &[];

/// What the judge is told of the file system. Users and groups are such as every Debian has.
fn config(lab: &Lab) -> String {
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
allow_remount = true

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

#[test]
fn pjdfstest_finds_the_mount_posix() {
    let lab = Lab::new();
    // Its users have to come by.
    fs::set_permissions(lab.root(), Permissions::from_mode(0o755)).unwrap();
    let config_file = lab.root().join("pjdfstest.toml");
    fs::write(&config_file, config(&lab)).unwrap();
    fs::create_dir(lab.path("ds1/cases")).unwrap();
    let output = Command::new(judge("pjdfstest"))
        .arg("--configuration-file")
        .arg(&config_file)
        .arg("--path")
        .arg(lab.path("ds1/cases"))
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
}
