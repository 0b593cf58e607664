//! What `MSG_ZEROCOPY` takes beside the send itself: the socket option, and the error queue on
//! which the kernel says that it is done with the pages.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::call::{get_socket_option, retry, socket_option, wait_out};
use super::socket;

/// `SO_EE_ORIGIN_ZEROCOPY`: the notification is of sends with `MSG_ZEROCOPY`.
const ZEROCOPY: u8 = 5;
/// `SO_EE_CODE_ZEROCOPY_COPIED`: the kernel copied after all.
const COPIED: u8 = 1;

/// Allows `MSG_ZEROCOPY` on this socket. Returns the number by
/// which the kernel knows the socket (`SO_COOKIE`), never given to another one.
pub(crate) fn allow(fd: BorrowedFd<'_>) -> io::Result<u64> {
    socket::set(fd, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)?;
    let mut cookie = 0_u64;
    get_socket_option(fd, libc::SOL_SOCKET, libc::SO_COOKIE, &mut cookie)?;
    Ok(cookie)
}

/// Sends that the kernel is done with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) sends: u64,
    /// Some were copied: nothing was saved.
    pub(crate) copied: bool,
}

impl Done {
    /// Counts one notification, which speaks of all sends from `first` to `last`. Their numbers
    /// are of 32 bits and start over.
    fn add(&mut self, first: u32, last: u32, code: u8) {
        self.sends += u64::from(last.wrapping_sub(first)) + 1;
        self.copied |= code == COPIED;
    }
}

/// Takes every notification off the socket's error queue. Never waits.
pub(crate) fn done(fd: BorrowedFd<'_>) -> io::Result<Done> {
    let mut done = Done::default();
    // Room for what else the socket's owner has asked to be told with each message (timestamps):
    // a notification that is cut off is lost, and its buffers would never be free.
    let mut space = cmsg_space!([u8; 1024]);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    loop {
        let taken = retry(|| {
            let message = recvmsg::<()>(fd.as_raw_fd(), &mut [], Some(&mut space), flags)?;
            for note in message.cmsgs()? {
                match note {
                    ControlMessageOwned::Ipv4RecvErr(e, _)
                    | ControlMessageOwned::Ipv6RecvErr(e, _)
                        if e.ee_origin == ZEROCOPY && e.ee_errno == 0 =>
                    {
                        done.add(e.ee_info, e.ee_data, e.ee_code);
                    }
                    // Timestamps and ICMP errors speak of no send's pages.
                    _ => {}
                }
            }
            Ok(())
        });
        match taken {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(done),
            // What was taken off counts; the next call says what the matter is.
            Err(_) if done.sends > 0 => return Ok(done),
            Err(e) => return Err(e),
        }
    }
}

/// No more `MSG_ZEROCOPY` on this socket.
pub(crate) fn forbid(fd: BorrowedFd<'_>) -> io::Result<()> {
    socket::set(fd, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 0)
}

/// Whether `MSG_ZEROCOPY` is allowed on this socket already.
pub(crate) fn is_allowed(fd: BorrowedFd<'_>) -> bool {
    socket_option(fd, libc::SO_ZEROCOPY).is_ok_and(|allowed| allowed != 0)
}

/// Waits until something is on the error queue, or the connection is gone.
pub(crate) fn wait(fd: BorrowedFd<'_>) -> io::Result<()> {
    // An error condition is reported whatever is asked for.
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::empty())];
    wait_out(&mut || poll(&mut fds, PollTimeout::NONE))?;
    let told = fds[0].revents().unwrap_or(PollFlags::POLLERR);
    if !told.contains(PollFlags::POLLERR) {
        // Both directions have ended, of which poll(2) tells at once and for ever.
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Breaks a TCP connection off: connect(2) to no address. The peer gets a reset, what was queued
/// is dropped, and the kernel lets go of the pages.
pub(crate) fn disconnect(fd: BorrowedFd<'_>) -> io::Result<()> {
    let none = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    retry(|| {
        // SAFETY: connect(2) reads one `sockaddr`, and `none` is one.
        let result = unsafe {
            libc::connect(
                fd.as_raw_fd(),
                ptr::from_ref(&none),
                mem::size_of_val(&none) as libc::socklen_t,
            )
        };
        Errno::result(result).map(drop)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_count_all_their_sends_across_the_end_of_the_numbers() {
        let mut done = Done::default();
        done.add(7, 7, 0);
        assert_eq!((done.sends, done.copied), (1, false));
        done.add(8, 11, 0);
        assert_eq!(done.sends, 5);
        done.add(u32::MAX - 1, 2, COPIED);
        assert_eq!((done.sends, done.copied), (10, true));
    }
}
