//! How much of a range of a file has its space already, written or only reserved.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use rustix::fs::{SeekFrom, seek};

/// FS_IOC_FIEMAP of linux/fs.h: _IOWR('f', 11, struct fiemap).
const FS_IOC_FIEMAP: libc::Ioctl = 0xC020_660B_u32 as libc::Ioctl;
const EXTENTS: usize = 32;

/// struct fiemap_extent of linux/fiemap.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// struct fiemap of linux/fiemap.h with room for its extents.
#[repr(C)]
#[derive(Default)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// Bytes of `range` that have space. Where the file system can't tell reserved space (tmpfs), only
/// what was written counts.
pub fn allocated(file: &File, range: Range<u64>) -> io::Result<u64> {
    let (mut sum, mut at) = (0, range.start);
    while at < range.end {
        let mut map =
            Fiemap { start: at, length: range.end - at, count: EXTENTS as u32, ..Fiemap::default() };
        // SAFETY: the kernel reads and writes one struct fiemap with `count` extents behind it, and
        // `map` is that; the descriptor is open as long as `file`.
        #[allow(unsafe_code)]
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &mut map) };
        if result != 0 {
            return written(file, range);
        }
        let found = &map.extents[..(map.mapped as usize).min(EXTENTS)];
        let Some(last) = found.last() else { break };
        for extent in found {
            let end = (extent.logical + extent.length).min(range.end);
            sum += end.saturating_sub(extent.logical.max(at));
        }
        at = (last.logical + last.length).max(at + 1);
    }
    Ok(sum)
}

fn written(file: &File, range: Range<u64>) -> io::Result<u64> {
    let (mut sum, mut at) = (0, range.start);
    while at < range.end {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < range.end => start,
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        at = seek(file, SeekFrom::Hole(start))?.min(range.end);
        sum += at - start;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn written_and_reserved_space_counts_and_holes_do_not() {
        let file = tempfile::tempfile_in(".").expect("a scratch file on disk");
        file.set_len(1 << 20).expect("size");
        assert_eq!(allocated(&file, 0..1 << 20).expect("ask"), 0);
        file.write_all_at(&[1; 8192], 65536).expect("write");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 131072, 65536).expect("reserve");
        assert_eq!(allocated(&file, 0..1 << 20).expect("ask"), 8192 + 65536);
        assert_eq!(allocated(&file, 65536..69632).expect("ask"), 4096);
        assert_eq!(allocated(&file, 196608..1 << 20).expect("ask"), 0);
        assert_eq!(written(&file, 0..131072).expect("ask"), 8192);
    }
}
