//! The calls that move bytes.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::{self, SpliceFFlags};
use nix::sys::socket::{self, MsgFlags};
use nix::unistd;

use super::{loff, retry, retry_moving, size};

/// The most that read(2), write(2), sendfile(2) and splice(2) move in one call on Linux.
const MAX_COUNT: usize = 0x7fff_f000;

#[inline]
pub(crate) fn read(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    retry_moving([(fd, false)], || unistd::read(fd, buf))
}

#[inline]
pub(crate) fn write(fd: BorrowedFd<'_>, buf: &[u8]) -> io::Result<usize> {
    retry_moving([(fd, true)], || unistd::write(fd, buf))
}

/// send(2) on a stream socket: write(2) without SIGPIPE.
#[inline]
pub(crate) fn send(fd: BorrowedFd<'_>, buf: &[u8]) -> io::Result<usize> {
    retry_moving([(fd, true)], || {
        socket::send(fd.as_raw_fd(), buf, MsgFlags::MSG_NOSIGNAL)
    })
}

#[inline]
pub(crate) fn pread(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let offset = loff(offset)?;
    retry_moving([(fd, false)], || {
        // SAFETY: the buffer is writable for its whole length, and `fd` is open while borrowed.
        size(unsafe { libc::pread64(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), offset) })
    })
}

#[inline]
pub(crate) fn pwrite(fd: BorrowedFd<'_>, buf: &[u8], offset: u64) -> io::Result<usize> {
    let offset = loff(offset)?;
    retry_moving([(fd, true)], || {
        // SAFETY: the buffer is readable for its whole length, and `fd` is open while borrowed.
        size(unsafe { libc::pwrite64(fd.as_raw_fd(), buf.as_ptr().cast(), buf.len(), offset) })
    })
}

/// `RWF_DONTCACHE` (Linux 6.14): what this call brings into the page cache leaves it again.
const RWF_DONTCACHE: libc::c_int = 0x80;

/// preadv2(2) with `RWF_DONTCACHE`; without an offset, from the descriptor's own position.
pub(crate) fn read_dontcache(
    fd: BorrowedFd<'_>,
    buf: &mut [u8],
    offset: Option<u64>,
) -> io::Result<usize> {
    read_with(RWF_DONTCACHE, fd, buf, offset.map_or(Ok(-1), loff)?)
}

/// preadv2(2) with `RWF_NOWAIT`: what can be read without waiting for a device. Where there is
/// nothing of the kind, EAGAIN, and the kernel starts to read it.
pub(crate) fn read_at_hand(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    read_with(libc::RWF_NOWAIT, fd, buf, loff(offset)?)
}

fn read_with(
    flags: libc::c_int,
    fd: BorrowedFd<'_>,
    buf: &mut [u8],
    offset: libc::loff_t,
) -> io::Result<usize> {
    let iov = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    retry(|| {
        // SAFETY: the one iovec covers `buf`, which is writable for its whole length.
        size(unsafe { libc::preadv2(fd.as_raw_fd(), &raw const iov, 1, offset, flags) })
    })
}

/// pwritev2(2) with `RWF_DONTCACHE`; without an offset, at the descriptor's own position.
pub(crate) fn write_dontcache(
    fd: BorrowedFd<'_>,
    buf: &[u8],
    offset: Option<u64>,
) -> io::Result<usize> {
    write_with(RWF_DONTCACHE, fd, buf, offset.map_or(Ok(-1), loff)?)
}

/// `RWF_NOSIGNAL` (Linux 6.18): no SIGPIPE.
const RWF_NOSIGNAL: libc::c_int = 0x100;

/// pwritev2(2) with `RWF_NOSIGNAL`: write(2) without SIGPIPE, to a pipe as well.
pub(crate) fn write_nosignal(fd: BorrowedFd<'_>, buf: &[u8]) -> io::Result<usize> {
    write_with(RWF_NOSIGNAL, fd, buf, -1)
}

fn write_with(
    flags: libc::c_int,
    fd: BorrowedFd<'_>,
    buf: &[u8],
    offset: libc::loff_t,
) -> io::Result<usize> {
    let iov = libc::iovec {
        iov_base: buf.as_ptr().cast_mut().cast(),
        iov_len: buf.len(),
    };
    retry_moving([(fd, true)], || {
        // SAFETY: the one iovec covers `buf`, which the kernel only reads.
        size(unsafe { libc::pwritev2(fd.as_raw_fd(), &raw const iov, 1, offset, flags) })
    })
}

/// sendfile(2); without an offset, from the source's own position, which then moves.
#[inline]
pub(crate) fn sendfile(
    dst: BorrowedFd<'_>,
    src: BorrowedFd<'_>,
    offset: Option<u64>,
    count: usize,
) -> io::Result<usize> {
    let count = count.min(MAX_COUNT);
    let offset = offset.map(loff).transpose()?;
    retry_moving([(src, false), (dst, true)], || {
        let mut offset = offset;
        nix::sys::sendfile::sendfile64(dst, src, offset.as_mut(), count)
    })
}

/// splice(2) with no flag: `SPLICE_F_MORE` corks a socket for 200 ms unless more follows for
/// certain ([`splice_more`]), and `SPLICE_F_MOVE` does nothing.
#[inline]
pub(crate) fn splice(
    src: BorrowedFd<'_>,
    src_offset: Option<u64>,
    dst: BorrowedFd<'_>,
    dst_offset: Option<u64>,
    count: usize,
) -> io::Result<usize> {
    let flags = SpliceFFlags::empty();
    splice_with(src, src_offset, dst, dst_offset, count, flags)
}

/// splice(2) from a pipe to a socket, which may wait for what follows at once before it sends its
/// last segment.
pub(crate) fn splice_more(
    pipe: BorrowedFd<'_>,
    dst: BorrowedFd<'_>,
    count: usize,
) -> io::Result<usize> {
    splice_with(pipe, None, dst, None, count, SpliceFFlags::SPLICE_F_MORE)
}

#[inline]
fn splice_with(
    src: BorrowedFd<'_>,
    src_offset: Option<u64>,
    dst: BorrowedFd<'_>,
    dst_offset: Option<u64>,
    count: usize,
    flags: SpliceFFlags,
) -> io::Result<usize> {
    let count = count.min(MAX_COUNT);
    let src_offset = src_offset.map(loff).transpose()?;
    let dst_offset = dst_offset.map(loff).transpose()?;
    retry_moving([(src, false), (dst, true)], || {
        let (mut from, mut to) = (src_offset, dst_offset);
        fcntl::splice(src, from.as_mut(), dst, to.as_mut(), count, flags)
    })
}

/// tee(2): duplicates what a pipe holds into another, which must not wait for room.
pub(crate) fn tee(src: BorrowedFd<'_>, dst: BorrowedFd<'_>, count: usize) -> io::Result<usize> {
    retry(|| fcntl::tee(src, dst, count, SpliceFFlags::SPLICE_F_NONBLOCK))
}

/// copy_file_range(2), at most 1 GiB at once: glibc 2.41 and 2.42 cut a larger result to 32 bits.
#[inline]
pub(crate) fn copy_file_range(
    src: BorrowedFd<'_>,
    src_offset: Option<u64>,
    dst: BorrowedFd<'_>,
    dst_offset: Option<u64>,
    count: usize,
) -> io::Result<usize> {
    let count = count.min(1 << 30);
    let src_offset = src_offset.map(loff).transpose()?;
    let dst_offset = dst_offset.map(loff).transpose()?;
    retry(|| {
        let (mut from, mut to) = (src_offset, dst_offset);
        let from = from.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
        let to = to.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
        // SAFETY: both pointers are null or point to an offset that outlives the call.
        size(unsafe { libc::copy_file_range(src.as_raw_fd(), from, dst.as_raw_fd(), to, count, 0) })
    })
}

/// ioctl_ficlonerange(2).
pub(crate) fn clone_range(
    src: BorrowedFd<'_>,
    src_offset: u64,
    dst: BorrowedFd<'_>,
    dst_offset: u64,
    len: u64,
) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: i64::from(src.as_raw_fd()),
        src_offset,
        src_length: len,
        dest_offset: dst_offset,
    };
    retry(|| {
        // SAFETY: FICLONERANGE reads one `file_clone_range`, and `range` is one.
        let result =
            unsafe { libc::ioctl(dst.as_raw_fd(), libc::FICLONERANGE as _, &raw const range) };
        Errno::result(result).map(drop)
    })
}
