//! The system calls in front of libc's: this binary's own `read`, `splice` and the rest, which the
//! linker prefers. They do as the kernel does, except in a thread that is [armed](run) with a
//! script: there the script may answer instead.

use std::cell::Cell;
use std::ffi::{c_int, c_long, c_uint, c_ulong, c_void};
use std::ptr;

use nix::errno::Errno;

use crate::bench::Peers;
use crate::plan::{Answer, Numbers, POLL, Script, Site};

/// What an armed thread's calls meet.
pub(crate) struct Stage<'a> {
    pub(crate) script: Script,
    pub(crate) numbers: Numbers,
    /// Serves the other ends of sockets and pipes before each call, so that it need not wait for a
    /// second thread: the course of a run depends on nothing but its script.
    pub(crate) peers: &'a mut Peers,
    /// Files look as if they lay on a filesystem that shares extents, and `FICLONERANGE` copies.
    pub(crate) shares: bool,
    /// The last descriptor that poll(2) waited for.
    pub(crate) polled: Option<c_int>,
}

thread_local! {
    /// Without a destructor, since these functions also run while a thread starts and ends.
    static STAGE: Cell<*mut c_void> = const { Cell::new(ptr::null_mut()) };
}

/// Runs `work` with this thread's calls under the script of `stage`.
pub(crate) fn run<T>(stage: &mut Stage<'_>, work: impl FnOnce() -> T) -> T {
    struct Disarm;
    impl Drop for Disarm {
        fn drop(&mut self) {
            STAGE.set(ptr::null_mut());
        }
    }
    let _disarm = Disarm;
    STAGE.set(ptr::from_mut(stage).cast());
    work()
}

/// Makes a call, or answers it as the script has it.
fn call(nr: c_long, args: [usize; 6]) -> c_long {
    // Disarmed meanwhile: neither the pump's calls nor our own are the transfer's.
    let stage = STAGE.replace(ptr::null_mut());
    if stage.is_null() {
        return kernel(nr, args);
    }
    // SAFETY: `run` holds the only other reference for as long as the pointer is set, and does
    // nothing with it; taking the pointer away above keeps this one alone.
    let result = answer(unsafe { &mut *stage.cast::<Stage<'_>>() }, nr, args);
    STAGE.set(stage);
    match result {
        Ok(value) => value,
        Err(errno) => {
            Errno::set_raw(errno);
            -1
        }
    }
}

fn answer(stage: &mut Stage<'_>, nr: c_long, mut args: [usize; 6]) -> Result<c_long, c_int> {
    stage.peers.pump();
    let Some(site) = stage.numbers.site(nr, &args) else {
        return truth(stage, nr, args);
    };
    if site == Site::Poll {
        // SAFETY: the caller of poll(2) has at least one `pollfd` there; this crate's always has.
        stage.polled = Some(unsafe { (*(args[0] as *const libc::pollfd)).fd });
    }
    match stage.script.next(site) {
        None => truth(stage, nr, args),
        Some(Answer::Errno(errno)) => Err(errno),
        Some(Answer::Zero) => Ok(0),
        Some(less @ (Answer::One | Answer::Half)) => {
            let fewer = |count: usize| match less {
                Answer::One => 1.min(count),
                _ => count.div_ceil(2),
            };
            let at = match nr {
                libc::SYS_splice | libc::SYS_copy_file_range => 4,
                libc::SYS_sendfile => 3,
                _ => 2,
            };
            if matches!(nr, libc::SYS_preadv2 | libc::SYS_pwritev2) {
                // SAFETY: the caller of these has at least one iovec there; this crate's has one.
                let mut iov = unsafe { *(args[1] as *const libc::iovec) };
                iov.iov_len = fewer(iov.iov_len);
                args[1] = ptr::from_ref(&iov) as usize;
                return truth(stage, nr, args);
            }
            args[at] = fewer(args[at]);
            truth(stage, nr, args)
        }
    }
}

/// What the kernel says, or a filesystem that shares extents would.
fn truth(stage: &Stage<'_>, nr: c_long, args: [usize; 6]) -> Result<c_long, c_int> {
    if stage.shares && nr == libc::SYS_ioctl && args[1] as c_ulong == libc::FICLONERANGE as c_ulong
    {
        // SAFETY: FICLONERANGE's argument is one `file_clone_range`.
        let range = unsafe { *(args[2] as *const libc::file_clone_range) };
        return copy(args[0] as c_int, &range);
    }
    let result = kernel(nr, args);
    if result < 0 {
        return Err(Errno::last_raw());
    }
    if stage.shares && nr == libc::SYS_fstatfs {
        // SAFETY: fstatfs(2) has just filled this `statfs`.
        unsafe { (*(args[1] as *mut libc::statfs)).f_type = libc::BTRFS_SUPER_MAGIC };
    }
    Ok(result)
}

/// What a clone comes to, by pread(2) and pwrite(2).
fn copy(dst: c_int, range: &libc::file_clone_range) -> Result<c_long, c_int> {
    let mut buf = vec![0_u8; 64 << 10];
    let mut done = 0;
    while done < range.src_length {
        let want = buf.len().min((range.src_length - done) as usize);
        let io = |nr, fd: usize, len, at: u64| {
            kernel(nr, [fd, buf.as_mut_ptr() as usize, len, at as usize, 0, 0])
        };
        let mut io = io;
        let n = io(
            libc::SYS_pread64,
            range.src_fd as usize,
            want,
            range.src_offset + done,
        );
        if n <= 0 {
            return Err(libc::EINVAL);
        }
        let to = range.dest_offset + done;
        if io(libc::SYS_pwrite64, dst as usize, n as usize, to) != n {
            return Err(libc::EIO);
        }
        done += n as u64;
    }
    Ok(0)
}

/// The system call itself; -1 and errno where it fails.
pub(crate) fn kernel(nr: c_long, args: [usize; 6]) -> c_long {
    let [a, b, c, d, e, f] = args;
    // SAFETY: the arguments are those that this call's caller vouches for.
    unsafe { libc::syscall(nr, a, b, c, d, e, f) }
}

// The functions. Their arguments are passed on as they are, and each is as safe as libc's.

#[unsafe(no_mangle)]
extern "C" fn read(fd: c_int, buf: *mut c_void, count: usize) -> isize {
    call(libc::SYS_read, [fd as usize, buf as usize, count, 0, 0, 0]) as isize
}

#[unsafe(no_mangle)]
extern "C" fn write(fd: c_int, buf: *const c_void, count: usize) -> isize {
    call(libc::SYS_write, [fd as usize, buf as usize, count, 0, 0, 0]) as isize
}

#[unsafe(no_mangle)]
extern "C" fn pread64(fd: c_int, buf: *mut c_void, count: usize, offset: i64) -> isize {
    let args = [fd as usize, buf as usize, count, offset as usize, 0, 0];
    call(libc::SYS_pread64, args) as isize
}

#[unsafe(no_mangle)]
extern "C" fn pread(fd: c_int, buf: *mut c_void, count: usize, offset: i64) -> isize {
    pread64(fd, buf, count, offset)
}

#[unsafe(no_mangle)]
extern "C" fn pwrite64(fd: c_int, buf: *const c_void, count: usize, offset: i64) -> isize {
    let args = [fd as usize, buf as usize, count, offset as usize, 0, 0];
    call(libc::SYS_pwrite64, args) as isize
}

#[unsafe(no_mangle)]
extern "C" fn pwrite(fd: c_int, buf: *const c_void, count: usize, offset: i64) -> isize {
    pwrite64(fd, buf, count, offset)
}

#[unsafe(no_mangle)]
extern "C" fn preadv2(fd: c_int, iov: *const c_void, n: c_int, offset: i64, flags: c_int) -> isize {
    let (n, offset, flags) = (n as usize, offset as usize, flags as usize);
    // The offset goes in two halves; where a register holds it all, the second means nothing.
    let args = [fd as usize, iov as usize, n, offset, 0, flags];
    call(libc::SYS_preadv2, args) as isize
}

#[unsafe(no_mangle)]
extern "C" fn pwritev2(
    fd: c_int,
    iov: *const c_void,
    n: c_int,
    offset: i64,
    flags: c_int,
) -> isize {
    let (n, offset, flags) = (n as usize, offset as usize, flags as usize);
    let args = [fd as usize, iov as usize, n, offset, 0, flags];
    call(libc::SYS_pwritev2, args) as isize
}

#[unsafe(no_mangle)]
extern "C" fn recv(fd: c_int, buf: *mut c_void, count: usize, flags: c_int) -> isize {
    let args = [fd as usize, buf as usize, count, flags as usize, 0, 0];
    call(libc::SYS_recvfrom, args) as isize
}

#[unsafe(no_mangle)]
extern "C" fn send(fd: c_int, buf: *const c_void, count: usize, flags: c_int) -> isize {
    let args = [fd as usize, buf as usize, count, flags as usize, 0, 0];
    call(libc::SYS_sendto, args) as isize
}

#[unsafe(no_mangle)]
extern "C" fn splice(
    src: c_int,
    src_offset: *mut i64,
    dst: c_int,
    dst_offset: *mut i64,
    count: usize,
    flags: c_uint,
) -> isize {
    let (from, to) = (src_offset as usize, dst_offset as usize);
    let args = [src as usize, from, dst as usize, to, count, flags as usize];
    call(libc::SYS_splice, args) as isize
}

#[unsafe(no_mangle)]
extern "C" fn sendfile64(dst: c_int, src: c_int, offset: *mut i64, count: usize) -> isize {
    let args = [dst as usize, src as usize, offset as usize, count, 0, 0];
    call(libc::SYS_sendfile, args) as isize
}

#[unsafe(no_mangle)]
extern "C" fn sendfile(dst: c_int, src: c_int, offset: *mut i64, count: usize) -> isize {
    sendfile64(dst, src, offset, count)
}

#[unsafe(no_mangle)]
extern "C" fn copy_file_range(
    src: c_int,
    src_offset: *mut i64,
    dst: c_int,
    dst_offset: *mut i64,
    count: usize,
    flags: c_uint,
) -> isize {
    let (from, to) = (src_offset as usize, dst_offset as usize);
    let args = [src as usize, from, dst as usize, to, count, flags as usize];
    call(libc::SYS_copy_file_range, args) as isize
}

// ioctl(2) and fcntl(2) are variadic in C with one argument at most; on the ABIs that Linux has in
// use, that argument is passed as a third fixed one is.

#[unsafe(no_mangle)]
extern "C" fn ioctl(fd: c_int, request: c_ulong, arg: usize) -> c_int {
    call(
        libc::SYS_ioctl,
        [fd as usize, request as usize, arg, 0, 0, 0],
    ) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn fcntl(fd: c_int, command: c_int, arg: usize) -> c_int {
    let args = [fd as usize, command as usize, arg, 0, 0, 0];
    call(libc::SYS_fcntl, args) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn fcntl64(fd: c_int, command: c_int, arg: usize) -> c_int {
    fcntl(fd, command, arg)
}

#[unsafe(no_mangle)]
extern "C" fn pipe2(fds: *mut c_int, flags: c_int) -> c_int {
    call(libc::SYS_pipe2, [fds as usize, flags as usize, 0, 0, 0, 0]) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn poll(fds: *mut libc::pollfd, count: libc::nfds_t, timeout: c_int) -> c_int {
    let limit = libc::timespec {
        tv_sec: i64::from(timeout / 1000),
        tv_nsec: i64::from(timeout % 1000) * 1_000_000,
    };
    let (fds, count) = (fds as usize, count as usize);
    let args = match POLL {
        // Not every architecture has poll(2) itself.
        libc::SYS_ppoll if timeout < 0 => [fds, count, 0, 0, 0, 0],
        libc::SYS_ppoll => [fds, count, ptr::from_ref(&limit) as usize, 0, 0, 0],
        _ => [fds, count, timeout as usize, 0, 0, 0],
    };
    call(POLL, args) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn fstatfs64(fd: c_int, stat: *mut c_void) -> c_int {
    call(libc::SYS_fstatfs, [fd as usize, stat as usize, 0, 0, 0, 0]) as c_int
}
