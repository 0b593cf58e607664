//! sendfile(2): the kernel moves a file's pages into a socket or a pipe, no copy in between.
//!
//! To a socket or a pipe the pages of the page cache themselves travel, so that a later write to
//! the file shows through until the reader has taken them. To another file the kernel copies each
//! page, through an inner pipe of 16 slots, which costs more than splice(2) through a large one.
//! Since Linux 5.12 a pipe may be fed from any descriptor that splice(2) can read.
//!
//! What it counts as sent has left the file for the socket, on every kernel, and arrives. Up to
//! Linux 5.10, though, a piece that comes out shorter than it was asked for goes to TCP with
//! `MSG_MORE`, which holds it back for 200 ms. So TCP is never asked for more than the file is believed
//! to hold; and where that turns out wrong, because the file was cut meanwhile or is not read from
//! its start, the piece is pushed on as soon as the end is seen.

use std::num::NonZeroUsize;

use super::{Backend, Endpoint, Fault, Kind, Side, Step, Unfit, ZeroCopyTransfer};
use crate::sys::errno::Call;
use crate::sys::{call, socket};

/// sendfile(2).
#[derive(Debug, Default)]
pub struct Sendfile {
    /// Bytes believed to lie before the end of the file.
    left: u64,
    /// How that is known.
    known: Known,
    /// The last call to TCP moved less than it was asked for: what it moved may be held back.
    short: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Known {
    /// Not at all.
    #[default]
    Not,
    /// From the file's size alone: the descriptor's own position was not asked for.
    AtMost,
    /// From size and position.
    Exactly,
}

impl Sendfile {
    /// Nothing is set up before the first step.
    pub fn new() -> Self {
        Self::default()
    }

    /// How much to ask for: towards TCP, never more than the file is believed to hold.
    fn count(&mut self, src: &Endpoint<'_>, dst: &Endpoint<'_>, limit: usize) -> usize {
        let limit = limit.min(super::FAIR);
        if dst.kind() != Kind::Tcp || !src.kind().is_cached() {
            return limit;
        }
        if self.left == 0 && self.known == Known::Not {
            // The facts are fresh enough, and most files are read from their start.
            let size = src.facts().size_hint();
            (self.left, self.known) = match src.offset() {
                Some(offset) => (size.saturating_sub(offset), Known::Exactly),
                None => (size, Known::AtMost),
            };
        } else if self.left == 0 {
            // It may have grown.
            self.look(src);
        }
        match usize::try_from(self.left) {
            // At the end, as far as known: the call itself says so, or finds more.
            Ok(0) => limit,
            Ok(left) => limit.min(left),
            Err(_) => limit,
        }
    }

    /// Finds out what the file holds from here on, by two calls.
    fn look(&mut self, src: &Endpoint<'_>) {
        let size = call::stat(src.fd()).map_or(0, |stat| stat.size);
        self.left = size.saturating_sub(src.position().unwrap_or(size));
        self.known = Known::Exactly;
    }

    /// Takes note of what came of asking TCP for `count` bytes.
    fn sent(&mut self, src: &Endpoint<'_>, dst: &Endpoint<'_>, count: usize, sent: usize) {
        self.left = self.left.saturating_sub(sent as u64);
        let ended = sent == 0 && self.short;
        self.short = sent < count;
        let unsure = self.short && self.known == Known::AtMost;
        if unsure {
            // Once: because the socket is full, or because this was the end?
            self.look(src);
        }
        if ended || unsure && self.left == 0 {
            socket::push(dst.fd());
        }
    }
}

impl ZeroCopyTransfer for Sendfile {
    fn backend(&self) -> Backend {
        Backend::Sendfile
    }

    fn assess(&self, src: &Endpoint<'_>, dst: &Endpoint<'_>) -> Result<(), Unfit> {
        let to_pipe = dst.kind() == Kind::Pipe;
        super::require(Side::Source, src, |kind| {
            kind.is_cached() || (to_pipe && kind.is_socket())
        })?;
        super::require(Side::Destination, dst, |kind| {
            !matches!(kind, Kind::CharDevice | Kind::Generated)
        })?;
        if dst.offset().is_some() {
            return Err(Unfit::Offset(Side::Destination));
        }
        super::require_no_append(dst)?;
        super::require_buffered(src, dst)
    }

    fn step(
        &mut self,
        src: &mut Endpoint<'_>,
        dst: &mut Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Step, Fault> {
        if super::would_hold_lock(src, dst)? {
            return Ok(Step::Blocked(Side::Source));
        }
        let count = self.count(src, dst, limit.get());
        let sendfile = || call::sendfile(dst.fd(), src.fd(), src.offset(), count);
        match super::attempt(src, Some(dst), sendfile) {
            Ok(Ok(n)) => {
                if dst.kind() == Kind::Tcp {
                    self.sent(src, dst, count, n);
                }
                NonZeroUsize::new(n).map_or_else(|| super::ended(src), |n| Ok(Step::Moved(n)))
            }
            Err(blocked) => blocked,
            // Beyond the largest offset that the filesystem knows, there is nothing to send.
            Ok(Err(e)) if e.raw_os_error() == Some(libc::EOVERFLOW) && is_at_end(src) => {
                Ok(Step::Ended)
            }
            Ok(Err(e)) => super::unfit_or_fault(Call::Sendfile, super::side_of(src, dst, &e), e),
        }
    }
}

/// Whether the file ends where the source stands, or before.
fn is_at_end(src: &Endpoint<'_>) -> bool {
    match (src.position(), call::stat(src.fd())) {
        (Ok(at), Ok(stat)) => src.kind() == Kind::File && stat.size <= at,
        _ => false,
    }
}
