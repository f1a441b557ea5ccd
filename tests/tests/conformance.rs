//! Judges from outside on a mount with real servers behind it: `pjdfstest` asks each system call for
//! what POSIX says of it, `fsx` does random operations on a file and checks each byte it reads.
//!
//! scripts/conformance-tools.sh installs both.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod conformance {
    use std::path::{Path, PathBuf};

    mod fsx;
    mod pjdfstest;

    /// Where the judge of this name is.
    fn judge(name: &str) -> PathBuf {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin").join(name);
        assert!(path.exists(), "{} is missing: run scripts/conformance-tools.sh first", path.display());
        path
    }
}
