//! O_DIRECT: between device and an aligned buffer, around the page cache.
//!
//! It saves the page cache for others, at the device's pace: for data that nobody reads again
//! soon. It is chosen by itself only where the caller's descriptor has O_DIRECT, whose alignment
//! no other backend keeps to, or where [`Cache::Bypass`](crate::Cache::Bypass) was asked for.
//!
//! A side without O_DIRECT is opened anew through `/proc/thread-self/fd`: the flag belongs to the open
//! file description, which others may share, so the caller's is never touched. A file with record locks
//! (fcntl(2)) is not, since closing it again would drop them: it goes through the page cache. What does
//! not fill an aligned block at either end of the destination goes through the page cache as well; where
//! the caller's descriptor has O_DIRECT, by a description that is open for that write alone. That the
//! kernel accepted it proves nothing: Btrfs, tmpfs and FUSE take O_DIRECT, and may buffer all the same.
//!
//! From 8 MiB on, a file is read ahead of where it is written, so that the device always has something
//! to do: see `ahead`. A step then lasts for up to 256 MiB, unless the chunk size is less. One thing at
//! a time happens below that, to and from a stream that must not be waited for, from a source that is
//! no file with O_DIRECT, and where source and destination lie differently within their blocks.

mod ahead;
mod overlap;
#[cfg(feature = "io-uring")]
mod ring;
mod sides;

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;

use bytes::{BufMut, BytesMut};

use super::{Backend, Endpoint, Fault, Kind, Side, Step, Unfit, ZeroCopyTransfer};
use crate::sys::errno::{self, Call};
use crate::sys::{AlignedBuf, call};

use ahead::Ahead;
use sides::Sides;

/// The most that one call moves. Larger ones gained nothing on the devices we measured.
const BUFFER: usize = 4 << 20;

/// The most that one call reads from a generated file, which the kernel makes in memory first.
const GENERATED: usize = 256 << 10;

/// O_DIRECT through aligned buffers.
#[derive(Debug)]
pub struct Direct {
    /// Open sides without O_DIRECT anew with it.
    reopen: bool,
    sides: Option<Sides>,
    buf: Option<AlignedBuf>,
    /// The part of the buffer that was read and not yet written.
    held: Range<usize>,
    /// The source had no more bytes while some were held.
    drained: bool,
    ahead: Ahead,
    /// The destination refused an aligned block: one thing at a time from now on.
    serial: bool,
    /// The destination failed after the last step had delivered something.
    fault: Option<Fault>,
}

impl Default for Direct {
    fn default() -> Self {
        Self::new()
    }
}

impl Direct {
    /// Uses O_DIRECT on every side that is a file and takes it.
    pub fn new() -> Self {
        Self {
            reopen: true,
            sides: None,
            buf: None,
            held: 0..0,
            drained: false,
            ahead: Ahead::default(),
            serial: false,
            fault: None,
        }
    }

    /// Uses O_DIRECT on the sides that have it already.
    pub(crate) fn as_opened() -> Self {
        Self {
            reopen: false,
            ..Self::new()
        }
    }

    /// Reads behind what is held, at most `limit` bytes, this step having taken `ahead` already
    /// (an explicit offset stands for the whole step). The buffer is `align` bytes of room for
    /// what was held before, then the aligned part that is read into.
    fn fill(&mut self, src: &Endpoint<'_>, ahead: usize, limit: usize) -> io::Result<usize> {
        let Some(sides) = &self.sides else {
            return Ok(0);
        };
        let align = sides.align;
        let room = limit.min(BUFFER).next_multiple_of(align) + align;
        let kept = self.held.len();
        let buf = match &mut self.buf {
            Some(buf) if buf.len() >= align + room => buf,
            slot => {
                let mut larger = AlignedBuf::new(align + room, align);
                if let Some(old) = slot {
                    larger.as_mut_slice()[..kept]
                        .copy_from_slice(&old.as_slice()[self.held.clone()]);
                }
                self.held = 0..kept;
                slot.insert(larger)
            }
        };
        let bytes = buf.as_mut_slice();
        bytes.copy_within(self.held.clone(), 0);
        self.held = 0..kept;
        let offset = src.offset().map(|offset| offset + ahead as u64);
        let (skipped, read) = if sides.src.is_direct() {
            let at = offset.map_or_else(|| src.position(), Ok)?;
            let skip = (at % align as u64) as usize;
            // Up to a border, so that the next one begins there.
            let want = limit.min(BUFFER - skip);
            let block = at - skip as u64;
            // Nothing lies beyond the largest offset, and a call that reaches there is refused.
            let most =
                usize::try_from((i64::MAX as u64).saturating_sub(block)).unwrap_or(usize::MAX);
            let end = (skip + want).next_multiple_of(align).min(room).min(most);
            let into = &mut bytes[align..align + end];
            let mut read = call::pread(sides.src.direct(src), into, block)?;
            if (1..=skip).contains(&read) {
                // Short of where it is to begin: the end, if it stays so.
                read = call::pread(sides.src.direct(src), into, block)?;
            }
            let read = read.saturating_sub(skip).min(want);
            src.seek_by(read as i64)?;
            (skip, read)
        } else {
            // /proc/sys answers ENOMEM to a count that the kernel cannot allocate in one piece.
            let generated = src.kind() == Kind::Generated;
            let most = if generated { GENERATED } else { BUFFER };
            let into = &mut bytes[align..align + limit.min(most)];
            let read = match offset {
                Some(offset) => call::pread(src.fd(), into, offset)?,
                None => call::read(src.fd(), into)?,
            };
            (0, read)
        };
        let start = align + skipped - kept;
        bytes.copy_within(0..kept, start);
        self.held = start..align + skipped + read;
        Ok(read)
    }

    /// Writes once from what is held, at most `limit` bytes.
    fn drain(&mut self, dst: &Endpoint<'_>, limit: usize) -> io::Result<usize> {
        let (Some(sides), Some(buf)) = (&mut self.sides, &mut self.buf) else {
            return Ok(0);
        };
        let count = self.held.len().min(limit);
        if !sides.dst.is_direct() {
            let from = &buf.as_slice()[self.held.start..self.held.start + count];
            return match dst.offset() {
                Some(offset) => call::pwrite(dst.fd(), from, offset),
                None => call::write(dst.fd(), from),
            };
        }
        let align = sides.align;
        let at = dst.position()?;
        let into_block = (at % align as u64) as usize;
        let whole = count - count % align;
        if into_block == 0 && whole > 0 {
            if self.held.start % align != 0 {
                // Source and destination lie differently within their blocks: one copy.
                buf.as_mut_slice().copy_within(self.held.clone(), 0);
                self.held = 0..self.held.len();
            }
            let from = &buf.as_slice()[self.held.start..self.held.start + whole];
            match call::pwrite(sides.dst.direct(dst), from, at) {
                // The alignment told was not enough, or the file does not take it after all.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
                other => return other.inspect(|n| drop(dst.seek_by(*n as i64))),
            }
        }
        // The head up to a block's border, or a tail that does not fill one.
        let part = if into_block == 0 {
            count
        } else {
            count.min(align - into_block)
        };
        let from = &buf.as_slice()[self.held.start..self.held.start + part];
        let written = sides.dst.write_part(dst, from, at)?;
        let _ = dst.seek_by(written as i64);
        Ok(written)
    }

    /// Whether what is held had better wait for more: the destination takes blocks, and it is
    /// less than one.
    fn wants_more(&self, dst: &Endpoint<'_>, limit: usize) -> io::Result<bool> {
        let Some(sides) = &self.sides else {
            return Ok(true);
        };
        let held = self.held.len();
        if held == 0 {
            return Ok(true);
        }
        if self.drained || held >= limit || held >= sides.align || !sides.dst.is_direct() {
            return Ok(false);
        }
        Ok(dst.position()? % sides.align as u64 == 0)
    }
}

impl ZeroCopyTransfer for Direct {
    fn backend(&self) -> Backend {
        Backend::Direct
    }

    fn assess(&self, src: &Endpoint<'_>, dst: &Endpoint<'_>) -> Result<(), Unfit> {
        // What appends is written as it is opened, so that the source has to be the direct side.
        if dst.facts().is_append() && (dst.facts().is_direct() || !src.kind().is_cached()) {
            return Err(Unfit::Appends);
        }
        if dst.kind().is_cached() || src.kind().is_cached() {
            return Ok(());
        }
        super::require(Side::Source, src, Kind::is_cached)
    }

    fn step(
        &mut self,
        src: &mut Endpoint<'_>,
        dst: &mut Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Step, Fault> {
        let limit = limit.get();
        if self.sides.is_none() {
            match Sides::find(self.reopen, src, dst) {
                Ok(sides) => self.sides = Some(sides),
                Err(outcome) => return outcome,
            }
        }
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        if let Some(step) = self.overlapped(src, dst, limit) {
            return step;
        }
        let of_dst = |e| Fault::new(Side::Destination, e);
        let at_first = self.held.len();
        while self.wants_more(dst, limit).map_err(of_dst)? {
            let held = self.held.len();
            match self.fill(src, held - at_first, limit - held) {
                Ok(0) if self.held.is_empty() => return Ok(Step::Ended),
                Ok(0) => self.drained = true,
                Ok(_) => {}
                Err(e) if errno::would_block(&e) => return Ok(Step::Blocked(Side::Source)),
                Err(e) if self.held.is_empty() => {
                    return super::unfit_or_fault(Call::Read, Some(Side::Source), e);
                }
                Err(e) => return Err(Fault::new(Side::Source, e)),
            }
        }
        match self.drain(dst, limit) {
            Ok(n) => {
                self.held.start += n;
                self.drained &= !self.held.is_empty();
                super::delivered(n)
            }
            Err(e) if errno::would_block(&e) => Ok(Step::Blocked(Side::Destination)),
            Err(e) => Err(of_dst(e)),
        }
    }

    fn in_flight(&self) -> usize {
        self.held.len()
    }

    fn reclaim(&mut self, into: &mut BytesMut) -> io::Result<()> {
        if let Some(buf) = &self.buf {
            into.put_slice(&buf.as_slice()[self.held.clone()]);
        }
        self.held = 0..0;
        self.drained = false;
        Ok(())
    }

    fn is_uncached(&self) -> bool {
        self.sides
            .as_ref()
            .is_some_and(|sides| sides.src.is_direct() && sides.dst.is_direct())
    }
}
