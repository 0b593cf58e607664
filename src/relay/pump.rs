//! One direction of a relay.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::eventfd::EventFd;
use nix::sys::socket::Shutdown;

use super::Flow;
use super::engine::Engine;
use crate::backend::{Facts, Fault, Side};
use crate::driver::Driver;
use crate::error::{Error, ErrorKind, Result};
use crate::pace::Limits;
use crate::report::{End, Status};
use crate::sys::{PipePool, call, socket};

/// When something last moved in either direction.
#[derive(Debug)]
pub(crate) struct Pulse {
    began: Instant,
    /// Nanoseconds after the beginning.
    last: AtomicU64,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    fn beat(&self, at: Instant) {
        let since = at.saturating_duration_since(self.began).as_nanos();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        self.last.fetch_max(since, Ordering::Relaxed);
    }

    /// How long nothing has moved.
    pub(crate) fn quiet(&self) -> Duration {
        let last = Duration::from_nanos(self.last.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(last)
    }
}

/// Takes from one socket and gives to the other, until the one ends and the other has been told.
#[derive(Debug)]
pub(crate) struct Pump {
    driver: Driver,
    state: State,
    pulse: Arc<Pulse>,
    /// What a failure left.
    undelivered: Bytes,
    /// Those beside the driver's own.
    syscalls: u64,
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
    pub(super) fn new(
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
        limits: Limits,
        pool: &Arc<PipePool>,
        pulse: &Arc<Pulse>,
    ) -> Result<Self> {
        let engine = Box::new(Engine::new(Arc::clone(pool), limits.rate.is_some()));
        let mut driver = Driver::with_backend(src, dst, u64::MAX, engine)?;
        for (side, facts) in [
            (Side::Source, driver.src_facts()),
            (Side::Destination, driver.dst_facts()),
        ] {
            require_stream(side, facts)?;
        }
        driver.set_limits(limits);
        Ok(Self {
            driver,
            state: State::Flowing,
            pulse: Arc::clone(pulse),
            undelivered: Bytes::new(),
            syscalls: 0,
        })
    }

    pub(crate) fn driver(&self) -> &Driver {
        &self.driver
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn driver_mut(&mut self) -> &mut Driver {
        &mut self.driver
    }

    /// Moves one piece; at the end, tells the destination.
    pub(crate) fn advance(&mut self, src: BorrowedFd<'_>, dst: BorrowedFd<'_>) -> Result<Status> {
        if self.state == State::Done {
            return Ok(Status::Finished(End::SourceEnded));
        }
        let result = self.driver.advance(src, dst);
        let status = self.kept(result)?;
        match status {
            // A pause that the rate makes is no idleness.
            Status::Moved(_) => {
                let at = self.driver.resume_at();
                self.pulse.beat(at.unwrap_or_else(Instant::now));
            }
            Status::Blocked(_) => {}
            Status::Finished(_) => {
                self.syscalls += 1;
                call::shutdown(dst, Shutdown::Write).map_err(|e| {
                    Error::io(ErrorKind::Io, Some(Side::Destination), e)
                        .after(self.driver.delivered(), Bytes::new())
                })?;
                self.state = State::Done;
            }
        }
        Ok(status)
    }

    /// Keeps what a failure leaves undelivered: this direction's report has it, whatever becomes of
    /// the error.
    pub(crate) fn kept<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.undelivered = error.undelivered().clone();
        }
        result
    }

    /// Takes nothing more from the source. Whether that is new.
    pub(crate) fn stop(&mut self) -> bool {
        let flowing = self.state == State::Flowing;
        if flowing {
            self.state = State::Stopping;
            self.driver.take_no_more();
        }
        flowing
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// This direction's report. What is in flight is taken out.
    pub(super) fn flow(&mut self) -> Flow {
        if self.driver.in_flight() > 0 {
            self.undelivered = match self.driver.hand_back() {
                Ok(bytes) => bytes,
                Err(error) => error.into_undelivered(),
            };
        }
        let report = self.driver.report();
        Flow {
            bytes: self.driver.delivered(),
            undelivered: self.undelivered.clone(),
            syscalls: self.syscalls + report.syscalls(),
            shares: report.shares().to_vec(),
        }
    }
}

/// What a direction on a thread of its own is told to do. Whoever waits for its source also waits
/// for this. (Shutting the source down would wake it too, and make TCP answer what the peer still
/// sends with RST, which takes from it what it has not yet received.)
#[derive(Debug)]
pub(super) struct Order {
    bits: AtomicU8,
    given: EventFd,
}

impl Order {
    const STOP: u8 = 1;
    const LEAVE: u8 = 2;

    pub(super) fn new() -> io::Result<Self> {
        let (bits, given) = (AtomicU8::new(0), call::eventfd()?);
        Ok(Self { bits, given })
    }

    /// Takes nothing more, and delivers what was taken.
    pub(super) fn stop(&self) {
        self.give(Self::STOP);
    }

    /// Leaves off, whatever is in flight.
    pub(super) fn leave(&self) {
        self.give(Self::LEAVE);
    }

    fn give(&self, order: u8) {
        self.bits.fetch_or(order, Ordering::Relaxed);
        // It counts to 2^64 - 2, and there are two orders.
        let _ = self.given.write(1);
    }

    /// Makes the next wait one for the next order. The orders given stay given.
    fn heard(&self) {
        if self.bits.load(Ordering::Relaxed) != 0 {
            let _ = self.given.read();
        }
    }

    fn is_given(&self, order: u8) -> bool {
        self.bits.load(Ordering::Relaxed) & order != 0
    }
}

impl Pump {
    /// Advances to the end, waiting where it has to. Whoever gives an order also wakes this thread
    /// where it waits for the rate, by unparking it, or in a call on a blocking destination, by
    /// shutting that down.
    pub(super) fn run(
        &mut self,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
        order: &Order,
    ) -> Result<()> {
        let facts = (self.driver.src_facts(), self.driver.dst_facts());
        let (source_blocks, waits) = (!facts.0.is_nonblocking(), facts.1.is_nonblocking());
        loop {
            // A source that would itself wait in the kernel's call, with a pipe in its hands.
            if source_blocks && self.state == State::Flowing && self.driver.in_flight() == 0 {
                self.wait(Side::Source, src, dst, order)?;
            }
            if order.is_given(Order::LEAVE) {
                return Ok(());
            }
            if order.is_given(Order::STOP) {
                self.stop();
            }
            match self.advance(src, dst)? {
                Status::Moved(_) => {}
                Status::Blocked(side) => match (self.driver.resume_at(), side) {
                    (Some(until), _) => thread::park_timeout(left(until)),
                    (None, _) if side == Side::Source || waits => {
                        self.wait(side, src, dst, order)?;
                    }
                    (None, _) => {
                        let waited = self.driver.wait(side, src, dst);
                        self.kept(waited)?;
                    }
                },
                Status::Finished(_) => return Ok(()),
            }
        }
    }

    /// Waits for a side, for an order, or until the deadline, of which the next advance speaks.
    fn wait(
        &mut self,
        side: Side,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
        order: &Order,
    ) -> Result<()> {
        let (fd, writable) = match side {
            Side::Source => (src, false),
            Side::Destination => (dst, true),
        };
        let left = self.driver.deadline().map(left);
        self.syscalls += 1;
        let sides = [(fd, writable), (order.given.as_fd(), false)];
        let waited = call::poll_any(&sides, left).map(|_| order.heard());
        self.driver.back_off();
        let waited = waited.map_err(|e| self.driver.fail(Fault::new(side, e), src));
        self.kept(waited)
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// Refuses a socket that listens: it would never have anything to read, nor an end.
pub(super) fn require_no_listener(side: Side, fd: BorrowedFd<'_>) -> Result<()> {
    if !socket::listens(fd) {
        return Ok(());
    }
    let text = "it listens for connections, and a relay works between connected sockets";
    Err(Error::input(side, io::ErrorKind::InvalidInput, text))
}

fn require_stream(side: Side, facts: &Facts) -> Result<()> {
    let kind = facts.kind();
    if kind.is_socket() {
        return Ok(());
    }
    let text = format!("it is {kind}, and a relay works between stream sockets");
    Err(Error::input(side, io::ErrorKind::InvalidInput, text))
}
