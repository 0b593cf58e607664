//! What becomes of a step that a side blocked, and the wait for that side.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::Driver;
use crate::backend::{Backend, Fault, Kind, Side, Unfit};
use crate::error::Result;
use crate::pace::{self, Stall};
use crate::report::Status;
use crate::sys::{call, socket};

impl Driver {
    /// What becomes of a step that a side blocked: EAGAIN is not taken at its word for ever.
    pub(super) fn blocked(
        &mut self,
        side: Side,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
    ) -> Result<Option<Status>> {
        /// Tries with a file that says "not now", by one call and in all: nothing tells when it will be
        /// ready.
        const TRIES: (u32, u32) = (3, 100);
        if side == Side::Source && self.waits_for_pipe() {
            let fault = match self.wait_for_pipe(src) {
                Ok(true) => return Ok(None),
                Ok(false) => return Ok(Some(Status::Blocked(side))),
                Err(fault) => fault,
            };
            // A profile may keep poll(2) to itself.
            let Some(unfit) = self.reason_to_give_way(&fault, src, dst) else {
                return Err(self.fail(fault, src));
            };
            self.give_way(unfit, src, dst)?;
            return Ok(None);
        }
        self.src.facts.look_up_doubtful(src);
        let at = self
            .delivered
            .wrapping_mul(2)
            .wrapping_add(self.in_flight());
        let stalls = self.stalls.count(at);
        let (facts, fd, writable) = match side {
            Side::Source => (&self.src.facts, src, false),
            Side::Destination => (&self.dst.facts, dst, true),
        };
        let is_stream = facts.kind().is_stream();
        if is_stream {
            match self.stalls.look(|| call::is_ready(fd, writable)) {
                Ok(Stall::Likely) => return Ok(Some(Status::Blocked(side))),
                Ok(Stall::Again) => return Ok(None),
                Ok(Stall::False) => {}
                Err(e) => return Err(self.fail(Fault::new(side, e), src)),
            }
        }
        let enough = is_stream || stalls > TRIES.0;
        let another = || self.backend() != Backend::ReadWrite && self.has_another(src, dst);
        if enough && another() {
            self.give_way(Unfit::Refused(libc::EAGAIN), src, dst)?;
            return Ok(None);
        }
        if is_stream || stalls <= TRIES.1 {
            return Ok(Some(Status::Blocked(side)));
        }
        let error = io::Error::from_raw_os_error(libc::EAGAIN);
        Err(self.fail(Fault::new(side, error), src))
    }

    /// Whether a blocking socket is waited for here, because the call would hold the lock of the
    /// caller's pipe meanwhile.
    fn waits_for_pipe(&self) -> bool {
        let (src, dst) = (&self.src.facts, &self.dst.facts);
        dst.kind() == Kind::Pipe
            && src.kind().is_socket()
            && !src.is_nonblocking()
            && self.backend() != Backend::ReadWrite
            && !self.own
    }

    /// Waits until a blocking source has something, as its own call would, until the deadline at most.
    /// `false` where the socket's own time limit ran out.
    fn wait_for_pipe(&self, src: BorrowedFd<'_>) -> std::result::Result<bool, Fault> {
        // One that is not connected, or listens, would never be ready.
        socket::peek(src).map_err(|e| Fault::new(Side::Source, e))?;
        let own = socket::timeout(src, libc::SO_RCVTIMEO);
        let left = self
            .deadline()
            .map(|d| d.saturating_duration_since(Instant::now()));
        match call::poll(src, false, own.into_iter().chain(left).min()) {
            Ok(false) if left.is_some_and(|left| own.is_none_or(|own| left < own)) => {
                Err(timed_out(None))
            }
            Ok(ready) => Ok(ready || own.is_none()),
            Err(e) => Err(Fault::new(Side::Source, e)),
        }
    }

    /// Pauses where poll(2) has called a side ready that often and it never was. `false` where that has
    /// to have an end.
    pub(crate) fn back_off(&self) -> bool {
        self.stalls.pause(self.deadline())
    }

    /// Waits until a side is ready, as long as it takes.
    pub(crate) fn wait(
        &mut self,
        side: Side,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
    ) -> Result<()> {
        let before = call::made();
        let (place, fd, writable, limit) = match side {
            Side::Source => (&self.src, src, false, libc::SO_RCVTIMEO),
            Side::Destination => (&self.dst, dst, true, libc::SO_SNDTIMEO),
        };
        let pause = self.resume_at();
        // A blocking socket answers EAGAIN only when its own time limit has run out.
        let socket_timed_out = pause.is_none()
            && place.facts.kind().is_socket()
            && !place.facts.is_nonblocking()
            && socket::timeout(fd, limit).is_some();
        let result = if socket_timed_out {
            Err(timed_out(Some(side)))
        } else if let Some(until) = pause {
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            Ok(())
        } else {
            // Past the deadline, the next advance says so.
            let left = self
                .deadline()
                .map(|d| d.saturating_duration_since(Instant::now()));
            let answer = call::poll(fd, writable, left);
            if self.stalls.is_repeated() && !place.facts.kind().is_stream() {
                // poll(2) calls a file ready, whatever it says.
                pace::pause(Duration::from_millis(1), self.deadline());
            }
            match answer {
                Ok(true) if !self.back_off() => {
                    let error = io::Error::from_raw_os_error(libc::EAGAIN);
                    Err(Fault::new(side, error))
                }
                Ok(_) => Ok(()),
                Err(e) => Err(Fault::new(side, e)),
            }
        };
        self.syscalls += call::made() - before;
        result.map_err(|fault| self.fail(fault, src))
    }
}

/// The deadline has passed, or, of a side, a socket's own time limit has run out.
pub(super) fn timed_out(side: Option<Side>) -> Fault {
    let text = match side {
        None => "the deadline has passed",
        Some(_) => "the socket's own time limit has run out",
    };
    let error = io::Error::new(io::ErrorKind::TimedOut, text);
    Fault { side, error }
}
