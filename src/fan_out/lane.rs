//! One destination of a fan-out: what is held for it, and how it gets that.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use bytes::{Buf, Bytes, BytesMut};

use crate::backend::{Backend, Facts, Kind, Side};
use crate::error::{Error, ErrorKind, Result};
use crate::probe;
use crate::sys::errno::{self, Call};
use crate::sys::sigpipe::Shield;
use crate::sys::{PrivatePipe, call};

/// One destination.
#[derive(Debug)]
pub(super) struct Lane<D> {
    pub(super) dst: D,
    pub(super) pipe: Option<PrivatePipe>,
    /// Bytes in the pipe. They come after the backlog.
    pub(super) held: usize,
    pub(super) backlog: VecDeque<Bytes>,
    /// By write(2), since splice(2) does not serve.
    pub(super) plain: bool,
    pub(super) delivered: u64,
    pub(super) error: Option<Error>,
    shield: Shield,
}

pub(super) enum Delivered {
    Some,
    Nothing,
    Blocked,
}

impl<D: AsFd> Lane<D> {
    pub(super) fn new(dst: D, source: BorrowedFd<'_>, src: &Facts) -> Result<Self> {
        let facts = check(dst.as_fd(), Side::Destination)?;
        let kind = facts.kind();
        let is_source = match kind {
            Kind::Pipe => src.kind() == kind && call::is_same_inode(source, dst.as_fd()),
            _ => facts.in_common(src).is_some(),
        };
        if is_source {
            // What is written would be read again, for ever.
            let text = "it is the source itself";
            return Err(Error::input(
                Side::Destination,
                io::ErrorKind::InvalidInput,
                text,
            ));
        }
        let plain = matches!(kind, Kind::CharDevice | Kind::Generated)
            || facts.is_append()
            || facts.is_direct();
        let shield = Shield::new(kind == Kind::Pipe || kind.is_socket());
        Ok(Self {
            dst,
            pipe: None,
            held: 0,
            backlog: VecDeque::new(),
            plain,
            delivered: 0,
            error: None,
            shield,
        })
    }

    /// Bytes taken for it and not delivered.
    pub(super) fn behind(&self) -> usize {
        self.held + self.backlog.iter().map(Bytes::len).sum::<usize>()
    }

    /// Delivers once.
    pub(super) fn deliver(&mut self) -> Delivered {
        if self.error.is_some() || self.behind() == 0 {
            return Delivered::Nothing;
        }
        match self.shield.run(|| self.write()) {
            Ok(0) => self.fail(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                self.delivered += n as u64;
                return Delivered::Some;
            }
            Err(e) if errno::would_block(&e) => return Delivered::Blocked,
            Err(e) => self.fail(e),
        }
        Delivered::Some
    }

    fn write(&mut self) -> io::Result<usize> {
        let dst = self.dst.as_fd();
        if let (Some(pipe), true, false) = (&self.pipe, self.backlog.is_empty(), self.plain) {
            match call::splice(pipe.read_end(), None, dst, None, self.held) {
                Err(e) if errno::is_unfit(Call::Splice, &e) => self.plain = true,
                other => return other.inspect(|n| self.held -= (*n).min(self.held)),
            }
        }
        if self.backlog.is_empty() {
            spill(self.pipe.as_ref(), &mut self.held, &mut self.backlog)?;
        }
        let Some(first) = self.backlog.front_mut() else {
            return Ok(0);
        };
        let written = call::write(dst, first)?;
        first.advance(written);
        if first.is_empty() {
            self.backlog.pop_front();
        }
        Ok(written)
    }

    fn spill(&mut self) -> io::Result<()> {
        spill(self.pipe.as_ref(), &mut self.held, &mut self.backlog)
    }

    pub(super) fn spill_or_fail(&mut self) {
        if let Err(error) = self.spill() {
            self.fail(error);
        }
    }

    /// Ends this destination, with what was taken for it and not delivered.
    pub(super) fn fail(&mut self, error: io::Error) {
        // Should the pipe not give its bytes back, those that came are handed back all the same.
        let _ = self.spill();
        self.pipe = None;
        let mut undelivered = BytesMut::with_capacity(self.behind());
        for bytes in self.backlog.drain(..) {
            undelivered.extend_from_slice(&bytes);
        }
        let backend = if self.plain {
            Backend::ReadWrite
        } else {
            Backend::Splice
        };
        let error = Error::io(ErrorKind::Io, Some(Side::Destination), error).by(backend);
        self.error = Some(error.after(self.delivered, undelivered.freeze()));
    }
}

/// Copies what the pipe holds into memory.
fn spill(
    pipe: Option<&PrivatePipe>,
    held: &mut usize,
    backlog: &mut VecDeque<Bytes>,
) -> io::Result<()> {
    let held = std::mem::take(held);
    let Some(pipe) = pipe.filter(|_| held > 0) else {
        return Ok(());
    };
    let mut bytes = BytesMut::zeroed(held);
    let (got, result) = pipe.take(&mut bytes);
    bytes.truncate(got);
    backlog.push_back(bytes.freeze());
    result
}

/// Looks at a descriptor, and refuses one that cannot serve.
pub(super) fn check(fd: BorrowedFd<'_>, side: Side) -> Result<Facts> {
    let mut facts = probe::look(fd, side, None)?;
    facts.look_up_filesystem(fd);
    Ok(facts)
}
