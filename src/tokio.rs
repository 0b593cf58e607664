//! The same verbs on tokio: they await readiness instead of waiting for it.
//!
//! Descriptors stay registered once, where tokio registered them: everything runs inside their own
//! `try_io`, so that readiness is cleared exactly when the kernel said "would block" on that side.
//!
//! A file that is not in the page cache never holds up the reactor: before each piece, what is
//! missing is fetched on tokio's blocking pool. Writing to a file does go through the page cache
//! on the reactor's thread, a piece at a time; where the disk has to keep up with that, run the
//! blocking [`transfer`](crate::transfer()) under `spawn_blocking` instead.

mod relay;

use std::future::Future;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;
use ::tokio::net::unix::pipe;
use ::tokio::net::{TcpStream, UnixStream, tcp, unix};
use ::tokio::time::{sleep, sleep_until, timeout_at};

use crate::backend::{Fault, Side};
use crate::driver::{Driver, FAIR};
use crate::error::Result;
use crate::message::{Message, Sending};
use crate::options::TransferOptions;
use crate::report::{Report, Status};
use crate::sys::call;
use crate::transfer::Transfer;

pub use relay::{drive_relay, relay, relay_with};

/// A descriptor whose readiness can be awaited; a file, which is always ready.
///
/// Implemented for tokio's streams, their halves and its pipe ends, for [`AsyncFd`], for
/// [`std::fs::File`] and [`tokio::fs::File`], and for references to these.
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

    /// Waits until a socket's error queue may hold something; where that cannot be awaited, for a
    /// millisecond.
    fn errored(&self) -> impl Future<Output = io::Result<()>> {
        async {
            sleep(Duration::from_millis(1)).await;
            Ok(())
        }
    }
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

            async fn errored(&self) -> io::Result<()> {
                let $this = self;
                $inner.ready(Interest::ERROR).await?;
                // Forgotten at once: what comes after this is told anew.
                let forget = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                let _ = $inner.try_io(Interest::ERROR, forget);
                Ok(())
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

    fn errored(&self) -> impl Future<Output = io::Result<()>> {
        (**self).errored()
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

    fn errored(&self) -> impl Future<Output = io::Result<()>> {
        self.0.errored()
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
    let mut stride = Stride::default();
    loop {
        match next(driver, src, dst, &mut stride).await? {
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

/// What is remembered from one piece to the next.
#[derive(Debug, Default)]
struct Stride {
    /// Bytes moved since everything else on this thread had its turn.
    passed: u64,
    /// The part of the source's file that was found, or brought, in the page cache.
    warm: Range<u64>,
}

/// What a piece counts at least towards a turn: a call costs time however little it moves.
const LEAST: u64 = 64 << 10;

/// Moves one piece, or waits until one may be moved.
async fn next<M, S, D>(mover: &mut M, src: &S, dst: &D, stride: &mut Stride) -> Result<Status>
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
    warm_up(mover.driver(), src, stride).await?;
    let status = attempt(mover, src, dst)?;
    match status {
        Status::Moved(bytes) => {
            stride.passed += LEAST.max(bytes.get() as u64);
            if stride.passed >= FAIR {
                stride.passed = 0;
                ::tokio::task::yield_now().await;
            }
        }
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

/// Brings what the next piece needs into the page cache, on the blocking pool, if it is not there,
/// and limits the piece to that.
async fn warm_up<S>(driver: &mut Driver, src: &S, stride: &mut Stride) -> Result<()>
where
    S: Readiness + ?Sized,
{
    let mut most = FAIR;
    if let Some((offset, len)) = driver.next_range(src.fd()) {
        if !stride.warm.contains(&offset) {
            let fetched = fetch_cold(src.fd(), offset, len).await;
            let end = fetched.map_err(|e| driver.fail(Fault::new(Side::Source, e), src.fd()))?;
            stride.warm = offset..end;
        }
        most = most.min(stride.warm.end - offset);
    }
    driver.at_most(most);
    Ok(())
}

/// Pieces of a file that are looked for in the page cache at once.
const PIECES: u64 = 4;

/// Brings a range of a file into the page cache, if it is not there. The end of what is there.
async fn fetch_cold(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<u64> {
    // What lies beyond the end is not missing.
    let size = call::fstat(file).map_or(0, |stat| stat.st_size.unsigned_abs());
    let rest = size.saturating_sub(offset);
    if rest == 0 {
        return Ok(offset + len);
    }
    let (near, far) = (len.min(rest), (len * PIECES).min(rest));
    if call::is_cached(file, offset, far) {
        return Ok(offset + far.max(len));
    }
    if !call::is_cached(file, offset, near) {
        fetch(file, offset, near).await?;
    }
    Ok(offset + near)
}

/// Brings a range of a file into the page cache, on the blocking pool.
async fn fetch(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let file = file.try_clone_to_owned()?;
    let fetch = move || {
        // A read that fails here fails in the transfer too, which reports it.
        let _ = call::fetch(file.as_fd(), offset, len);
    };
    let fetched = ::tokio::task::spawn_blocking(fetch).await;
    fetched.map_err(io::Error::other)
}

/// Sends a message: [`Message::send`], awaiting.
///
/// Dropping the future breaks the message off; to go on where it stood, [`drive_sending`] one.
///
/// # Errors
/// As [`Sending::advance`].
pub async fn send<D: Readiness>(message: &Message<'_>, dst: &D) -> Result<Report> {
    drive_sending(&mut message.start(Lent(dst))?).await
}

/// Advances a sending to its end. Dropping the future leaves it whole: drive it again.
///
/// # Errors
/// As [`Sending::advance`].
pub async fn drive_sending<D>(sending: &mut Sending<'_, D>) -> Result<Report>
where
    D: AsFd + Readiness,
{
    let (core, dst) = sending.apart();
    // How far the file that comes next is known to be in the page cache, and whether that has been
    // seen to for a small one.
    let (mut warm, mut fetched, mut passed) = ((usize::MAX, 0), false, 0);
    loop {
        if let Some((part, file, next, false)) = core.next_file() {
            if warm.0 != part || warm.1 < next.end {
                let end = fetch_cold(file, next.start, next.end - next.start).await;
                warm = (part, end.map_err(|e| core.fail(Side::Source, e))?);
            }
        }
        let (mut outcome, delivered) = (None, core.remaining() == 0);
        let mut advance = || {
            let status = match fetched {
                true => core.advance(dst.fd()),
                false => core.advance_at_hand(dst.fd()),
            };
            let blocked = matches!(status, Ok(Status::Blocked(Side::Destination)));
            outcome = Some(status);
            if blocked {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                Ok(())
            }
        };
        // Its answer is our own, or that it did not run: `outcome` tells. That buffers are free
        // does not depend on room in the socket.
        let _ = match delivered {
            true => advance(),
            false => dst.try_io(Side::Destination, &mut advance),
        };
        let ready = match outcome.unwrap_or(Ok(Status::Blocked(Side::Destination)))? {
            Status::Finished(_) => return Ok(core.report()),
            Status::Blocked(Side::Destination) if core.remaining() == 0 => dst.errored().await,
            Status::Blocked(Side::Destination) => dst.ready(Side::Destination).await,
            Status::Blocked(Side::Source) => match core.next_file() {
                Some((_, file, next, true)) if !fetched => {
                    fetched = true;
                    fetch(file, next.start, next.end - next.start).await
                }
                _ => {
                    ::tokio::task::yield_now().await;
                    Ok(())
                }
            },
            Status::Moved(bytes) => {
                fetched = false;
                passed += LEAST.max(bytes.get() as u64);
                if passed >= FAIR {
                    // Everything else on this thread has its turn.
                    passed = 0;
                    ::tokio::task::yield_now().await;
                }
                // As it has after many small messages in a row.
                ::tokio::task::coop::consume_budget().await;
                Ok(())
            }
        };
        ready.map_err(|e| core.fail(Side::Destination, e))?;
    }
}
