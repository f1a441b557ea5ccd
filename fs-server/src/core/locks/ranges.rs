//! Byte ranges and one owner's locked spans of one file: sorted, disjoint, and never two where one
//! would do.

use serde::{Deserialize, Serialize};

/// `start..=end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Last byte; `u64::MAX` is the end of the file, wherever that comes to be.
    pub end: u64,
}

/// The kernel's last offset, which it gives for "to the end".
const OFFSET_MAX: u64 = i64::MAX as u64;

impl Range {
    /// Everything.
    pub const WHOLE: Range = Range { start: 0, end: u64::MAX };

    /// From first to last byte.
    pub fn new(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    /// As FUSE gives it, whose end of the file is the greatest signed offset.
    pub fn from_fuse(start: u64, end: u64) -> Range {
        Range { start, end: if end >= OFFSET_MAX { u64::MAX } else { end } }
    }

    /// Last byte as FUSE takes it; it refuses greater ones.
    pub fn fuse_end(self) -> u64 {
        self.end.min(OFFSET_MAX)
    }

    /// Whether it has a byte at all.
    pub fn is_valid(self) -> bool {
        self.start <= self.end
    }

    /// Whether they share a byte.
    pub fn overlaps(self, other: Range) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// How bytes are locked. A stronger mode is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Others may share.
    Shared,
    /// Nobody else.
    Exclusive,
}

impl Mode {
    /// Whether two owners can't have these on one byte.
    pub fn conflicts(self, other: Mode) -> bool {
        self == Mode::Exclusive || other == Mode::Exclusive
    }
}

/// A locked range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// Which bytes.
    pub range: Range,
    /// How.
    pub mode: Mode,
}

/// One owner's spans of one file, in order; neighbours that touch differ in mode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spans(Vec<Span>);

impl Spans {
    /// In order.
    pub fn as_slice(&self) -> &[Span] {
        &self.0
    }

    /// Nothing locked.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that share a byte with `range`.
    pub fn over(&self, range: Range) -> impl Iterator<Item = &Span> {
        let first = self.0.partition_point(|span| span.range.end < range.start);
        self.0[first..].iter().take_while(move |span| span.range.start <= range.end)
    }

    /// Whether every byte of `range` is locked in `mode` or a stronger one.
    pub fn cover(&self, range: Range, mode: Mode) -> bool {
        let mut next = range.start;
        for span in self.over(range) {
            if span.range.start > next || span.mode < mode {
                return false;
            }
            match span.range.end.checked_add(1) {
                Some(byte) if span.range.end < range.end => next = byte,
                _ => return true,
            }
        }
        false
    }

    /// Lock a range in another mode, or unlock it (`None`). True if that changed anything.
    pub fn set(&mut self, range: Range, mode: Option<Mode>) -> bool {
        // Neighbours that only touch are taken out as well, so that they can be joined.
        let first = self.0.partition_point(|s| s.range.end.saturating_add(1) < range.start);
        let last = self.0.partition_point(|s| s.range.start <= range.end.saturating_add(1));
        let old = &self.0[first..last];
        let mut new: Vec<Span> = Vec::with_capacity(old.len() + 2);
        let mut push = |start: u64, end: u64, mode: Mode| match new.last_mut() {
            Some(before) if before.mode == mode && before.range.end.checked_add(1) == Some(start) => {
                before.range.end = end;
            }
            _ => new.push(Span { range: Range { start, end }, mode }),
        };
        for span in old.iter().filter(|s| s.range.start < range.start) {
            push(span.range.start, span.range.end.min(range.start - 1), span.mode);
        }
        if let Some(mode) = mode {
            push(range.start, range.end, mode);
        }
        for span in old.iter().filter(|s| s.range.end > range.end) {
            push(span.range.start.max(range.end + 1), span.range.end, span.mode);
        }
        let changed = new != old;
        if changed {
            self.0.splice(first..last, new);
        }
        changed
    }

    /// Whether it is as [`Spans::set`] would have made it.
    pub fn is_sound(&self) -> bool {
        let apart = |a: &Span, b: &Span| {
            a.range.end < b.range.start && (a.mode != b.mode || a.range.end + 1 < b.range.start)
        };
        self.0.iter().all(|span| span.range.is_valid())
            && self.0.windows(2).all(|pair| apart(&pair[0], &pair[1]))
    }
}
