//! The system calls in front of libc's. They do as the kernel does, except in a thread that is
//! [armed](run): there each call is written down, the other end is emptied before it, and the
//! [`Stage`] may answer instead of the kernel.

use std::cell::Cell;
use std::ffi::{c_int, c_long, c_uint, c_void};
use std::io;
use std::ptr;

use crate::lane::Taker;

/// A call, told apart by what it does to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Site {
    /// sendmsg(2), writev(2): memory to the destination.
    Gather,
    /// pread(2): a small file, or a large one by read/write.
    Pread,
    Sendfile,
    /// splice(2) from a file into a pipe.
    SpliceIn,
    /// splice(2) from a pipe of its own to the destination.
    SpliceOut,
    /// write(2) by read/write and by mmap.
    Write,
    Poll,
    /// recvmsg(2) on the error queue.
    Reap,
    /// Calls that only look.
    Look,
}

impl Site {
    /// Those that are made to fail.
    pub(crate) const ALL: [Site; 7] = [
        Site::Gather,
        Site::Pread,
        Site::Sendfile,
        Site::SpliceIn,
        Site::SpliceOut,
        Site::Write,
        Site::Poll,
    ];

    /// Whether it brings bytes to the destination.
    fn delivers(self) -> bool {
        matches!(
            self,
            Site::Gather | Site::Sendfile | Site::SpliceOut | Site::Write
        )
    }
}

/// What a call is made to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Errno(c_int),
    /// The true result of the same call for at most so many bytes.
    AtMost(usize),
    /// The true result for half as many.
    Half,
    Zero,
}

/// One call as it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) site: Site,
    /// Of sendmsg(2).
    pub(crate) flags: c_int,
    pub(crate) result: Result<usize, c_int>,
}

type Edit = fn(&mut libc::msghdr);

/// What an armed thread's calls meet.
#[derive(Default)]
pub(crate) struct Stage<'a> {
    /// Empties the other end before each call, so that no second thread is needed.
    pub(crate) taker: Option<&'a mut Taker>,
    /// One answer: at the so-many-th call of a site, from 1.
    pub(crate) fault: Option<(Site, usize, Answer)>,
    /// The destination takes so many bytes more, and then answers this errno.
    pub(crate) room: Option<(u64, c_int)>,
    /// What becomes of a notification on the error queue, once taken off it.
    pub(crate) notice: Option<Edit>,
    /// The error queue is empty, whatever is on it.
    pub(crate) reap_nothing: bool,
    pub(crate) calls: Vec<Call>,
}

impl Stage<'_> {
    pub(crate) fn seen(&self, site: Site) -> usize {
        self.calls.iter().filter(|call| call.site == site).count()
    }

    /// The flags of each sendmsg(2).
    pub(crate) fn flags(&self) -> Vec<c_int> {
        let gathers = self.calls.iter().filter(|call| call.site == Site::Gather);
        gathers.map(|call| call.flags).collect()
    }

    fn answer(&self, site: Site) -> Option<Answer> {
        let at = self.seen(site) + 1;
        let fault = self.fault.filter(|(s, k, _)| *s == site && *k == at);
        let quiet = self.reap_nothing && site == Site::Reap;
        let quiet = quiet.then_some(Answer::Errno(libc::EAGAIN));
        let full =
            self.room.filter(|_| site.delivers()).map(|(left, errno)| {
                match usize::try_from(left).unwrap_or(usize::MAX) {
                    0 => Answer::Errno(errno),
                    left => Answer::AtMost(left),
                }
            });
        fault.map(|(_, _, answer)| answer).or(full).or(quiet)
    }
}

thread_local! {
    /// Without a destructor, since these functions also run while a thread starts and ends.
    static STAGE: Cell<*mut c_void> = const { Cell::new(ptr::null_mut()) };
}

/// Runs `work` with this thread's calls on `stage`.
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

fn kernel(nr: c_long, [a, b, c, d, e, f]: [usize; 6]) -> c_long {
    // SAFETY: the arguments are those that this call's caller vouches for.
    unsafe { libc::syscall(nr, a, b, c, d, e, f) }
}

fn site(nr: c_long, args: &[usize; 6]) -> Option<Site> {
    Some(match nr {
        libc::SYS_sendmsg | libc::SYS_writev => Site::Gather,
        libc::SYS_pread64 => Site::Pread,
        libc::SYS_sendfile => Site::Sendfile,
        // Files are read by offset.
        libc::SYS_splice if args[1] != 0 => Site::SpliceIn,
        libc::SYS_splice => Site::SpliceOut,
        libc::SYS_write => Site::Write,
        libc::SYS_poll => Site::Poll,
        libc::SYS_recvmsg => Site::Reap,
        libc::SYS_fcntl | libc::SYS_fstatfs => Site::Look,
        _ => return None,
    })
}

fn call(nr: c_long, args: [usize; 6]) -> c_long {
    // Disarmed meanwhile: the taker's calls are not the message's.
    let stage = STAGE.replace(ptr::null_mut());
    if stage.is_null() {
        return kernel(nr, args);
    }
    // SAFETY: `run` holds the only other reference for as long as the pointer is set, and does
    // nothing with it; taking the pointer away above keeps this one alone.
    let result = answer(unsafe { &mut *stage.cast::<Stage<'_>>() }, nr, args);
    STAGE.set(stage);
    match result {
        Ok(value) => value as c_long,
        Err(errno) => {
            // SAFETY: takes nothing and cannot fail.
            let location = unsafe { libc::__errno_location() };
            // SAFETY: the location is this thread's errno.
            unsafe { *location = errno };
            -1
        }
    }
}

fn answer(stage: &mut Stage<'_>, nr: c_long, args: [usize; 6]) -> Result<usize, c_int> {
    let Some(site) = site(nr, &args) else {
        return truth(nr, args);
    };
    if let Some(taker) = &mut stage.taker {
        taker.pump();
    }
    let result = match stage.answer(site) {
        Some(Answer::Errno(errno)) => Err(errno),
        Some(Answer::Zero) => Ok(0),
        Some(Answer::AtMost(most)) => shortened(nr, args, |_| most),
        Some(Answer::Half) => shortened(nr, args, |count| count.div_ceil(2)),
        None => truth(nr, args),
    };
    if let (true, Some((left, _)), Ok(n)) = (site.delivers(), &mut stage.room, result) {
        *left -= n as u64;
    }
    if let (Site::Reap, Some(edit), Ok(_)) = (site, stage.notice, result) {
        // SAFETY: recvmsg(2) has just filled this `msghdr` and what it leads to.
        edit(unsafe { &mut *(args[1] as *mut libc::msghdr) });
    }
    let flags = if nr == libc::SYS_sendmsg {
        args[2] as c_int
    } else {
        0
    };
    stage.calls.push(Call {
        site,
        flags,
        result,
    });
    result
}

fn truth(nr: c_long, args: [usize; 6]) -> Result<usize, c_int> {
    usize::try_from(kernel(nr, args))
        .map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// The same call for fewer bytes: `fewer` of what was asked for, never more.
fn shortened(
    nr: c_long,
    mut args: [usize; 6],
    fewer: impl Fn(usize) -> usize,
) -> Result<usize, c_int> {
    let count = match nr {
        libc::SYS_splice => &mut args[4],
        libc::SYS_sendfile => &mut args[3],
        libc::SYS_pread64 | libc::SYS_write => &mut args[2],
        libc::SYS_writev => {
            let mut iov = cut(args[1] as *const libc::iovec, args[2], fewer);
            (args[1], args[2]) = (iov.as_mut_ptr() as usize, iov.len());
            return truth(nr, args);
        }
        libc::SYS_sendmsg => {
            // SAFETY: sendmsg(2) is called with one `msghdr`.
            let mut header = unsafe { *(args[1] as *const libc::msghdr) };
            // The count's type differs from one C library to the next.
            #[allow(clippy::unnecessary_cast)]
            let mut iov = cut(header.msg_iov, header.msg_iovlen as usize, fewer);
            header.msg_iov = iov.as_mut_ptr();
            header.msg_iovlen = iov.len() as _;
            args[1] = ptr::from_ref(&header) as usize;
            return truth(nr, args);
        }
        _ => return truth(nr, args),
    };
    *count = fewer(*count).min(*count);
    truth(nr, args)
}

/// The first bytes of a gather.
fn cut(iov: *const libc::iovec, len: usize, fewer: impl Fn(usize) -> usize) -> Vec<libc::iovec> {
    // SAFETY: the caller of a gather has so many iovecs there.
    let mut iov = unsafe { std::slice::from_raw_parts(iov, len) }.to_vec();
    let mut left = fewer(iov.iter().map(|piece| piece.iov_len).sum());
    for piece in &mut iov {
        piece.iov_len = piece.iov_len.min(left);
        left -= piece.iov_len;
    }
    iov
}

// The functions. Their arguments are passed on as they are, and each is as safe as libc's.

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
extern "C" fn write(fd: c_int, buf: *const c_void, count: usize) -> isize {
    call(libc::SYS_write, [fd as usize, buf as usize, count, 0, 0, 0]) as isize
}

#[unsafe(no_mangle)]
extern "C" fn sendfile64(dst: c_int, src: c_int, offset: *mut i64, count: usize) -> isize {
    let args = [dst as usize, src as usize, offset as usize, count, 0, 0];
    call(libc::SYS_sendfile, args) as isize
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
extern "C" fn poll(fds: *mut libc::pollfd, count: libc::nfds_t, timeout: c_int) -> c_int {
    let args = [fds as usize, count as usize, timeout as usize, 0, 0, 0];
    call(libc::SYS_poll, args) as c_int
}

/// fcntl(2) is variadic in C with one argument at most; on the ABIs that Linux has in use, that
/// argument is passed as a third fixed one is.
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
extern "C" fn fstatfs64(fd: c_int, stat: *mut c_void) -> c_int {
    call(libc::SYS_fstatfs, [fd as usize, stat as usize, 0, 0, 0, 0]) as c_int
}
