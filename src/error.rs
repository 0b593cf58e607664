//! The error, which knows how far the transfer came and gives back what it could not deliver.

use std::error;
use std::fmt;
use std::io;

use bytes::Bytes;

use crate::backend::{Backend, Side, Unfit};
use crate::sys::errno;

/// A transfer's result.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The kernel answered an error, or the time was up: [`Error::io_error`] has it.
    Io,
    /// No backend that the options allow serves the pair.
    Unfit,
    /// The descriptors or the options make no sense together; nothing was touched.
    InvalidInput,
    /// The source became shorter while a window of it was mapped, or ended before a range that a
    /// message has of it.
    SourceTruncated,
}

/// Why a transfer stopped, and exactly how far it had come.
///
/// Bytes taken from the source = [`delivered`](Self::delivered) + those in
/// [`undelivered`](Self::undelivered). A seekable source has been rewound to the first byte that
/// was not delivered, so that `undelivered` is empty.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    side: Option<Side>,
    backend: Option<Backend>,
    delivered: u64,
    undelivered: Bytes,
    cause: Cause,
}

enum Cause {
    Io(io::Error),
    Unfit(Unfit, Option<io::Error>),
}

impl Error {
    pub(crate) fn io(kind: ErrorKind, side: Option<Side>, error: io::Error) -> Self {
        Self::with_cause(kind, side, Cause::Io(error))
    }

    pub(crate) fn unfit(backend: Backend, unfit: Unfit) -> Self {
        let io_error = match unfit {
            Unfit::Refused(number) => Some(io::Error::from_raw_os_error(number)),
            _ => None,
        };
        Self::with_cause(ErrorKind::Unfit, None, Cause::Unfit(unfit, io_error)).by(backend)
    }

    fn with_cause(kind: ErrorKind, side: Option<Side>, cause: Cause) -> Self {
        let (backend, delivered, undelivered) = (None, 0, Bytes::new());
        Self {
            inner: Box::new(Inner {
                kind,
                side,
                backend,
                delivered,
                undelivered,
                cause,
            }),
        }
    }

    /// Input that makes no sense, found before anything was touched.
    pub(crate) fn input(side: Side, kind: io::ErrorKind, text: impl Into<String>) -> Self {
        let error = io::Error::new(kind, text.into());
        Self::io(ErrorKind::InvalidInput, Some(side), error)
    }

    pub(crate) fn by(mut self, backend: Backend) -> Self {
        self.inner.backend = Some(backend);
        self
    }

    pub(crate) fn after(mut self, delivered: u64, undelivered: Bytes) -> Self {
        self.inner.delivered = delivered;
        self.inner.undelivered = undelivered;
        self
    }

    /// What kind of failure it was.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Bytes that reached the destination before the failure: resume from here.
    pub fn delivered(&self) -> u64 {
        self.inner.delivered
    }

    /// The side that failed, or that was refused, where that is known: not where the call between both
    /// did not tell, and not of a pair that is unfit.
    pub fn side(&self) -> Option<Side> {
        self.inner.side
    }

    /// The backend that was at work, if it came to that.
    pub fn backend(&self) -> Option<Backend> {
        self.inner.backend
    }

    /// Bytes taken from a source that cannot rewind, in order; else empty.
    pub fn undelivered(&self) -> &Bytes {
        &self.inner.undelivered
    }

    /// The same bytes, owned.
    pub fn into_undelivered(self) -> Bytes {
        self.inner.undelivered
    }

    /// The kind that it has as an [`io::Error`].
    pub(crate) fn io_kind(&self) -> io::ErrorKind {
        match (self.kind(), self.io_error().map(errno::told_kind)) {
            (_, Some(cause)) => cause,
            (ErrorKind::Unfit, None) => io::ErrorKind::Unsupported,
            (_, None) => io::ErrorKind::Other,
        }
    }

    /// What the kernel answered; or what it would have: for input that makes no sense, a source that
    /// was truncated and a time limit, an error that says so. `None` where a pair is unfit by its
    /// nature.
    pub fn io_error(&self) -> Option<&io::Error> {
        match &self.inner.cause {
            Cause::Io(error) | Cause::Unfit(_, Some(error)) => Some(error),
            Cause::Unfit(_, None) => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.inner;
        if let Some(backend) = inner.backend {
            write!(f, "{backend}: ")?;
        }
        match (inner.kind, inner.side) {
            (ErrorKind::InvalidInput, Some(side)) => write!(f, "{side} refused: ")?,
            (ErrorKind::InvalidInput, None) => {}
            (ErrorKind::Unfit, _) => write!(f, "unfit after {} bytes: ", inner.delivered)?,
            (ErrorKind::SourceTruncated, _) => {
                write!(f, "source truncated after {} bytes: ", inner.delivered)?;
            }
            (ErrorKind::Io, Some(side)) => {
                write!(f, "{side} failed after {} bytes: ", inner.delivered)?;
            }
            (ErrorKind::Io, None) => write!(f, "failed after {} bytes: ", inner.delivered)?,
        }
        match &inner.cause {
            Cause::Io(error) => write!(f, "{error}"),
            Cause::Unfit(unfit, _) => write!(f, "{unfit}"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.inner;
        let cause: &dyn fmt::Debug = match &inner.cause {
            Cause::Io(error) => error,
            Cause::Unfit(unfit, _) => unfit,
        };
        f.debug_struct("Error")
            .field("kind", &inner.kind)
            .field("side", &inner.side)
            .field("backend", &inner.backend)
            .field("delivered", &inner.delivered)
            .field("undelivered", &inner.undelivered.len())
            .field("cause", cause)
            .finish()
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match &self.inner.cause {
            Cause::Io(error) => Some(error),
            Cause::Unfit(unfit, _) => Some(unfit),
        }
    }
}

impl From<Error> for io::Error {
    /// Keeps the kind of [`Error::io_error`] (for input that makes no sense `IsADirectory`,
    /// `PermissionDenied`, `NotSeekable`, `Unsupported` or `InvalidInput`; where a pair is unfit by its
    /// nature, `Unsupported`). The [`Error`] stays inside, reachable by [`io::Error::get_ref`] and
    /// `downcast`.
    ///
    /// Never `WouldBlock`: an event loop would take that for a state to wait in. Where a call between
    /// files was refused with EAGAIN (a lease, a lock), the kind is `ResourceBusy`. Nor `Interrupted`,
    /// upon which callers begin anew: an EINTR that does not end is `ResourceBusy` as well.
    fn from(error: Error) -> Self {
        io::Error::new(error.io_kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C10: whoever waits on `WouldBlock` would wait for what never comes.
    #[test]
    fn a_refusal_is_no_state_to_wait_in() {
        for number in [libc::EAGAIN, libc::EINTR] {
            let refused = Unfit::Refused(number);
            let error = Error::unfit(Backend::CopyFileRange, refused).after(7, Bytes::new());
            let raw = error.io_error().and_then(io::Error::raw_os_error);
            assert_eq!(raw, Some(number));
            let error = io::Error::from(error);
            assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
            let inner = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
            assert_eq!(inner.map(Error::delivered), Some(7));
        }
    }
}
