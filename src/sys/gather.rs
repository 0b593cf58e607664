//! Many pieces of memory in one call.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{MsgFlags, sendmsg};
use nix::sys::uio;

use super::call::retry_moving;

/// sendmsg(2) on a stream socket, without SIGPIPE. `more`: bytes that are certain to follow at
/// once may share a segment with the last of these. `zerocopy`: the kernel sends from the pages
/// themselves, which must stay as they are until it says so.
pub(crate) fn send(
    fd: BorrowedFd<'_>,
    pieces: &[IoSlice<'_>],
    more: bool,
    zerocopy: bool,
) -> io::Result<usize> {
    let mut flags = MsgFlags::MSG_NOSIGNAL;
    flags.set(MsgFlags::from_bits_retain(libc::MSG_MORE), more);
    flags.set(MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY), zerocopy);
    retry_moving([(fd, true)], || {
        sendmsg::<()>(fd.as_raw_fd(), pieces, &[], flags, None)
    })
}

/// writev(2), at the descriptor's own position.
pub(crate) fn write(fd: BorrowedFd<'_>, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    retry_moving([(fd, true)], || uio::writev(fd, pieces))
}
