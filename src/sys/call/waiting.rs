//! The calls that wait until a descriptor is ready.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::{socket_option, wait_out};
use crate::sys::socket;

/// Between two tries where nothing tells when to try.
const PAUSE: Duration = Duration::from_millis(10);

/// poll(2) on one descriptor for reading or writing, for at most `limit`. `Ok(false)`: the time ran
/// out. A hang-up counts as ready: the next call on the descriptor tells more.
///
/// # Errors
/// Those of poll(2); and what a socket reports beside its bytes, where it is not ready.
pub(crate) fn poll(
    fd: BorrowedFd<'_>,
    writable: bool,
    limit: Option<Duration>,
) -> io::Result<bool> {
    poll_until(&mut [PollFd::new(fd, events(writable))], limit)
}

/// poll(2) on several descriptors, each for writing (`true`) or reading, until one is ready or the
/// time runs out (`Ok(false)`).
pub(crate) fn poll_any(
    sides: &[(BorrowedFd<'_>, bool)],
    limit: Option<Duration>,
) -> io::Result<bool> {
    let fds = sides
        .iter()
        .map(|(fd, writable)| PollFd::new(*fd, events(*writable)));
    poll_until(&mut fds.collect::<Vec<_>>(), limit)
}

fn events(writable: bool) -> PollFlags {
    if writable {
        PollFlags::POLLOUT
    } else {
        PollFlags::POLLIN
    }
}

fn poll_until(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<bool> {
    let until = limit.map(|limit| Instant::now() + limit);
    // It waits as long as it takes, however many signals come meanwhile.
    let answers = wait_out(&mut || {
        // For want of memory, POSIX allows EAGAIN: "try again", and not "not ready".
        nix::poll::poll(fds, left(until)).map_err(|errno| match errno {
            Errno::EAGAIN => {
                std::thread::sleep(PAUSE);
                Errno::EINTR
            }
            other => other,
        })
    })?;
    if answers == 0 {
        return Ok(false);
    }
    let is_error = |fd: &PollFd<'_>| fd.revents() == Some(PollFlags::POLLERR);
    if fds.iter().any(|fd| fd.any() == Some(true) && !is_error(fd)) {
        return Ok(true);
    }
    poll_past_errors(fds, until)
}

/// What is left of a time limit: rounded up, so that the time is over when the answer is "not ready".
fn left(until: Option<Instant>) -> PollTimeout {
    until.map_or(PollTimeout::NONE, |until| {
        let left = until.saturating_duration_since(Instant::now());
        let left = left.as_nanos().div_ceil(1_000_000);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    })
}

/// Waits on where poll(2) has answered POLLERR and nothing else. Of a pipe that means that its reader
/// is gone. A socket reports so, whatever was asked, as long as something lies on its error queue (a
/// time stamp, a notification of `MSG_ZEROCOPY`), which is the owner's to take: poll(2) would return at
/// once for ever. Edge-triggered epoll(7) reports it once.
#[cold]
fn poll_past_errors(fds: &[PollFd<'_>], until: Option<Instant>) -> io::Result<bool> {
    for fd in fds.iter().filter(|fd| fd.any() == Some(true)) {
        if socket_option(fd.as_fd(), libc::SO_TYPE).is_err() {
            return Ok(true);
        }
        // An error of the connection itself is told here, once. What is there to be read would have
        // been told by poll(2).
        socket::peek(fd.as_fd())?;
    }
    let Ok(epoll) = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC) else {
        // No descriptor is left: found out by trying, now and then.
        std::thread::sleep(until.map_or(PAUSE, |until| {
            PAUSE.min(until.saturating_duration_since(Instant::now()))
        }));
        return Ok(true);
    };
    for (at, fd) in fds.iter().enumerate() {
        // The same descriptor may stand there for reading and for writing.
        let same = |other: &&PollFd<'_>| other.as_fd().as_raw_fd() == fd.as_fd().as_raw_fd();
        if fds[..at].iter().any(|other| same(&other)) {
            continue;
        }
        let asked = fds[at..]
            .iter()
            .filter(same)
            .map(PollFd::events)
            .collect::<PollFlags>();
        // poll(2) and epoll(7) have the same bits for these.
        let events = EpollFlags::from_bits_truncate(asked.bits().into()) | EpollFlags::EPOLLET;
        epoll.add(fd.as_fd(), EpollEvent::new(events, 0))?;
    }
    let mut answers = [EpollEvent::empty(); 8];
    loop {
        let found = wait_out(&mut || epoll.wait(&mut answers, left(until)))?;
        let is_ready = |answer: &EpollEvent| answer.events() != EpollFlags::EPOLLERR;
        if answers[..found].iter().any(is_ready) {
            return Ok(true);
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(false);
        }
    }
}

/// Whether the descriptor is ready right now.
pub(crate) fn is_ready(fd: BorrowedFd<'_>, writable: bool) -> io::Result<bool> {
    poll(fd, writable, Some(Duration::ZERO))
}
