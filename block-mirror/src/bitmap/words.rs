//! The memory of a [`super::Bitmap`]: anonymous, or a mapped file with a header.
//!
//! File layout, little endian: magic `GWDIRTY\x01` (8 bytes), version u32, granularity u32 in
//! bytes, bits u64; the level-0 words start at byte 4096. Nothing else is kept: level 1 and the
//! count are rebuilt when the file is read back.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use memmap2::MmapMut;

use super::{BitmapError, check_length, words_for};

const MAGIC: &[u8; 8] = b"GWDIRTY\x01";
const VERSION: u32 = 1;
const HEADER: usize = 4096;

#[derive(Debug)]
pub(super) struct Words {
    map: MmapMut,
    /// Bytes before the first word.
    skip: usize,
    len: usize,
    file: Option<(File, PathBuf)>,
}

impl Words {
    pub(super) fn anonymous(len: usize) -> Result<Words, BitmapError> {
        Ok(Words { map: map_anonymous(len)?, skip: 0, len, file: None })
    }

    pub(super) fn create(path: &Path, bits: u64, granularity: u32) -> Result<Words, BitmapError> {
        let failed = |source| BitmapError::Io { context: format!("create {}", path.display()), source };
        // A new inode: a process that still maps the old file must not see its length change.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(failed)?;
        let len = words_for(bits);
        file.set_len((HEADER + len * 8) as u64).map_err(failed)?;
        let mut words =
            Words { map: map_file(&file, path)?, skip: HEADER, len, file: Some((file, path.to_owned())) };
        words.write_header(bits, granularity);
        Ok(words)
    }

    /// Returns the words, the bits and the granularity.
    pub(super) fn open(path: &Path) -> Result<(Words, u64, u32), BitmapError> {
        let failed = |source| BitmapError::Io { context: format!("open {}", path.display()), source };
        let refuse = |reason: &str| BitmapError::Format { path: path.to_owned(), reason: reason.to_owned() };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        if size < HEADER as u64 {
            return Err(refuse("shorter than its header"));
        }
        let map = map_file(&file, path)?;
        if &map[..8] != MAGIC {
            return Err(refuse("wrong magic"));
        }
        let version = u32::from_le_bytes(map[8..12].try_into().expect("4 bytes"));
        if version != VERSION {
            return Err(refuse(&format!("version {version}, this program knows {VERSION}")));
        }
        let granularity = u32::from_le_bytes(map[12..16].try_into().expect("4 bytes"));
        let bits = u64::from_le_bytes(map[16..24].try_into().expect("8 bytes"));
        if granularity == 0 {
            return Err(refuse("granularity 0"));
        }
        check_length(bits)?;
        let len = words_for(bits);
        if size < (HEADER + len * 8) as u64 {
            return Err(refuse("cut short"));
        }
        Ok((Words { map, skip: HEADER, len, file: Some((file, path.to_owned())) }, bits, granularity))
    }

    pub(super) fn grow(&mut self, bits: u64) -> Result<(), BitmapError> {
        let len = words_for(bits);
        match &self.file {
            None => {
                let mut map = map_anonymous(len)?;
                map[..self.len * 8].copy_from_slice(&self.map[..self.len * 8]);
                self.map = map;
            }
            Some((file, path)) => {
                file.set_len((HEADER + len * 8) as u64).map_err(|source| BitmapError::Io {
                    context: format!("grow {}", path.display()),
                    source,
                })?;
                self.map = map_file(file, path)?;
                // After the words exist: a reader that sees the new length finds them.
                self.map[16..24].copy_from_slice(&bits.to_le_bytes());
            }
        }
        self.len = len;
        Ok(())
    }

    fn write_header(&mut self, bits: u64, granularity: u32) {
        self.map[8..12].copy_from_slice(&VERSION.to_le_bytes());
        self.map[12..16].copy_from_slice(&granularity.to_le_bytes());
        self.map[16..24].copy_from_slice(&bits.to_le_bytes());
        // Last: a file without its magic is not a bitmap yet.
        self.map[..8].copy_from_slice(MAGIC);
    }

    #[allow(unsafe_code)]
    pub(super) fn as_slice(&self) -> &[AtomicU64] {
        debug_assert!(self.map.len() >= self.skip + self.len * 8);
        // SAFETY: the map is page-aligned, `skip` is 0 or one page, and every constructor made it
        // at least `skip + len * 8` bytes long. The memory stays mapped while `self` is borrowed,
        // is writable, and through `&self` it is only ever touched as these atomics; plain
        // accesses (header, grow) need `&mut self`.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.skip).cast(), self.len) }
    }
}

fn map_anonymous(len: usize) -> Result<MmapMut, BitmapError> {
    MmapMut::map_anon((len * 8).max(8))
        .map_err(|source| BitmapError::Io { context: "get memory for a dirty bitmap".into(), source })
}

#[allow(unsafe_code)]
fn map_file(file: &File, path: &Path) -> Result<MmapMut, BitmapError> {
    // SAFETY: the file is the program's own, in its run directory, and never shortened: `create`
    // makes a new inode and `grow` only lengthens. Nobody else writes to it.
    unsafe { MmapMut::map_mut(file) }
        .map_err(|source| BitmapError::Io { context: format!("map {}", path.display()), source })
}
