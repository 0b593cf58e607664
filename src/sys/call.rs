//! The system calls, each under its own name: those that move bytes, those that look, those that
//! wait, those on a file, and here what is common to all.

mod files;
mod interrupted;
mod looking;
mod moving;
mod waiting;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::Shutdown;

pub(crate) use files::*;
pub(super) use interrupted::wait_out;
pub(crate) use looking::*;
pub(crate) use moving::*;
pub(crate) use waiting::*;

thread_local! {
    static MADE: Cell<u64> = const { Cell::new(0) };
}

/// How many system calls this thread has made through this module. A caller takes the difference
/// of two readings; that keeps the count out of every signature.
#[inline]
pub(crate) fn made() -> u64 {
    MADE.get()
}

/// Counts calls that are made elsewhere on this module's behalf (`mmap` by memmap2).
#[inline]
pub(super) fn count(calls: u64) {
    MADE.set(MADE.get() + calls);
}

/// ENOTSUPP: what the kernel calls EOPNOTSUPP within itself, and lets out here and there
/// (`SO_ZEROCOPY` on a UNIX socket of Linux 5.10, some drivers and filesystems).
const ENOTSUPP: i32 = 524;

/// Runs one call that does not wait until it is not interrupted (EINTR), or has been so often that
/// this is no signal's doing: the kernel, or a daemon behind a filesystem, answers it for ever.
#[inline]
pub(super) fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    count(1);
    match call() {
        Ok(answer) => Ok(answer),
        Err(errno) => interrupted::failed(errno, call),
    }
}

/// Runs one call that moves bytes, between whatever `sides` it has (`true`: written to), and may wait
/// for each of these.
#[inline]
pub(super) fn retry_moving<T, const N: usize>(
    sides: [(BorrowedFd<'_>, bool); N],
    mut call: impl FnMut() -> nix::Result<T>,
) -> io::Result<T> {
    count(1);
    match call() {
        Ok(answer) => Ok(answer),
        Err(errno) => interrupted::failed_moving(errno, sides, call),
    }
}

/// So many interruptions in a row are no signals.
const ENDLESS: u32 = 1000;

/// An error that a call has answered.
fn told(errno: Errno) -> io::Error {
    match errno {
        // A number that nix has no name for: without this it would say "success".
        Errno::UnknownErrno => io::Error::from_raw_os_error(match Errno::last_raw() {
            ENOTSUPP => libc::EOPNOTSUPP,
            number => number,
        }),
        errno => errno.into(),
    }
}

/// An offset in the kernel's type. One beyond `i64::MAX` cannot exist, and the kernel says so.
pub(super) fn loff(offset: u64) -> io::Result<libc::loff_t> {
    libc::loff_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

#[inline]
pub(super) fn size(result: libc::ssize_t) -> nix::Result<usize> {
    Errno::result(result).map(libc::ssize_t::unsigned_abs)
}

/// A descriptor that becomes readable once it is written to: for whoever waits in poll(2).
pub(crate) fn eventfd() -> io::Result<EventFd> {
    retry(|| EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK))
}

/// shutdown(2) of a stream socket. One that is no longer connected needs none.
pub(crate) fn shutdown(fd: BorrowedFd<'_>, how: Shutdown) -> io::Result<()> {
    match retry(|| nix::sys::socket::shutdown(fd.as_raw_fd(), how)) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_without_a_name_is_no_success() {
        for (given, told) in [(ENOTSUPP, libc::EOPNOTSUPP), (4000, 4000)] {
            let error = retry(|| {
                Errno::set_raw(given);
                Errno::result(-1)
            });
            let number = error.expect_err("it failed").raw_os_error();
            assert_eq!(number, Some(told));
        }
    }
}
