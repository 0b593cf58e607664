//! The same verbs on tokio: they await readiness instead of waiting for it.
//!
//! Descriptors stay registered once, where tokio registered them: everything runs inside their own
//! `try_io`, so that readiness is cleared exactly when the kernel said "would block" on that side.
//!
//! A file that is not in the page cache never holds up the reactor: before each piece, what is
//! missing is fetched on tokio's blocking pool. Writing to a file does go through the page cache
//! on the reactor's thread, a piece at a time; where the disk has to keep up with that, run the
//! blocking [`transfer`](crate::transfer()) under `spawn_blocking` instead.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Instant;

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;
use ::tokio::net::unix::pipe;
use ::tokio::net::{TcpStream, UnixStream, tcp, unix};
use ::tokio::time::{Sleep, sleep_until, timeout_at};

use crate::backend::{Fault, Side};
use crate::driver::Driver;
use crate::error::Result;
use crate::options::TransferOptions;
use crate::relay::{Direction, Pump, Relay, RelayEnd, RelayError, RelayOptions, RelayReport};
use crate::sys::call;
use crate::transfer::{Report, Status, Transfer};

/// A descriptor whose readiness can be awaited; a file, which is always ready.
///
/// Implemented for tokio's streams, their halves and its pipe ends, for [`AsyncFd`], for
/// [`std::fs::File`] and [`tokio::fs::File`](::tokio::fs::File), and for references to these.
pub trait Readiness {
    /// The descriptor.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Runs `op` if the descriptor may be ready for its side's use (reading as a source, writing
    /// as a destination), and takes note where it answers [`io::ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// `op`'s own, or `WouldBlock` where `op` did not run.
    fn try_io(&self, side: Side, op: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()>;

    /// Waits until the descriptor may be ready.
    fn ready(&self, side: Side) -> impl Future<Output = io::Result<()>>;
}

fn interest(side: Side) -> Interest {
    match side {
        Side::Source => Interest::READABLE,
        Side::Destination => Interest::WRITABLE,
    }
}

macro_rules! readiness_of_streams {
    ($($(#[$doc:meta])* $stream:ty, |$this:ident| $inner:expr;)*) => {$(
        impl Readiness for $stream {
            fn fd(&self) -> BorrowedFd<'_> {
                let $this = self;
                $inner.as_fd()
            }

            fn try_io(
                &self,
                side: Side,
                op: &mut dyn FnMut() -> io::Result<()>,
            ) -> io::Result<()> {
                let $this = self;
                $inner.try_io(interest(side), op)
            }

            async fn ready(&self, side: Side) -> io::Result<()> {
                let $this = self;
                $inner.ready(interest(side)).await.map(drop)
            }
        }
    )*};
}

readiness_of_streams! {
    TcpStream, |stream| stream;
    tcp::OwnedReadHalf, |half| AsRef::<TcpStream>::as_ref(half);
    tcp::OwnedWriteHalf, |half| AsRef::<TcpStream>::as_ref(half);
    tcp::ReadHalf<'_>, |half| AsRef::<TcpStream>::as_ref(half);
    tcp::WriteHalf<'_>, |half| AsRef::<TcpStream>::as_ref(half);
    UnixStream, |stream| stream;
    unix::OwnedReadHalf, |half| AsRef::<UnixStream>::as_ref(half);
    unix::OwnedWriteHalf, |half| AsRef::<UnixStream>::as_ref(half);
    unix::ReadHalf<'_>, |half| AsRef::<UnixStream>::as_ref(half);
    unix::WriteHalf<'_>, |half| AsRef::<UnixStream>::as_ref(half);
}

macro_rules! readiness_of_pipes {
    ($($end:ty),*) => {$(
        impl Readiness for $end {
            fn fd(&self) -> BorrowedFd<'_> {
                self.as_fd()
            }

            fn try_io(
                &self,
                _: Side,
                op: &mut dyn FnMut() -> io::Result<()>,
            ) -> io::Result<()> {
                self.try_io(op)
            }

            async fn ready(&self, side: Side) -> io::Result<()> {
                self.ready(interest(side)).await.map(drop)
            }
        }
    )*};
}

readiness_of_pipes!(pipe::Sender, pipe::Receiver);

impl<T: AsFd + std::os::fd::AsRawFd> Readiness for AsyncFd<T> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.get_ref().as_fd()
    }

    fn try_io(&self, side: Side, op: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        AsyncFd::try_io(self, interest(side), |_| op())
    }

    async fn ready(&self, side: Side) -> io::Result<()> {
        // The guard is let go without clearing: `try_io` clears what it finds not to be ready.
        AsyncFd::ready(self, interest(side)).await.map(drop)
    }
}

macro_rules! readiness_of_files {
    ($($file:ty),*) => {$(
        impl Readiness for $file {
            fn fd(&self) -> BorrowedFd<'_> {
                self.as_fd()
            }

            fn try_io(
                &self,
                _: Side,
                op: &mut dyn FnMut() -> io::Result<()>,
            ) -> io::Result<()> {
                op()
            }

            async fn ready(&self, _: Side) -> io::Result<()> {
                // A file that says "not now" (a lease, a terminal opened as a file): no epoll to
                // ask, so let others run and try again.
                ::tokio::task::yield_now().await;
                Ok(())
            }
        }
    )*};
}

readiness_of_files!(std::fs::File, ::tokio::fs::File);

impl<T: Readiness + ?Sized> Readiness for &T {
    fn fd(&self) -> BorrowedFd<'_> {
        (**self).fd()
    }

    fn try_io(&self, side: Side, op: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        (**self).try_io(side, op)
    }

    fn ready(&self, side: Side) -> impl Future<Output = io::Result<()>> {
        (**self).ready(side)
    }
}

/// A descriptor lent to a transfer: what makes a stream's half, which is no
/// [`AsFd`], usable as one.
#[derive(Debug)]
pub struct Lent<'a, T: ?Sized>(&'a T);

impl<T: Readiness + ?Sized> AsFd for Lent<'_, T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }
}

impl<T: Readiness + ?Sized> Readiness for Lent<'_, T> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    fn try_io(&self, side: Side, op: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        self.0.try_io(side, op)
    }

    fn ready(&self, side: Side) -> impl Future<Output = io::Result<()>> {
        self.0.ready(side)
    }
}

/// Moves up to `len` bytes from `src` to `dst`: [`transfer`](crate::transfer()), awaiting.
///
/// Dropping the future rewinds a seekable source to the first byte that was not delivered. Bytes
/// in flight from a socket or a pipe would go with it; to keep them, [`start`] a transfer and
/// [`drive`] that.
///
/// # Errors
/// As [`transfer`](crate::transfer()).
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
    options.start(Lent(src), Lent(dst), len)
}

/// Advances a transfer to its end, awaiting the side that it waits for.
///
/// Dropping the future leaves the transfer whole: drive it again, or
/// [`reclaim`](Transfer::reclaim) what is in flight.
///
/// # Errors
/// As [`Transfer::advance`].
pub async fn drive<S, D>(transfer: &mut Transfer<S, D>) -> Result<Report>
where
    S: AsFd + Readiness,
    D: AsFd + Readiness,
{
    let (driver, src, dst) = transfer.apart();
    driver.be_fair();
    loop {
        match next(driver, src, dst).await? {
            Status::Finished(_) => return Ok(driver.report()),
            Status::Moved(_) | Status::Blocked(_) => {}
        }
    }
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

impl Advance for Pump {
    fn driver(&mut self) -> &mut Driver {
        Pump::driver(self)
    }

    fn advance(&mut self, src: BorrowedFd<'_>, dst: BorrowedFd<'_>) -> Result<Status> {
        Pump::advance(self, src, dst)
    }
}

/// Moves one piece, or waits until one may be moved.
async fn next<M, S, D>(mover: &mut M, src: &S, dst: &D) -> Result<Status>
where
    M: Advance,
    S: Readiness + ?Sized,
    D: Readiness + ?Sized,
{
    if let Some(until) = mover.driver().resume_at() {
        let until = mover
            .driver()
            .deadline()
            .map_or(until, |deadline| deadline.min(until));
        sleep_until(until.into()).await;
    }
    warm_up(mover.driver(), src).await?;
    let status = attempt(mover, src, dst)?;
    match status {
        // Everything else on this thread has its turn between two pieces.
        Status::Moved(_) => ::tokio::task::yield_now().await,
        Status::Blocked(_) if mover.driver().resume_at().is_some() => {}
        Status::Blocked(side) => {
            let ready = async {
                match side {
                    Side::Source => src.ready(side).await,
                    Side::Destination => dst.ready(side).await,
                }
            };
            let result = match mover.driver().deadline() {
                None => ready.await,
                // When time is up, the next attempt says so.
                Some(deadline) => timeout_at(deadline.into(), ready).await.unwrap_or(Ok(())),
            };
            result.map_err(|e| mover.driver().fail(Fault::new(side, e), src.fd()))?;
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

/// Brings what the next piece needs into the page cache, on the blocking pool, if it is not there.
async fn warm_up<S: Readiness + ?Sized>(driver: &mut Driver, src: &S) -> Result<()> {
    let Some((offset, len)) = driver.next_range(src.fd()) else {
        return Ok(());
    };
    let fetched = async {
        let file = src.fd().try_clone_to_owned()?;
        ::tokio::task::spawn_blocking(move || {
            // A read that fails here fails in the transfer too, which reports it.
            let _ = call::fetch(file.as_fd(), offset, len);
        })
        .await
        .map_err(io::Error::other)
    };
    if !driver.is_warm(src.fd(), offset, len) {
        fetched
            .await
            .map_err(|e| driver.fail(Fault::new(Side::Source, e), src.fd()))?;
    }
    Ok(())
}

/// Relays both directions between two stream sockets: [`relay`](crate::relay()), awaiting.
///
/// Dropping the future breaks the relay off; to know what was in flight, [`drive_relay`] one.
///
/// # Errors
/// As [`relay`](crate::relay()).
pub async fn relay<A: Readiness, B: Readiness>(
    a: &A,
    b: &B,
) -> std::result::Result<RelayReport, RelayError> {
    relay_with(&RelayOptions::new(), a, b).await
}

/// As [`relay`], with options.
///
/// # Errors
/// As [`relay`](crate::relay()).
pub async fn relay_with<A: Readiness, B: Readiness>(
    options: &RelayOptions,
    a: &A,
    b: &B,
) -> std::result::Result<RelayReport, RelayError> {
    match options.start(Lent(a), Lent(b)) {
        Ok(mut relay) => drive_relay(&mut relay).await,
        Err(error) => Err(RelayError::at_start(error)),
    }
}

/// Advances a relay to its end. Dropping the future leaves it whole.
///
/// # Errors
/// As [`relay`](crate::relay()).
pub async fn drive_relay<A, B>(
    relay: &mut Relay<A, B>,
) -> std::result::Result<RelayReport, RelayError>
where
    A: AsFd + Readiness,
    B: AsFd + Readiness,
{
    let idle = relay.options.idle_limit();
    let close_both = relay.options.closes_both();
    let (stop_there, stop_back) = (AtomicBool::new(false), AtomicBool::new(false));
    let moved = AtomicBool::new(false);
    let outcome = {
        let (a, b) = (&relay.a, &relay.b);
        let there = pump(&mut relay.a_to_b, a, b, &stop_there, &moved);
        let back = pump(&mut relay.b_to_a, b, a, &stop_back, &moved);
        let (mut there, mut back) = (pin!(there), pin!(back));
        let (mut there_done, mut back_done) = (false, false);
        let mut timer: Option<Pin<Box<Sleep>>> =
            idle.map(|limit| Box::pin(sleep_until((Instant::now() + limit).into())));
        poll_fn(|cx| {
            loop {
                let before = (there_done, back_done);
                if !there_done {
                    if let Poll::Ready(result) = there.as_mut().poll(cx) {
                        there_done = true;
                        if let Err(error) = result {
                            return Poll::Ready(Err((Direction::AToB, error)));
                        }
                    }
                }
                if !back_done {
                    if let Poll::Ready(result) = back.as_mut().poll(cx) {
                        back_done = true;
                        if let Err(error) = result {
                            return Poll::Ready(Err((Direction::BToA, error)));
                        }
                    }
                }
                if there_done && back_done {
                    return Poll::Ready(Ok(RelayEnd::Closed));
                }
                if before == (there_done, back_done) || !close_both {
                    break;
                }
                // One has just ended, and the other is to take no more.
                stop_there.store(back_done, Ordering::Relaxed);
                stop_back.store(there_done, Ordering::Relaxed);
            }
            let (Some(timer), Some(limit)) = (&mut timer, idle) else {
                return Poll::Pending;
            };
            if moved.swap(false, Ordering::Relaxed) {
                timer.as_mut().reset((Instant::now() + limit).into());
            }
            timer.as_mut().poll(cx).map(|()| Ok(RelayEnd::Idle))
        })
        .await
    };
    match outcome {
        Ok(end) => {
            let mut report = relay.report();
            report.end = end;
            Ok(report)
        }
        Err((direction, error)) => Err(relay.failed(direction, error)),
    }
}

/// Advances one direction to its end. `stop` makes it take nothing more; `moved` tells that
/// something moved.
async fn pump<S: Readiness, D: Readiness>(
    pump: &mut Pump,
    src: &S,
    dst: &D,
    stop: &AtomicBool,
    moved: &AtomicBool,
) -> Result<()> {
    loop {
        let status = {
            let mut next = pin!(next(pump, src, dst));
            poll_fn(|cx| {
                if stop.load(Ordering::Relaxed) {
                    return Poll::Ready(None);
                }
                next.as_mut().poll(cx).map(Some)
            })
            .await
        };
        match status {
            Some(Ok(Status::Finished(_))) => return Ok(()),
            Some(Ok(Status::Moved(_))) => moved.store(true, Ordering::Relaxed),
            Some(Ok(Status::Blocked(_))) => {}
            Some(Err(error)) => return Err(error),
            None => break,
        }
    }
    pump.stop();
    while !matches!(next(pump, src, dst).await?, Status::Finished(_)) {
        moved.store(true, Ordering::Relaxed);
    }
    Ok(())
}
