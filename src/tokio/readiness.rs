//! What tokio knows of a descriptor's readiness, for every kind of descriptor it has.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;
use ::tokio::net::unix::pipe;
use ::tokio::net::{TcpStream, UnixStream, tcp, unix};
use ::tokio::time::sleep;

use crate::backend::Side;

/// A descriptor whose readiness can be awaited; a file on a disk, which is always ready.
///
/// Implemented for tokio's streams, their halves and its pipe ends, for [`AsyncFd`], for
/// [`std::fs::File`] and [`tokio::fs::File`](::tokio::fs::File), and for references to these. Anything
/// else with a descriptor goes into an [`AsyncFd`], non-blocking: a child's output, a terminal, a FIFO
/// (or that into tokio's [`pipe`]).
///
/// Bytes pass below whatever buffers stand above the descriptor. A
/// [`tokio::fs::File`](::tokio::fs::File) that was written to is still being written to until its
/// `flush` has returned, at the position that the transfer would use: flush it first.
pub trait Readiness: Sync {
    /// The descriptor.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Runs `op` if the descriptor may be ready for its side's use (reading as a source, writing
    /// as a destination), and takes note where it answers [`io::ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// `op`'s own, or `WouldBlock` where `op` did not run.
    fn try_io(&self, side: Side, op: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()>;

    /// Waits until the descriptor may be ready.
    fn ready(&self, side: Side) -> impl Future<Output = io::Result<()>> + Send;

    /// Waits until a socket's error queue may hold something; where that cannot be awaited, for a
    /// millisecond.
    fn errored(&self) -> impl Future<Output = io::Result<()>> + Send {
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

impl<T: AsFd + std::os::fd::AsRawFd + Sync> Readiness for AsyncFd<T> {
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

    fn ready(&self, side: Side) -> impl Future<Output = io::Result<()>> + Send {
        (**self).ready(side)
    }

    fn errored(&self) -> impl Future<Output = io::Result<()>> + Send {
        (**self).errored()
    }
}

/// A descriptor lent to a transfer: what makes a stream's half, which is no
/// [`AsFd`], usable as one, as in `message.start(Lent::new(&half))`.
#[derive(Debug)]
pub struct Lent<'a, T: ?Sized> {
    lender: &'a T,
    /// What it answered when it was lent.
    fd: BorrowedFd<'a>,
}

impl<'a, T: Readiness + ?Sized> Lent<'a, T> {
    /// Lends it. It is asked for its descriptor now, and not again.
    pub fn new(descriptor: &'a T) -> Self {
        Self {
            lender: descriptor,
            fd: descriptor.fd(),
        }
    }
}

impl<T: ?Sized> AsFd for Lent<'_, T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd
    }
}

impl<T: Readiness + ?Sized> Readiness for Lent<'_, T> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd
    }

    fn try_io(&self, side: Side, op: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        self.lender.try_io(side, op)
    }

    fn ready(&self, side: Side) -> impl Future<Output = io::Result<()>> + Send {
        self.lender.ready(side)
    }

    fn errored(&self) -> impl Future<Output = io::Result<()>> + Send {
        self.lender.errored()
    }
}
