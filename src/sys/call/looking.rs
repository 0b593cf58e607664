//! The calls that only look: nothing changes on the descriptor.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{self, FcntlArg};

use super::{count, retry};
use crate::sys::errno;

/// What is asked of a file: numbers as statx(2) has them, sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    /// Kind and permissions, as in `st_mode`.
    pub(crate) mode: libc::mode_t,
    pub(crate) size: u64,
    /// Bytes of the blocks that it has.
    pub(crate) allocated: u64,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Which device a block device is, whatever its node.
    pub(crate) itself: u64,
    pub(crate) block: u64,
}

/// statx(2), without the times; fstat(2) where a seccomp profile does not know it.
///
/// Since Linux 6.13, who has seen a file's times gets others after the next write. So after an
/// fstat(2) that write stores the inode again (4 KiB on ext4, 6.18: 0.9 us more).
#[inline]
pub(crate) fn stat(fd: BorrowedFd<'_>) -> io::Result<Stat> {
    const MASK: libc::c_uint = libc::STATX_TYPE
        | libc::STATX_MODE
        | libc::STATX_SIZE
        | libc::STATX_BLOCKS
        | libc::STATX_INO;
    match statx(fd, MASK) {
        Ok(stat) => Ok(Stat {
            mode: stat.stx_mode.into(),
            size: stat.stx_size,
            allocated: stat.stx_blocks.saturating_mul(512),
            device: libc::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            itself: libc::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
            block: stat.stx_blksize.into(),
        }),
        Err(e) if errno::is_forbidden(&e) => fstat(fd),
        Err(e) => Err(e),
    }
}

#[cold]
fn fstat(fd: BorrowedFd<'_>) -> io::Result<Stat> {
    let stat = retry(|| nix::sys::stat::fstat(fd))?;
    // The types of some fields differ from one architecture to the next.
    #[allow(clippy::unnecessary_cast)]
    Ok(Stat {
        mode: stat.st_mode,
        size: stat.st_size.unsigned_abs(),
        allocated: stat.st_blocks.unsigned_abs().saturating_mul(512) as u64,
        device: stat.st_dev,
        inode: stat.st_ino,
        itself: stat.st_rdev,
        block: stat.st_blksize.unsigned_abs() as u64,
    })
}

#[inline]
fn statx(fd: BorrowedFd<'_>, mask: libc::c_uint) -> io::Result<libc::statx> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
    retry(|| {
        // SAFETY: the path is an empty C string, and `stat` has room for one `statx`.
        let result = unsafe { libc::statx(fd.as_raw_fd(), path, flags, mask, stat.as_mut_ptr()) };
        Errno::result(result)
    })?;
    // SAFETY: zeroed at first and filled by the kernel; all its fields are integers.
    Ok(unsafe { stat.assume_init() })
}

/// How long a file is, and when it or what is said of it was changed last (`st_ctime`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) size: u64,
    changed: (i64, i64),
}

/// Size and time of change: two that are equal have no write, cut or punch in between, as far as the
/// filesystem's clock tells. (Since Linux 6.13 that of ext4, XFS, btrfs and tmpfs does for whoever
/// asks; before, it moves every few milliseconds, and on ext3 with inodes of 128 bytes every second.)
pub(crate) fn extent(fd: BorrowedFd<'_>) -> io::Result<Extent> {
    match statx(fd, libc::STATX_SIZE | libc::STATX_CTIME) {
        Ok(stat) => Ok(Extent {
            size: stat.stx_size,
            changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec.into()),
        }),
        Err(e) if errno::is_forbidden(&e) => {
            let stat = retry(|| nix::sys::stat::fstat(fd))?;
            // The types of these fields differ from one architecture to the next.
            #[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
            let changed = (stat.st_ctime as i64, stat.st_ctime_nsec as i64);
            let size = stat.st_size.unsigned_abs();
            Ok(Extent { size, changed })
        }
        Err(e) => Err(e),
    }
}

/// F_GETFL: access mode and status flags.
pub(crate) fn status_flags(fd: BorrowedFd<'_>) -> io::Result<i32> {
    retry(|| fcntl::fcntl(fd, FcntlArg::F_GETFL))
}

/// Whether both stand for one open file description, and so share its position: kcmp(2). Where that
/// may not be asked, only one and the same descriptor is known to.
pub(crate) fn is_one_description(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    const KCMP_FILE: libc::c_int = 0;
    let same = retry(|| {
        // SAFETY: no memory is involved.
        let thread = unsafe { libc::gettid() };
        let (a, b) = (a.as_raw_fd(), b.as_raw_fd());
        // SAFETY: as above.
        let order = unsafe { libc::syscall(libc::SYS_kcmp, thread, thread, KCMP_FILE, a, b) };
        Errno::result(order)
    });
    a.as_raw_fd() == b.as_raw_fd() || same.is_ok_and(|order| order == 0)
}

/// Whether both lead to one inode: two ends of one pipe. Where that cannot be asked, they do not.
pub(crate) fn is_same_inode(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    let name = |fd| stat(fd).map(|stat| (stat.device, stat.inode)).ok();
    name(a).is_some_and(|a| Some(a) == name(b))
}

/// The size of a block device in bytes.
pub(crate) fn device_size(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // _IOR(0x12, 114, size_t).
    const READ: u32 = if cfg!(any(
        target_arch = "mips",
        target_arch = "mips64",
        target_arch = "powerpc",
        target_arch = "powerpc64",
        target_arch = "sparc64"
    )) {
        1 << 30
    } else {
        1 << 31
    };
    const BLKGETSIZE64: u32 = READ | (size_of::<usize>() as u32) << 16 | 0x12 << 8 | 114;
    let mut bytes = 0_u64;
    retry(|| {
        // The type of a request differs from one C library to the next.
        #[allow(clippy::cast_lossless)]
        // SAFETY: BLKGETSIZE64 writes one u64.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64 as _, &raw mut bytes) };
        Errno::result(result)
    })?;
    Ok(bytes)
}

/// The disk that a partition lies on, and its first byte there, as sysfs has it; `None` for what is
/// none, and where there is no sysfs.
pub(crate) fn partition(device: u64) -> Option<(u64, u64)> {
    let read = |name: &str| {
        // To open, read to the end and close.
        count(4);
        let (major, minor) = (libc::major(device), libc::minor(device));
        std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{name}")).ok()
    };
    let sectors: u64 = read("start")?.trim().parse().ok()?;
    let disk = read("../dev")?;
    let (major, minor) = disk.trim().split_once(':')?;
    let disk = libc::makedev(major.parse().ok()?, minor.parse().ok()?);
    Some((disk, sectors.saturating_mul(512)))
}

/// The filesystem's magic number and block size.
pub(crate) fn fstatfs(fd: BorrowedFd<'_>) -> io::Result<(i64, u64)> {
    let fs = retry(|| nix::sys::statfs::fstatfs(fd))?;
    // The types of both fields differ from one architecture to the next.
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
    Ok((fs.filesystem_type().0 as i64, fs.block_size() as u64))
}

/// Whether this process may have record locks (`F_SETLK`) on a file, which it loses as soon as it closes
/// any descriptor of that. Asked as somebody who would lock all of it (`F_OFD_GETLK`): of several locks
/// the kernel names one, and another's may stand in front of ours. Where it does not tell, none is.
pub(crate) fn has_record_locks(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: all its fields are integers.
    let mut lock: libc::flock64 = unsafe { MaybeUninit::zeroed().assume_init() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    let asked = retry(|| {
        // SAFETY: F_OFD_GETLK reads and writes one `flock64`, and `lock` is one.
        let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
        Errno::result(result).map(drop)
    });
    asked.is_ok() && libc::c_int::from(lock.l_type) != libc::F_UNLCK
}

/// Whether seals forbid both writing to this memfd and shrinking it.
pub(crate) fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    let wanted = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK;
    retry(|| fcntl::fcntl(fd, FcntlArg::F_GET_SEALS)).is_ok_and(|seals| seals & wanted == wanted)
}

/// One integer socket option of level `SOL_SOCKET`.
pub(crate) fn socket_option(fd: BorrowedFd<'_>, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    get_socket_option(fd, libc::SOL_SOCKET, name, &mut value)?;
    Ok(value)
}

/// Whether this is a socket that has TCP's options (`TCP_NODELAY`); an error where it has not.
pub(crate) fn has_tcp_options(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut value: libc::c_int = 0;
    get_socket_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &mut value)
}

/// What a pipe holds at most; EBADF for what is none.
pub(crate) fn pipe_size(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    retry(|| fcntl::fcntl(fd, FcntlArg::F_GETPIPE_SZ))
}

pub(in crate::sys) fn get_socket_option<T: Copy>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &mut T,
) -> io::Result<()> {
    let mut len = size_of::<T>() as libc::socklen_t;
    retry(|| {
        let value: *mut T = value;
        // SAFETY: `value` is writable for `len` bytes, and both outlive the call. `T` is an
        // integer or a timeval: plain data, valid for whatever the kernel writes.
        let result =
            unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.cast(), &raw mut len) };
        Errno::result(result).map(drop)
    })
}

/// The alignment of memory and of offsets that O_DIRECT wants, from statx(2) `STATX_DIOALIGN`
/// (Linux 6.1); `None` where kernel or filesystem does not say.
pub(crate) fn direct_alignment(fd: BorrowedFd<'_>) -> Option<(u32, u32)> {
    let stat = statx(fd, libc::STATX_DIOALIGN).ok()?;
    let told = stat.stx_mask & libc::STATX_DIOALIGN != 0 && stat.stx_dio_offset_align != 0;
    told.then_some((stat.stx_dio_mem_align, stat.stx_dio_offset_align))
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
    let read = super::read_at_hand(fd, &mut [0], offset);
    !read.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
}
