//! mmap(2) and write(2): one copy, from the page cache straight into the destination.
//!
//! The file is mapped a window at a time, and the window's address is handed to write(2); this
//! process never touches the mapped pages, so that a file truncated by someone else makes a call
//! fail (EFAULT) instead of raising SIGBUS. The page in which the file now ends reads as zeros
//! behind that end, so the size is asked for again before a window is used once more and after each
//! write; only a cut during the very call that delivers the last byte asked for goes unseen. What
//! was delivered is a copy: later writes to the
//! file do not show through, which makes this the cheapest way to a socket under
//! [`Consistency::Snapshot`](crate::Consistency::Snapshot). Setting up and tearing down a mapping
//! costs more than a copy of some 16 KiB.

use std::io;
use std::num::NonZeroUsize;

use super::{Backend, Endpoint, Fault, Side, Step, Unfit, ZeroCopyTransfer};
use crate::sys::errno::{self, Call};
use crate::sys::{Mapping, call};

/// Bytes mapped at a time.
const WINDOW: u64 = 8 << 20;

/// No page is smaller.
const PAGE: usize = 4096;

/// mmap(2) and write(2).
#[derive(Debug, Default)]
pub struct Mmap {
    window: Option<Window>,
    /// The size that the file was seen to have, and that a window may have been mapped by.
    promised: u64,
    /// The last write went beyond the file's end as it then was.
    cut: bool,
}

#[derive(Debug)]
struct Window {
    mapping: Mapping,
    /// The file offset of its first byte.
    start: u64,
}

impl Window {
    fn end(&self) -> u64 {
        self.start + self.mapping.len() as u64
    }
}

impl Mmap {
    /// Nothing is mapped before the first step.
    pub fn new() -> Self {
        Self::default()
    }

    /// The source's size now, and that of its blocks. Seen shrinking below `at` after a window promised
    /// more, it is a truncation and not an end.
    fn size(&mut self, src: &Endpoint<'_>, at: u64) -> Result<(u64, u64), Outcome> {
        let size = if src.kind() == super::Kind::BlockDevice {
            // st_size is 0 for these.
            call::device_size(src.fd()).map(|size| (size, 1))
        } else {
            call::stat(src.fd()).map(|stat| (stat.size, stat.block))
        };
        let (size, block) = size.map_err(refused)?;
        if size <= at && self.promised > at {
            return Err(Err(truncated()));
        }
        self.promised = size;
        Ok((size, block))
    }

    /// Maps the window that holds `at`, unless it is mapped already. An error is the step's outcome
    /// where that is not possible.
    fn map(&mut self, src: &Endpoint<'_>, at: u64, limit: u64) -> Result<(), Outcome> {
        let window = self.window.as_ref();
        let end = window.filter(|w| w.start <= at).map_or(0, Window::end);
        if end > at && !is_cut(src, end).map_err(refused)? {
            return Ok(());
        }
        self.window = None;
        let promised = self.promised;
        let (size, block) = self.size(src, at)?;
        if end > at {
            // What is left of it goes; that more was promised is said behind it.
            self.promised = promised;
        }
        let len = WINDOW.min(limit).min(size.saturating_sub(at));
        let Some(len) = usize::try_from(len).ok().filter(|len| *len > 0) else {
            return Err(Ok(Step::Ended));
        };
        // A page behind the true end reads as zeros. Where the size may be made up, read(2) knows.
        let last = at + len as u64 - 1;
        let known = src.facts().has_own_size();
        if !known && matches!(call::pread(src.fd(), &mut [0], last), Ok(0)) {
            return Err(Ok(Step::Unfit(Unfit::FalseEnd)));
        }
        let mapping = Mapping::new(src.fd(), at, len, block).map_err(refused)?;
        self.window = Some(Window { mapping, start: at });
        Ok(())
    }
}

/// What a step comes to where nothing can be written.
type Outcome = Result<Step, Fault>;

/// What a mapping needs cannot be had: others read the file without.
fn refused(error: io::Error) -> Outcome {
    super::unfit_or_fault(Call::SetUp, Some(Side::Source), error)
}

/// Whether the file ends before `end`.
fn is_cut(src: &Endpoint<'_>, end: u64) -> io::Result<bool> {
    if src.kind() == super::Kind::BlockDevice {
        return Ok(false);
    }
    Ok(call::stat(src.fd())?.size < end)
}

/// Whether a page of the mapping could not be had.
fn is_fault(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EFAULT)
}

fn truncated() -> Fault {
    let text = "the file became shorter than the window that was mapped of it";
    Fault::new(
        Side::Source,
        io::Error::new(io::ErrorKind::UnexpectedEof, text),
    )
}

impl ZeroCopyTransfer for Mmap {
    fn backend(&self) -> Backend {
        Backend::Mmap
    }

    fn assess(&self, src: &Endpoint<'_>, dst: &Endpoint<'_>) -> Result<(), Unfit> {
        // A TCP socket can be mapped, and faults on touch: files and block devices only.
        super::require(Side::Source, src, super::Kind::is_cached)?;
        super::require_buffered(src, dst)
    }

    fn step(
        &mut self,
        src: &mut Endpoint<'_>,
        dst: &mut Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Step, Fault> {
        if std::mem::take(&mut self.cut) {
            return Err(truncated());
        }
        let at = match src.position() {
            Ok(at) => at,
            Err(e) => return refused(e),
        };
        if let Err(outcome) = self.map(src, at, limit.get() as u64) {
            return outcome;
        }
        let Some(window) = &self.window else {
            return Ok(Step::Ended);
        };
        // `at` lies within the window, so the difference fits its length.
        let start = (at - window.start) as usize;
        let write = |most| {
            let mapping = &window.mapping;
            mapping.write_to(dst.fd(), dst.offset(), start, most)
        };
        let mut written = write(limit.get());
        if written.as_ref().is_err_and(is_fault) {
            // For a page further on that cannot be had, a socket takes nothing: what stands before
            // it goes page by page.
            let page = PAGE - (at % PAGE as u64) as usize;
            written = write(limit.get().min(page));
        }
        match written {
            Ok(n) => {
                if start + n >= window.mapping.len() {
                    self.window = None;
                }
                // Delivered is delivered and counts; the next step says what has happened.
                self.cut = matches!(is_cut(src, at + n as u64), Ok(true));
                // The bytes are delivered and count, whatever lseek(2) says; it has just answered for
                // this very descriptor.
                let _ = src.seek_by(n as i64);
                super::delivered(n)
            }
            Err(e) if errno::would_block(&e) => Ok(Step::Blocked(Side::Destination)),
            Err(e) if is_fault(&e) => {
                self.window = None;
                self.why_gone(src, at, e)
            }
            Err(e) => Err(Fault::new(Side::Destination, e)),
        }
    }
}

impl Mmap {
    /// A page of the window could not be had: the file is shorter now, or reading it fails. Or it can
    /// be read and not mapped, and another way does that.
    fn why_gone(&mut self, src: &Endpoint<'_>, at: u64, fault: io::Error) -> Outcome {
        self.size(src, at).map_or_else(
            |outcome| outcome,
            |_| match call::pread(src.fd(), &mut [0], at) {
                Err(e) if !errno::is_unfit(Call::Read, &e) => Err(Fault::new(Side::Source, e)),
                // Another way has to say what that means.
                Err(e) => refused(e),
                Ok(_) => refused(fault),
            },
        )
    }
}
