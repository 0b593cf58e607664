//! What is done where a call was interrupted (EINTR): it is made once more, but not for ever, and not
//! with a time limit that begins anew each time.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::{ENDLESS, count, is_ready, poll, stat, status_flags, told};
use crate::sys::socket;

/// What a failed call that does not wait comes to: once more, where it was interrupted. (By value, as
/// below: what is passed in memory would be put there before the first call.)
#[cold]
#[inline(never)]
pub(super) fn failed<T>(errno: Errno, mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    match errno {
        Errno::EINTR => again(&mut call, &mut |tries| Ok(tries < ENDLESS)),
        errno => Err(told(errno)),
    }
}

/// Makes an interrupted call until it is not, as long as `go_on` says so, which is told how often it
/// has been.
fn again<T>(
    call: &mut dyn FnMut() -> nix::Result<T>,
    go_on: &mut dyn FnMut(u32) -> io::Result<bool>,
) -> io::Result<T> {
    let mut tries = 1;
    while go_on(tries)? {
        tries = tries.saturating_add(1);
        count(1);
        match call() {
            Err(Errno::EINTR) => {}
            other => return other.map_err(told),
        }
    }
    Err(Errno::EINTR.into())
}

/// Makes a call that waits, as often as it is interrupted.
#[inline]
pub(in crate::sys) fn wait_out<T>(call: &mut dyn FnMut() -> nix::Result<T>) -> io::Result<T> {
    count(1);
    match call() {
        Err(Errno::EINTR) => again(call, &mut |_| Ok(true)),
        other => other.map_err(told),
    }
}

/// The same of a call that moves bytes.
#[cold]
#[inline(never)]
pub(super) fn failed_moving<T, const N: usize>(
    errno: Errno,
    sides: [(BorrowedFd<'_>, bool); N],
    mut call: impl FnMut() -> nix::Result<T>,
) -> io::Result<T> {
    match errno {
        Errno::EINTR => move_again(&sides, &mut call),
        errno => Err(told(errno)),
    }
}

/// Makes an interrupted call that moves bytes once more.
///
/// The kernel begins a socket's time limit (`SO_RCVTIMEO`, `SO_SNDTIMEO`) anew with each call, so that
/// signals would stretch it for ever: it is waited for with poll(2), by one clock, and EAGAIN says that
/// it ran out, as it does without signals.
///
/// A side that has something to wait for may be interrupted any number of times. Where none has, the
/// answer is not a signal's, and becomes an error.
fn move_again<T>(
    sides: &[(BorrowedFd<'_>, bool)],
    call: &mut dyn FnMut() -> nix::Result<T>,
) -> io::Result<T> {
    let began = Instant::now();
    let limits = sides.iter().map(|(fd, writable)| {
        let limit = limit(*fd, *writable)?;
        began.checked_add(limit)
    });
    let limits: Vec<_> = limits.collect();
    again(call, &mut |tries| {
        for ((fd, writable), until) in sides.iter().zip(&limits) {
            let Some(until) = until else { continue };
            let left = until.saturating_duration_since(Instant::now());
            if !poll(*fd, *writable, Some(left))? {
                return Err(Errno::EAGAIN.into());
            }
        }
        Ok(tries % ENDLESS != 0 || sides.iter().any(|(fd, writable)| waits(*fd, *writable)))
    })
}

/// A blocking socket's own time limit.
fn limit(fd: BorrowedFd<'_>, writable: bool) -> Option<Duration> {
    let name = if writable {
        libc::SO_SNDTIMEO
    } else {
        libc::SO_RCVTIMEO
    };
    let limit = socket::timeout(fd, name)?;
    let blocks = status_flags(fd).is_ok_and(|flags| flags & libc::O_NONBLOCK == 0);
    blocks.then_some(limit)
}

/// Whether a side has to be waited for. A file never has, whatever those behind it say of poll(2).
fn waits(fd: BorrowedFd<'_>, writable: bool) -> bool {
    let kind = stat(fd).map_or(libc::S_IFREG, |stat| stat.mode & libc::S_IFMT);
    let is_file = matches!(kind, libc::S_IFREG | libc::S_IFBLK);
    !is_file && !is_ready(fd, writable).unwrap_or(true)
}
