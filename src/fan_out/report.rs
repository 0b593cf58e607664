//! What a fan-out says of itself.

use std::error;
use std::fmt;
use std::io;

use crate::error::Error;
use crate::report::End;

/// What a fan-out did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct FanOutReport {
    /// Bytes taken from the source.
    pub taken: u64,
    /// How it ended; `Stopped` where no destination was left.
    pub end: End,
    /// What each destination got, in the order in which they were given.
    pub branches: Vec<Branch>,
}

/// One destination's share.
#[derive(Debug)]
#[non_exhaustive]
pub struct Branch {
    /// Bytes delivered to it.
    pub bytes: u64,
    /// Why it got no more, if it failed: with the bytes that were taken for it and not delivered
    /// by then. What was taken later is `taken` - `bytes` - those.
    pub error: Option<Error>,
}

/// Why a fan-out could not begin, or how its source failed: with what each destination had got by
/// the end.
#[derive(Debug)]
pub struct FanOutError {
    inner: Box<(Error, FanOutReport)>,
}

impl FanOutError {
    pub(super) fn new(error: Error, report: FanOutReport) -> Self {
        Self {
            inner: Box::new((error, report)),
        }
    }

    /// What went wrong. Its count is of bytes taken from the source.
    pub fn error(&self) -> &Error {
        &self.inner.0
    }

    /// What had been taken, and what became of it: all of it was delivered to every destination
    /// that has no error of its own.
    pub fn report(&self) -> &FanOutReport {
        &self.inner.1
    }
}

impl fmt::Display for FanOutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error().fmt(f)
    }
}

impl error::Error for FanOutError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(self.error())
    }
}

impl From<FanOutError> for io::Error {
    fn from(error: FanOutError) -> Self {
        io::Error::new(error.error().io_kind(), error)
    }
}

/// What [`FanOut::advance`](super::FanOut::advance) did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FanOutStatus {
    /// Something moved.
    Moved,
    /// Nothing moved. Wait until the source is readable, or one of these destinations writable.
    Blocked {
        /// Whether the source is waited for.
        source: bool,
        /// The destinations waited for, by their place.
        destinations: Vec<usize>,
    },
    /// All that was taken has been delivered to every destination that is left.
    Finished(End),
}
