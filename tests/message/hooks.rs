//! What a message's calls meet: each is written down, the other end is emptied before it, and the
//! [`Stage`] may answer instead of the kernel.

use std::ffi::{c_int, c_long};
use std::ptr;

use crate::interpose::{self, kernel};
use crate::lane::Taker;

pub(crate) use crate::interpose::run;

/// A call, told apart by what it does to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Site {
    /// sendmsg(2), writev(2): memory to the destination.
    Gather,
    /// pread(2): a small file, or a large one by read/write.
    Pread,
    Sendfile,
    /// copy_file_range(2).
    Range,
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
    pub(crate) const ALL: [Site; 8] = [
        Site::Gather,
        Site::Pread,
        Site::Sendfile,
        Site::Range,
        Site::SpliceIn,
        Site::SpliceOut,
        Site::Write,
        Site::Poll,
    ];

    /// Whether it brings bytes to the destination.
    fn delivers(self) -> bool {
        matches!(
            self,
            Site::Gather | Site::Sendfile | Site::Range | Site::SpliceOut | Site::Write
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
    /// What this kernel does not have.
    pub(crate) lacks: Option<Site>,
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

    fn planned(&self, site: Site) -> Option<Answer> {
        let at = self.seen(site) + 1;
        let fault = self.fault.filter(|(s, k, _)| *s == site && *k == at);
        let lacking = self.lacks.filter(|lacks| *lacks == site);
        let lacking = lacking.map(|_| Answer::Errno(libc::EINVAL));
        let quiet = self.reap_nothing && site == Site::Reap;
        let quiet = quiet.then_some(Answer::Errno(libc::EAGAIN));
        let full =
            self.room.filter(|_| site.delivers()).map(|(left, errno)| {
                match usize::try_from(left).unwrap_or(usize::MAX) {
                    0 => Answer::Errno(errno),
                    left => Answer::AtMost(left),
                }
            });
        lacking
            .or(fault.map(|(_, _, answer)| answer))
            .or(full)
            .or(quiet)
    }
}

fn site(nr: c_long, args: &[usize; 6]) -> Option<Site> {
    Some(match nr {
        libc::SYS_sendmsg | libc::SYS_writev => Site::Gather,
        libc::SYS_pread64 => Site::Pread,
        libc::SYS_sendfile => Site::Sendfile,
        libc::SYS_copy_file_range => Site::Range,
        // Files are read by offset.
        libc::SYS_splice if args[1] != 0 => Site::SpliceIn,
        libc::SYS_splice => Site::SpliceOut,
        libc::SYS_write => Site::Write,
        crate::common::POLL => Site::Poll,
        libc::SYS_recvmsg => Site::Reap,
        libc::SYS_fcntl | libc::SYS_fstatfs => Site::Look,
        _ => return None,
    })
}

impl interpose::Stage for Stage<'_> {
    fn answer(&mut self, nr: c_long, args: [usize; 6]) -> interpose::Answer {
        let Some(site) = site(nr, &args) else {
            return kernel(nr, args);
        };
        if let Some(taker) = &mut self.taker {
            taker.pump();
        }
        let result = match self.planned(site) {
            Some(Answer::Errno(errno)) => Err(errno),
            Some(Answer::Zero) => Ok(0),
            Some(Answer::AtMost(most)) => shortened(nr, args, |_| most),
            Some(Answer::Half) => shortened(nr, args, |count| count.div_ceil(2)),
            None => kernel(nr, args),
        };
        let counted = result.map(|n| n.unsigned_abs() as usize);
        if let (true, Some((left, _)), Ok(n)) = (site.delivers(), &mut self.room, counted) {
            *left -= n as u64;
        }
        if let (Site::Reap, Some(edit), Ok(_)) = (site, self.notice, result) {
            // SAFETY: recvmsg(2) has just filled this `msghdr` and what it leads to.
            edit(unsafe { &mut *(args[1] as *mut libc::msghdr) });
        }
        let flags = if nr == libc::SYS_sendmsg {
            args[2] as c_int
        } else {
            0
        };
        self.calls.push(Call {
            site,
            flags,
            result: counted,
        });
        result
    }
}

/// The same call for fewer bytes: `fewer` of what was asked for, never more.
fn shortened(
    nr: c_long,
    mut args: [usize; 6],
    fewer: impl Fn(usize) -> usize,
) -> interpose::Answer {
    let count = match nr {
        libc::SYS_splice | libc::SYS_copy_file_range => &mut args[4],
        libc::SYS_sendfile => &mut args[3],
        libc::SYS_pread64 | libc::SYS_write => &mut args[2],
        libc::SYS_writev => {
            let mut iov = cut(args[1] as *const libc::iovec, args[2], fewer);
            (args[1], args[2]) = (iov.as_mut_ptr() as usize, iov.len());
            return kernel(nr, args);
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
            return kernel(nr, args);
        }
        _ => return kernel(nr, args),
    };
    *count = fewer(*count).min(*count);
    kernel(nr, args)
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
