//! splice(2): bytes change hands as references to pages, through a pipe.
//!
//! Where a side is a pipe, one call moves from one descriptor to the other. Otherwise a private
//! pipe stands between: one call fills it, one drains it, and it is always drained before it is
//! filled again. That order is what makes EAGAIN unambiguous: while the pipe holds bytes the
//! destination is what to wait for, and once it is empty the source. (A pipe runs out of slots
//! long before bytes: 16 slots hold 16 TCP segments, however small.)
//!
//! From a file, the pages of the page cache travel, so that a later write shows through until the
//! reader has taken them; into a file the kernel copies. On a destination that appends it answers
//! EINVAL.
//!
//! While a call out of the caller's own pipe waits for a blocking socket, the kernel holds that
//! pipe's lock: whoever writes to the pipe waits along, O_NONBLOCK or not. With a non-blocking
//! socket nobody does. The other way round, where it would keep a reader from bytes that are in the
//! pipe already, a blocking socket is waited for by poll(2) first, at the cost of that call.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::BytesMut;

use super::{Backend, Endpoint, Fault, Kind, Reservation, Side, Step, Unfit, ZeroCopyTransfer};
use crate::sys::errno::{self, Call};
use crate::sys::{PipePool, PrivatePipe, call, socket};

/// The pipe of one's own: each fill is a call, and a file is filled in pieces of this size, of which
/// large ones make large folios (file to file, 32 MiB, ext4: 158 ms of CPU per GiB, through 256 KiB
/// 174, through 128 KiB 196). 1 MiB is the most that an unprivileged process may have.
const CAPACITY: usize = 1 << 20;

/// A pipe below this loses to read/write with its buffer of 256 KiB.
const WORTHWHILE: usize = 256 << 10;

/// From here on, a piece of a stream is worth reserving its blocks. (CPU, of what it costs without:
/// 64 KiB 1.1, 128 KiB 1.04, 256 KiB 0.94, 512 KiB 0.85.)
const RESERVED: usize = 512 << 10;

/// splice(2).
#[derive(Debug, Default)]
pub struct Splice {
    pipe: Option<PrivatePipe>,
    /// Where the pipe comes from and goes back to whenever it is empty; else it is kept.
    pool: Option<Arc<PipePool>>,
    held: usize,
    /// Give way to read/write where the kernel grants a small pipe only.
    choosy: bool,
    /// Whether to find out if more follows what fills the pipe.
    foresees: bool,
    /// More follows at once what the pipe holds: the source has it already.
    more: bool,
    reservation: Reservation,
}

impl Splice {
    /// Works with whatever pipe the kernel grants, made at the first step that needs one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives way where the kernel grants too small a pipe.
    pub(crate) fn choosy() -> Self {
        Self {
            choosy: true,
            ..Self::default()
        }
    }

    /// Borrows a pipe for as long as it holds bytes, and gives way where none is to be had.
    pub(crate) fn pooled(pool: Arc<PipePool>) -> Self {
        Self {
            pool: Some(pool),
            choosy: true,
            ..Self::default()
        }
    }

    /// Lets a socket wait for what follows before it sends a segment that is not full, where the
    /// source has more already. Only for one who goes on at once.
    pub(crate) fn foresee(&mut self) {
        self.foresees = true;
    }

    /// A pipe for at most `limit` bytes. `Err` is the step's outcome where there is none.
    fn pipe(&self, limit: usize) -> Result<PrivatePipe, Result<Step, Fault>> {
        let pipe = match &self.pool {
            Some(pool) => pool.borrow(CAPACITY),
            None => PrivatePipe::new(CAPACITY.min(limit)).map(Some),
        };
        // Whatever the reason: no pipe is no fault of either side.
        let refused = |e: io::Error| Unfit::Refused(e.raw_os_error().unwrap_or(0));
        let pipe = pipe.map_err(|e| Ok(Step::Unfit(refused(e))))?;
        // A user past his share of pipe memory gets one page or two, whatever was asked for.
        pipe.filter(|pipe| !self.choosy || pipe.capacity() >= WORTHWHILE.min(limit))
            .ok_or(Ok(Step::Unfit(Unfit::SmallPipe)))
    }

    /// Gives the pipe back where it is borrowed and empty.
    fn release(&mut self) {
        if self.held == 0 {
            if let Some(pool) = &self.pool {
                if let Some(pipe) = self.pipe.take() {
                    pool.give_back(pipe);
                }
            }
        }
    }

    /// One call between descriptors of which one is a pipe: nothing stays in between.
    fn direct(src: &Endpoint<'_>, dst: &Endpoint<'_>, limit: usize) -> Result<Step, Fault> {
        if super::would_hold_lock(src, dst)? {
            return Ok(Step::Blocked(Side::Source));
        }
        let (from, to) = (src.offset(), dst.offset());
        let splice = || call::splice(src.fd(), from, dst.fd(), to, limit.min(super::FAIR));
        match super::attempt(src, Some(dst), splice) {
            Ok(Ok(0)) => super::ended(src),
            Ok(Ok(n)) => Ok(super::moved_or_ended(n)),
            Err(blocked) => blocked,
            Ok(Err(e)) => super::unfit_or_fault(Call::Splice, super::side_of(src, dst, &e), e),
        }
    }

    /// Fills the private pipe, which is empty. `Some` is the step's outcome where it cannot.
    fn fill(
        &mut self,
        src: &Endpoint<'_>,
        dst: &Endpoint<'_>,
        limit: usize,
    ) -> Result<Option<Step>, Fault> {
        let pipe = match self.pipe.take().filter(PrivatePipe::is_ours) {
            Some(pipe) => pipe,
            None => match self.pipe(limit) {
                Ok(pipe) => pipe,
                Err(outcome) => return outcome.map(Some),
            },
        };
        let pipe = self.pipe.insert(pipe);
        let count = limit.min(pipe.capacity());
        let splice = || call::splice(src.fd(), src.offset(), pipe.write_end(), None, count);
        let filled = super::attempt(src, None, splice);
        if std::mem::take(&mut self.more) && !matches!(filled, Ok(Ok(1..))) {
            // It was there, and cannot be had this way: what was sent before does not wait for it.
            socket::push(dst.fd());
        }
        match filled {
            Ok(Ok(0)) => super::ended(src).map(Some),
            Ok(Ok(n)) => {
                self.held = n;
                // The pipe was too small: one packet in 16 would be a short one otherwise, where
                // packets are as large as on loopback. Anything less than certainty would cork it.
                let full = n == pipe.capacity() && limit > n;
                let corks = self.foresees && dst.kind() == Kind::Tcp;
                self.more =
                    full && corks && socket::readable(src.fd()).is_ok_and(|bytes| bytes > 0);
                self.reserve(src, dst);
                Ok(None)
            }
            Ok(Err(e)) => super::unfit_or_fault(Call::Splice, Some(Side::Source), e).map(Some),
            Err(outcome) => outcome.map(Some),
        }
    }

    /// Has blocks ready for a stream's bytes that are in the pipe.
    fn reserve(&mut self, src: &Endpoint<'_>, dst: &Endpoint<'_>) {
        let fits = self.held >= RESERVED && dst.facts().allocates_ahead();
        // For a file that tells how much it holds, that is done from outside, in larger pieces.
        if fits && !src.facts().has_own_size() {
            if let Ok(at) = dst.position() {
                self.reservation
                    .extend(dst, at, at.saturating_add(self.held as u64));
            }
        }
    }

    /// Drains what the private pipe holds, once.
    fn drain(&mut self, dst: &Endpoint<'_>, limit: usize) -> Result<Step, Fault> {
        let Some(pipe) = &self.pipe else {
            return Ok(Step::Ended);
        };
        let count = self.held.min(limit);
        let drained = if self.more {
            call::splice_more(pipe.read_end(), dst.fd(), count)
        } else {
            call::splice(pipe.read_end(), None, dst.fd(), dst.offset(), count)
        };
        match drained {
            Ok(n) => {
                self.held = self.held.saturating_sub(n);
                super::delivered(n)
            }
            Err(e) if errno::would_block(&e) => Ok(Step::Blocked(Side::Destination)),
            // Whatever it is, the bytes are in the pipe: not for this backend to say "unfit".
            Err(e) => Err(Fault::new(Side::Destination, e)),
        }
    }
}

impl ZeroCopyTransfer for Splice {
    fn backend(&self) -> Backend {
        Backend::Splice
    }

    fn assess(&self, src: &Endpoint<'_>, dst: &Endpoint<'_>) -> Result<(), Unfit> {
        let served = |kind| !matches!(kind, Kind::CharDevice | Kind::Generated);
        super::require(Side::Source, src, served)?;
        super::require(Side::Destination, dst, served)?;
        super::require_no_append(dst)?;
        super::require_buffered(src, dst)
    }

    fn step(
        &mut self,
        src: &mut Endpoint<'_>,
        dst: &mut Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Step, Fault> {
        let limit = limit.get();
        if src.kind() == Kind::Pipe || dst.kind() == Kind::Pipe {
            return Self::direct(src, dst, limit);
        }
        let filled = if self.held == 0 {
            self.fill(src, dst, limit)
        } else {
            Ok(None)
        };
        let step = match filled {
            Ok(None) => self.drain(dst, limit),
            Ok(Some(outcome)) => Ok(outcome),
            Err(fault) => Err(fault),
        };
        self.release();
        step
    }

    fn in_flight(&self) -> usize {
        self.held
    }

    fn reclaim(&mut self, into: &mut BytesMut) -> io::Result<()> {
        // Whatever happens, this pipe is not used again.
        let Some(pipe) = self.pipe.take() else {
            return Ok(());
        };
        let start = into.len();
        into.resize(start + self.held, 0);
        self.held = 0;
        let (taken, result) = pipe.take(&mut into[start..]);
        into.truncate(start + taken);
        result
    }
}
