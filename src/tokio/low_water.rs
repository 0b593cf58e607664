//! Fewer wake-ups for a relay's source that brings bytes in quantity.
//!
//! Edge-triggered epoll(7), which tokio asks for, wakes the thread for every segment that comes,
//! whether or not anybody waits for it: some twenty times while a destination's buffer is full. So
//! while a stream is steady, its socket is told how much is worth a wake-up (`SO_RCVLOWAT`).
//!
//! Nothing waits for bytes that do not come: whoever waits for the source does so for
//! [`PATIENCE`] at most, and then takes what there is and has the option as it was. The end of the
//! stream, an error and a full window are told at once in any case. The option is put back when
//! the stream is no longer steady, and when the relay's future ends or is dropped.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use ::tokio::time::{sleep, timeout};

use super::Readiness;
use crate::backend::{Kind, Side};
use crate::driver::Driver;
use crate::sys::{call, socket};

/// A stream is steady when so much has come without a pause.
const STEADY: u64 = 8 << 20;

/// A pause: tokio's timers are no finer.
const PATIENCE: Duration = Duration::from_millis(1);

/// What is worth a wake-up: as much as a pipe holds.
const ENOUGH: libc::c_int = 1 << 20;

/// Less than this is not worth the calls.
const LEAST: libc::c_int = 128 << 10;

/// The low-water mark of one socket.
#[derive(Debug)]
pub(super) struct LowWater<'a> {
    socket: BorrowedFd<'a>,
    /// Bytes since the last pause.
    run: u64,
    mark: Option<Mark>,
}

/// One that has been changed.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// What it was.
    before: libc::c_int,
    now: libc::c_int,
    /// The receive buffer.
    room: libc::c_int,
}

impl<'a> LowWater<'a> {
    /// `None` where the socket's readiness does not depend on a mark.
    ///
    /// # Panics
    /// Where the runtime has no timers: rather now than once a stream is steady.
    pub(super) fn of(socket: BorrowedFd<'a>, driver: &Driver) -> Option<Self> {
        if driver.src_facts().kind() != Kind::Tcp {
            return None;
        }
        drop(sleep(PATIENCE));
        Some(Self {
            socket,
            run: 0,
            mark: None,
        })
    }

    /// Takes note of bytes that have passed.
    pub(super) fn moved(&mut self, bytes: u64) {
        let before = self.run / STEADY;
        self.run = self.run.saturating_add(bytes);
        if self.run / STEADY > before {
            self.raise();
        }
    }

    /// Has the mark raised, or adapted to a receive buffer that has grown.
    fn raise(&mut self) {
        let option = |name| call::socket_option(self.socket, name);
        let room = option(libc::SO_RCVBUF).unwrap_or(0);
        let before = match self.mark {
            Some(mark) => Ok(mark.before),
            None => option(libc::SO_RCVLOWAT),
        };
        let Ok(before) = before else { return };
        // Whoever has set it to more has his reasons.
        if room / 4 >= LEAST && before < LEAST {
            let now = self.mark.map_or(before, |mark| mark.now);
            self.mark = Some(Mark { before, now, room });
        }
    }

    /// Sets the mark to what is made of the receive buffer's size.
    fn set(&mut self, bytes: impl FnOnce(libc::c_int) -> libc::c_int) {
        if let Some(mark) = &mut self.mark {
            let bytes = bytes(mark.room);
            // Where the socket refuses, it stays as it is.
            if mark.now != bytes && socket::set_low_water(self.socket, bytes).is_ok() {
                mark.now = bytes;
            }
        }
    }

    /// Has everything as it was.
    fn restore(&mut self) {
        self.run = 0;
        if let Some(mark) = self.mark.take() {
            if mark.now != mark.before {
                // What was accepted before is accepted again.
                let _ = socket::set_low_water(self.socket, mark.before);
            }
        }
    }

    /// Waits for the source until there is enough. `Ok(false)` after [`PATIENCE`]: whatever there is
    /// has to be asked for, since no event tells of it.
    pub(super) async fn source<S: Readiness + ?Sized>(&mut self, src: &S) -> io::Result<bool> {
        if self.mark.is_none() {
            return src.ready(Side::Source).await.map(|()| true);
        }
        // The window stays open beyond a quarter: the peer goes on.
        self.set(|room| ENOUGH.min(room / 4));
        match timeout(PATIENCE, src.ready(Side::Source)).await {
            Ok(ready) => ready.map(|()| true),
            Err(_) => {
                self.restore();
                Ok(false)
            }
        }
    }

    /// Waits for the destination, and meanwhile for nothing of the source's.
    pub(super) async fn destination<D: Readiness + ?Sized>(&mut self, dst: &D) -> io::Result<()> {
        // For more than half, the kernel would enlarge the buffer.
        self.set(|room| room / 2);
        dst.ready(Side::Destination).await
    }
}

impl Drop for LowWater<'_> {
    fn drop(&mut self) {
        self.restore();
    }
}
