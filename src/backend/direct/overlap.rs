//! A step in which a file's next blocks are read while one is written.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;

use super::ahead::{BLOCK, Span};
use super::{Direct, Endpoint, Fault, Kind, Side, Step};
use crate::sys::{call, errno};

/// Below this, there is nothing to be done at the same time.
const WORTHWHILE: usize = 2 * BLOCK;

/// The most that one step moves: enough that its first read and its last write, which nothing
/// overlaps with, do not matter.
const RUN: usize = 256 << 20;

/// Where the bytes go, and what became of those that went.
struct Sink<'a> {
    dst: &'a Endpoint<'a>,
    /// Where the first byte goes, in a file that takes O_DIRECT; else the side's own way.
    direct: Option<(BorrowedFd<'a>, u64)>,
    align: usize,
    delivered: usize,
    end: Option<io::Error>,
}

impl Sink<'_> {
    /// Writes a block. `false`: not all of it, or it was the last.
    fn put(&mut self, block: &[u8]) -> bool {
        match self.direct {
            Some((fd, start)) => {
                // What fills no block goes through the page cache, and is read again for that.
                let whole = &block[..block.len() - block.len() % self.align];
                if whole.is_empty() {
                    return false;
                }
                let written = call::pwrite(fd, whole, start + self.delivered as u64);
                self.note(written) == whole.len()
            }
            None => {
                let mut left = block;
                while !left.is_empty() {
                    let written = match self.dst.offset() {
                        Some(offset) => {
                            call::pwrite(self.dst.fd(), left, offset + self.delivered as u64)
                        }
                        None => call::write(self.dst.fd(), left),
                    };
                    match self.note(written) {
                        0 => return false,
                        n => left = &left[n..],
                    }
                }
                true
            }
        }
    }

    /// Counts what a write delivered.
    fn note(&mut self, written: io::Result<usize>) -> usize {
        match written {
            Ok(0) => self.end = Some(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                self.delivered += n;
                return n;
            }
            Err(e) => self.end = Some(e),
        }
        0
    }
}

impl Direct {
    /// Moves the next blocks, those behind being read meanwhile. `None`: nothing has moved, and it
    /// is for the serial way to say what there is to say.
    ///
    /// What was read and not delivered was never taken: the source's position is moved by what was
    /// delivered, and it is read again where that ends.
    pub(super) fn overlapped(
        &mut self,
        src: &Endpoint<'_>,
        dst: &Endpoint<'_>,
        limit: usize,
    ) -> Option<Result<Step, Fault>> {
        let sides = self.sides.as_ref()?;
        let waits = !(dst.kind().is_stream() && dst.facts().is_nonblocking());
        let fit = limit >= WORTHWHILE && sides.src.is_direct() && waits;
        if !fit || self.serial || !self.held.is_empty() {
            return None;
        }
        let align = sides.align as u64;
        let at = src.position().ok()?;
        let len = (limit.min(RUN) as u64).min(left(src, at)?);
        let len = usize::try_from(len - len % align).ok()?;
        let direct = if sides.dst.is_direct() {
            Some((sides.dst.direct(dst), dst.position().ok()?))
        } else {
            None
        };
        let aligned = at % align == 0 && direct.is_none_or(|(_, to)| to % align == 0);
        if !aligned || len < WORTHWHILE {
            return None;
        }
        let span = Span {
            fd: sides.src.direct(src),
            offset: at,
            len,
            align: sides.align,
            #[cfg(feature = "io-uring")]
            own_size: src.facts().has_own_size(),
        };
        let mut sink = Sink {
            dst,
            direct,
            align: sides.align,
            delivered: 0,
            end: None,
        };
        self.ahead.read(span, &mut |block| sink.put(block));
        let Sink { delivered, end, .. } = sink;
        // The positions were asked for above: these descriptors can be moved.
        let _ = src.seek_by(delivered as i64);
        if direct.is_some() {
            let _ = dst.seek_by(delivered as i64);
        }
        let moved = NonZeroUsize::new(delivered).map(|bytes| Ok(Step::Moved(bytes)));
        let Some(error) = end else {
            return moved;
        };
        if errno::would_block(&error) {
            return moved.or(Some(Ok(Step::Blocked(Side::Destination))));
        }
        if direct.is_some() && error.raw_os_error() == Some(libc::EINVAL) {
            // The alignment told was not enough, or the file does not take it after all.
            self.serial = true;
            return moved;
        }
        let fault = Fault::new(Side::Destination, error);
        if moved.is_none() {
            return Some(Err(fault));
        }
        self.fault = Some(fault);
        moved
    }
}

/// How much there is behind `at`. A file that was small when it was looked at is not asked again.
fn left(src: &Endpoint<'_>, at: u64) -> Option<u64> {
    if src.kind() != Kind::File {
        return Some(u64::MAX - at);
    }
    if src.facts().size_hint() < WORTHWHILE as u64 {
        return None;
    }
    let size = call::stat(src.fd()).ok()?.size;
    size.checked_sub(at)
}
