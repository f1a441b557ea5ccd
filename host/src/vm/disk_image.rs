//! A new disk: empty, or a copy that keeps its holes. Blocking; not for the runtime's workers.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::SeekFrom;

use super::config::Format;
use super::error::VmError;

const CHUNK: usize = 1 << 20;
/// Zeroes of this length in the source become holes.
const HOLE: usize = 64 << 10;
/// Guests see disks in sectors of 512 bytes.
const SECTOR: u64 = 512;
const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";

/// Make an empty disk of `size` bytes at `path`, which must not exist.
pub fn make_empty(path: &Path, format: Format, size: u64) -> Result<(), VmError> {
    check_size(size)?;
    let create = || VmError::io(format!("create {}", path.display()));
    match format {
        Format::Raw => {
            let file = File::create_new(path).map_err(create())?;
            file.set_len(size).and_then(|()| file.sync_all()).map_err(create())
        }
        Format::Qcow2 => {
            File::create_new(path).map_err(create())?;
            let output = Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2"])
                .arg(path)
                .arg(size.to_string())
                .output()
                .map_err(|source| VmError::NoProgram { program: "qemu-img".into(), source })?;
            if output.status.success() {
                return Ok(());
            }
            let words = String::from_utf8_lossy(&output.stderr).trim().to_string();
            Err(create()(io::Error::other(words)))
        }
    }
}

/// Make a disk at `path`, which must not exist, with the content of the host's file `from`.
/// With `size` a raw disk is grown to it.
pub fn make_copy(path: &Path, from: &Path, format: Format, size: Option<u64>) -> Result<(), VmError> {
    let read = || VmError::io(format!("read {}", from.display()));
    let source = File::open(from).map_err(read())?;
    let meta = source.metadata().map_err(read())?;
    if !meta.is_file() {
        return Err(VmError::Usage(format!("{} is not a regular file", from.display())));
    }
    check_format(from, &source, format)?;
    let wanted = match (size, format) {
        (None, Format::Raw) => meta.len().next_multiple_of(SECTOR),
        (None, Format::Qcow2) => meta.len(),
        (Some(_), Format::Qcow2) => {
            return Err(VmError::Usage(
                "a copied qcow2 disk keeps its size; leave the size out and use `qemu-img resize` later"
                    .into(),
            ));
        }
        (Some(size), Format::Raw) if size < meta.len() => {
            let (from, len) = (from.display(), meta.len());
            return Err(VmError::Usage(format!("{from} has {len} bytes, more than the disk's {size}")));
        }
        (Some(size), Format::Raw) => size,
    };
    if format == Format::Raw {
        check_size(wanted)?;
    }
    let write = || VmError::io(format!("copy {} to {}", from.display(), path.display()));
    let target = File::create_new(path).map_err(write())?;
    target.set_len(wanted).map_err(write())?;
    copy_data(&source, &target, meta.len()).and_then(|()| target.sync_all()).map_err(write())
}

fn check_size(size: u64) -> Result<(), VmError> {
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(VmError::Usage(format!(
            "a disk of {size} bytes: must be a multiple of {SECTOR}, and not 0"
        )));
    }
    Ok(())
}

fn check_format(path: &Path, source: &File, format: Format) -> Result<(), VmError> {
    let mut start = Vec::new();
    source
        .take(QCOW2_MAGIC.len() as u64)
        .read_to_end(&mut start)
        .map_err(VmError::io(format!("read {}", path.display())))?;
    let found = if start == QCOW2_MAGIC { Format::Qcow2 } else { Format::Raw };
    if found != format {
        let (found, asked) = (found.as_str(), format.as_str());
        return Err(VmError::Usage(format!("{} is {found}, and the disk shall be {asked}", path.display())));
    }
    Ok(())
}

/// Copy the data of `source`; `target` reads as zeroes.
fn copy_data(source: &File, target: &File, len: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some((start, end)) = next_data(source, at, len)? {
        at = start;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let got = source.read_at(&mut buffer[..want], at)?;
            if got == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
            }
            for (i, block) in buffer[..got].chunks(HOLE).enumerate() {
                if block.iter().any(|byte| *byte != 0) {
                    target.write_all_at(block, at + (i * HOLE) as u64)?;
                }
            }
            at += got as u64;
        }
    }
    Ok(())
}

/// The next range of `source` from `at` on that isn't a hole.
fn next_data(source: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= len {
        return Ok(None);
    }
    let start = match rustix::fs::seek(source, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        // A file system without holes: all of it is data.
        Err(rustix::io::Errno::INVAL) => return Ok(Some((at, len))),
        Err(e) => return Err(e.into()),
    };
    let end = rustix::fs::seek(source, SeekFrom::Hole(start))?;
    Ok((start < len).then_some((start, end.min(len))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn sparse_source(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("from.raw");
        let file = File::create(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"start", 0).unwrap();
        // Written zeroes with one byte among them, across a chunk's end.
        file.write_all_at(&vec![0; 3 << 20], (10 << 20) - 5).unwrap();
        file.write_all_at(b"x", (11 << 20) - 1).unwrap();
        file.write_all_at(b"end", (64 << 20) - 3).unwrap();
        path
    }

    #[test]
    fn a_copy_has_the_bytes_and_the_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (sparse_source(dir.path()), dir.path().join("to.raw"));
        make_copy(&to, &from, Format::Raw, None).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        let allocated = std::fs::metadata(&to).unwrap().blocks() * 512;
        assert!(allocated <= 4 * HOLE as u64, "{allocated} bytes allocated");
    }

    #[test]
    fn a_copy_grows_to_the_size_asked_for_and_never_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (sparse_source(dir.path()), dir.path().join("to.raw"));
        let error = make_copy(&to, &from, Format::Raw, Some(1 << 20)).unwrap_err();
        assert!(error.to_string().contains("more than the disk's 1048576"), "{error}");
        assert!(!to.exists());
        make_copy(&to, &from, Format::Raw, Some(128 << 20)).unwrap();
        assert_eq!(std::fs::metadata(&to).unwrap().len(), 128 << 20);
        std::fs::write(&from, b"odd").unwrap();
        make_copy(&dir.path().join("odd"), &from, Format::Raw, None).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("odd")).unwrap().len(), 512);
    }

    #[test]
    fn the_formats_must_agree() {
        let dir = tempfile::tempdir().unwrap();
        let (raw, qcow2) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&raw, [1; 512]).unwrap();
        std::fs::write(&qcow2, b"QFI\xfb and so on").unwrap();
        let to = dir.path().join("to");
        let error = make_copy(&to, &qcow2, Format::Raw, None).unwrap_err();
        assert!(error.to_string().ends_with("is qcow2, and the disk shall be raw"), "{error}");
        assert!(make_copy(&to, &raw, Format::Qcow2, None).is_err());
        make_copy(&to, &qcow2, Format::Qcow2, None).unwrap();
        assert!(std::fs::read(&to).unwrap() == b"QFI\xfb and so on");
    }

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, "precious").unwrap();
        for format in [Format::Raw, Format::Qcow2] {
            assert!(make_empty(&path, format, 1 << 20).is_err());
        }
        assert!(make_copy(&path, &sparse_source(dir.path()), Format::Raw, None).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        assert!(make_empty(&dir.path().join("odd"), Format::Raw, 1000).is_err());
    }
}
