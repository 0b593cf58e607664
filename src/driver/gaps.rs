//! Holes of the source, passed over on both sides.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;

use bytes::Bytes;

use super::Driver;
use crate::backend::{Backend, Fault, Side};
use crate::error::Result;
use crate::holes::{self, Next};
use crate::report::{End, Status};

impl Driver {
    /// Skips the hole that comes next, or limits the step to the data before the one that follows.
    pub(super) fn skip_hole(
        &mut self,
        limit: NonZeroUsize,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
    ) -> std::result::Result<Next, Fault> {
        // A shared extent brings its holes along, and bytes in flight have to go first.
        if self.holes.is_none() || self.backend() == Backend::Reflink || self.in_flight() > 0 {
            return Ok(Next::Data(limit));
        }
        let from = self.src.endpoint(src, self.delivered);
        let to = self.dst.endpoint(dst, self.delivered);
        // A hole is no burden: the chunk does not bound it, only what can be counted at once.
        let whole = self
            .len
            .saturating_sub(self.delivered)
            .min(isize::MAX as u64);
        let whole = NonZeroUsize::new(whole as usize).unwrap_or(limit);
        let next = match &mut self.holes {
            Some(holes) => holes.next(&from, &to, whole)?,
            None => None,
        };
        Ok(match next {
            Some(Next::Data(data)) => Next::Data(data.min(limit)),
            Some(skipped) => skipped,
            None => {
                self.holes = None;
                Next::Data(limit)
            }
        })
    }

    /// Goes on behind a hole that lies beyond the destination's end. The data there make the file
    /// that long, so that it needs no block for the hole, and none is ever taken away again. Where
    /// they do not follow after all, the hole's last byte does it.
    #[inline(never)]
    pub(super) fn go_on_behind(
        &mut self,
        hole: NonZeroUsize,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
    ) -> Result<Status> {
        let count = hole.get() as u64;
        self.delivered += count;
        // The next look is behind the data: this does not come here again.
        let behind = self.advance_counted(src, dst);
        if !matches!(behind, Ok(Status::Moved(_))) {
            let closed = holes::close(&self.dst.endpoint(dst, self.delivered));
            if let Err(error) = closed {
                return self.go_back(behind, error, count, src, dst);
            }
        }
        self.end = End::Stopped;
        let backend = self.backend();
        self.shares.add(backend, count);
        if self.drop_behind.is_some() {
            self.tend_cache(count, false, src, dst)?;
        }
        match behind {
            Ok(Status::Moved(bytes)) => Ok(Status::Moved(hole.saturating_add(bytes.get()))),
            // What it said of the rest, it says again.
            Ok(_) => Ok(Status::Moved(hole)),
            Err(error) => Err(error),
        }
    }

    /// Has nothing of a hole that was passed counted, since the destination cannot be that long: an
    /// error, unless its zeros can be copied.
    fn go_back(
        &mut self,
        behind: Result<Status>,
        error: io::Error,
        count: u64,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
    ) -> Result<Status> {
        // What is in flight is read again from before the hole.
        let _ = self.reclaim(src);
        self.delivered -= count;
        let from = self.src.endpoint(src, self.delivered);
        let to = self.dst.endpoint(dst, self.delivered);
        let back = match &mut self.holes {
            Some(holes) => holes.go_back(&from, &to, count),
            None => Ok(()),
        };
        match (behind, back) {
            (Err(error), _) => Err(error.after(self.delivered, Bytes::new())),
            (Ok(_), Err(fault)) => Err(self.fail(fault, src)),
            (Ok(_), Ok(())) if holes::is_final(&error) => {
                Err(self.fail(Fault::new(Side::Destination, error), src))
            }
            (Ok(_), Ok(())) => self.advance_counted(src, dst),
        }
    }
}
