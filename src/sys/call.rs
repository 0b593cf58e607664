//! The system calls, each under its own name.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::ptr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{self, FallocateFlags, FcntlArg, OFlag, PosixFadviseAdvice, SpliceFFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::Shutdown;
use nix::sys::stat::Mode;
use nix::unistd::{self, Whence};

/// The most that read(2), write(2), sendfile(2) and splice(2) move in one call on Linux.
pub(crate) const MAX_COUNT: usize = 0x7fff_f000;

thread_local! {
    static MADE: Cell<u64> = const { Cell::new(0) };
}

/// How many system calls this thread has made through this module. A caller takes the difference
/// of two readings; that keeps the count out of every signature.
pub(crate) fn made() -> u64 {
    MADE.get()
}

/// Counts calls that are made elsewhere on this module's behalf (`mmap` by memmap2).
pub(super) fn count(calls: u64) {
    MADE.set(MADE.get() + calls);
}

/// Runs one call until it is not interrupted (EINTR).
pub(super) fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        count(1);
        match call() {
            Err(Errno::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// An offset in the kernel's type. One beyond `i64::MAX` cannot exist, and the kernel says so.
pub(super) fn loff(offset: u64) -> io::Result<libc::loff_t> {
    libc::loff_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

pub(super) fn size(result: libc::ssize_t) -> nix::Result<usize> {
    Errno::result(result).map(libc::ssize_t::unsigned_abs)
}

// --- moving bytes ---------------------------------------------------------------------------

pub(crate) fn read(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    retry(|| unistd::read(fd, buf))
}

pub(crate) fn write(fd: BorrowedFd<'_>, buf: &[u8]) -> io::Result<usize> {
    retry(|| unistd::write(fd, buf))
}

pub(crate) fn pread(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let offset = loff(offset)?;
    retry(|| {
        // SAFETY: the buffer is writable for its whole length, and `fd` is open while borrowed.
        size(unsafe { libc::pread64(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), offset) })
    })
}

pub(crate) fn pwrite(fd: BorrowedFd<'_>, buf: &[u8], offset: u64) -> io::Result<usize> {
    let offset = loff(offset)?;
    retry(|| {
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
    let offset = offset.map_or(Ok(-1), loff)?;
    let iov = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    retry(|| {
        // SAFETY: the one iovec covers `buf`, which is writable for its whole length.
        size(unsafe { libc::preadv2(fd.as_raw_fd(), &raw const iov, 1, offset, RWF_DONTCACHE) })
    })
}

/// pwritev2(2) with `RWF_DONTCACHE`; without an offset, at the descriptor's own position.
pub(crate) fn write_dontcache(
    fd: BorrowedFd<'_>,
    buf: &[u8],
    offset: Option<u64>,
) -> io::Result<usize> {
    let offset = offset.map_or(Ok(-1), loff)?;
    let iov = libc::iovec {
        iov_base: buf.as_ptr().cast_mut().cast(),
        iov_len: buf.len(),
    };
    retry(|| {
        // SAFETY: the one iovec covers `buf`, which the kernel only reads.
        size(unsafe { libc::pwritev2(fd.as_raw_fd(), &raw const iov, 1, offset, RWF_DONTCACHE) })
    })
}

/// sendfile(2); without an offset, from the source's own position, which then moves.
pub(crate) fn sendfile(
    dst: BorrowedFd<'_>,
    src: BorrowedFd<'_>,
    offset: Option<u64>,
    count: usize,
) -> io::Result<usize> {
    let count = count.min(MAX_COUNT);
    let offset = offset.map(loff).transpose()?;
    retry(|| {
        let mut offset = offset;
        nix::sys::sendfile::sendfile64(dst, src, offset.as_mut(), count)
    })
}

/// splice(2) with no flag: `SPLICE_F_MORE` corks a socket for 200 ms unless more follows for
/// certain, and `SPLICE_F_MOVE` does nothing.
pub(crate) fn splice(
    src: BorrowedFd<'_>,
    src_offset: Option<u64>,
    dst: BorrowedFd<'_>,
    dst_offset: Option<u64>,
    count: usize,
) -> io::Result<usize> {
    let count = count.min(MAX_COUNT);
    let src_offset = src_offset.map(loff).transpose()?;
    let dst_offset = dst_offset.map(loff).transpose()?;
    retry(|| {
        let (mut from, mut to) = (src_offset, dst_offset);
        fcntl::splice(
            src,
            from.as_mut(),
            dst,
            to.as_mut(),
            count,
            SpliceFFlags::empty(),
        )
    })
}

/// tee(2): duplicates what a pipe holds into another, which must not wait for room.
pub(crate) fn tee(src: BorrowedFd<'_>, dst: BorrowedFd<'_>, count: usize) -> io::Result<usize> {
    retry(|| fcntl::tee(src, dst, count, SpliceFFlags::SPLICE_F_NONBLOCK))
}

/// copy_file_range(2), at most 1 GiB at once: glibc 2.41 and 2.42 cut a larger result to 32 bits.
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

// --- looking ----------------------------------------------------------------------------------

pub(crate) fn fstat(fd: BorrowedFd<'_>) -> io::Result<libc::stat> {
    retry(|| nix::sys::stat::fstat(fd))
}

/// F_GETFL: access mode and status flags.
pub(crate) fn status_flags(fd: BorrowedFd<'_>) -> io::Result<i32> {
    retry(|| fcntl::fcntl(fd, FcntlArg::F_GETFL))
}

/// The filesystem's magic number and block size.
pub(crate) fn fstatfs(fd: BorrowedFd<'_>) -> io::Result<(i64, u64)> {
    let fs = retry(|| nix::sys::statfs::fstatfs(fd))?;
    // The types of both fields differ from one architecture to the next.
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
    Ok((fs.filesystem_type().0 as i64, fs.block_size() as u64))
}

/// Whether seals forbid both writing to this memfd and shrinking it.
pub(crate) fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    let wanted = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK;
    retry(|| fcntl::fcntl(fd, FcntlArg::F_GET_SEALS)).is_ok_and(|seals| seals & wanted == wanted)
}

/// One integer socket option of level `SOL_SOCKET`.
pub(crate) fn socket_option(fd: BorrowedFd<'_>, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    get_socket_option(fd, name, &mut value)?;
    Ok(value)
}

/// Whether a time limit (`SO_RCVTIMEO` or `SO_SNDTIMEO`) is set on this socket.
pub(crate) fn has_timeout(fd: BorrowedFd<'_>, name: libc::c_int) -> bool {
    let mut value = libc::timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    get_socket_option(fd, name, &mut value).is_ok() && (value.tv_sec != 0 || value.tv_usec != 0)
}

pub(super) fn get_socket_option<T: Copy>(
    fd: BorrowedFd<'_>,
    name: libc::c_int,
    value: &mut T,
) -> io::Result<()> {
    let mut len = size_of::<T>() as libc::socklen_t;
    retry(|| {
        let value: *mut T = value;
        // SAFETY: `value` is writable for `len` bytes, and both outlive the call. `T` is an
        // integer or a timeval: plain data, valid for whatever the kernel writes.
        let result = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                name,
                value.cast(),
                &raw mut len,
            )
        };
        Errno::result(result).map(drop)
    })
}

/// The alignment of memory and of offsets that O_DIRECT wants, from statx(2) `STATX_DIOALIGN`
/// (Linux 6.1); `None` where kernel or filesystem does not say.
pub(crate) fn direct_alignment(fd: BorrowedFd<'_>) -> Option<(u32, u32)> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    retry(|| {
        // SAFETY: the path is an empty C string, and `stat` has room for one `statx`.
        let result = unsafe {
            libc::statx(
                fd.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                libc::STATX_DIOALIGN,
                stat.as_mut_ptr(),
            )
        };
        Errno::result(result).map(drop)
    })
    .ok()?;
    // SAFETY: zeroed at first and filled by the kernel; all its fields are integers.
    let stat = unsafe { stat.assume_init() };
    let told = stat.stx_mask & libc::STATX_DIOALIGN != 0 && stat.stx_dio_offset_align != 0;
    told.then_some((stat.stx_dio_mem_align, stat.stx_dio_offset_align))
}

// --- positions, holes, cache ------------------------------------------------------------------

pub(crate) fn seek(fd: BorrowedFd<'_>, offset: i64, whence: Whence) -> io::Result<u64> {
    let at = retry(|| unistd::lseek64(fd, offset, whence))?;
    Ok(at.unsigned_abs())
}

/// The descriptor's own position.
pub(crate) fn position(fd: BorrowedFd<'_>) -> io::Result<u64> {
    seek(fd, 0, Whence::SeekCur)
}

/// Where data begins at or after `offset`; `None` where only a hole follows. Moves the position.
pub(crate) fn seek_data(fd: BorrowedFd<'_>, offset: u64) -> io::Result<Option<u64>> {
    match seek(fd, loff(offset)?, Whence::SeekData) {
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        other => other.map(Some),
    }
}

/// Where the next hole begins at or after `offset`, the end of the file being one. Moves the
/// position.
pub(crate) fn seek_hole(fd: BorrowedFd<'_>, offset: u64) -> io::Result<u64> {
    seek(fd, loff(offset)?, Whence::SeekHole)
}

pub(crate) fn punch_hole(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (offset, len) = (loff(offset)?, loff(len)?);
    retry(|| fcntl::fallocate(fd, mode, offset, len))
}

/// fallocate(2): blocks for a range, the file's size as it is.
pub(crate) fn allocate(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (loff(offset)?, loff(len)?);
    retry(|| fcntl::fallocate(fd, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len))
}

pub(crate) fn ftruncate(fd: BorrowedFd<'_>, len: u64) -> io::Result<()> {
    let len = loff(len)?;
    retry(|| unistd::ftruncate(fd, len))
}

/// Starts writing a range back; with `wait`, returns when it has been written.
pub(crate) fn write_back(fd: BorrowedFd<'_>, offset: u64, len: u64, wait: bool) -> io::Result<()> {
    let flags = if wait {
        libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER
    } else {
        libc::SYNC_FILE_RANGE_WRITE
    };
    let (offset, len) = (loff(offset)?, loff(len)?);
    retry(|| {
        // SAFETY: no memory is involved.
        let result = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, len, flags) };
        Errno::result(result).map(drop)
    })
}

/// Drops a range from the page cache, as far as it is clean.
pub(crate) fn drop_cached(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (loff(offset)?, loff(len)?);
    retry(|| fcntl::posix_fadvise(fd, offset, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED))
}

/// Whether a range of a file lies wholly in the page cache, as far as that can be told: by
/// cachestat(2) (Linux 6.5), which wants write access or ownership, else by a read that would not
/// wait for the device (`RWF_NOWAIT`) at every [`PROBE_STEP`].
#[cfg(feature = "tokio")]
pub(crate) fn is_cached(fd: BorrowedFd<'_>, offset: u64, len: u64) -> bool {
    #[repr(C)]
    struct Range {
        offset: u64,
        len: u64,
    }
    const SYS_CACHESTAT: libc::c_long = 451;
    const PAGE: u64 = 4096;
    const PROBE_STEP: u64 = 128 << 10;
    let range = Range { offset, len };
    // nr_cache, nr_dirty, nr_writeback, nr_evicted, nr_recently_evicted.
    let mut stat = [0_u64; 5];
    let counted = retry(|| {
        // SAFETY: cachestat(2) reads one range and writes five counts of 64 bits; both outlive it.
        let result = unsafe {
            libc::syscall(
                SYS_CACHESTAT,
                fd.as_raw_fd(),
                &raw const range,
                stat.as_mut_ptr(),
                0,
            )
        };
        Errno::result(result)
    });
    if counted.is_ok() {
        let all = stat[0] >= (offset + len).div_ceil(PAGE) - offset / PAGE;
        // A page that is still being read counts as well: the last one arrives last.
        return all && reads_at_once(fd, (offset + len).saturating_sub(1));
    }
    (0..len)
        .step_by(PROBE_STEP as usize)
        .all(|ahead| reads_at_once(fd, offset + ahead))
}

/// Whether a byte at `offset` can be read without waiting for a device. Where the kernel cannot
/// say, it is assumed.
#[cfg(feature = "tokio")]
fn reads_at_once(fd: BorrowedFd<'_>, offset: u64) -> bool {
    let Ok(offset) = loff(offset) else {
        return true;
    };
    let mut byte = [0_u8];
    let iov = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    let read = retry(|| {
        // SAFETY: the one iovec covers `byte`.
        size(unsafe { libc::preadv2(fd.as_raw_fd(), &raw const iov, 1, offset, libc::RWF_NOWAIT) })
    });
    !read.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
}

/// Brings a range of a file into the page cache, waiting for the device.
#[cfg(feature = "tokio")]
pub(crate) fn fetch(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    // All of it is asked for at once, which leaves no mark in the cache at which whoever sends the
    // bytes would start reading ahead, and wait for a place in the device's queue. Advice: should it
    // fail, the reads below ask for it.
    if let (Ok(offset), Ok(len)) = (loff(offset), loff(len)) {
        let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
        let _ = retry(|| fcntl::posix_fadvise(fd, offset, len, advice));
    }
    let mut buf = super::aligned::spare();
    let end = offset.saturating_add(len);
    let mut at = offset;
    while at < end {
        let want = usize::try_from(end - at)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        match pread(fd, &mut buf.as_mut_slice()[..want], at) {
            Ok(0) => break,
            Ok(n) => at += n as u64,
            Err(e) => return Err(e),
        }
    }
    super::aligned::keep(buf);
    Ok(())
}

/// Opens the same file anew through `/proc/thread-self/fd`, so that flags and position are our own
/// and those of the caller's description, which others may share, stay as they are. (`/proc/self`
/// is the first thread's: a thread with a descriptor table of its own would open another file.)
pub(crate) fn reopen(fd: BorrowedFd<'_>, flags: OFlag) -> io::Result<OwnedFd> {
    let path = PathBuf::from(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()));
    retry(|| {
        fcntl::open(
            &path,
            flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY,
            Mode::empty(),
        )
    })
}

// --- waiting ----------------------------------------------------------------------------------

/// poll(2) on one descriptor for reading or writing, for at most `limit`. `Ok(false)`: the time ran
/// out. An error or hang-up condition counts as ready: the next call on the descriptor tells which.
pub(crate) fn poll(
    fd: BorrowedFd<'_>,
    writable: bool,
    limit: Option<Duration>,
) -> io::Result<bool> {
    let events = if writable {
        PollFlags::POLLOUT
    } else {
        PollFlags::POLLIN
    };
    let mut fds = [PollFd::new(fd.as_fd(), events)];
    let until = limit.map(|limit| Instant::now() + limit);
    retry(|| {
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            // Rounded up, so that the time is over when the answer is "not ready".
            let left = until.saturating_duration_since(Instant::now());
            let left = left.as_nanos().div_ceil(1_000_000);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        // For want of memory, POSIX allows EAGAIN: "try again", and not "not ready".
        nix::poll::poll(&mut fds, timeout).map_err(|errno| match errno {
            Errno::EAGAIN => Errno::EINTR,
            other => other,
        })
    })
    .map(|ready| ready > 0)
}

/// poll(2) on several descriptors, each for writing (`true`) or reading, until one is ready.
pub(crate) fn poll_any(sides: &[(BorrowedFd<'_>, bool)]) -> io::Result<()> {
    let of = |writable| {
        if writable {
            PollFlags::POLLOUT
        } else {
            PollFlags::POLLIN
        }
    };
    let mut fds: Vec<_> = sides
        .iter()
        .map(|(fd, writable)| PollFd::new(*fd, of(*writable)))
        .collect();
    retry(|| nix::poll::poll(&mut fds, PollTimeout::NONE)).map(drop)
}

/// Whether the descriptor is ready right now.
pub(crate) fn is_ready(fd: BorrowedFd<'_>, writable: bool) -> io::Result<bool> {
    poll(fd, writable, Some(Duration::ZERO))
}

/// shutdown(2) of a stream socket. One that is no longer connected needs none.
pub(crate) fn shutdown(fd: BorrowedFd<'_>, how: Shutdown) -> io::Result<()> {
    match retry(|| nix::sys::socket::shutdown(fd.as_raw_fd(), how)) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => Ok(()),
        other => other,
    }
}
