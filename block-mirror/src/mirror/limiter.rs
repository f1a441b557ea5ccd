//! A token bucket for copy bytes. It may go into debt by one copy and then waits the debt out.

/// Nanoseconds of credit that can be saved up while nothing is copied.
const BURST_NS: u64 = 100_000_000;
const SECOND: u128 = 1_000_000_000;

#[derive(Debug)]
pub(super) struct Limiter {
    /// Bytes per second.
    rate: Option<u64>,
    /// The bucket is full up to this point in time: a copy may start when `paid_until <= now`.
    paid_until: u64,
}

impl Limiter {
    pub(super) fn new(rate: Option<u64>) -> Limiter {
        Limiter { rate, paid_until: 0 }
    }

    pub(super) fn set_rate(&mut self, rate: Option<u64>, now: u64) {
        // A debt made at a low rate must not outlive it.
        self.paid_until = self.paid_until.min(now);
        self.rate = rate;
    }

    /// When the next copy may start; `None` for now.
    pub(super) fn ready_at(&self, now: u64) -> Option<u64> {
        (self.rate.is_some() && self.paid_until > now).then_some(self.paid_until)
    }

    pub(super) fn take(&mut self, bytes: u64, now: u64) {
        if let Some(rate) = self.rate {
            let cost = u128::from(bytes) * SECOND / u128::from(rate.max(1));
            let cost = u64::try_from(cost).unwrap_or(u64::MAX);
            self.paid_until = self.paid_until.max(now.saturating_sub(BURST_NS)).saturating_add(cost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_run_keeps_to_the_rate() {
        let mut limiter = Limiter::new(Some(1000));
        let (mut now, mut sent) = (5_000_000_000, 0);
        while now < 105_000_000_000 {
            match limiter.ready_at(now) {
                Some(at) => now = at,
                None => {
                    limiter.take(700, now);
                    sent += 700;
                }
            }
        }
        assert!((100_000..=100_000 + 2 * 700 + 100).contains(&sent), "{sent}");
    }

    #[test]
    fn without_a_rate_it_never_waits_and_a_new_rate_forgives_debt() {
        let mut limiter = Limiter::new(None);
        limiter.take(u64::MAX, 1);
        assert_eq!(limiter.ready_at(1), None);
        limiter.set_rate(Some(1), 1);
        limiter.take(1_000, 1);
        assert!(limiter.ready_at(2).is_some());
        limiter.set_rate(Some(1_000_000), 2);
        assert_eq!(limiter.ready_at(2), None);
    }
}
