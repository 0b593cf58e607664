//! epoll(7), edge-triggered.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

#[derive(Debug)]
pub(crate) struct Epoll(OwnedFd);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Edge {
    pub(crate) token: u64,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}

impl Epoll {
    pub(crate) fn new() -> Self {
        // SAFETY: no pointer is passed.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Self(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    pub(crate) fn add(&self, fd: &impl AsFd, token: u64) {
        let all = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event {
            events: all as u32,
            u64: token,
        };
        let (epoll, fd) = (self.0.as_raw_fd(), fd.as_fd().as_raw_fd());
        // SAFETY: one `epoll_event` is read.
        let added = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        assert_eq!(added, 0, "{}", io::Error::last_os_error());
    }

    /// The edges since the last call; none where `ms` have gone by.
    pub(crate) fn wait(&self, ms: i32) -> Vec<Edge> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 8];
        let count = loop {
            // SAFETY: there is room for as many events as are asked for.
            let n = unsafe {
                libc::epoll_wait(
                    self.0.as_raw_fd(),
                    events.as_mut_ptr(),
                    events.len() as i32,
                    ms,
                )
            };
            match usize::try_from(n) {
                Ok(n) => break n,
                Err(_) => assert_eq!(
                    io::Error::last_os_error().kind(),
                    io::ErrorKind::Interrupted
                ),
            }
        };
        let over = (libc::EPOLLHUP | libc::EPOLLERR) as u32;
        let edges = events[..count].iter().map(|event| {
            let events = event.events;
            Edge {
                token: event.u64,
                readable: events & (over | (libc::EPOLLIN | libc::EPOLLRDHUP) as u32) != 0,
                writable: events & (over | libc::EPOLLOUT as u32) != 0,
            }
        });
        edges.collect()
    }
}
