//! A limit on the rate, a time by which to be done, and patience with a side that says "not now".

use std::io;
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

/// Steps in a row that moved nothing because a side would block.
#[derive(Debug, Default)]
pub(crate) struct Stalls {
    /// How far the transfer had come at the last one.
    at: u64,
    count: u32,
    /// The one at which poll(2) called the side ready.
    ready: u32,
}

/// What is known of a side that blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stall {
    /// Nothing that speaks against it.
    Likely,
    /// It is ready, perhaps only just now: to be tried once more.
    Again,
    /// It was tried again, and still is ready: the call does not speak the truth.
    False,
}

impl Stalls {
    /// So many in a row are not looked into: whoever waits for several things tries often.
    const USUAL: u32 = 64;
    /// After so many pauses, a side that poll(2) calls ready is given up: some 5 s.
    const PAUSES: u32 = 512;

    /// Counts one; `at` differs from one to the next where something has moved in between.
    pub(crate) fn count(&mut self, at: u64) -> u32 {
        if self.at != at {
            *self = Self {
                at,
                ..Self::default()
            };
        }
        self.count = self.count.saturating_add(1);
        self.count
    }

    /// Whether the last one was not the first.
    pub(crate) fn is_repeated(&self) -> bool {
        self.count > 1
    }

    /// Asks now and then whether the side is ready all the time.
    ///
    /// # Errors
    /// Those of asking.
    pub(crate) fn look(
        &mut self,
        is_ready: impl FnOnce() -> io::Result<bool>,
    ) -> io::Result<Stall> {
        let again = self.ready > 0 && self.count == self.ready + 1;
        if !again && self.count % Self::USUAL != 0 || !is_ready()? {
            return Ok(Stall::Likely);
        }
        self.ready = self.count;
        Ok(if again { Stall::False } else { Stall::Again })
    }

    /// Pauses where a side was called ready that often and never was: up to 10 ms. `false` where that
    /// has to have an end.
    pub(crate) fn pause(&self, deadline: Option<Instant>) -> bool {
        let Some(extra) = self.count.checked_sub(Self::USUAL) else {
            return true;
        };
        pause(Duration::from_millis(extra.clamp(1, 10).into()), deadline);
        extra < Self::PAUSES
    }
}

/// Sleeps, but not beyond a deadline.
pub(crate) fn pause(time: Duration, deadline: Option<Instant>) {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    std::thread::sleep(left.map_or(time, |left| left.min(time)));
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
