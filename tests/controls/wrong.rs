//! Backends that are wrong on purpose, each in one way that has been shipped by somebody.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;

use bytes::BytesMut;
use nix::fcntl::{SpliceFFlags, splice};
use nix::unistd::{pipe, read, write};
use zcio::Backend;
use zcio::backend::{Endpoint, Fault, Side, Step, Unfit, ZeroCopyTransfer};

/// What a private pipe holds by default.
const PIPE: usize = 64 << 10;

/// How a loop over splice(2) through a private pipe goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// None: the loop itself is sound, so that a flaw is what the checks find.
    None,
    /// The end of the source is the end, bytes in the pipe or not.
    ForgetsThePipe,
    /// EAGAIN is the source's.
    BlamesTheSource,
    /// More is always said to follow.
    AlwaysMore,
}

/// A loop over splice(2).
#[derive(Debug)]
pub(crate) struct SpliceLoop {
    flaw: Flaw,
    pipe: (OwnedFd, OwnedFd),
    held: usize,
}

impl SpliceLoop {
    pub(crate) fn new(flaw: Flaw) -> Self {
        Self {
            flaw,
            pipe: pipe().expect("a pipe"),
            held: 0,
        }
    }

    fn flags(&self) -> SpliceFFlags {
        match self.flaw {
            Flaw::AlwaysMore => SpliceFFlags::SPLICE_F_MORE,
            _ => SpliceFFlags::empty(),
        }
    }
}

fn of_errno(side: Side, errno: nix::Error) -> Fault {
    Fault::new(side, errno.into())
}

impl ZeroCopyTransfer for SpliceLoop {
    fn backend(&self) -> Backend {
        Backend::Splice
    }

    fn assess(&self, _: &Endpoint<'_>, _: &Endpoint<'_>) -> Result<(), Unfit> {
        Ok(())
    }

    fn step(
        &mut self,
        src: &mut Endpoint<'_>,
        dst: &mut Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Step, Fault> {
        let limit = limit.get();
        // This one reads ahead, to keep the pipe full; the others fill it when it is empty.
        let eager = self.flaw == Flaw::ForgetsThePipe;
        while self.held == 0 || eager && self.held < PIPE.min(limit) / 2 {
            let count = PIPE.min(limit) - self.held;
            // A pipe that has no slot left is not waited for.
            let flags = match self.held {
                0 => self.flags(),
                _ => self.flags() | SpliceFFlags::SPLICE_F_NONBLOCK,
            };
            match splice(src.fd(), None, &self.pipe.1, None, count, flags) {
                Ok(0) => return Ok(Step::Ended),
                Ok(n) => self.held += n,
                Err(nix::Error::EAGAIN) if self.held == 0 => {
                    return Ok(Step::Blocked(Side::Source));
                }
                Err(nix::Error::EAGAIN) => break,
                Err(e) => return Err(of_errno(Side::Source, e)),
            }
        }
        let count = match self.flaw {
            // A grain of its own, which leaves a rest.
            Flaw::ForgetsThePipe => self.held.min(16 << 10),
            _ => self.held,
        };
        match splice(&self.pipe.0, None, dst.fd(), None, count, self.flags()) {
            Ok(n) => {
                self.held -= n;
                NonZeroUsize::new(n)
                    .map(Step::Moved)
                    .ok_or_else(|| Fault::new(Side::Destination, io::ErrorKind::WriteZero.into()))
            }
            Err(nix::Error::EAGAIN) if self.flaw == Flaw::BlamesTheSource => {
                Ok(Step::Blocked(Side::Source))
            }
            Err(nix::Error::EAGAIN) => Ok(Step::Blocked(Side::Destination)),
            Err(e) => Err(of_errno(Side::Destination, e)),
        }
    }

    fn in_flight(&self) -> usize {
        self.held
    }

    fn reclaim(&mut self, into: &mut BytesMut) -> io::Result<()> {
        let start = into.len();
        into.resize(start + self.held, 0);
        let mut at = start;
        while at < into.len() {
            at += read(&self.pipe.0, &mut into[at..])?;
        }
        self.held = 0;
        Ok(())
    }
}

/// Two mechanisms in one: the first gives up after a while, and the second begins at the source's
/// start again.
#[derive(Debug)]
pub(crate) struct Restarts {
    /// Whether it does begin again, instead of going on.
    wrong: bool,
    moved: usize,
    at: usize,
    given_up: bool,
}

/// After so many bytes the first mechanism gives up.
const ENOUGH: usize = 200_000;

impl Restarts {
    pub(crate) fn new(wrong: bool) -> Self {
        Self {
            wrong,
            moved: 0,
            at: 0,
            given_up: false,
        }
    }
}

impl ZeroCopyTransfer for Restarts {
    fn backend(&self) -> Backend {
        Backend::ReadWrite
    }

    fn assess(&self, _: &Endpoint<'_>, _: &Endpoint<'_>) -> Result<(), Unfit> {
        Ok(())
    }

    fn step(
        &mut self,
        src: &mut Endpoint<'_>,
        dst: &mut Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Step, Fault> {
        if self.moved >= ENOUGH && !self.given_up {
            self.given_up = true;
            if self.wrong {
                self.at = 0;
            }
        }
        let mut buf = vec![0; limit.get().min(50_000)];
        let got = nix::sys::uio::pread(src.fd(), &mut buf, self.at as i64);
        let got = got.map_err(|e| of_errno(Side::Source, e))?;
        let put = match got {
            0 => 0,
            got => write(dst.fd(), &buf[..got]).map_err(|e| of_errno(Side::Destination, e))?,
        };
        self.at += put;
        self.moved += put;
        // The position moves by what was moved, as it should.
        src.seek_by(put as i64)
            .map_err(|e| Fault::new(Side::Source, e))?;
        Ok(NonZeroUsize::new(put).map_or(Step::Ended, Step::Moved))
    }
}

/// `std::io::copy` behind the same face: it knows a count only where it succeeds.
pub(crate) fn std_copy(src: &OwnedFd, dst: &OwnedFd) -> Result<u64, io::Error> {
    let mut src = std::fs::File::from(src.try_clone()?);
    let mut dst = std::fs::File::from(dst.try_clone()?);
    io::copy(&mut src, &mut dst)
}
