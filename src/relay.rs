//! Both directions between two stream sockets: what a proxy does with a connection.
//!
//! Bytes pass through a pipe by splice(2) while they come in quantity, and through a buffer by
//! read(2) and write(2) while they come in dribs: each direction switches by itself, both ways.
//! Pipes are borrowed from a bounded pool for as long as they hold bytes, buffers likewise, so an
//! idle connection holds neither. Where no pipe is to be had, read/write goes on.
//!
//! [`relay()`] is the blocking call. [`Relay`] is the state machine for an event loop, and what
//! the tokio form stands on.

mod engine;

use std::error;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::socket::Shutdown;

use crate::backend::{Facts, Side};
use crate::driver::Driver;
use crate::error::{Error, ErrorKind, Result};
use crate::pace::Limits;
use crate::sys::{PipePool, call};
use crate::transfer::{End, Status};

use engine::Engine;

/// What is done when one peer has said all that it will (its FIN).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HalfClose {
    /// The other peer is told by shutdown(2) once it has got everything, and may go on talking.
    #[default]
    PassOn,
    /// What is under way is still delivered, then both connections are shut down.
    CloseBoth,
}

/// One of a relay's two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the first socket to the second.
    AToB,
    /// From the second socket to the first.
    BToA,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Direction::AToB => "a to b",
            Direction::BToA => "b to a",
        })
    }
}

/// Why a relay ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RelayEnd {
    /// Both directions have ended, or one did and [`HalfClose::CloseBoth`] was asked for.
    Closed,
    /// Nothing moved either way for as long as the idle limit allows.
    Idle,
}

/// What went through one direction.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Flow {
    /// Bytes delivered.
    pub bytes: u64,
    /// Bytes taken and not delivered: empty unless the relay was broken off.
    pub undelivered: Bytes,
    /// System calls made.
    pub syscalls: u64,
}

/// What a relay did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RelayReport {
    /// From the first socket to the second.
    pub a_to_b: Flow,
    /// From the second socket to the first.
    pub b_to_a: Flow,
    /// How it ended.
    pub end: RelayEnd,
}

/// Why a relay failed, with the exact counts of both directions.
#[derive(Debug)]
pub struct RelayError {
    inner: Box<(Direction, Error, RelayReport)>,
}

impl RelayError {
    pub(crate) fn at_start(error: Error) -> Self {
        let (a_to_b, b_to_a, end) = (Flow::default(), Flow::default(), RelayEnd::Closed);
        let report = RelayReport {
            a_to_b,
            b_to_a,
            end,
        };
        Self {
            inner: Box::new((Direction::AToB, error, report)),
        }
    }

    /// The direction that failed.
    pub fn direction(&self) -> Direction {
        self.inner.0
    }

    /// What went wrong in that direction. Its bytes in flight are here.
    pub fn error(&self) -> &Error {
        &self.inner.1
    }

    /// What both directions had moved.
    pub fn report(&self) -> &RelayReport {
        &self.inner.2
    }
}

impl fmt::Display for RelayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.direction(), self.error())
    }
}

impl error::Error for RelayError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(self.error())
    }
}

impl From<RelayError> for io::Error {
    fn from(error: RelayError) -> Self {
        let kind = error
            .error()
            .io_error()
            .map_or(io::ErrorKind::Other, io::Error::kind);
        io::Error::new(kind, error)
    }
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

    /// Ends the relay when nothing has moved either way for so long.
    pub fn idle(&mut self, limit: Duration) -> &mut Self {
        self.idle = Some(limit);
        self
    }

    pub(crate) fn closes_both(&self) -> bool {
        self.half_close == HalfClose::CloseBoth
    }

    pub(crate) fn idle_limit(&self) -> Option<Duration> {
        self.idle
    }

    /// At most so many bytes per second in each direction.
    pub fn rate(&mut self, bytes_per_second: std::num::NonZeroU64) -> &mut Self {
        self.limits.rate = Some(bytes_per_second);
        self
    }

    /// After this time nothing moves any more: an error of [`io::ErrorKind::TimedOut`].
    pub fn deadline(&mut self, deadline: Instant) -> &mut Self {
        self.limits.deadline = Some(deadline);
        self
    }

    /// Starts a relay that moves when it is told to.
    ///
    /// # Errors
    /// Where a side is not a stream socket.
    pub fn start<A: AsFd, B: AsFd>(&self, a: A, b: B) -> Result<Relay<A, B>> {
        let pool = pool();
        let pump = |src: BorrowedFd<'_>, dst: BorrowedFd<'_>| {
            require_stream(Side::Source, src)?;
            let engine = Box::new(Engine::new(Arc::clone(&pool)));
            let mut driver = Driver::with_backend(src, dst, u64::MAX, engine)?;
            driver.set_limits(self.limits);
            Ok(Pump {
                driver,
                state: State::Flowing,
                moved: None,
            })
        };
        let (a_fd, b_fd) = (a.as_fd(), b.as_fd());
        let (a_to_b, b_to_a) = (pump(a_fd, b_fd)?, pump(b_fd, a_fd)?);
        let options = self.clone();
        Ok(Relay {
            a,
            b,
            a_to_b,
            b_to_a,
            options,
            started: Instant::now(),
        })
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
            Ok(mut relay) => blocking(&mut relay),
            Err(error) => Err(RelayError::at_start(error)),
        }
    }
}

/// Relays both directions between two stream sockets until both have ended.
///
/// A FIN is passed on by shutdown(2) after everything before it has been delivered. Works on
/// blocking and non-blocking sockets; on two threads, since a blocking socket that is written to
/// would hold up the other direction.
///
/// # Errors
/// The first failure of either direction, with the exact counts of both. Both sockets are then
/// shut down.
pub fn relay<A: AsFd, B: AsFd>(a: A, b: B) -> std::result::Result<RelayReport, RelayError> {
    RelayOptions::new().relay(a, b)
}

/// A relay that can stop wherever the kernel would block, and go on.
///
/// [`advance`](Self::advance) never waits on non-blocking sockets; it says what to wait for.
#[derive(Debug)]
#[must_use = "a relay moves nothing until it is advanced"]
pub struct Relay<A, B> {
    pub(crate) a: A,
    pub(crate) b: B,
    pub(crate) a_to_b: Pump,
    pub(crate) b_to_a: Pump,
    pub(crate) options: RelayOptions,
    started: Instant,
}

impl<A: AsFd, B: AsFd> Relay<A, B> {
    /// Moves at most one piece each way.
    ///
    /// # Errors
    /// The failure of one direction, with the exact counts of both.
    pub fn advance(&mut self) -> std::result::Result<RelayStatus, RelayError> {
        let (a, b) = (self.a.as_fd(), self.b.as_fd());
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
        if self.options.closes_both() && self.b_to_a.is_done() {
            self.a_to_b.stop();
        }
        let (mut on_a, mut on_b) = (Wait::default(), Wait::default());
        match (there, back) {
            (Status::Finished(_), Status::Finished(_)) => return Ok(RelayStatus::Finished),
            (Status::Moved(_), _) | (_, Status::Moved(_)) => return Ok(RelayStatus::Moved),
            _ => {}
        }
        on_a.readable = there == Status::Blocked(Side::Source);
        on_b.writable = there == Status::Blocked(Side::Destination);
        on_b.readable = back == Status::Blocked(Side::Source);
        on_a.writable = back == Status::Blocked(Side::Destination);
        Ok(RelayStatus::Blocked { a: on_a, b: on_b })
    }

    /// How long it may stay idle from now on, if there is a limit; zero when that is used up. The
    /// event loop waits no longer, and then closes the sockets.
    pub fn idle_left(&self) -> Option<Duration> {
        let last = self
            .a_to_b
            .moved
            .max(self.b_to_a.moved)
            .unwrap_or(self.started);
        self.options
            .idle
            .map(|limit| limit.saturating_sub(last.elapsed()))
    }

    /// When to advance again, where the rate is what holds it up.
    pub fn resume_at(&self) -> Option<Instant> {
        let there = self.a_to_b.driver.resume_at();
        let back = self.b_to_a.driver.resume_at();
        there.into_iter().chain(back).min()
    }

    /// Bytes in flight, both ways.
    pub fn in_flight(&self) -> u64 {
        self.a_to_b.driver.in_flight() + self.b_to_a.driver.in_flight()
    }

    /// Breaks the relay off, or sums it up when it has ended: counts, and what was taken and not
    /// delivered.
    pub fn into_report(mut self) -> RelayReport {
        self.report()
    }

    pub(crate) fn report(&mut self) -> RelayReport {
        let idle = !(self.a_to_b.is_done() && self.b_to_a.is_done());
        let end = if idle {
            RelayEnd::Idle
        } else {
            RelayEnd::Closed
        };
        let a_to_b = self.a_to_b.flow(self.a.as_fd());
        let b_to_a = self.b_to_a.flow(self.b.as_fd());
        RelayReport {
            a_to_b,
            b_to_a,
            end,
        }
    }

    pub(crate) fn failed(&mut self, direction: Direction, error: Error) -> RelayError {
        RelayError {
            inner: Box::new((direction, error, self.report())),
        }
    }
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Pump {
    driver: Driver,
    state: State,
    moved: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Flowing,
    /// Only what is in flight is still delivered.
    Stopping,
    /// Delivered to the end, and the destination told.
    Done,
}

impl Pump {
    /// Moves one piece; at the end, tells the destination.
    pub(crate) fn advance(&mut self, src: BorrowedFd<'_>, dst: BorrowedFd<'_>) -> Result<Status> {
        if self.state == State::Done {
            return Ok(Status::Finished(End::SourceEnded));
        }
        let status = self.driver.advance(src, dst)?;
        match status {
            Status::Moved(_) => self.moved = Some(Instant::now()),
            Status::Blocked(_) => {}
            Status::Finished(_) => {
                call::shutdown(dst, Shutdown::Write).map_err(|e| {
                    Error::io(ErrorKind::Io, Some(Side::Destination), e)
                        .after(self.driver.delivered(), Bytes::new())
                })?;
                self.state = State::Done;
            }
        }
        Ok(status)
    }

    /// Takes nothing more from the source.
    pub(crate) fn stop(&mut self) {
        if self.state == State::Flowing {
            self.state = State::Stopping;
            self.driver.take_no_more();
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn driver(&mut self) -> &mut Driver {
        &mut self.driver
    }

    fn flow(&mut self, src: BorrowedFd<'_>) -> Flow {
        let undelivered = match self.driver.reclaim(src) {
            Ok(bytes) => bytes,
            Err(error) => error.into_undelivered(),
        };
        let bytes = self.driver.delivered();
        Flow {
            bytes,
            undelivered,
            syscalls: self.driver.report().syscalls(),
        }
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

fn require_stream(side: Side, fd: BorrowedFd<'_>) -> Result<()> {
    let facts = Facts::of(fd).map_err(|e| Error::io(ErrorKind::Io, Some(side), e))?;
    let kind = facts.kind();
    if kind.is_socket() && !kind.is_refused() {
        return Ok(());
    }
    let text = format!("it is {kind}, and a relay works between stream sockets");
    Err(Error::input(side, io::ErrorKind::InvalidInput, text))
}

/// The blocking form: a thread for each direction, and this one to watch the clock.
fn blocking<A: AsFd, B: AsFd>(
    relay: &mut Relay<A, B>,
) -> std::result::Result<RelayReport, RelayError> {
    let started = Instant::now();
    let last = AtomicU64::new(0);
    let (idle, close_both) = (
        relay.options.idle_limit(),
        relay.options.half_close == HalfClose::CloseBoth,
    );
    let (a, b) = (relay.a.as_fd(), relay.b.as_fd());
    let (there, back) = (&mut relay.a_to_b, &mut relay.b_to_a);
    let (tell, told) = mpsc::channel();
    let mut failed = None;
    let mut gave_up = false;
    thread::scope(|scope| {
        for (direction, pump, src, dst) in [
            (Direction::AToB, there, a, b),
            (Direction::BToA, back, b, a),
        ] {
            let (tell, last) = (tell.clone(), &last);
            scope.spawn(move || {
                let result = pump.run(src, dst, started, last);
                // The watcher outlives both threads.
                let _ = tell.send((direction, result));
            });
        }
        let end_all = || {
            // A call that is blocked on either comes back.
            let _ = call::shutdown(a, Shutdown::Both);
            let _ = call::shutdown(b, Shutdown::Both);
        };
        let mut running = 2;
        while running > 0 {
            let quiet = || {
                let since = Duration::from_millis(last.load(Ordering::Relaxed));
                started.elapsed().saturating_sub(since)
            };
            let wait = match idle {
                Some(limit) if !gave_up => limit.saturating_sub(quiet()),
                // Long enough to stand for ever.
                _ => Duration::from_secs(3600),
            };
            match told.recv_timeout(wait) {
                Ok((direction, Ok(()))) => {
                    running -= 1;
                    if close_both && running > 0 {
                        // The other direction sees its source end, after what is queued.
                        let other = if direction == Direction::AToB { b } else { a };
                        let _ = call::shutdown(other, Shutdown::Read);
                    }
                }
                Ok((direction, Err(error))) => {
                    running -= 1;
                    if failed.is_none() && !gave_up {
                        failed = Some((direction, error));
                        end_all();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    if idle.is_some_and(|limit| quiet() >= limit) && !gave_up {
                        gave_up = true;
                        end_all();
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    });
    if let Some((direction, error)) = failed {
        return Err(relay.failed(direction, error));
    }
    let mut report = relay.report();
    if gave_up {
        report.end = RelayEnd::Idle;
    }
    Ok(report)
}

impl Pump {
    /// Advances to the end, waiting where it has to.
    fn run(
        &mut self,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
        started: Instant,
        last: &AtomicU64,
    ) -> Result<()> {
        loop {
            match self.advance(src, dst)? {
                Status::Moved(_) => {
                    let now = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                    last.store(now, Ordering::Relaxed);
                }
                Status::Blocked(side) => self.driver.wait(side, src, dst)?,
                Status::Finished(_) => return Ok(()),
            }
        }
    }
}
