//! What a socket says of its receive queue, and how much of it is worth a wake-up.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::call::retry;

/// Bytes that can be read at once (FIONREAD).
pub(crate) fn readable(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    retry(|| {
        // SAFETY: FIONREAD writes one integer, and there is room for it.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD as _, &raw mut bytes) };
        Errno::result(result).map(drop)
    })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// `SO_RCVLOWAT`: how many bytes have to be there before the socket is called readable. The end and
/// an error always are, and so is a receive window that is full.
#[cfg(feature = "tokio")]
pub(crate) fn set_low_water(fd: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    retry(|| {
        // SAFETY: the option's value is one integer, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                (&raw const bytes).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        Errno::result(result).map(drop)
    })
}
