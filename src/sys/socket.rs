//! What sockets are told, what they hold, and how long they wait.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;

use super::call::{get_socket_option, retry, socket_option};
use super::errno;

/// The time limit (`SO_RCVTIMEO` or `SO_SNDTIMEO`), if one is set.
pub(crate) fn timeout(fd: BorrowedFd<'_>, name: libc::c_int) -> Option<Duration> {
    let mut value = libc::timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    get_socket_option(fd, libc::SOL_SOCKET, name, &mut value).ok()?;
    let limit = Duration::from_secs(value.tv_sec.unsigned_abs())
        + Duration::from_micros(value.tv_usec.unsigned_abs());
    (!limit.is_zero()).then_some(limit)
}

/// Has TCP send what it holds back because more was said to follow (`MSG_MORE`). A socket that the
/// caller has corked stays so.
pub(crate) fn push(fd: BorrowedFd<'_>) {
    let (level, cork) = (libc::IPPROTO_TCP, libc::TCP_CORK);
    let mut corked: libc::c_int = 0;
    if get_socket_option(fd, level, cork, &mut corked).is_ok() && corked == 0 {
        // Off, as it is: that sends what is held back. Where it fails, the kernel's timer does,
        // 200 ms later.
        let _ = set(fd, level, cork, 0);
    }
}

/// Sets an option that is an integer.
pub(super) fn set(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    retry(|| {
        let value = (&raw const value).cast();
        // SAFETY: `value` is one int, which outlives the call, and the kernel only reads it.
        let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value, len) };
        Errno::result(result).map(drop)
    })
}

/// Whether the next byte is urgent data, or would be, had it not been taken already (SIOCATMARK).
pub(crate) fn is_at_mark(fd: BorrowedFd<'_>) -> bool {
    // _IOR('s', 7, int) on the older architectures, a plain number on the others.
    const SIOCATMARK: i32 = if cfg!(any(
        target_arch = "mips",
        target_arch = "mips64",
        target_arch = "sparc64"
    )) {
        0x4004_7307
    } else {
        0x8905
    };
    let mut at_mark: libc::c_int = 0;
    let asked = retry(|| {
        // SAFETY: SIOCATMARK writes one integer, and there is room for it.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), SIOCATMARK as _, &raw mut at_mark) };
        Errno::result(result).map(drop)
    });
    asked.is_ok() && at_mark != 0
}

/// What recv(2) finds, of which nothing is taken (`MSG_PEEK`): at most one byte, none at the end,
/// `None` where it would wait. Nor is it asked where the owner peeks at the socket (`SO_PEEK_OFF`):
/// that would move his place.
///
/// # Errors
/// An error of the connection, which is told once.
pub(crate) fn peek(fd: BorrowedFd<'_>) -> io::Result<Option<usize>> {
    if socket_option(fd, libc::SO_PEEK_OFF).is_ok_and(|place| place >= 0) {
        return Ok(None);
    }
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match retry(|| nix::sys::socket::recv(fd.as_raw_fd(), &mut [0], flags)) {
        Err(e) if errno::would_block(&e) => Ok(None),
        other => other.map(Some),
    }
}

/// Whether it listens for connections: it never has bytes, nor an end.
pub(crate) fn listens(fd: BorrowedFd<'_>) -> bool {
    socket_option(fd, libc::SO_ACCEPTCONN).is_ok_and(|listens| listens != 0)
}

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
    set(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
}
