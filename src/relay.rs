//! Both directions between two stream sockets: what a proxy does with a connection.
//!
//! Bytes pass through a pipe by splice(2) while they come in quantity, and through a buffer by
//! read(2) and write(2) while they come in dribs: each direction switches by itself, both ways.
//! Pipes are borrowed from a bounded pool for as long as they hold bytes, buffers likewise, so an
//! idle connection holds neither. Where no pipe is to be had, read/write goes on.
//!
//! [`relay()`] is the blocking call. [`Relay`] is the state machine for an event loop, and what
//! the tokio form stands on.

mod blocking;
mod engine;
mod pump;
mod report;

use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::backend::Side;
use crate::error::{Error, Result};
use crate::pace::Limits;
use crate::report::Status;
use crate::sys::PipePool;

pub(crate) use pump::{Pulse, Pump};
pub use report::{Direction, Flow, RelayEnd, RelayError, RelayReport};

/// What is done when one peer has said all that it will (its FIN).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HalfClose {
    /// The other peer is told by shutdown(2) once it has got everything, and may go on talking.
    #[default]
    PassOn,
    /// Nothing more is taken from the other peer either. What was taken from it is still delivered,
    /// and then both have been told.
    CloseBoth,
}

/// What one side of a relay has to become ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wait {
    /// Reading.
    pub readable: bool,
    /// Writing.
    pub writable: bool,
}

/// What [`Relay::advance`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayStatus {
    /// Something moved.
    Moved,
    /// Nothing moved. Wait until one of these is ready.
    Blocked {
        /// What to wait for on the first socket.
        a: Wait,
        /// What to wait for on the second socket.
        b: Wait,
    },
    /// Both directions have ended.
    Finished,
}

/// How to relay.
#[derive(Clone, Debug, Default)]
pub struct RelayOptions {
    half_close: HalfClose,
    idle: Option<Duration>,
    limits: Limits,
}

impl RelayOptions {
    /// The defaults: half-closes passed on, no limit on idling, rate or time.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is done when one peer has finished.
    pub fn half_close(&mut self, half_close: HalfClose) -> &mut Self {
        self.half_close = half_close;
        self
    }

    /// Ends the relay when nothing has moved either way for so long. Bytes move when the kernel takes
    /// them: a peer that reads more slowly than a socket buffer in that time is idle. Waiting for
    /// the rate is not.
    pub fn idle(&mut self, limit: Duration) -> &mut Self {
        self.idle = Some(limit);
        self
    }

    /// At most so many bytes per second in each direction: see
    /// [`TransferOptions::rate`](crate::TransferOptions::rate).
    pub fn rate(&mut self, bytes_per_second: NonZeroU64) -> &mut Self {
        self.limits.rate = Some(bytes_per_second);
        self
    }

    /// After this time nothing moves any more: an error of [`TimedOut`](std::io::ErrorKind::TimedOut).
    pub fn deadline(&mut self, deadline: Instant) -> &mut Self {
        self.limits.deadline = Some(deadline);
        self
    }

    /// Starts a relay that moves when it is told to.
    ///
    /// # Errors
    /// Where a side is not a stream socket, or one that listens.
    pub fn start<A: AsFd, B: AsFd>(&self, a: A, b: B) -> Result<Relay<A, B>> {
        let (pool, pulse) = (pool(), Arc::new(Pulse::new()));
        let pump = |src, dst| Pump::new(src, dst, self.limits, &pool, &pulse);
        let (a_fd, b_fd) = (a.as_fd(), b.as_fd());
        pump::require_no_listener(Side::Source, a_fd)?;
        pump::require_no_listener(Side::Destination, b_fd)?;
        let (a_to_b, b_to_a) = (pump(a_fd, b_fd)?, pump(b_fd, a_fd)?);
        let options = self.clone();
        Ok(Relay {
            a,
            b,
            a_to_b,
            b_to_a,
            options,
            pulse,
        })
    }

    pub(crate) fn closes_both(&self) -> bool {
        self.half_close == HalfClose::CloseBoth
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn idle_limit(&self) -> Option<Duration> {
        self.idle
    }

    /// Relays until both directions have ended.
    ///
    /// # Errors
    /// As [`relay()`].
    pub fn relay<A: AsFd, B: AsFd>(
        &self,
        a: A,
        b: B,
    ) -> std::result::Result<RelayReport, RelayError> {
        match self.start(a.as_fd(), b.as_fd()) {
            Ok(mut relay) => blocking::run(&mut relay),
            Err(error) => Err(RelayError::at_start(error)),
        }
    }
}

/// Relays both directions between two stream sockets until both have ended.
///
/// A FIN is passed on by shutdown(2) after everything before it has been delivered. Works on
/// blocking and non-blocking sockets, by a thread for each direction, since a blocking socket that
/// is written to would hold up the other one. A socket's own `SO_RCVTIMEO` is not heeded.
///
/// Where it ends for another reason than that both directions did (the idle limit, the deadline, a
/// failure), both sockets have been shut down for writing.
///
/// # Errors
/// The first failure of either direction, with the exact counts of both.
pub fn relay<A: AsFd, B: AsFd>(a: A, b: B) -> std::result::Result<RelayReport, RelayError> {
    RelayOptions::new().relay(a, b)
}

/// A relay that can stop wherever the kernel would block, and go on.
///
/// [`advance`](Self::advance) never waits on non-blocking sockets; it says what to wait for. Bytes in
/// flight stay inside: to know what they are before letting go of it, [`into_report`].
///
/// Each call asks both sockets for their descriptors once. An [`AsFd`] that answers another one later
/// gets wrong bytes moved, and nothing worse.
///
/// [`into_report`]: Self::into_report
#[derive(Debug)]
#[must_use = "a relay moves nothing until it is advanced"]
pub struct Relay<A, B> {
    pub(crate) a: A,
    pub(crate) b: B,
    pub(crate) a_to_b: Pump,
    pub(crate) b_to_a: Pump,
    pub(crate) options: RelayOptions,
    pub(crate) pulse: Arc<Pulse>,
}

impl<A: AsFd, B: AsFd> Relay<A, B> {
    /// Moves at most one piece each way, of 1 MiB at most.
    ///
    /// # Errors
    /// The failure of one direction, with the exact counts of both. The relay is over then.
    pub fn advance(&mut self) -> std::result::Result<RelayStatus, RelayError> {
        let (a, b) = (self.a.as_fd(), self.b.as_fd());
        let (there, back) = loop {
            let there = match self.a_to_b.advance(a, b) {
                Ok(status) => status,
                Err(error) => return Err(self.failed(Direction::AToB, error)),
            };
            if self.options.closes_both() && self.a_to_b.is_done() {
                self.b_to_a.stop();
            }
            let back = match self.b_to_a.advance(b, a) {
                Ok(status) => status,
                Err(error) => return Err(self.failed(Direction::BToA, error)),
            };
            if self.options.closes_both() && self.b_to_a.is_done() && self.a_to_b.stop() {
                // What it waited for does not matter any more.
                continue;
            }
            break (there, back);
        };
        match (there, back) {
            (Status::Finished(_), Status::Finished(_)) => Ok(RelayStatus::Finished),
            (Status::Moved(_), _) | (_, Status::Moved(_)) => Ok(RelayStatus::Moved),
            _ => Ok(RelayStatus::Blocked {
                a: Wait {
                    readable: there == Status::Blocked(Side::Source),
                    writable: back == Status::Blocked(Side::Destination),
                },
                b: Wait {
                    readable: back == Status::Blocked(Side::Source),
                    writable: there == Status::Blocked(Side::Destination),
                },
            }),
        }
    }

    /// How long it may stay idle from now on, if there is a limit; zero when that is used up. The
    /// event loop waits no longer, and then lets go of the relay and closes the sockets.
    pub fn idle_left(&self) -> Option<Duration> {
        let limit = self.options.idle?;
        Some(limit.saturating_sub(self.pulse.quiet()))
    }

    /// When to advance again, where the rate is what holds it up: what `Blocked` names for that
    /// direction is no event to wait for.
    pub fn resume_at(&self) -> Option<Instant> {
        let there = self.a_to_b.driver().resume_at();
        let back = self.b_to_a.driver().resume_at();
        there.into_iter().chain(back).min()
    }

    /// Bytes that have reached the other side so far.
    pub fn delivered(&self, direction: Direction) -> u64 {
        match direction {
            Direction::AToB => self.a_to_b.driver().delivered(),
            Direction::BToA => self.b_to_a.driver().delivered(),
        }
    }

    /// Bytes in flight, both ways.
    pub fn in_flight(&self) -> u64 {
        self.a_to_b.driver().in_flight() + self.b_to_a.driver().in_flight()
    }

    /// The first socket.
    pub fn a(&self) -> &A {
        &self.a
    }

    /// The second socket.
    pub fn b(&self) -> &B {
        &self.b
    }

    /// Breaks the relay off, or sums it up when it has ended: counts, and what was taken and not
    /// delivered.
    pub fn into_report(mut self) -> RelayReport {
        let idle = self.idle_left() == Some(Duration::ZERO);
        self.report(if idle {
            RelayEnd::Idle
        } else {
            RelayEnd::Stopped
        })
    }

    /// `unless_closed`: how it ended, unless both directions came to their end.
    pub(crate) fn report(&mut self, unless_closed: RelayEnd) -> RelayReport {
        let closed = self.a_to_b.is_done() && self.b_to_a.is_done();
        RelayReport {
            a_to_b: self.a_to_b.flow(),
            b_to_a: self.b_to_a.flow(),
            end: if closed {
                RelayEnd::Closed
            } else {
                unless_closed
            },
        }
    }

    pub(crate) fn failed(&mut self, direction: Direction, error: Error) -> RelayError {
        RelayError::new(direction, error, self.report(RelayEnd::Stopped))
    }
}

/// The pool that all relays of this process share, for as long as there are any.
fn pool() -> Arc<PipePool> {
    static POOL: Mutex<Weak<PipePool>> = Mutex::new(Weak::new());
    /// Pipes of 1 MiB that may be lent at once: an unprivileged user may have 64 at full size
    /// (pipe-user-pages-soft), and a busy process has others to feed.
    const MOST: usize = 64;
    /// Pipes kept while nothing moves.
    const IDLE: usize = 8;
    let mut slot = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    slot.upgrade().unwrap_or_else(|| {
        let pool = Arc::new(PipePool::new(MOST, IDLE));
        *slot = Arc::downgrade(&pool);
        pool
    })
}

/// Pipes that the relays of this process hold now, lent or kept.
pub fn pipes() -> usize {
    pool().count()
}
