//! Counters of a mirror and what they say about its progress.

use super::Phase;

/// How a mirror is getting on. Bytes unless said otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// How far it is.
    pub phase: Phase,
    /// No copies are being started.
    pub paused: bool,
    /// The source's size.
    pub size: u64,
    /// Copied so far plus what is known to be left; grows while the map is read and the guest writes.
    pub total_estimate: u64,
    /// Compared equal since: read from the source and in place at the destination, each pass counted.
    pub copied: u64,
    /// Of `copied`, what was zeroes and was not sent.
    pub zeroes: u64,
    /// Guest bytes that went to both disks.
    pub mirrored: u64,
    /// Left to copy.
    pub dirty: u64,
    /// Walks over the bitmap that were finished.
    pub passes: u64,
    /// Times the mirror stepped back because the destination failed or kept the guest waiting.
    pub step_backs: u64,
    /// Copied bytes per second, averaged over the last seconds.
    pub copy_rate: u64,
    /// Bytes per second that the guest makes dirty, averaged over the last seconds.
    pub dirty_rate: u64,
}

/// Averages over about `TAU` seconds.
const TAU: f64 = 2.0;
/// Shorter samples are gathered up.
const SAMPLE_NS: u64 = 200_000_000;

#[derive(Debug, Default)]
pub(super) struct Rate {
    since: Option<u64>,
    gathered: u64,
    average: f64,
}

impl Rate {
    pub(super) fn add(&mut self, bytes: u64, now: u64) {
        self.settle(now);
        self.gathered += bytes;
    }

    fn settle(&mut self, now: u64) {
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_sub(since);
        if passed >= SAMPLE_NS {
            self.average = self.blend(passed);
            self.gathered = 0;
            self.since = Some(now);
        }
    }

    fn blend(&self, passed: u64) -> f64 {
        let seconds = passed as f64 / 1e9;
        let weight = 1.0 - (-seconds / TAU).exp();
        self.average + weight * (self.gathered as f64 / seconds - self.average)
    }

    /// Bytes per second as of `now`.
    pub(super) fn per_second(&self, now: u64) -> u64 {
        let passed = self.since.map_or(0, |since| now.saturating_sub(since));
        if passed >= SAMPLE_NS { self.blend(passed) as u64 } else { self.average as u64 }
    }
}

#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) copied: u64,
    pub(super) zeroes: u64,
    pub(super) mirrored: u64,
    pub(super) passes: u64,
    pub(super) step_backs: u64,
    pub(super) copy_rate: Rate,
    pub(super) dirty_rate: Rate,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_found_and_fades() {
        let mut rate = Rate::default();
        let ms = 1_000_000;
        for tick in 0..2000 {
            rate.add(1000, tick * 10 * ms);
        }
        let now = 20_000 * ms;
        assert!((95_000..105_000).contains(&rate.per_second(now)), "{}", rate.per_second(now));
        assert!(rate.per_second(now + 20_000 * ms) < 1_000);
    }
}
