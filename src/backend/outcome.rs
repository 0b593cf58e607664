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
/// or a fault of `side`; without one, the driver finds out whose.
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
        Err(Fault { side, error })
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

/// Makes a call that takes from `src`, nothing being in flight, and gives to `dst`; without one, to
/// an empty pipe of our own, which never blocks. `Err` is the step's outcome where nothing moved.
///
/// EAGAIN does not tell which side it speaks of, nor whether that side really blocks: splice(2) and
/// sendfile(2) answer it in front of urgent data that recv(2) goes past, and a file's server may
/// answer it for a file, which is always ready. So the sides are asked, and where both are ready the
/// call is made again: what has become ready only just now serves then. A call that still says EAGAIN
/// does not fit, and read(2) says what there is to say. (An edge-triggered caller would hang on a side
/// that never blocked.)
#[inline]
pub(crate) fn attempt(
    src: &Endpoint<'_>,
    dst: Option<&Endpoint<'_>>,
    mut call: impl FnMut() -> io::Result<usize>,
) -> Result<io::Result<usize>, Result<Step, Fault>> {
    let mut refused = 0;
    loop {
        match call() {
            Err(e) if errno::would_block(&e) => match blocked_side(src, dst, refused) {
                Ok(Some(side)) => return Err(Ok(Step::Blocked(side))),
                Ok(None) if refused == 2 => {
                    return Err(Ok(Step::Unfit(Unfit::Refused(libc::EAGAIN))));
                }
                Ok(None) => refused += 1,
                Err(fault) => return Err(Err(fault)),
            },
            other => return Ok(other),
        }
    }
}

/// The side that EAGAIN speaks of, if one really blocks; `refused` calls before had the same answer.
#[cold]
fn blocked_side(
    src: &Endpoint<'_>,
    dst: Option<&Endpoint<'_>>,
    refused: u32,
) -> Result<Option<Side>, Fault> {
    let kind = src.kind();
    // Of these, splice(2) and sendfile(2) say what read(2) would.
    let certain = matches!(kind, Kind::Pipe | Kind::Unix) || src.facts().has_own_size();
    let Some(dst) = dst else {
        let blocks = certain || !kind.is_stream() || !is_readable(src)?;
        return Ok(blocks.then_some(Side::Source));
    };
    let asked = refused > 0 || !kind.is_stream();
    if asked && certain {
        return Ok(Some(Side::Destination));
    }
    if kind.is_stream() && !has_more(src)? {
        return Ok(Some(Side::Source));
    }
    if certain {
        return Ok(None);
    }
    let ready = call::is_ready(dst.fd(), true);
    let ready = ready.map_err(|e| Fault::new(Side::Destination, e))?;
    Ok((!ready).then_some(Side::Destination))
}

/// Whether a stream has something to read, its end included. Of a socket whose owner has set
/// `SO_RCVLOWAT`, poll(2) does not tell. (Nothing is looked at by `MSG_PEEK`: where the owner has set
/// `SO_PEEK_OFF`, that would move his place.)
fn has_more(src: &Endpoint<'_>) -> Result<bool, Fault> {
    let few = || src.kind().is_socket() && socket::readable(src.fd()).is_ok_and(|bytes| bytes > 0);
    Ok(is_readable(src)? || few())
}

fn is_readable(src: &Endpoint<'_>) -> Result<bool, Fault> {
    call::is_ready(src.fd(), false).map_err(|e| Fault::new(Side::Source, e))
}

/// What 0 bytes from splice(2) or sendfile(2) mean. They stop in front of urgent data, and then answer
/// 0 on a blocking TCP socket, or on one that has been closed, where recv(2) goes on behind the mark.
/// Whether a file has ended is for the driver to find out.
#[cold]
pub(super) fn ended(src: &Endpoint<'_>) -> Result<Step, Fault> {
    if src.kind() != Kind::Tcp || !socket::is_at_mark(src.fd()) {
        return Ok(Step::Ended);
    }
    // Behind the mark, there may be nothing but the end.
    match socket::peek(src.fd()) {
        Ok(Some(0)) => Ok(Step::Ended),
        Ok(_) => Ok(Step::Unfit(Unfit::FalseEnd)),
        Err(e) => Err(Fault::new(Side::Source, e)),
    }
}

/// Whether a blocking socket has nothing yet for a call that moves its bytes into the caller's pipe.
/// Waiting itself, that call would hold the pipe's lock: whoever reads the pipe would wait along, and
/// what it holds already would not arrive before more comes. So the driver waits instead.
#[inline]
pub(super) fn would_hold_lock(src: &Endpoint<'_>, dst: &Endpoint<'_>) -> Result<bool, Fault> {
    let holds = dst.kind() == Kind::Pipe && src.kind().is_socket() && !src.facts().is_nonblocking();
    Ok(holds && !is_readable(src)?)
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
