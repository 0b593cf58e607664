//! The pipe that stands between two descriptors of which neither is one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use super::call::{read, retry};

/// What a pipe holds when nobody asked for more: 16 slots of a page.
pub(crate) const DEFAULT_CAPACITY: usize = 64 << 10;

/// A pipe of our own. Dropped, it takes what it still holds with it; it is never handed on.
#[derive(Debug)]
pub(crate) struct PrivatePipe {
    read_end: OwnedFd,
    write_end: OwnedFd,
    capacity: usize,
}

impl PrivatePipe {
    /// A pipe with room for `wanted` bytes, or for what the kernel grants: a user past
    /// `pipe-user-pages-soft` gets one or two pages, and `F_SETPIPE_SZ` then answers EPERM. Only
    /// pipe2(2) itself can fail.
    pub(crate) fn new(wanted: usize) -> io::Result<Self> {
        let (read_end, write_end) = retry(|| pipe2(OFlag::O_CLOEXEC))?;
        let wanted = libc::c_int::try_from(wanted).unwrap_or(libc::c_int::MAX);
        let asked = (wanted as usize > DEFAULT_CAPACITY)
            .then(|| retry(|| fcntl(&write_end, FcntlArg::F_SETPIPE_SZ(wanted))));
        let granted = match asked {
            Some(Ok(granted)) => Ok(granted),
            _ => retry(|| fcntl(&write_end, FcntlArg::F_GETPIPE_SZ)),
        };
        // Without an answer, a page: too small a belief costs calls, too large a one nothing but
        // a short splice. The kernel bounds each call by the true size either way.
        let capacity = granted
            .ok()
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(4096);
        Ok(Self {
            read_end,
            write_end,
            capacity: capacity.max(1),
        })
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn read_end(&self) -> BorrowedFd<'_> {
        self.read_end.as_fd()
    }

    pub(crate) fn write_end(&self) -> BorrowedFd<'_> {
        self.write_end.as_fd()
    }

    /// Reads exactly `buf.len()` bytes, which the caller knows to be in the pipe. Should the pipe
    /// hold fewer after all, the count tells.
    pub(crate) fn take(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut taken = 0;
        while taken < buf.len() {
            match read(self.read_end(), &mut buf[taken..])? {
                0 => break,
                n => taken += n,
            }
        }
        Ok(taken)
    }
}
