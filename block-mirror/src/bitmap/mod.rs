//! The dirty bitmap: which regions of a disk the destination of a move may not have yet.
//!
//! Two levels of atomic words: level 0 has one bit per region, level 1 one bit per level-0 word,
//! so the next dirty region of an almost clean disk is found without walking the disk. Several
//! threads may set and clear at once; a bit that one thread sets while another clears its
//! neighbours is never lost. The words live in anonymous memory or in a mapped file that outlives
//! the process ([`Bitmap::mapped`], [`Bitmap::load`]). It does not know which disk it belongs to.

mod words;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use words::Words;

/// Bytes that one bit stands for unless told otherwise.
pub const DEFAULT_GRANULARITY: u32 = 64 * 1024;

/// The longest bitmap: 256 TiB at the default granularity, 512 MiB of memory when all of it is used.
pub const MAX_BITS: u64 = 1 << 32;

/// Why a bitmap could not be made, grown or read back.
#[derive(Debug, thiserror::Error)]
pub enum BitmapError {
    /// More regions than [`MAX_BITS`].
    #[error("a dirty bitmap of {bits} regions is larger than the largest of {MAX_BITS}")]
    TooLong {
        /// Regions asked for.
        bits: u64,
    },
    /// The file is not a bitmap, is of another version, or is cut short.
    #[error("{}: not a usable dirty bitmap: {reason}", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system or the memory map refused.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// Why not.
        source: std::io::Error,
    },
}

/// See the module's comment. Bit numbers count regions of [`Bitmap::granularity`] bytes.
#[derive(Debug)]
pub struct Bitmap {
    bits: u64,
    granularity: u32,
    words: Words,
    /// Bit `w` is set when level-0 word `w` may be nonzero; a nonzero word always has its bit.
    summary: Vec<AtomicU64>,
    count: AtomicU64,
}

impl Bitmap {
    /// All clean, in anonymous memory.
    pub fn heap(bits: u64) -> Result<Bitmap, BitmapError> {
        Bitmap::heap_with(bits, DEFAULT_GRANULARITY)
    }

    /// Like [`Bitmap::heap`] with `granularity` bytes per bit.
    pub fn heap_with(bits: u64, granularity: u32) -> Result<Bitmap, BitmapError> {
        check_length(bits)?;
        Ok(Bitmap::over(Words::anonymous(words_for(bits))?, bits, granularity))
    }

    /// All clean, in a new file at `path` (on tmpfs: it shall outlive the process, not the machine).
    /// A file that is there already is replaced.
    pub fn mapped(path: &Path, bits: u64) -> Result<Bitmap, BitmapError> {
        Bitmap::mapped_with(path, bits, DEFAULT_GRANULARITY)
    }

    /// Like [`Bitmap::mapped`] with `granularity` bytes per bit.
    pub fn mapped_with(path: &Path, bits: u64, granularity: u32) -> Result<Bitmap, BitmapError> {
        check_length(bits)?;
        Ok(Bitmap::over(Words::create(path, bits, granularity)?, bits, granularity))
    }

    /// The bitmap that an earlier process left at `path`, with its bits as they were.
    pub fn load(path: &Path) -> Result<Bitmap, BitmapError> {
        let (words, bits, granularity) = Words::open(path)?;
        let bitmap = Bitmap::over(words, bits, granularity);
        let mut count = 0;
        for (index, word) in bitmap.words.as_slice().iter().enumerate() {
            let value = word.load(Ordering::Relaxed);
            if value != 0 {
                count += u64::from(value.count_ones());
                bitmap.mark_word(index);
            }
        }
        bitmap.count.store(count, Ordering::Relaxed);
        Ok(bitmap)
    }

    fn over(words: Words, bits: u64, granularity: u32) -> Bitmap {
        assert!(granularity > 0, "a region has at least one byte");
        let mut summary = Vec::new();
        summary.resize_with(words_for(words_for(bits) as u64), AtomicU64::default);
        Bitmap { bits, granularity, words, summary, count: AtomicU64::new(0) }
    }

    /// Bytes per bit.
    pub fn granularity(&self) -> u32 {
        self.granularity
    }

    /// Regions covered.
    pub fn len(&self) -> u64 {
        self.bits
    }

    /// Whether no region is covered at all.
    pub fn is_empty(&self) -> bool {
        self.bits == 0
    }

    /// Dirty regions. Exact when nobody sets or clears meanwhile.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Cover `bits` regions; the new ones are clean. Never shrinks.
    pub fn grow(&mut self, bits: u64) -> Result<(), BitmapError> {
        if bits <= self.bits {
            return Ok(());
        }
        check_length(bits)?;
        self.words.grow(bits)?;
        self.summary.resize_with(words_for(words_for(bits) as u64), AtomicU64::default);
        self.bits = bits;
        Ok(())
    }

    /// Whether `bit` is dirty; regions past the end are clean.
    pub fn is_set(&self, bit: u64) -> bool {
        bit < self.bits && self.word((bit / 64) as usize) & (1 << (bit % 64)) != 0
    }

    /// Mark one region; `true` when it was clean.
    pub fn set(&self, bit: u64) -> bool {
        self.set_range(bit..bit + 1) == 1
    }

    /// Unmark one region; `true` when it was dirty.
    pub fn clear(&self, bit: u64) -> bool {
        self.clear_range(bit..bit + 1) == 1
    }

    /// Mark all of `range`; returns how many were clean before.
    ///
    /// # Panics
    /// When the range ends past the last region: a lost mark would be a lost write.
    pub fn set_range(&self, range: Range<u64>) -> u64 {
        assert!(range.end <= self.bits, "regions {range:?} of a bitmap of {}", self.bits);
        let mut newly = 0;
        for (index, mask) in masks(range) {
            let before = self.words.as_slice()[index].fetch_or(mask, Ordering::SeqCst);
            self.mark_word(index);
            newly += u64::from((mask & !before).count_ones());
        }
        self.count.fetch_add(newly, Ordering::Relaxed);
        newly
    }

    /// Unmark all of `range`, which may end past the last region; returns how many were dirty before.
    pub fn clear_range(&self, range: Range<u64>) -> u64 {
        let mut cleared = 0;
        let end = range.end.min(self.bits);
        let mut from = range.start;
        while let Some(bit) = self.next_dirty(from).filter(|bit| *bit < end) {
            let word_end = (bit / 64 + 1) * 64;
            let (index, mask) = masks(bit..word_end.min(end)).next().expect("the range has a bit");
            let before = self.words.as_slice()[index].fetch_and(!mask, Ordering::SeqCst);
            cleared += u64::from((mask & before).count_ones());
            if before & !mask == 0 {
                self.unmark_word(index);
            }
            from = word_end;
        }
        self.count.fetch_sub(cleared, Ordering::Relaxed);
        cleared
    }

    /// The first dirty region at or after `from`.
    pub fn next_dirty(&self, from: u64) -> Option<u64> {
        if from >= self.bits {
            return None;
        }
        let first = (from / 64) as usize;
        let value = self.word(first) & (u64::MAX << (from % 64));
        if value != 0 {
            return Some(first as u64 * 64 + u64::from(value.trailing_zeros()));
        }
        let mut index = first + 1;
        loop {
            index = self.next_marked_word(index)?;
            let value = self.word(index);
            if value != 0 {
                return Some(index as u64 * 64 + u64::from(value.trailing_zeros()));
            }
            index += 1;
        }
    }

    /// The first run of dirty regions at or after `from`, cut off at `max_bits`.
    pub fn next_dirty_run(&self, from: u64, max_bits: u64) -> Option<Range<u64>> {
        let start = self.next_dirty(from)?;
        let limit = start.saturating_add(max_bits.max(1)).min(self.bits);
        let mut end = start + 1;
        while end < limit {
            let ones = (self.word((end / 64) as usize) >> (end % 64)).trailing_ones();
            if ones == 0 {
                break;
            }
            end += u64::from(ones);
        }
        Some(start..end.min(limit))
    }

    fn word(&self, index: usize) -> u64 {
        self.words.as_slice()[index].load(Ordering::SeqCst)
    }

    fn mark_word(&self, index: usize) {
        let bit = 1 << (index % 64);
        let summary = &self.summary[index / 64];
        if summary.load(Ordering::SeqCst) & bit == 0 {
            summary.fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// Takes the summary bit away and gives it back when somebody set a bit of the word meanwhile.
    fn unmark_word(&self, index: usize) {
        self.summary[index / 64].fetch_and(!(1 << (index % 64)), Ordering::SeqCst);
        if self.word(index) != 0 {
            self.summary[index / 64].fetch_or(1 << (index % 64), Ordering::SeqCst);
        }
    }

    fn next_marked_word(&self, from: usize) -> Option<usize> {
        let mut index = from / 64;
        let mut mask = u64::MAX << (from % 64);
        while index < self.summary.len() {
            let value = self.summary[index].load(Ordering::SeqCst) & mask;
            if value != 0 {
                return Some(index * 64 + value.trailing_zeros() as usize);
            }
            mask = u64::MAX;
            index += 1;
        }
        None
    }

    /// Recounts everything and compares; for tests and simulators.
    ///
    /// # Panics
    /// When the summary or the count disagrees with the words.
    pub fn check_invariants(&self) {
        let mut count = 0;
        for (index, word) in self.words.as_slice()[..words_for(self.bits)].iter().enumerate() {
            let value = word.load(Ordering::SeqCst);
            count += u64::from(value.count_ones());
            let marked = self.summary[index / 64].load(Ordering::SeqCst) & (1 << (index % 64)) != 0;
            assert!(value == 0 || marked, "word {index} is dirty, its summary bit is clear");
        }
        assert_eq!(count, self.count(), "the kept count is wrong");
    }
}

/// 64-bit words that hold `bits` bits.
fn words_for(bits: u64) -> usize {
    usize::try_from(bits.div_ceil(64)).expect("bits are at most MAX_BITS")
}

fn check_length(bits: u64) -> Result<(), BitmapError> {
    if bits > MAX_BITS { Err(BitmapError::TooLong { bits }) } else { Ok(()) }
}

/// The words that `range` touches, each with the mask of its bits inside the range.
fn masks(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let index = at / 64;
        let stop = range.end.min((index + 1) * 64);
        let mask = (u64::MAX >> (64 - (stop - at))) << (at % 64);
        at = stop;
        Some((index as usize, mask))
    })
}
