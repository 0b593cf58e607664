//! What becomes of bytes in flight when a backend gives way, fails, or is stopped.

use std::io;
use std::os::fd::BorrowedFd;

use bytes::{Bytes, BytesMut};
use nix::unistd::Whence;

use super::Driver;
use super::start::{instance, raises, refuse_own_pipe};
use crate::backend::{Backend, Fault, Kind, ReadWrite, Side, Step, Unfit};
use crate::error::{Error, ErrorKind, Result};
use crate::probe::{self, Queue};
use crate::report::{End, Status};
use crate::sys::errno::{self, Call};
use crate::sys::sigpipe::Shield;
use crate::sys::{call, socket};

impl Driver {
    /// What a step that moved nothing makes of the transfer: how it stands or ends, or `None` where
    /// the next backend takes over.
    #[inline(never)]
    pub(super) fn settle(
        &mut self,
        stepped: std::result::Result<Step, Fault>,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
    ) -> Result<Option<Status>> {
        let unfit = match stepped {
            Ok(Step::Moved(bytes)) => return Ok(Some(Status::Moved(bytes))),
            Ok(Step::Blocked(side)) => return self.blocked(side, src, dst),
            Ok(Step::Ended) if self.has_ended(src) => {
                return self.finish(End::SourceEnded, src, dst).map(Some);
            }
            // It may have grown since: once more, and what is said then holds.
            Ok(Step::Ended) if self.false_end.replace(self.delivered) != Some(self.delivered) => {
                return Ok(None);
            }
            Ok(Step::Ended) => Unfit::FalseEnd,
            Ok(Step::Unfit(unfit)) => match self.reason_to_fail(unfit, src, dst) {
                Some(fault) => return Err(self.fail(fault, src)),
                None => unfit,
            },
            Err(fault) => match self.reason_to_give_way(&fault, src, dst) {
                Some(unfit) => unfit,
                None => return Err(self.fail(fault, src)),
            },
        };
        self.give_way(unfit, src, dst)?;
        Ok(None)
    }

    /// Whether the source has ended where a backend found no more bytes. On procfs, and where a size
    /// is stale or made up (FUSE, network filesystems), splice(2) and its kin answer 0 for files that
    /// read(2) finds bytes in: so it is asked for one byte. Where the size is the filesystem's own, what
    /// has moved bytes before has found the end.
    fn has_ended(&mut self, src: BorrowedFd<'_>) -> bool {
        self.src.facts.look_up_doubtful(src);
        let facts = &self.src.facts;
        let readable = matches!(
            facts.kind(),
            Kind::File | Kind::Generated | Kind::BlockDevice
        );
        let reads = match self.backend() {
            Backend::ReadWrite => true,
            Backend::Direct => self.proven,
            _ => self.own || self.proven && facts.has_own_size(),
        };
        if reads || !readable || facts.is_direct() {
            return true;
        }
        let at = self.src.endpoint(src, self.delivered).position();
        match at.and_then(|at| call::pread(src, &mut [0], at)) {
            Ok(bytes) => bytes == 0,
            // What cannot be read at all (memfd_secret(2), mapped) ends where its size says.
            Err(e) => self.proven && matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ESPIPE)),
        }
    }

    /// Whether a backend that has not been tried yet serves the pair.
    pub(super) fn has_another(&self, src: BorrowedFd<'_>, dst: BorrowedFd<'_>) -> bool {
        let from = self.src.endpoint(src, self.delivered);
        let to = self.dst.endpoint(dst, self.delivered);
        let serves = |backend| probe::verdict(backend, &self.wishes, &from, &to).is_ok();
        self.next.rest().iter().any(|backend| serves(*backend))
    }

    /// Whether a fault says only that the backend does not fit. What it has in flight is not lost:
    /// [`give_way`](Self::give_way) takes it along.
    pub(super) fn reason_to_give_way(
        &self,
        fault: &Fault,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
    ) -> Option<Unfit> {
        let forced = self.wishes.only.is_some() || self.backend() == Backend::ReadWrite;
        if forced || !errno::is_unfit(Call::Splice, &fault.error) || !self.has_another(src, dst) {
            return None;
        }
        fault.error.raw_os_error().map(Unfit::Refused)
    }

    /// Whether "unfit" is a fault after all: what has served until now fits, and where nothing is
    /// left to give way to, the kernel's number is the error.
    fn reason_to_fail(
        &self,
        unfit: Unfit,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
    ) -> Option<Fault> {
        let Unfit::Refused(number) = unfit else {
            return None;
        };
        let error = io::Error::from_raw_os_error(number);
        (self.proven && !self.has_another(src, dst)).then_some(Fault { side: None, error })
    }

    /// Goes on with the next backend, from where this one stopped.
    pub(super) fn give_way(
        &mut self,
        unfit: Unfit,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
    ) -> Result<()> {
        let current = self.backend();
        // One that appends since the transfer began takes the next way's bytes at its end, whatever
        // offset it is given: pwrite(2), BUGS.
        let appends = |flags| flags & libc::O_APPEND != 0;
        if self.dst.base.is_some() && call::status_flags(dst).is_ok_and(appends) {
            let text = "it appends by now (O_APPEND), whatever the offset";
            let error = io::Error::new(io::ErrorKind::InvalidInput, text);
            return Err(self.fail(Fault::new(Side::Destination, error), src));
        }
        refuse_own_pipe((src, &self.src.facts), (dst, &self.dst.facts))
            .map_err(|error| error.after(self.delivered, Bytes::new()))?;
        let held = self.reclaim(src)?;
        let fail = |held| Err(Error::unfit(current, unfit).after(self.delivered, held));
        let from = self.src.endpoint(src, self.delivered);
        let to = self.dst.endpoint(dst, self.delivered);
        let serves = |backend| probe::verdict(backend, &self.wishes, &from, &to).is_ok();
        let plain = Backend::ReadWrite;
        let or_plain = self.next.rest().contains(&plain) && serves(plain);
        if held.is_empty() {
            let Some(next) = self.next.pop(serves) else {
                return fail(held);
            };
            self.backend = instance(next, &self.wishes, or_plain);
        } else {
            // Bytes that cannot go back to their source go on by the one that takes bytes.
            if !or_plain {
                return fail(held);
            }
            self.next = Queue::empty();
            self.backend = Box::new(ReadWrite::with_held(&held));
        }
        self.shield = Shield::new(raises(self.backend(), self.dst.facts.kind()));
        self.refused.push((current, unfit));
        self.proven = false;
        Ok(())
    }

    /// Takes back what is in flight: see [`Transfer::reclaim`](crate::Transfer::reclaim).
    pub(crate) fn reclaim(&mut self, src: BorrowedFd<'_>) -> Result<Bytes> {
        let held = self.in_flight();
        if held == 0 {
            return Ok(Bytes::new());
        }
        let handed_back = self.hand_back();
        // An explicit offset follows from the counts; the descriptor's own position does not.
        let back = i64::try_from(held).map_or(i64::MIN, |held| -held);
        let rewound = self.src.base.is_some()
            || self.src.facts.kind().is_cached() && call::seek(src, back, Whence::SeekCur).is_ok();
        if rewound {
            return Ok(Bytes::new());
        }
        handed_back
    }

    /// The bytes in flight themselves, wherever the source stands.
    pub(crate) fn hand_back(&mut self) -> Result<Bytes> {
        let mut bytes = BytesMut::new();
        let given = self.backend.reclaim(&mut bytes);
        let bytes = bytes.freeze();
        match given {
            Ok(()) => Ok(bytes),
            Err(e) => Err(Error::io(ErrorKind::Io, None, e)
                .by(self.backend())
                .after(self.delivered, bytes)),
        }
    }

    /// The error that a fault becomes: counts exact, nothing left in flight.
    pub(crate) fn fail(&mut self, fault: Fault, src: BorrowedFd<'_>) -> Error {
        let Fault { side, error } = fault;
        let undelivered = match self.reclaim(src) {
            Ok(bytes) => bytes,
            // Worse than the fault itself: bytes that the kernel does not give back.
            Err(error) => return error,
        };
        let side = side.or_else(|| self.find_side(&error, src));
        if side == Some(Side::Source) && self.src.facts.kind().is_socket() && socket::listens(src) {
            return probe::refuse_listener().after(self.delivered, undelivered);
        }
        let cut = error.kind() == io::ErrorKind::UnexpectedEof && side == Some(Side::Source);
        let kind = if cut {
            ErrorKind::SourceTruncated
        } else {
            ErrorKind::Io
        };
        Error::io(kind, side, error)
            .by(self.backend())
            .after(self.delivered, undelivered)
    }

    /// Whose failure it was, where a call with two descriptors did not tell. A file that cannot be
    /// read where the next byte is has failed, whatever the number; a pipe that is read never does, and
    /// a stream that is written to never runs out of room.
    fn find_side(&mut self, error: &io::Error, src: BorrowedFd<'_>) -> Option<Side> {
        self.src.facts.look_up_doubtful(src);
        let doubtful = !self.src.facts.has_own_size();
        let (from, to) = (self.src.facts.kind(), self.dst.facts.kind());
        let told = errno::is_destinations(error)
            || errno::is_of_storage(error)
            || errno::is_of_connection(error);
        if from.is_cached() && !self.src.facts.is_direct() {
            let at = self.src.endpoint(src, self.delivered).position();
            let read = at.and_then(|at| call::pread(src, &mut [0], at));
            return match read {
                Err(_) => Some(Side::Source),
                // It failed but once. Who made up its size may have made up that as well.
                Ok(_) if doubtful && to.is_stream() && errno::is_of_a_file(error) => {
                    Some(Side::Source)
                }
                Ok(_) => told.then_some(Side::Destination),
            };
        }
        match (from, to) {
            (Kind::Pipe, _) if told => Some(Side::Destination),
            (_, Kind::Pipe) if errno::is_of_storage(error) || errno::is_of_connection(error) => {
                Some(Side::Source)
            }
            _ if self.own => None,
            _ => errno::is_destinations(error).then_some(Side::Destination),
        }
    }
}
