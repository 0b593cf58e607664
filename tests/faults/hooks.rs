//! What the transfer's calls meet: a script that may answer instead of the kernel.

use std::ffi::{c_int, c_long, c_ulong};
use std::ptr;

use crate::bench::Peers;
use crate::interpose::{self, kernel};
use crate::plan::{Answer, Numbers, Script, Site};

pub(crate) use crate::interpose::run;

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

impl interpose::Stage for Stage<'_> {
    fn answer(&mut self, nr: c_long, mut args: [usize; 6]) -> interpose::Answer {
        self.peers.pump();
        let Some(site) = self.numbers.site(nr, &args) else {
            return truth(self, nr, args);
        };
        if site == Site::Poll {
            // SAFETY: the caller of poll(2) has at least one `pollfd` there; this crate's always has.
            self.polled = Some(unsafe { (*(args[0] as *const libc::pollfd)).fd });
        }
        match self.script.next(site) {
            None => truth(self, nr, args),
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
                    return truth(self, nr, args);
                }
                args[at] = fewer(args[at]);
                truth(self, nr, args)
            }
        }
    }
}

/// What the kernel says, or a filesystem that shares extents would.
fn truth(stage: &Stage<'_>, nr: c_long, args: [usize; 6]) -> interpose::Answer {
    if stage.shares && nr == libc::SYS_ioctl && args[1] as c_ulong == libc::FICLONERANGE as c_ulong
    {
        // SAFETY: FICLONERANGE's argument is one `file_clone_range`.
        let range = unsafe { *(args[2] as *const libc::file_clone_range) };
        return copy(args[0] as c_int, &range);
    }
    let result = kernel(nr, args)?;
    if stage.shares && nr == libc::SYS_fstatfs {
        // SAFETY: fstatfs(2) has just filled this `statfs`.
        unsafe { (*(args[1] as *mut libc::statfs)).f_type = libc::BTRFS_SUPER_MAGIC };
    }
    Ok(result)
}

/// What a clone comes to, by pread(2) and pwrite(2).
fn copy(dst: c_int, range: &libc::file_clone_range) -> interpose::Answer {
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
        let n = match n? {
            0 => return Err(libc::EINVAL),
            n => n,
        };
        let to = range.dest_offset + done;
        if io(libc::SYS_pwrite64, dst as usize, n as usize, to)? != n {
            return Err(libc::EIO);
        }
        done += n as u64;
    }
    Ok(0)
}
