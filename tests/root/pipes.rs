//! A user who has as many pipes as `pipe-user-pages-soft` allows: the next ones have one page or
//! two, and `F_SETPIPE_SZ` is refused.
// The user is changed for one thread alone, by the bare system call.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use zcio::Backend;

use super::cell::{Sheet, content, is_unfit, is_whole, options, outcome};
use crate::common::source::Content;
use crate::common::{Before, Claim, DestinationKind, Pulse, SourceKind, make, skipped};

/// Nobody, and no other test's user.
const USER: libc::uid_t = 65_534;

const LEN: u64 = (3 << 20) + 777;

/// What such a pipe holds at most.
const SMALL: i32 = 2 * 4096;

/// Twice what it takes through a pipe of 64 KiB, two calls each time, and some more.
const MOST_CALLS: u64 = 2 * 2 * (LEN >> 16) + 16;

/// Becomes that user in this thread alone, without any capability, and opens pipes until they are
/// small.
fn many_pipes() -> Result<Vec<(OwnedFd, OwnedFd)>, String> {
    // SAFETY: no pointer is passed; the C library's own function would change every thread.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, USER, USER, USER) };
    if result != 0 {
        return Err(format!("setresuid(2): {}", io::Error::last_os_error()));
    }
    // Else what it opens anew by /proc would belong to root.
    // SAFETY: no pointer is passed.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    let mut pipes = Vec::new();
    while pipes.len() < 2000 {
        let pipe = make::pipe();
        let small = make::pipe_size(&pipe.0).is_some_and(|size| size <= SMALL);
        pipes.push(pipe);
        if small {
            return Ok(pipes);
        }
    }
    Err(format!("{} pipes are not too many here", pipes.len()))
}

fn allow_descriptors() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` has room for one rlimit.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max.min(16_384);
    // SAFETY: as above, only read.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}

/// Every backend between ends that need a private pipe, and ends that are such a small pipe.
pub(crate) fn past_the_soft_limit(pulse: &Pulse) {
    allow_descriptors();
    let pipes = match many_pipes() {
        Ok(pipes) => pipes,
        Err(reason) => return skipped("root small pipes", reason),
    };
    let mut sheet = Sheet::new("small pipes");
    use {DestinationKind as To, SourceKind as From};
    for (from, to) in [
        (From::Memfd, To::Memfd),
        (From::Memfd, To::Unix),
        (From::Unix, To::Unix),
        (From::Unix, To::Memfd),
        (From::Memfd, To::Pipe),
        (From::Pipe, To::Memfd),
        (From::Pipe, To::Unix),
        (From::Unix, To::Pipe),
        (From::Pipe, To::Pipe),
    ] {
        let ends = format!("{from:?}→{to:?}");
        pulse.at(ends.clone());
        sheet.row("", &ends, |backend| {
            let Content::Known(data, len) = content(LEN) else {
                unreachable!("that is what it is");
            };
            let source = from.make(data, len).map_err(|e| e.to_string())?;
            let destination = to.make().map_err(|e| e.to_string())?;
            let before = Before::new(&source, &destination);
            let result = options(backend).transfer(&source, &destination, u64::MAX);
            let claim = Claim::from(&result);
            before
                .verdict(source, destination, (None, None), 0, &claim)
                .map_err(|e| format!("{e}; it says {result:?}"))?;
            let result = result.map_err(Box::new);
            match (&result, backend) {
                (Ok(_), _) | (Err(_), None | Some(Backend::Splice | Backend::ReadWrite)) => {
                    is_whole(&result, LEN)?;
                }
                (Err(_), Some(_)) => is_unfit(&result)?,
            }
            let calls = result.as_ref().map_or(0, |report| report.syscalls());
            // What is chosen goes through a pipe of two pages only where the caller's own is one.
            let own = from == From::Pipe || to == To::Pipe;
            if backend.is_none() && !own && calls > MOST_CALLS {
                return Err(format!("{calls} calls: {result:?}"));
            }
            Ok(format!("{} {calls}", outcome(backend, &result)))
        });
    }
    drop(pipes);
    sheet.conclude();
}
