//! What a fan-out says of itself.

use crate::error::Error;
use crate::report::End;

/// What a fan-out did.
#[derive(Debug)]
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
