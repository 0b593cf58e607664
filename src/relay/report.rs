//! What a relay says of itself afterwards.

use std::error;
use std::fmt;
use std::io;

use bytes::Bytes;

use crate::backend::Backend;
use crate::error::Error;

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
    /// Both directions have ended, or one did and
    /// [`HalfClose::CloseBoth`](super::HalfClose::CloseBoth) was asked for.
    Closed,
    /// Nothing moved either way for as long as the idle limit allows.
    Idle,
    /// It was broken off: by its owner, or by the failure that the error tells of.
    Stopped,
}

/// What went through one direction.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Flow {
    /// Bytes delivered.
    pub bytes: u64,
    /// Bytes taken and not delivered: empty unless the relay was broken off or failed.
    pub undelivered: Bytes,
    /// System calls made.
    pub syscalls: u64,
    pub(super) shares: Vec<(Backend, u64)>,
}

impl Flow {
    /// How many bytes went by splice(2) and how many by read(2) and write(2), in the order in which
    /// they came to move any.
    pub fn shares(&self) -> &[(Backend, u64)] {
        &self.shares
    }
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
        let (a_to_b, b_to_a, end) = (Flow::default(), Flow::default(), RelayEnd::Stopped);
        let report = RelayReport {
            a_to_b,
            b_to_a,
            end,
        };
        Self::new(Direction::AToB, error, report)
    }

    pub(super) fn new(direction: Direction, error: Error, report: RelayReport) -> Self {
        Self {
            inner: Box::new((direction, error, report)),
        }
    }

    /// The direction that failed.
    pub fn direction(&self) -> Direction {
        self.inner.0
    }

    /// What went wrong in that direction.
    pub fn error(&self) -> &Error {
        &self.inner.1
    }

    /// What both directions had moved, and what each had taken and not delivered.
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
        io::Error::new(error.error().io_kind(), error)
    }
}
