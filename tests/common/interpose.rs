//! The system calls in front of the C library's: a test binary that includes this has its own `read`,
//! `splice` and the rest, which the linker prefers. They do as the kernel does, except in a thread
//! that is [armed](run) with a [`Stage`]: there the stage may answer instead.
//!
//! Not part of `common` itself: only the binaries that name it are to have these.
// A stage of one binary needs not all of this.
#![allow(dead_code, unreachable_pub)]

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::ptr;

use nix::errno::Errno;

use crate::common::POLL;

/// A call's result, or its error number.
pub type Answer = Result<c_long, c_int>;

/// What an armed thread's calls meet.
pub trait Stage {
    /// Answers a call, by [`kernel`] or otherwise. Calls made in here are not answered again.
    fn answer(&mut self, nr: c_long, args: [usize; 6]) -> Answer;
}

/// A stage without its type, and the function that knows it.
type Armed = (
    *mut c_void,
    unsafe fn(*mut c_void, c_long, [usize; 6]) -> Answer,
);

thread_local! {
    /// Without a destructor, since these functions also run while a thread starts and ends.
    static STAGE: Cell<Option<Armed>> = const { Cell::new(None) };
}

/// Runs `work` with this thread's calls on `stage`.
pub fn run<S: Stage, T>(stage: &mut S, work: impl FnOnce() -> T) -> T {
    struct Disarm;
    impl Drop for Disarm {
        fn drop(&mut self) {
            STAGE.set(None);
        }
    }
    /// # Safety
    /// `stage` leads to an `S` that nobody else refers to.
    unsafe fn ask<S: Stage>(stage: *mut c_void, nr: c_long, args: [usize; 6]) -> Answer {
        // SAFETY: the caller's word.
        unsafe { &mut *stage.cast::<S>() }.answer(nr, args)
    }
    let _disarm = Disarm;
    STAGE.set(Some((ptr::from_mut(stage).cast(), ask::<S>)));
    work()
}

/// Makes a call, or answers it as the stage has it.
fn call(nr: c_long, args: [usize; 6]) -> c_long {
    // Disarmed meanwhile: the stage's own calls are not the transfer's.
    let armed = STAGE.replace(None);
    let answer = match armed {
        None => kernel(nr, args),
        // SAFETY: `run` holds the only other reference for as long as the pointer is set, and does
        // nothing with it; taking the pointer away above keeps this one alone.
        Some((stage, ask)) => unsafe { ask(stage, nr, args) },
    };
    STAGE.set(armed);
    answer.unwrap_or_else(|errno| {
        Errno::set_raw(errno);
        -1
    })
}

/// The system call itself.
pub fn kernel(nr: c_long, args: [usize; 6]) -> Answer {
    let [a, b, c, d, e, f] = args;
    // SAFETY: the arguments are those that this call's caller vouches for.
    match unsafe { libc::syscall(nr, a, b, c, d, e, f) } {
        -1 => Err(Errno::last_raw()),
        result => Ok(result),
    }
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
extern "C" fn statx(
    fd: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    stat: *mut c_void,
) -> c_int {
    let (path, flags) = (path as usize, flags as usize);
    let args = [fd as usize, path, flags, mask as usize, stat as usize, 0];
    call(libc::SYS_statx, args) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn lseek64(fd: c_int, offset: i64, whence: c_int) -> i64 {
    let args = [fd as usize, offset as usize, whence as usize, 0, 0, 0];
    call(libc::SYS_lseek, args)
}

#[unsafe(no_mangle)]
extern "C" fn fallocate64(fd: c_int, mode: c_int, offset: i64, len: i64) -> c_int {
    let (offset, len) = (offset as usize, len as usize);
    let args = [fd as usize, mode as usize, offset, len, 0, 0];
    call(libc::SYS_fallocate, args) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn fallocate(fd: c_int, mode: c_int, offset: i64, len: i64) -> c_int {
    fallocate64(fd, mode, offset, len)
}

#[unsafe(no_mangle)]
extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut libc::socklen_t,
) -> c_int {
    let (level, name) = (level as usize, name as usize);
    let args = [fd as usize, level, name, value as usize, len as usize, 0];
    call(libc::SYS_getsockopt, args) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn fstatfs64(fd: c_int, stat: *mut c_void) -> c_int {
    call(libc::SYS_fstatfs, [fd as usize, stat as usize, 0, 0, 0, 0]) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn sendmsg(fd: c_int, header: *const libc::msghdr, flags: c_int) -> isize {
    let args = [fd as usize, header as usize, flags as usize, 0, 0, 0];
    call(libc::SYS_sendmsg, args) as isize
}

#[unsafe(no_mangle)]
extern "C" fn recvmsg(fd: c_int, header: *mut libc::msghdr, flags: c_int) -> isize {
    let args = [fd as usize, header as usize, flags as usize, 0, 0, 0];
    call(libc::SYS_recvmsg, args) as isize
}

#[unsafe(no_mangle)]
extern "C" fn writev(fd: c_int, iov: *const libc::iovec, count: c_int) -> isize {
    let args = [fd as usize, iov as usize, count as usize, 0, 0, 0];
    call(libc::SYS_writev, args) as isize
}
