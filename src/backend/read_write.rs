//! read(2) and write(2) through a buffer of 256 KiB: the way that serves every pair.
//!
//! The processor copies each byte twice, once out of the kernel and once into it. It loses to
//! every call that hands pages on, and wins where those pay for more than they save: for less than
//! a pipe costs, and from a UNIX socket into TCP, whose pieces are many and small. On
//! descriptors whose readiness or errors only read(2) and write(2) report truly (terminals,
//! `/dev/full`, procfs) it is the only one.
//!
//! The buffer is that large because coreutils measured it so, and so did we: it still lies in a
//! processor's own cache. Into a file a larger one would fill larger folios (128 MiB, ext4: 64 KiB
//! 262 ms of CPU per GiB, 256 KiB 219, 2 MiB 166), which splice(2) does without the second copy.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Backend, Endpoint, Fault, Kind, Side, Step, Unfit, ZeroCopyTransfer};
use crate::sys::aligned::{self, AlignedBuf};
use crate::sys::sigpipe::Shield;
use crate::sys::{call, errno};

/// The most that one read takes.
const BUFFER: usize = aligned::SPARE;

/// read(2) and write(2).
#[derive(Debug, Default)]
pub struct ReadWrite {
    /// Held only while it holds something: an idle transfer costs no memory.
    buf: Option<AlignedBuf>,
    /// The part of the buffer that was read and not yet written.
    held: Range<usize>,
    /// `RWF_DONTCACHE` was asked for.
    dontcache: bool,
    /// A side refused it.
    dontcache_refused: bool,
    /// How SIGPIPE is kept away where the kernel cannot write to a pipe without it.
    shield: Option<Shield>,
}

impl ReadWrite {
    /// With no buffer: it borrows the thread's own for as long as bytes are in flight.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads and writes files with `RWF_DONTCACHE` as far as kernel and filesystem have it.
    pub(crate) fn dontcache() -> Self {
        Self {
            dontcache: true,
            ..Self::default()
        }
    }

    /// Starts with bytes that another backend had taken, which go first.
    pub(crate) fn with_held(bytes: &Bytes) -> Self {
        let mut buf = aligned::of(bytes.len());
        buf.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        Self {
            buf: Some(buf),
            held: 0..bytes.len(),
            ..Self::default()
        }
    }

    fn read(&mut self, src: &Endpoint<'_>, limit: usize) -> io::Result<usize> {
        let want = limit.min(BUFFER);
        let buf = self.buf.get_or_insert_with(aligned::spare);
        let want = want.min(buf.len());
        let into = &mut buf.as_mut_slice()[..want];
        if self.dontcache && !self.dontcache_refused && src.kind() == Kind::File {
            match call::read_dontcache(src.fd(), into, src.offset()) {
                Err(e) if is_refusal(&e) => self.dontcache_refused = true,
                other => return other,
            }
        }
        match src.offset() {
            Some(offset) => call::pread(src.fd(), into, offset),
            None => call::read(src.fd(), into),
        }
    }

    fn write(&mut self, dst: &Endpoint<'_>, limit: usize) -> io::Result<usize> {
        let end = self.held.end.min(self.held.start.saturating_add(limit));
        let from = match &self.buf {
            Some(buf) => &buf.as_slice()[self.held.start..end],
            None => &[],
        };
        if self.dontcache && !self.dontcache_refused && dst.kind() == Kind::File {
            match call::write_dontcache(dst.fd(), from, dst.offset()) {
                Err(e) if is_refusal(&e) => self.dontcache_refused = true,
                other => return other,
            }
        }
        match dst.offset() {
            Some(offset) => call::pwrite(dst.fd(), from, offset),
            None if dst.kind().is_socket() => match call::send(dst.fd(), from) {
                // A seccomp profile that has nothing but read(2) and write(2).
                Err(e) if errno::is_forbidden(&e) => {
                    Shield::new(true).run(|| call::write(dst.fd(), from))
                }
                other => other,
            },
            None if dst.kind() == Kind::Pipe => {
                if self.shield.is_none() {
                    match call::write_nosignal(dst.fd(), from) {
                        // Before Linux 6.18.
                        Err(e) if is_refusal(&e) => {}
                        other => return other,
                    }
                }
                let shield = *self.shield.get_or_insert_with(|| Shield::new(true));
                shield.run(|| call::write(dst.fd(), from))
            }
            None => call::write(dst.fd(), from),
        }
    }
}

/// The flag is unknown to the kernel (EOPNOTSUPP, EINVAL) or the call is (ENOSYS, seccomp).
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS | libc::EPERM | libc::EACCES)
    )
}

impl ZeroCopyTransfer for ReadWrite {
    fn backend(&self) -> Backend {
        Backend::ReadWrite
    }

    fn assess(&self, src: &Endpoint<'_>, dst: &Endpoint<'_>) -> Result<(), Unfit> {
        // Nothing is refused by kind; with O_DIRECT, an unaligned tail could not be written.
        super::require_buffered(src, dst)
    }

    fn step(
        &mut self,
        src: &mut Endpoint<'_>,
        dst: &mut Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Step, Fault> {
        let step = self.read_then_write(src, dst, limit.get());
        if self.held.is_empty() {
            self.release();
        }
        step
    }

    fn in_flight(&self) -> usize {
        self.held.len()
    }

    fn reclaim(&mut self, into: &mut BytesMut) -> io::Result<()> {
        if let Some(buf) = &self.buf {
            into.put_slice(&buf.as_slice()[self.held.clone()]);
        }
        self.release();
        Ok(())
    }

    fn is_uncached(&self) -> bool {
        self.dontcache && !self.dontcache_refused
    }
}

impl ReadWrite {
    fn read_then_write(
        &mut self,
        src: &Endpoint<'_>,
        dst: &Endpoint<'_>,
        limit: usize,
    ) -> Result<Step, Fault> {
        if self.held.is_empty() {
            match self.read(src, limit) {
                Ok(0) => return Ok(Step::Ended),
                Ok(n) => self.held = 0..n,
                Err(e) if errno::would_block(&e) => return Ok(Step::Blocked(Side::Source)),
                Err(e) => return Err(Fault::new(Side::Source, e)),
            }
        }
        // One write a step: what it leaves is in flight, and an error after it is the next step's.
        match self.write(dst, limit) {
            Ok(n) => {
                self.held.start += n;
                super::delivered(n)
            }
            Err(e) if errno::would_block(&e) => Ok(Step::Blocked(Side::Destination)),
            Err(e) => Err(Fault::new(Side::Destination, e)),
        }
    }

    /// Nothing is held any more: the buffer goes back.
    fn release(&mut self) {
        self.held = 0..0;
        if let Some(buf) = self.buf.take() {
            aligned::keep(buf);
        }
    }
}
