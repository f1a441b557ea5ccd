//! The numbers that a mirror works by.

/// When guest writes begin to go to both disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// When little is left, or when passes no longer gain on the guest.
    #[default]
    Auto,
    /// Only when little is left. A guest that writes faster than the copy keeps such a move from ending.
    Background,
    /// As soon as it is known what has to be copied.
    Mirror,
}

/// See each field; [`MirrorConfig::default`] is meant for real disks.
#[derive(Clone, Debug)]
pub struct MirrorConfig {
    /// When to write to both.
    pub mode: Mode,
    /// Copies in flight at most.
    pub depth: usize,
    /// Bytes per copy while guest writes don't wait for copies.
    pub bulk_chunk: u64,
    /// Bytes per copy while they do.
    pub mirror_chunk: u64,
    /// Enter [`super::Phase::Mirror`] when no more bytes than this are dirty.
    pub converged_bytes: u64,
    /// A pass that leaves more than this share (percent) of what the one before left is the last.
    pub pass_gain_percent: u64,
    /// A discard or zeroing of at least this many bytes goes to both disks in every phase, instead of
    /// being copied as zeroes.
    pub zero_both_bytes: u64,
    /// Flush the destination each time it was sent so many bytes.
    pub flush_every_bytes: u64,
    /// Copy bytes per second at most.
    pub limit: Option<u64>,
    /// How long (ns) the destination may keep a guest request waiting before the mirror steps
    /// back and the guest goes on with the source alone.
    pub patience_ns: u64,
    /// First pause (ns) after a destination error; doubles with each further one, up to 64-fold.
    pub retry_ns: u64,
    /// Destination errors in a row after which the mirror fails.
    pub destination_attempts: u32,
    /// Attempts at a region that arrives altered or can't be read.
    pub region_attempts: u32,
}

impl Default for MirrorConfig {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        const MS: u64 = 1_000_000;
        MirrorConfig {
            mode: Mode::Auto,
            depth: 8,
            bulk_chunk: MIB,
            mirror_chunk: MIB / 8,
            converged_bytes: 16 * MIB,
            pass_gain_percent: 70,
            zero_both_bytes: 4 * MIB,
            flush_every_bytes: 256 * MIB,
            limit: None,
            patience_ns: 3_000 * MS,
            retry_ns: 100 * MS,
            destination_attempts: 20,
            region_attempts: 4,
        }
    }
}
