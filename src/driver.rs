//! The core that every form of transfer runs on: limits, fallback, accounting.
//!
//! It owns three numbers: the length asked for, the bytes delivered, and the explicit offset that
//! each side started from, if any. Everything else is derived. Where the next byte is taken or put
//! follows from the counts, so a backend cannot put an offset wrong, and a fallback goes on where
//! the last backend stopped without being told.

mod audit;
mod bounds;
mod gaps;
mod settle;
mod start;
mod waiting;

use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use crate::backend::{
    self, Backend, Endpoint, Facts, Fault, ReadWrite, Side, Step, Unfit, ZeroCopyTransfer,
};
use crate::drop_behind::DropBehind;
use crate::error::Result;
use crate::holes::{Holes, Next};
use crate::pace::{Limits, Pace, Stalls};
use crate::prealloc::Prealloc;
use crate::probe::{Queue, Wishes};
use crate::report::{End, Report, Shares, Status};
use crate::sys::sigpipe::Shield;
use crate::sys::{call, fork};

pub(crate) use audit::Audited;
use bounds::SameFile;
use waiting::timed_out;

/// What the options ask for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) wishes: Wishes,
    pub(crate) chunk: Option<NonZeroUsize>,
    pub(crate) limits: Limits,
}

#[derive(Debug)]
pub(crate) struct Driver {
    len: u64,
    delivered: u64,
    src: Place,
    dst: Place,
    chunk: Option<NonZeroUsize>,
    backend: Box<dyn ZeroCopyTransfer + Send>,
    /// Whether the backend at work has moved anything: what has served until now fits.
    proven: bool,
    /// The backend is the caller's own, and taken at its word for the end.
    own: bool,
    /// Bytes that had been delivered when a backend found the end where read(2) found more.
    false_end: Option<u64>,
    stalls: Stalls,
    /// The backends still to be tried, in order.
    next: Queue,
    wishes: Wishes,
    refused: Vec<(Backend, Unfit)>,
    shares: Shares,
    end: End,
    syscalls: u64,
    /// The process that advanced it last. What is in flight is that one's, and so are the places where
    /// both sides stand: a child that drops its copy leaves them alone.
    process: u64,
    shield: Shield,
    // Few transfers have these; boxed, they keep what every step looks at close together.
    holes: Option<Box<Holes>>,
    prealloc: Option<Prealloc>,
    drop_behind: Option<Box<DropBehind>>,
    same_file: Option<Box<SameFile>>,
    pace: Option<Box<Pace>>,
    /// The most that moves at once, of bytes that take time to move.
    most: u64,
}

/// A fair piece, in bytes.
pub(crate) const FAIR: u64 = backend::FAIR as u64;

/// One side: what is known of it, and the explicit offset that it started from.
#[derive(Debug)]
struct Place {
    facts: Facts,
    base: Option<u64>,
}

impl Place {
    fn new(facts: Facts, base: Option<u64>) -> Self {
        Self { facts, base }
    }

    fn endpoint<'a>(&'a self, fd: BorrowedFd<'a>, passed: u64) -> Endpoint<'a> {
        Endpoint::new(
            fd,
            &self.facts,
            self.base.map(|base| base.saturating_add(passed)),
        )
    }
}

impl Driver {
    /// Limits what follows.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.pace = Pace::new(limits).map(Box::new);
    }

    /// When the next byte may pass, where the rate is what holds it up.
    pub(crate) fn resume_at(&self) -> Option<Instant> {
        self.pace.as_ref().and_then(|pace| pace.resume_at())
    }

    /// Moves no more than a fair piece at once from now on, since others wait for the thread.
    pub(crate) fn be_fair(&mut self) {
        self.most = FAIR;
    }

    /// Moves no more than this at once from now on.
    #[cfg(feature = "tokio")]
    pub(crate) fn at_most(&mut self, bytes: u64) {
        self.most = bytes.max(1);
    }

    /// The range of the source's file that the next piece comes from, where it can be said: offset
    /// and length.
    #[cfg(feature = "tokio")]
    pub(crate) fn next_range(&self, src: BorrowedFd<'_>) -> Option<(u64, u64)> {
        let around = self.src.facts.is_direct() || self.backend() == Backend::Direct;
        if !self.src.facts.kind().is_cached() || around {
            return None;
        }
        let at = self
            .src
            .endpoint(src, self.delivered + self.in_flight())
            .position()
            .ok()?;
        let len = self.remaining().saturating_sub(self.in_flight()).min(FAIR);
        (len > 0).then_some((at, len))
    }

    /// The time after which nothing moves any more.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.pace.as_ref().and_then(|pace| pace.deadline())
    }

    pub(crate) fn extend(&mut self, len: u64) {
        self.len = self.len.saturating_add(len);
        self.end = End::Stopped;
    }

    pub(crate) fn src_facts(&self) -> &Facts {
        &self.src.facts
    }

    pub(crate) fn dst_facts(&self) -> &Facts {
        &self.dst.facts
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.backend.in_flight() as u64
    }

    pub(crate) fn remaining(&self) -> u64 {
        self.len.saturating_sub(self.delivered)
    }

    pub(crate) fn backend(&self) -> Backend {
        self.backend.backend()
    }

    /// Stops: what was taken from a seekable source goes back, from any other it goes on.
    pub(crate) fn stop(&mut self, src: BorrowedFd<'_>) -> Result<()> {
        if self.src.facts.kind().is_cached() {
            let held = self.reclaim(src)?;
            if !held.is_empty() {
                // The source does not go back: so they go on.
                self.backend = Box::new(ReadWrite::with_held(&held));
            }
        }
        self.take_no_more();
        Ok(())
    }

    /// Asks for nothing more than what has been taken already.
    pub(crate) fn take_no_more(&mut self) {
        self.len = self.delivered.saturating_add(self.in_flight());
    }

    pub(crate) fn report(&self) -> Report {
        Report::new(
            self.backend(),
            self.end,
            self.refused.clone(),
            self.shares.clone(),
            self.syscalls,
        )
    }

    pub(crate) fn advance(&mut self, src: BorrowedFd<'_>, dst: BorrowedFd<'_>) -> Result<Status> {
        let before = call::made();
        self.process = fork::process();
        let result = self.advance_counted(src, dst);
        self.syscalls += call::made() - before;
        result
    }

    fn advance_counted(&mut self, src: BorrowedFd<'_>, dst: BorrowedFd<'_>) -> Result<Status> {
        if let Some(pace) = self.pace.as_mut().filter(|_| self.len > self.delivered) {
            if pace.is_over() {
                return Err(self.fail(timed_out(None), src));
            }
            if pace.holds() {
                return Ok(Status::Blocked(Side::Destination));
            }
        }
        loop {
            let held = self.in_flight();
            let limit = match self.limit(held)? {
                Ok(limit) => limit,
                Err(end) => return self.finish(end, src, dst),
            };
            let limit = match self.skip_hole(limit, src, dst) {
                Ok(Next::Data(limit)) => limit,
                Ok(Next::Made(skipped)) => return self.moved(skipped, src, dst),
                Ok(Next::Passed(skipped)) => return self.go_on_behind(skipped, src, dst),
                Err(fault) => return Err(self.fail(fault, src)),
            };
            self.allocate(src, dst);
            // What is usual comes by itself: after a system call, the processor has forgotten what
            // it knew of branches and returns, and each costs.
            match self.step(limit, held, src, dst) {
                Ok(Step::Moved(bytes)) => {
                    self.note(bytes.get() as u64);
                    return self.moved(bytes, src, dst);
                }
                other => {
                    if let Some(status) = self.settle(other, src, dst)? {
                        return Ok(status);
                    }
                }
            }
        }
    }

    /// Leaves nothing behind: what is in flight goes back where it can.
    pub(crate) fn close(&mut self, src: BorrowedFd<'_>, dst: BorrowedFd<'_>) {
        if self.process != fork::process() {
            return;
        }
        // Nobody is left to tell; from a stream, the bytes go with the transfer.
        let _ = self.reclaim(src);
        if let Some(holes) = &mut self.holes {
            let from = self.src.endpoint(src, self.delivered);
            let to = self.dst.endpoint(dst, self.delivered);
            let _ = holes.put_back(&from, &to);
        }
        self.tidy(dst);
    }

    fn step(
        &mut self,
        limit: NonZeroUsize,
        held: u64,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
    ) -> std::result::Result<Step, Fault> {
        let taken = self.delivered + held;
        let mut src = self.src.endpoint(src, taken);
        let mut dst = self.dst.endpoint(dst, self.delivered);
        let step = || self.backend.step(&mut src, &mut dst, limit);
        self.shield.run(step)
    }

    /// Takes note of bytes moved by the backend.
    fn note(&mut self, bytes: u64) {
        self.proven = true;
        if let Some(holes) = &mut self.holes {
            holes.moved(bytes);
        }
        if let Some(prealloc) = &mut self.prealloc {
            prealloc.moved(bytes);
        }
        if let Some(pace) = &mut self.pace {
            pace.passed(bytes);
        }
    }

    #[inline]
    fn moved(
        &mut self,
        bytes: NonZeroUsize,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
    ) -> Result<Status> {
        let count = bytes.get() as u64;
        self.delivered += count;
        self.end = End::Stopped;
        let backend = self.backend();
        // Each once, however often a relay's engine goes from one to the other and back.
        self.shares.add(backend, count);
        if self.drop_behind.is_some() {
            self.tend_cache(count, false, src, dst)?;
        }
        Ok(Status::Moved(bytes))
    }

    fn finish(&mut self, end: End, src: BorrowedFd<'_>, dst: BorrowedFd<'_>) -> Result<Status> {
        self.end = end;
        self.tidy(dst);
        self.tend_cache(0, true, src, dst)?;
        Ok(Status::Finished(end))
    }

    /// Drops what was passed from the page cache, where that is asked for.
    #[inline(never)]
    fn tend_cache(
        &mut self,
        bytes: u64,
        last: bool,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
    ) -> Result<()> {
        if self.drop_behind.is_none() {
            return Ok(());
        }
        let taken = self.delivered + self.in_flight();
        let Some(trail) = &mut self.drop_behind else {
            return Ok(());
        };
        if !last && self.backend.is_uncached() {
            return Ok(());
        }
        let from = self.src.endpoint(src, taken);
        let to = self.dst.endpoint(dst, self.delivered);
        let tended = trail.moved(&from, &to, bytes, last);
        tended.map_err(|e| self.fail(Fault::new(Side::Destination, e), src))
    }
}
