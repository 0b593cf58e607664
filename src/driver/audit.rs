//! A backend of somebody else's, whose counts are checked before anything is derived from them.

use std::io;
use std::mem;
use std::num::NonZeroUsize;

use bytes::BytesMut;

use crate::backend::{Backend, Endpoint, Fault, Step, Unfit, ZeroCopyTransfer};

/// What the contract says of counts (C1, C3), held of each step.
#[derive(Debug)]
pub(crate) struct Audited {
    inner: Box<dyn ZeroCopyTransfer + Send>,
    /// Bytes in flight, as far as they were allowed.
    held: usize,
}

impl Audited {
    pub(crate) fn new(inner: Box<dyn ZeroCopyTransfer + Send>) -> Self {
        let held = 0;
        Self { inner, held }
    }
}

impl ZeroCopyTransfer for Audited {
    fn backend(&self) -> Backend {
        self.inner.backend()
    }

    fn assess(&self, src: &Endpoint<'_>, dst: &Endpoint<'_>) -> Result<(), Unfit> {
        self.inner.assess(src, dst)
    }

    fn step(
        &mut self,
        src: &mut Endpoint<'_>,
        dst: &mut Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Step, Fault> {
        let stepped = self.inner.step(src, dst, limit);
        let after = self.inner.in_flight();
        let moved = match stepped {
            Ok(Step::Moved(bytes)) => bytes.get(),
            _ => 0,
        };
        // What was in flight is still there or has been delivered, and no more than the limit came to it.
        let counts = moved
            .checked_add(after)
            .is_some_and(|all| (self.held..=limit.get()).contains(&all));
        self.held = after.min(limit.get());
        if counts {
            stepped
        } else {
            let (side, error) = (None, wrong());
            Err(Fault { side, error })
        }
    }

    fn in_flight(&self) -> usize {
        self.held
    }

    fn reclaim(&mut self, into: &mut BytesMut) -> io::Result<()> {
        let before = into.len();
        let given = self.inner.reclaim(into);
        let held = mem::take(&mut self.held);
        if given.is_ok() && into.len().checked_sub(before) != Some(held) {
            return Err(wrong());
        }
        given
    }

    fn is_uncached(&self) -> bool {
        self.inner.is_uncached()
    }
}

fn wrong() -> io::Error {
    let text = "the backend's counts do not hold: it breaks the contract of ZeroCopyTransfer";
    io::Error::new(io::ErrorKind::InvalidData, text)
}
