//! A limit on the rate, and a time by which to be done.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// What a transfer may use of time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// Bytes per second.
    pub(crate) rate: Option<NonZeroU64>,
    pub(crate) deadline: Option<Instant>,
}

/// A transfer's use of its [`Limits`].
#[derive(Debug)]
pub(crate) struct Pace {
    limits: Limits,
    /// When the next byte may pass. It runs ahead of the clock while the limit is reached.
    next: Instant,
    /// The last step was held up by it.
    held: bool,
}

/// How far a transfer that was held up may run ahead to catch up.
const CATCH_UP: Duration = Duration::from_millis(100);

impl Pace {
    /// `None` where there is no limit to keep.
    pub(crate) fn new(limits: Limits) -> Option<Self> {
        let limited = limits.rate.is_some() || limits.deadline.is_some();
        limited.then(|| Self {
            limits,
            next: Instant::now(),
            held: false,
        })
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.limits.deadline
    }

    pub(crate) fn is_over(&self) -> bool {
        self.limits
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Whether the rate holds the next byte up.
    pub(crate) fn holds(&mut self) -> bool {
        self.held = self.limits.rate.is_some() && self.next > Instant::now();
        self.held
    }

    /// When the next byte may pass, if not now, or the deadline before that. What held the last step up is named even where the
    /// time has come meanwhile: whoever asks would else take a side for blocked that never was.
    pub(crate) fn resume_at(&self) -> Option<Instant> {
        let early = self.limits.rate.is_some() && self.next > Instant::now();
        let at = self.limits.deadline.map_or(self.next, |d| d.min(self.next));
        (early || self.held).then_some(at)
    }

    /// The most that may pass at once: what the rate allows in a tenth of a second, so that it is
    /// even, but no fewer bytes than a call is worth.
    pub(crate) fn grain(&self) -> Option<u64> {
        self.limits.rate.map(|rate| (rate.get() / 10).max(4096))
    }

    /// Takes note of bytes that have passed.
    pub(crate) fn passed(&mut self, bytes: u64) {
        if let Some(rate) = self.limits.rate {
            let cost = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
            let earliest = Instant::now().checked_sub(CATCH_UP);
            self.next = earliest.map_or(self.next, |earliest| self.next.max(earliest)) + cost;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_held_a_step_up_is_named_after_its_time_has_come() {
        let rate = NonZeroU64::new(1 << 20);
        let deadline = None;
        let mut pace = Pace::new(Limits { rate, deadline }).unwrap();
        pace.passed(1 << 17);
        pace.next = Instant::now() + Duration::from_millis(20);
        assert!(pace.holds());
        std::thread::sleep(Duration::from_millis(30));
        assert!(pace.resume_at().is_some_and(|at| at <= Instant::now()));
        assert!(!pace.holds());
        assert!(pace.resume_at().is_none());
    }

    #[test]
    fn bytes_beyond_the_rate_have_to_wait() {
        let rate = NonZeroU64::new(1 << 20);
        let mut pace = Pace::new(Limits {
            rate,
            deadline: None,
        })
        .unwrap();
        assert!(pace.resume_at().is_none());
        pace.passed(10 << 20);
        let wait = pace.resume_at().unwrap() - Instant::now();
        assert!(
            wait > Duration::from_secs(9) && wait <= Duration::from_secs(10),
            "{wait:?}"
        );
        assert!(Pace::new(Limits::default()).is_none());
    }
}
