//! What a transfer says of itself: what a step did, how far it has come, how it ended.

use std::fmt;
use std::num::NonZeroUsize;

use crate::backend::{Backend, Side, Unfit};

/// What [`Transfer::advance`](crate::Transfer::advance) did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// So many bytes reached the destination. A hole that was skipped counts like its zeros.
    Moved(NonZeroUsize),
    /// Nothing moved: wait until this side is ready, then advance again.
    Blocked(Side),
    /// There is nothing left to do, until [`Transfer::extend`](crate::Transfer::extend) adds something.
    Finished(End),
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum End {
    /// All bytes that were asked for were delivered.
    Complete,
    /// The source had fewer; all of them were delivered.
    SourceEnded,
    /// It was told to stop, or has not ended yet.
    #[default]
    Stopped,
}

/// What a transfer did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Bytes that reached the destination.
    pub bytes: u64,
    /// The backend that moved the most of them.
    pub backend: Backend,
    /// How it ended.
    pub end: End,
    refused: Vec<(Backend, Unfit)>,
    shares: Shares,
    syscalls: u64,
}

/// How many bytes each backend moved, in the order in which they came to move any. There are only
/// so many of them, so it takes no memory of its own.
#[derive(Clone)]
pub(crate) struct Shares {
    list: [(Backend, u64); Backend::ALL.len()],
    used: usize,
}

impl Shares {
    pub(crate) const NONE: Self = Self {
        list: [(Backend::ReadWrite, 0); Backend::ALL.len()],
        used: 0,
    };

    /// Takes note of bytes moved.
    pub(crate) fn add(&mut self, backend: Backend, bytes: u64) {
        // Nearly always, there is but one.
        if let Some((of, share)) = self.list.first_mut() {
            if *of == backend && self.used > 0 {
                *share += bytes;
                return;
            }
        }
        let known = self.as_slice().iter().position(|(b, _)| *b == backend);
        let at = known.unwrap_or(self.used);
        if let Some((of, share)) = self.list.get_mut(at) {
            *of = backend;
            *share += bytes;
        }
        self.used = self.used.max(at + 1);
    }

    fn as_slice(&self) -> &[(Backend, u64)] {
        &self.list[..self.used]
    }
}

impl fmt::Debug for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().fmt(f)
    }
}

impl Report {
    /// Nothing was asked for: nothing was done.
    pub(crate) fn nothing() -> Self {
        Self::new(
            Backend::ReadWrite,
            End::Complete,
            Vec::new(),
            Shares::NONE,
            0,
        )
    }

    pub(crate) fn new(
        current: Backend,
        end: End,
        refused: Vec<(Backend, Unfit)>,
        shares: Shares,
        syscalls: u64,
    ) -> Self {
        let moved = shares.as_slice();
        let bytes = moved.iter().map(|(_, bytes)| bytes).sum();
        let most = moved.iter().rev().max_by_key(|(_, bytes)| *bytes);
        let backend = most.map_or(current, |(backend, _)| *backend);
        Self {
            bytes,
            backend,
            end,
            refused,
            shares,
            syscalls,
        }
    }

    /// The backends that were tried and gave way, in order, each with its reason. Those that the
    /// probe ruled out beforehand are not among them.
    pub fn refused(&self) -> &[(Backend, Unfit)] {
        &self.refused
    }

    /// How many bytes each backend moved, in the order in which they came to move any. Skipped
    /// holes count with the backend that was at work.
    pub fn shares(&self) -> &[(Backend, u64)] {
        self.shares.as_slice()
    }

    /// System calls made for this transfer, those of probing and waiting included.
    pub fn syscalls(&self) -> u64 {
        self.syscalls
    }
}

/// How far a transfer has come.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes that have reached the destination.
    pub delivered: u64,
    /// Bytes asked for; `u64::MAX` means until the source ends.
    pub len: u64,
    /// The backend at work.
    pub backend: Backend,
}
