//! What is done to a file beside its bytes: position, holes, blocks, cached pages, a second
//! description.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{self, FallocateFlags, FcntlArg, OFlag, PosixFadviseAdvice};
use nix::sys::stat::Mode;
use nix::unistd::{self, Whence};

use super::{loff, retry};
use crate::sys::errno;

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

/// Has a file end at `end` at least, and never makes it shorter: fallocate(2) of its last byte.
/// (fstat(2) and ftruncate(2) would cut what somebody else has written in between.) On ext2 and ext3,
/// which cannot do that, a zero is written there.
pub(crate) fn extend(fd: BorrowedFd<'_>, end: u64) -> io::Result<()> {
    let at = end.saturating_sub(1);
    let from = loff(at)?;
    match retry(|| fcntl::fallocate(fd, FallocateFlags::empty(), from, 1)) {
        Err(e) if errno::is_unfit(errno::Call::Splice, &e) => match super::pwrite(fd, &[0], at)? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            _ => Ok(()),
        },
        other => other,
    }
}

/// Starts writing a range back; with `wait`, returns when it has been written. An error is one of
/// writing: a file that cannot be written back by ranges has not failed.
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
    .or_else(|e| {
        let failed = errno::is_of_storage(&e) || errno::is_destinations(&e);
        if failed { Err(e) } else { Ok(()) }
    })
}

/// Drops a range from the page cache, as far as it is clean.
pub(crate) fn drop_cached(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (loff(offset)?, loff(len)?);
    retry(|| fcntl::posix_fadvise(fd, offset, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED))
}

/// Brings a range of a file into the page cache, waiting for the device.
#[cfg(feature = "tokio")]
pub(crate) fn fetch(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    // All of it is asked for at once, which leaves no mark in the cache at which whoever sends the
    // bytes would start reading ahead, and wait for a place in the device's queue.
    will_need(fd, offset, len);
    let mut buf = crate::sys::aligned::spare();
    let end = offset.saturating_add(len);
    let mut at = offset;
    while at < end {
        let want = usize::try_from(end - at)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        match super::pread(fd, &mut buf.as_mut_slice()[..want], at) {
            Ok(0) => break,
            Ok(n) => at += n as u64,
            Err(e) => return Err(e),
        }
    }
    crate::sys::aligned::keep(buf);
    Ok(())
}

/// Has the kernel begin to read a range of a file. Advice: should it fail, whoever reads asks for it.
#[cfg(feature = "tokio")]
pub(crate) fn will_need(fd: BorrowedFd<'_>, offset: u64, len: u64) {
    if let (Ok(offset), Ok(len)) = (loff(offset), loff(len)) {
        let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
        let _ = retry(|| fcntl::posix_fadvise(fd, offset, len, advice));
    }
}

/// Opens the same file anew through `/proc/thread-self/fd`, so that flags and position are our own
/// and those of the caller's description, which others may share, stay as they are. (`/proc/self`
/// is the first thread's: a thread with a descriptor table of its own would open another file.)
///
/// # Errors
/// Those of open(2); one without a number where the file has record locks, which this process would
/// lose with the close of what is opened here (fcntl(2)).
pub(crate) fn reopen(fd: BorrowedFd<'_>, flags: OFlag) -> io::Result<OwnedFd> {
    if super::has_record_locks(fd) {
        let text = "the file has record locks, which closing a second description would drop";
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
    }
    reopen_anyway(fd, flags)
}

/// The same, whatever that does to record locks.
pub(crate) fn reopen_anyway(fd: BorrowedFd<'_>, flags: OFlag) -> io::Result<OwnedFd> {
    let path = PathBuf::from(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()));
    let how = OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    // Not to wait for somebody to give up a lease, who may be this very thread.
    let at_once = how | OFlag::O_NONBLOCK;
    let file = retry(|| fcntl::open(&path, flags | at_once, Mode::empty()))?;
    retry(|| fcntl::fcntl(&file, FcntlArg::F_SETFL(flags)))?;
    Ok(file)
}
