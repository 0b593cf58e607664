//! Advancing a transfer on non-blocking descriptors, as an event loop would.

use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zcio::{End, Result, Side, Status, Transfer};

/// Times that a side may be ready and the next step still find it blocked: a socket is writable
/// before it has room for a whole page.
const FUTILE: u32 = 1000;

/// Advances until it ends, waiting for the side that it names each time. Fails the test where that
/// side is ready again and again and nothing moves: the wrong side was named.
pub fn to_end<S: AsFd, D: AsFd>(transfer: &mut Transfer<S, D>) -> Result<End> {
    let mut futile = 0;
    loop {
        match transfer.advance()? {
            Status::Moved(_) => futile = 0,
            Status::Finished(end) => return Ok(end),
            Status::Blocked(side) => {
                futile += 1;
                assert!(futile < FUTILE, "the {side} is ready, and nothing moves");
                wait_for(transfer, side);
            }
        }
    }
}

/// Waits until one side of a transfer is ready.
pub fn wait_for<S: AsFd, D: AsFd>(transfer: &Transfer<S, D>, side: Side) {
    match side {
        Side::Source => wait(transfer.src().as_fd(), PollFlags::POLLIN),
        Side::Destination => wait(transfer.dst().as_fd(), PollFlags::POLLOUT),
    }
}

/// Waits until a descriptor is ready, as long as it takes: the watchdog bounds it.
pub fn wait(fd: BorrowedFd<'_>, events: PollFlags) {
    let mut fds = [PollFd::new(fd, events)];
    while let Err(nix::errno::Errno::EINTR) = poll(&mut fds, PollTimeout::NONE) {}
}
