//! A message under way, as its user holds it.

use std::io;
use std::os::fd::AsFd;

use super::Message;
use super::core::Core;
use super::zerocopy::ZeroCopy;
use crate::error::Result;
use crate::report::{Report, Status};
use crate::sys::zerocopy;

/// A [`Message`] on its way, which can stop wherever the kernel would block, and go on.
///
/// [`extend`](Self::extend) gives it the next message for the same destination, which is then not
/// looked at again: one sending can serve a connection for as long as it lives.
///
/// Each call asks the destination, and the file that it comes to, for its descriptor once. An [`AsFd`]
/// that answers another one later gets wrong bytes sent, and nothing worse.
///
/// ```
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
/// use zcio::{Message, Status};
///
/// let mut file = tempfile::tempfile()?;
/// file.write_all(&[7; 1 << 20])?;
/// let (mut peer, socket) = UnixStream::pair()?;
/// socket.set_nonblocking(true)?;
///
/// let message = Message::new().bytes("head").file(&file, 0..1 << 20);
/// let mut sending = message.start(&socket)?;
/// let mut received = 0;
/// loop {
///     match sending.advance()? {
///         Status::Moved(_) => {}
///         // An event loop would wait for the socket here, and meanwhile do something else.
///         Status::Blocked(_) => received += peer.read(&mut [0; 65536])?,
///         Status::Finished(_) => break,
///     }
/// }
/// assert_eq!(sending.delivered(), 4 + (1 << 20));
/// # assert!(received > 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "a sending moves nothing until it is advanced"]
pub struct Sending<'a, D: AsFd> {
    core: Core<'a>,
    dst: D,
}

impl<'a, D: AsFd> Sending<'a, D> {
    pub(super) fn new(message: &Message<'a>, dst: D) -> Result<Self> {
        let core = Core::new(message, dst.as_fd())?;
        Ok(Self { core, dst })
    }

    /// Moves at most one piece. Never waits on a non-blocking destination; on a blocking one it
    /// waits as the kernel's call does.
    ///
    /// # Errors
    /// [`Error::delivered`](crate::Error::delivered) is exact and counts everything that this sending has delivered. A file
    /// that is shorter than its range is a [`SourceTruncated`](crate::ErrorKind::SourceTruncated); where
    /// it is a small one, nothing of what is sent along with it has gone.
    pub fn advance(&mut self) -> Result<Status> {
        self.core.advance(self.dst.as_fd())
    }

    /// Advances to the end, and waits with poll(2) where a non-blocking destination makes it.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub fn finish(&mut self) -> Result<Report> {
        let dst = self.dst.as_fd();
        loop {
            match self.core.advance(dst)? {
                Status::Moved(_) => {}
                Status::Blocked(side) => self.core.wait(side, dst)?,
                Status::Finished(_) => return Ok(self.core.report()),
            }
        }
    }

    /// Appends a message for the same destination, which is not looked at again.
    pub fn extend(&mut self, message: &Message<'a>) {
        self.core.extend(message);
    }

    /// Bytes that have reached the destination, of all messages.
    pub fn delivered(&self) -> u64 {
        self.core.delivered
    }

    /// Bytes that have not.
    pub fn remaining(&self) -> u64 {
        self.core.remaining
    }

    /// Where it stands: the part that the next byte is of, counted from 0 over all messages, and the
    /// offset of that byte within the part.
    pub fn position(&self) -> (usize, u64) {
        (self.core.gone + self.core.index, self.core.offset)
    }

    /// Sends large [`Bytes`](bytes::Bytes) from now on with `MSG_ZEROCOPY`: the kernel sends from
    /// their own pages, which this crate keeps until the kernel says that it is done. For TCP only.
    ///
    /// This sets the socket option `SO_ZEROCOPY`, until nothing is outstanding at its end, and takes
    /// what comes on the socket's error queue: meanwhile nobody else may send with `MSG_ZEROCOPY` on
    /// this socket. Where somebody had set the option before, he may have, and everything is copied.
    /// So it is where the kernel says that it has copied all the same (it always does on loopback),
    /// where it may not pin more pages (ENOBUFS), and where it refuses such a send.
    ///
    /// Called once more, it changes nothing.
    ///
    /// Once everything is delivered, [`advance`](Self::advance) says `Blocked` until the kernel is
    /// done with all pages, which is when the peer's kernel has acknowledged them. That is no
    /// matter of room: wait for an error condition (`POLLERR`, which poll(2) reports unasked).
    ///
    /// A sending that is dropped before that leaves the buffers behind, and the next one on the
    /// same socket that does this takes them over. If none comes, they stay for the life of the
    /// process, since nobody can tell when they are free: so [`finish`](Self::finish) it, or
    /// [`abort`](Self::abort) it where the peer does not take its bytes.
    ///
    /// # Errors
    /// Those of setsockopt(2): `EOPNOTSUPP` where the socket cannot do it.
    pub fn zerocopy(&mut self) -> io::Result<()> {
        if self.core.zerocopy.is_some() {
            return Ok(());
        }
        self.core.zerocopy = Some(ZeroCopy::new(self.dst.as_fd())?);
        Ok(())
    }

    /// Whether large [`Bytes`](bytes::Bytes) still go with `MSG_ZEROCOPY`.
    pub fn is_zerocopy(&self) -> bool {
        self.core.zerocopy.as_ref().is_some_and(|z| z.on)
    }

    /// Sends with `MSG_ZEROCOPY` on this socket that the kernel was not done with when last asked.
    pub fn outstanding(&self) -> u64 {
        self.core.outstanding()
    }

    /// Breaks a TCP connection off: the peer gets a reset, what it has not got is lost, and the
    /// kernel lets go of all buffers at once. The socket can be closed then, and nothing else.
    ///
    /// # Errors
    /// Those of connect(2), by which this is done.
    pub fn abort(self) -> io::Result<()> {
        zerocopy::disconnect(self.dst.as_fd())
    }

    /// What was done so far, for all messages.
    pub fn report(&self) -> Report {
        self.core.report()
    }

    /// The destination.
    pub fn dst(&self) -> &D {
        &self.dst
    }

    /// The parts, for a form that awaits.
    #[cfg(feature = "tokio")]
    pub(crate) fn apart(&mut self) -> (&mut Core<'a>, &D) {
        (&mut self.core, &self.dst)
    }
}

impl<D: AsFd> Drop for Sending<'_, D> {
    fn drop(&mut self) {
        self.core.close(self.dst.as_fd());
    }
}
