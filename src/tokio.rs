//! The same verbs on tokio: they await readiness instead of waiting for it.
//!
//! Descriptors stay registered once, where tokio registered them: everything runs inside their own
//! `try_io`, so that readiness is cleared exactly when the kernel said "would block" on that side.
//!
//! A file that is not in the page cache never holds up the reactor: before each piece, what is
//! missing is fetched on tokio's blocking pool. Its threads compete with the reactor's for the
//! processors: where the disk is fast and processors are few, a runtime built with
//! `max_blocking_threads` of twice their number keeps its timers. (64 cold files, two processors:
//! a tick of 1 ms came 2.7 to 9 ms late at the 99.9th percentile, with tokio's own 512 threads 4 to
//! 16 ms, all of which was waiting for a processor.) Writing to a file does go through the page cache
//! on the reactor's thread, a piece at a time; where the disk has to keep up with that, run the
//! blocking [`transfer`](crate::transfer()) under `spawn_blocking` instead.

mod cold;
mod low_water;
mod message;
mod readiness;
mod relay;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use ::tokio::time::{sleep_until, timeout_at};

use crate::backend::{Facts, Fault, Kind, Side};
use crate::driver::{Driver, FAIR};
use crate::error::{Error, Result};
use crate::options::TransferOptions;
use crate::report::{Report, Status};
use crate::transfer::Transfer;

use cold::warm_up;
use low_water::LowWater;

pub use message::{drive_sending, send};
pub use readiness::{Lent, Readiness};
pub use relay::{drive_relay, relay, relay_with};

/// Moves up to `len` bytes from `src` to `dst`: [`transfer`](crate::transfer()), awaiting.
///
/// Dropping the future rewinds a seekable source to the first byte that was not delivered. Bytes
/// in flight from a socket or a pipe would go with it; to keep them, [`start`] a transfer and
/// [`drive`] that.
///
/// # Errors
/// As [`transfer`](crate::transfer()) and [`drive`].
pub async fn transfer<S: Readiness, D: Readiness>(src: &S, dst: &D, len: u64) -> Result<Report> {
    drive(&mut start(&TransferOptions::new(), src, dst, len)?).await
}

/// Starts a transfer with options between descriptors that may be halves of a stream.
///
/// # Errors
/// As [`TransferOptions::start`].
pub fn start<'a, S: Readiness, D: Readiness>(
    options: &TransferOptions,
    src: &'a S,
    dst: &'a D,
    len: u64,
) -> Result<Transfer<Lent<'a, S>, Lent<'a, D>>> {
    options.start(Lent::new(src), Lent::new(dst), len)
}

/// Advances a transfer to its end, awaiting the side that it waits for.
///
/// Dropping the future leaves the transfer whole: drive it again, or
/// [`reclaim`](Transfer::reclaim) what is in flight.
///
/// # Errors
/// As [`Transfer::advance`]; and [`InvalidInput`](crate::ErrorKind::InvalidInput) for a pipe or a
/// socket without `O_NONBLOCK`, such as a FIFO opened as a [`std::fs::File`].
pub async fn drive<S, D>(transfer: &mut Transfer<S, D>) -> Result<Report>
where
    S: AsFd + Readiness,
    D: AsFd + Readiness,
{
    let (driver, src, dst) = transfer.apart();
    let (src, dst) = (&Lent::new(src), &Lent::new(dst));
    require_nonblocking(Side::Source, driver.src_facts())?;
    require_nonblocking(Side::Destination, driver.dst_facts())?;
    let mut stride = Stride::default();
    loop {
        match next(driver, src, dst, &mut stride).await? {
            Status::Finished(_) => return Ok(driver.report()),
            Status::Moved(_) | Status::Blocked(_) => {}
        }
    }
}

/// Refuses a pipe or a socket that would block this thread, and all that the runtime has on it. What
/// a transfer holds stays in it.
fn require_nonblocking(side: Side, facts: &Facts) -> Result<()> {
    let kind = facts.kind();
    if facts.is_nonblocking() || !(kind == Kind::Pipe || kind.is_socket()) {
        return Ok(());
    }
    let text = format!("it is {kind} without O_NONBLOCK, and would hold up the runtime");
    Err(Error::input(side, io::ErrorKind::InvalidInput, text))
}

/// What can be advanced between two descriptors: a transfer's driver, or one direction of a relay.
trait Advance {
    fn driver(&mut self) -> &mut Driver;
    fn advance(&mut self, src: BorrowedFd<'_>, dst: BorrowedFd<'_>) -> Result<Status>;
}

impl Advance for Driver {
    fn driver(&mut self) -> &mut Driver {
        self
    }

    fn advance(&mut self, src: BorrowedFd<'_>, dst: BorrowedFd<'_>) -> Result<Status> {
        Driver::advance(self, src, dst)
    }
}

/// What is remembered from one piece to the next.
#[derive(Debug, Default)]
struct Stride<'a> {
    /// Bytes moved since everything else on this thread had its turn.
    passed: u64,
    /// The part of the source's file that was found, or brought, in the page cache.
    warm: Range<u64>,
    /// How much a socket has to hold to be worth a wake-up, where that is ours to say.
    low_water: Option<LowWater<'a>>,
}

/// What a piece counts at least towards a turn: a call costs time however little it moves.
const LEAST: u64 = 64 << 10;

/// Moves one piece, or waits until one may be moved.
async fn next<M, S, D>(mover: &mut M, src: &S, dst: &D, stride: &mut Stride<'_>) -> Result<Status>
where
    M: Advance,
    S: Readiness + ?Sized,
    D: Readiness + ?Sized,
{
    if let Some(until) = mover.driver().resume_at() {
        sleep_until(until.into()).await;
    }
    warm_up(mover.driver(), src, stride).await;
    let status = attempt(mover, src, dst)?;
    match status {
        Status::Moved(bytes) => {
            if let Some(low_water) = &mut stride.low_water {
                low_water.moved(bytes.get() as u64);
            }
            stride.passed += LEAST.max(bytes.get() as u64);
            if stride.passed >= FAIR {
                stride.passed = 0;
                ::tokio::task::yield_now().await;
            }
        }
        Status::Blocked(_) if mover.driver().resume_at().is_some() => {}
        Status::Blocked(side) => {
            let ready = async {
                match (side, &mut stride.low_water) {
                    (Side::Source, Some(low_water)) => return low_water.source(src).await,
                    (Side::Destination, Some(low_water)) => low_water.destination(dst).await,
                    (Side::Source, None) => src.ready(side).await,
                    (Side::Destination, None) => dst.ready(side).await,
                }?;
                Ok(true)
            };
            let told = match mover.driver().deadline() {
                None => ready.await,
                // When time is up, the next attempt says so.
                Some(deadline) => timeout_at(deadline.into(), ready).await.unwrap_or(Ok(true)),
            };
            let told = told.map_err(|e| mover.driver().fail(Fault::new(side, e), src.fd()))?;
            if !told {
                return mover.advance(src.fd(), dst.fd());
            }
        }
        Status::Finished(_) => {}
    }
    Ok(status)
}

/// Advances once inside both descriptors' `try_io`, so that exactly the side that would block
/// forgets its readiness.
fn attempt<M, S, D>(mover: &mut M, src: &S, dst: &D) -> Result<Status>
where
    M: Advance,
    S: Readiness + ?Sized,
    D: Readiness + ?Sized,
{
    let would_block = || io::Error::from(io::ErrorKind::WouldBlock);
    let driver = mover.driver();
    if driver.remaining() == 0 || driver.deadline().is_some_and(|d| d <= Instant::now()) {
        // What is left to do, or to say, needs neither to be ready.
        return mover.advance(src.fd(), dst.fd());
    }
    let mut outcome = None;
    // What `try_io` answers is our own answer to it, or that it did not run: `outcome` tells.
    let _ = dst.try_io(Side::Destination, &mut || {
        let _ = src.try_io(Side::Source, &mut || {
            let status = mover.advance(src.fd(), dst.fd());
            let blocked = matches!(status, Ok(Status::Blocked(Side::Source)));
            let paused = mover.driver().resume_at().is_some();
            outcome = Some(status);
            if blocked && !paused {
                Err(would_block())
            } else {
                Ok(())
            }
        });
        let status = match outcome.take() {
            Some(status) => status,
            // The source is not ready; what is in flight needs only the destination.
            None if mover.driver().in_flight() > 0 => mover.advance(src.fd(), dst.fd()),
            None => Ok(Status::Blocked(Side::Source)),
        };
        let blocked = matches!(status, Ok(Status::Blocked(Side::Destination)));
        let paused = mover.driver().resume_at().is_some();
        outcome = Some(status);
        if blocked && !paused {
            Err(would_block())
        } else {
            Ok(())
        }
    });
    outcome.unwrap_or(Ok(Status::Blocked(Side::Destination)))
}
