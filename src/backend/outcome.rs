//! The small vocabulary that the mechanisms share: what the answer of a call makes of a step, and what
//! is refused beforehand.

use std::io;
use std::num::NonZeroUsize;

use super::{Endpoint, Fault, Kind, Side, Step, Unfit};
use crate::sys::errno::{self, Call};
use crate::sys::{call, socket};

/// The most that one call is asked for where the kernel takes any amount: on a socket that takes
/// 10 Gbit/s, 2 ms. A larger count saves nothing that can be measured, and would let one fast peer, or
/// a slow disk, hold up the thread in a call that O_NONBLOCK does not end.
pub(crate) const FAIR: usize = 2 << 20;

/// `bytes` as a step, with nothing moved meaning that the source ended.
#[inline]
pub(super) fn moved_or_ended(bytes: usize) -> Step {
    NonZeroUsize::new(bytes).map_or(Step::Ended, Step::Moved)
}

/// `bytes` written as a step. A destination that takes none of what it was offered, and says so
/// without an error, has failed.
#[inline]
pub(super) fn delivered(bytes: usize) -> Result<Step, Fault> {
    NonZeroUsize::new(bytes)
        .map(Step::Moved)
        .ok_or_else(|| Fault::new(Side::Destination, io::ErrorKind::WriteZero.into()))
}

/// What a failed call that moved nothing, with nothing in flight, means: another mechanism's turn,
/// or a fault of `side`.
#[inline]
pub(super) fn unfit_or_fault(
    call: Call,
    side: Option<Side>,
    error: io::Error,
) -> Result<Step, Fault> {
    if errno::is_unfit(call, &error) {
        Ok(Step::Unfit(Unfit::Refused(
            error.raw_os_error().unwrap_or(0),
        )))
    } else {
        Err(Fault {
            side: side.or_else(|| blame(&error)),
            error,
        })
    }
}

/// The side that an error of one call between a socket and something else speaks of: a connection
/// that fails is the socket's, whichever side that is. A file may have one behind it as well (FUSE,
/// NFS), and is asked afterwards.
#[inline]
pub(super) fn side_of(src: &Endpoint<'_>, dst: &Endpoint<'_>, error: &io::Error) -> Option<Side> {
    let side = match (src.kind().is_socket(), dst.kind().is_socket()) {
        (true, false) => Side::Source,
        (false, true) if !src.kind().is_cached() => Side::Destination,
        _ => return None,
    };
    errno::is_of_connection(error).then_some(side)
}

/// The side that an error of a call with two descriptors speaks of, where it tells.
fn blame(error: &io::Error) -> Option<Side> {
    errno::is_destinations(error).then_some(Side::Destination)
}

/// Makes a call with two descriptors, nothing being in flight. `Err`: the side that blocks it.
///
/// EAGAIN does not tell which one that is. A source that has nothing to read is it. One that has may
/// have got it only just now: so the call is made once more, and what it says then it says of the
/// destination. (Whoever waits for edges would wait for ever for one of a side that never blocked.)
#[inline]
pub(super) fn call_either(
    src: &Endpoint<'_>,
    dst: &Endpoint<'_>,
    mut call: impl FnMut() -> io::Result<usize>,
) -> Result<io::Result<usize>, Result<Step, Fault>> {
    if dst.kind() == Kind::Pipe && src.kind().is_socket() && !src.facts().is_nonblocking() {
        match wait_without_lock(src) {
            Ok(true) => {}
            Ok(false) => return Err(Ok(Step::Blocked(Side::Source))),
            Err(e) => return Err(Err(Fault::new(Side::Source, e))),
        }
    }
    let mut asked = false;
    loop {
        match call() {
            Err(e) if errno::would_block(&e) => {
                let blocked = |side| Err(Ok(Step::Blocked(side)));
                if asked || !src.kind().is_stream() {
                    return blocked(Side::Destination);
                }
                match has_more(src) {
                    Ok(true) => asked = true,
                    Ok(false) => return blocked(Side::Source),
                    Err(e) => return Err(Err(Fault::new(Side::Source, e))),
                }
            }
            other => return Ok(other),
        }
    }
}

/// Whether a stream has something to read, its end included. Of a socket whose owner has set
/// `SO_RCVLOWAT`, poll(2) does not tell.
fn has_more(src: &Endpoint<'_>) -> io::Result<bool> {
    let few = || src.kind().is_socket() && socket::readable(src.fd()).is_ok_and(|bytes| bytes > 0);
    Ok(call::is_ready(src.fd(), false)? || few())
}

/// Waits for a blocking socket before the call that moves its bytes into the caller's pipe. Waiting
/// itself, that call would hold the pipe's lock: whoever reads the pipe would wait along, and what
/// it holds already would not arrive before more comes. `false`: the socket's own time limit ran out.
fn wait_without_lock(src: &Endpoint<'_>) -> io::Result<bool> {
    if call::is_ready(src.fd(), false)? {
        return Ok(true);
    }
    let limit = socket::timeout(src.fd(), libc::SO_RCVTIMEO);
    call::poll(src.fd(), false, limit)
}

/// Refuses a kind of descriptor on one side.
#[inline]
pub(super) fn require(
    side: Side,
    end: &Endpoint<'_>,
    allowed: impl Fn(Kind) -> bool,
) -> Result<(), Unfit> {
    let kind = end.kind();
    if allowed(kind) {
        Ok(())
    } else {
        Err(Unfit::Kind(side, kind))
    }
}

/// Refuses descriptors with O_DIRECT: only the direct backend keeps to its alignment.
#[inline]
pub(super) fn require_buffered(src: &Endpoint<'_>, dst: &Endpoint<'_>) -> Result<(), Unfit> {
    if src.facts().is_direct() {
        return Err(Unfit::DirectIo(Side::Source));
    }
    if dst.facts().is_direct() {
        return Err(Unfit::DirectIo(Side::Destination));
    }
    Ok(())
}

/// Refuses a destination that appends: offsets and splicing do not work on it.
#[inline]
pub(super) fn require_no_append(dst: &Endpoint<'_>) -> Result<(), Unfit> {
    if dst.facts().is_append() {
        Err(Unfit::Appends)
    } else {
        Ok(())
    }
}
