//! How each side of a transfer with O_DIRECT is reached.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;

use super::Endpoint;
use crate::sys::call;

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
    /// error says that there is none with it.
    pub(super) fn find(reopen: bool, src: &Endpoint<'_>, dst: &Endpoint<'_>) -> io::Result<Self> {
        let mut refused = None;
        let mut open = |end: &Endpoint<'_>, mode: OFlag| {
            if end.facts().is_direct() {
                // Written to, it needs a second way for what does not fill a block.
                let other = (mode == OFlag::O_WRONLY).then(|| call::reopen(end.fd(), mode));
                return other.transpose().map(Way::Callers);
            }
            let appends = mode == OFlag::O_WRONLY && end.facts().is_append();
            if !reopen || !end.kind().is_cached() || appends {
                return Ok(Way::Plain);
            }
            match call::reopen(end.fd(), mode | OFlag::O_DIRECT) {
                Ok(fd) => Ok(Way::Ours(fd)),
                Err(e) => {
                    refused = Some(e);
                    Ok(Way::Plain)
                }
            }
        };
        let (src_way, dst_way) = (open(src, OFlag::O_RDONLY)?, open(dst, OFlag::O_WRONLY)?);
        if !src_way.is_direct() && !dst_way.is_direct() {
            return Err(refused.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)));
        }
        let mut align = PAGE;
        for end in [src, dst] {
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

#[derive(Debug)]
pub(super) enum Way {
    /// Not a file, or one that does not take O_DIRECT: the caller's descriptor, as it is.
    Plain,
    /// The caller's descriptor has O_DIRECT; where the side is written, ours has not.
    Callers(Option<OwnedFd>),
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
            Way::Plain | Way::Callers(_) => end.fd(),
            Way::Ours(fd) => fd.as_fd(),
        }
    }

    /// The descriptor for what does not fill a block.
    pub(super) fn buffered<'a>(&'a self, end: &Endpoint<'a>) -> BorrowedFd<'a> {
        match self {
            Way::Callers(Some(fd)) => fd.as_fd(),
            _ => end.fd(),
        }
    }
}
