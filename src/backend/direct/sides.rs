//! How each side of a transfer with O_DIRECT is reached.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;

use super::{Endpoint, Fault, Step, Unfit};
use crate::sys::errno::Call;
use crate::sys::{call, helper};

/// No alignment below this is used, so that no page is written both ways.
pub(super) const PAGE: usize = 4096;

/// How each side is reached.
#[derive(Debug)]
pub(super) struct Sides {
    pub(super) src: Way,
    pub(super) dst: Way,
    pub(super) align: usize,
}

impl Sides {
    /// Finds the way for each side; `reopen`: sides without O_DIRECT are opened anew with it. An
    /// error is the step's outcome where there is none with it.
    pub(super) fn find(
        reopen: bool,
        src: &Endpoint<'_>,
        dst: &Endpoint<'_>,
    ) -> Result<Self, Result<Step, Fault>> {
        let mut refused = None;
        let mut open = |end: &Endpoint<'_>, mode: OFlag| {
            if end.facts().is_direct() {
                return Way::Callers;
            }
            let appends = mode == OFlag::O_WRONLY && end.facts().is_append();
            if !reopen || !end.kind().is_cached() || appends {
                return Way::Plain;
            }
            match call::reopen(end.fd(), mode | OFlag::O_DIRECT) {
                Ok(fd) => Way::Ours(fd),
                Err(e) => {
                    refused = Some(e);
                    Way::Plain
                }
            }
        };
        let (src_way, dst_way) = (open(src, OFlag::O_RDONLY), open(dst, OFlag::O_WRONLY));
        if !src_way.is_direct() && !dst_way.is_direct() {
            let error = refused.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL));
            return Err(match error.raw_os_error() {
                None => Ok(Step::Unfit(Unfit::Other(LOCKED))),
                Some(_) => super::super::unfit_or_fault(Call::SetUp, None, error),
            });
        }
        let mut align = PAGE;
        for (end, way) in [(src, &src_way), (dst, &dst_way)] {
            if way.is_direct() {
                // It works by offset.
                let refuse = |e| super::super::unfit_or_fault(Call::SetUp, None, e);
                end.position().map_err(refuse)?;
            }
            let (memory, offset) = end.facts().direct_alignment();
            align = align.max(memory).max(offset);
        }
        Ok(Self {
            src: src_way,
            dst: dst_way,
            align: align.next_power_of_two(),
        })
    }
}

const LOCKED: &str = "the files have record locks, which closing a second description would drop";

#[derive(Debug)]
pub(super) enum Way {
    /// Not a file, or one that does not take O_DIRECT: the caller's descriptor, as it is.
    Plain,
    /// The caller's descriptor has O_DIRECT.
    Callers,
    /// Ours has O_DIRECT; the caller's has not.
    Ours(OwnedFd),
}

impl Way {
    pub(super) fn is_direct(&self) -> bool {
        !matches!(self, Way::Plain)
    }

    /// The descriptor for aligned blocks.
    pub(super) fn direct<'a>(&'a self, end: &Endpoint<'a>) -> BorrowedFd<'a> {
        match self {
            Way::Plain | Way::Callers => end.fd(),
            Way::Ours(fd) => fd.as_fd(),
        }
    }

    /// Writes what does not fill a block: through the page cache, and back from there at once.
    pub(super) fn write_part(&self, end: &Endpoint<'_>, from: &[u8], at: u64) -> io::Result<usize> {
        let fd = end.fd();
        if !matches!(self, Way::Callers) {
            return through_cache(fd, from, at);
        }
        // The caller's takes no such part. What is opened for it is closed at once, so that locks
        // taken meanwhile are not lost.
        if let Ok(ours) = call::reopen(fd, OFlag::O_WRONLY) {
            return through_cache(ours.as_fd(), from, at);
        }
        // The file is locked, or the table is full: record locks belong to a table of descriptors.
        helper::apart(fd, || {
            let ours = call::reopen_anyway(fd, OFlag::O_WRONLY)?;
            through_cache(ours.as_fd(), from, at)
        })
    }
}

/// Writes, and leaves no page behind. Dropping them is advice; that they could not be written back is
/// told to whoever waits for it, and to nobody after him.
fn through_cache(fd: BorrowedFd<'_>, from: &[u8], at: u64) -> io::Result<usize> {
    let written = call::pwrite(fd, from, at)?;
    let first = at / PAGE as u64 * PAGE as u64;
    let pages = (at - first + written as u64).next_multiple_of(PAGE as u64);
    call::write_back(fd, first, pages, true)?;
    let _ = call::drop_cached(fd, first, pages);
    Ok(written)
}
