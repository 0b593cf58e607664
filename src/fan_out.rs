//! One source to many destinations.
//!
//! What is taken from the source goes into a private pipe; tee(2) duplicates it into a pipe for
//! each destination, which shares the pages, and splice(2) delivers. A destination that is slow
//! has its share copied into memory, up to a bound, so that the others go on; one that fails is
//! named with its exact count and what it did not get, and the others go on. Where tee(2) or
//! splice(2) cannot serve, a buffer that all destinations share does, by read(2) and write(2).
//!
//! A destination in blocking mode holds up the others while a call on it waits: make them
//! non-blocking where that matters. As with every use of splice(2) from a file, what was delivered
//! to a socket or a pipe is the file's own page until the reader has taken it.

mod lane;
mod options;
mod report;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::backend::{self, Backend, Endpoint, Facts, Side, Step};
use crate::error::{Error, ErrorKind, Result};
use crate::pace::Stalls;
use crate::probe;
use crate::report::End;
use crate::sys::errno::{self, Call};
use crate::sys::{PrivatePipe, call, socket};

use lane::{Delivered, Lane};

pub use options::{FanOutOptions, Lag};
pub use report::{Branch, FanOutError, FanOutReport, FanOutStatus};

/// Bytes in one round, and the size of each pipe.
const ROUND: usize = 1 << 20;
/// Bytes in one round by read(2).
const BUFFER: usize = 256 << 10;
/// A fan-out that can stop wherever the kernel would block, and go on.
///
/// Each call asks the source and the destinations for their descriptors once. An [`AsFd`] that answers
/// another one later gets wrong bytes moved, and nothing worse.
#[derive(Debug)]
#[must_use = "a fan-out moves nothing until it is advanced"]
pub struct FanOut<S, D> {
    src: S,
    /// Apart from the source, which is asked for its descriptor once each time.
    fan: Fan<D>,
}

#[derive(Debug)]
struct Fan<D> {
    facts: Facts,
    lanes: Vec<Lane<D>>,
    options: FanOutOptions,
    /// Where a round is taken into. Empty between two rounds.
    trunk: Option<PrivatePipe>,
    /// By read(2) and a shared buffer, since the source or the pipes do not serve.
    plain: bool,
    len: u64,
    taken: u64,
    ended: bool,
    stalls: Stalls,
}

/// Moves up to `len` bytes from `src` to each of `dsts`; `u64::MAX` means until the source ends.
///
/// A destination that fails does not end it: the report names it and has its exact count. Waits
/// with poll(2) on non-blocking descriptors.
///
/// # Errors
/// Where a descriptor cannot serve, or the source fails; with the exact counts of each destination.
pub fn fan_out<S: AsFd, D: AsFd>(
    src: S,
    dsts: impl IntoIterator<Item = D>,
    len: u64,
) -> std::result::Result<FanOutReport, FanOutError> {
    let dsts: Vec<D> = dsts.into_iter().collect();
    let mut fan = FanOutOptions::new()
        .start(src.as_fd(), dsts.iter().map(AsFd::as_fd), len)
        .map_err(|error| FanOutError::new(error, FanOutReport::default()))?;
    let mut failed = None;
    loop {
        match fan.advance() {
            Ok(FanOutStatus::Moved) => {}
            Ok(FanOutStatus::Blocked {
                source,
                destinations,
            }) => fan.fan.wait(fan.src, source, &destinations),
            Ok(FanOutStatus::Finished(_)) => break,
            Err(error) => {
                // What was taken before the source failed still goes where it belongs.
                fan.fan.len = fan.taken();
                failed = Some(error);
            }
        }
    }
    let mut report = fan.into_report();
    match failed {
        None => Ok(report),
        Some(error) => {
            report.end = End::Stopped;
            Err(FanOutError::new(error, report))
        }
    }
}

impl<S: AsFd, D: AsFd> FanOut<S, D> {
    /// Delivers what is held, and takes more once the destinations have room for it.
    ///
    /// # Errors
    /// Those of the source. What had been taken is still on its way: advance again with nothing
    /// more to take, or look at the report.
    pub fn advance(&mut self) -> Result<FanOutStatus> {
        self.fan.advance(self.src.as_fd())
    }

    /// Bytes taken from the source.
    pub fn taken(&self) -> u64 {
        self.fan.taken
    }

    /// Bytes delivered to the destination at a place.
    pub fn delivered(&self, place: usize) -> Option<u64> {
        self.fan.lanes.get(place).map(|lane| lane.delivered)
    }

    /// Sums up: counts, errors, and for those that have not got all, what they have not.
    pub fn into_report(self) -> FanOutReport {
        self.fan.into_report()
    }
}

impl<D: AsFd> Fan<D> {
    fn advance(&mut self, src: BorrowedFd<'_>) -> Result<FanOutStatus> {
        let mut moved = false;
        let mut waiting = Vec::new();
        for (place, lane) in self.lanes.iter_mut().enumerate() {
            match lane.deliver() {
                Delivered::Some => moved = true,
                Delivered::Nothing => {}
                Delivered::Blocked => waiting.push(place),
            }
        }
        if moved {
            return Ok(FanOutStatus::Moved);
        }
        if self.is_deserted() {
            return Ok(FanOutStatus::Finished(End::Stopped));
        }
        let end = if self.taken >= self.len {
            End::Complete
        } else {
            End::SourceEnded
        };
        if self.ended || self.taken >= self.len {
            return Ok(match waiting.is_empty() {
                true => FanOutStatus::Finished(end),
                false => FanOutStatus::Blocked {
                    source: false,
                    destinations: waiting,
                },
            });
        }
        // The slow ones' shares make room in memory, so that the others go on.
        for &place in &waiting {
            let lane = &mut self.lanes[place];
            if lane.behind() > self.options.backlog {
                if self.options.lag == Lag::Wait {
                    return Ok(FanOutStatus::Blocked {
                        source: false,
                        destinations: waiting,
                    });
                }
                lane.fail(io::ErrorKind::TimedOut.into());
            } else {
                lane.spill_or_fail();
            }
        }
        if self.is_deserted() {
            // Nothing more is taken for nobody.
            return Ok(FanOutStatus::Finished(End::Stopped));
        }
        if !waiting.is_empty() && self.source_would_wait(src) {
            return Ok(FanOutStatus::Blocked {
                source: true,
                destinations: waiting,
            });
        }
        match self.take(src)? {
            Taken::Some => Ok(FanOutStatus::Moved),
            Taken::Ended => {
                self.ended = true;
                self.advance(src)
            }
            Taken::Blocked => Ok(FanOutStatus::Blocked {
                source: true,
                destinations: waiting,
            }),
        }
    }

    fn into_report(mut self) -> FanOutReport {
        for lane in &mut self.lanes {
            if lane.error.is_none() && lane.behind() > 0 {
                lane.fail(io::ErrorKind::Interrupted.into());
            }
        }
        let live = self.lanes.iter().any(|lane| lane.error.is_none());
        let end = match (live, self.taken >= self.len, self.ended) {
            (true, true, _) => End::Complete,
            (true, false, true) => End::SourceEnded,
            _ => End::Stopped,
        };
        let branches = self.lanes.into_iter().map(|lane| Branch {
            bytes: lane.delivered,
            error: lane.error,
        });
        FanOutReport {
            taken: self.taken,
            end,
            branches: branches.collect(),
        }
    }

    /// Whether no destination is left.
    fn is_deserted(&self) -> bool {
        self.lanes.iter().all(|lane| lane.error.is_some())
    }

    /// Whether to take from the source would hold this thread up, and with it whoever waits for
    /// what was taken before.
    fn source_would_wait(&self, src: BorrowedFd<'_>) -> bool {
        let waits = self.facts.kind().is_stream() && !self.facts.is_nonblocking();
        waits && matches!(call::is_ready(src, false), Ok(false))
    }

    fn limit(&self, most: usize) -> usize {
        usize::try_from(self.len - self.taken)
            .unwrap_or(usize::MAX)
            .min(most)
    }

    /// Takes a round from the source and shares it out. Every pipe is empty.
    fn take(&mut self, src: BorrowedFd<'_>) -> Result<Taken> {
        if !self.plain && !self.make_pipes() {
            self.plain = true;
        }
        let Some(trunk) = self.trunk.as_ref().filter(|_| !self.plain) else {
            return self.take_by_read(src);
        };
        let count = self.limit(trunk.capacity());
        let end = Endpoint::new(src, &self.facts, None);
        let splice = || call::splice(src, None, trunk.write_end(), None, count);
        match backend::attempt(&end, None, splice) {
            Ok(Ok(n @ 1..)) => {
                self.taken += n as u64;
                self.share(n);
                Ok(Taken::Some)
            }
            Ok(Err(e)) if !errno::is_unfit(Call::Splice, &e) => {
                Err(self.source_failed(src, Backend::Splice, e))
            }
            Err(Ok(Step::Blocked(_))) if self.facts.kind().is_stream() => Ok(Taken::Blocked),
            Err(Err(fault)) => Err(self.source_failed(src, Backend::Splice, fault.error)),
            // Also where it found no bytes, or a file said "not now": read(2) tells what that means.
            _ => {
                self.plain = true;
                self.take_by_read(src)
            }
        }
    }

    fn take_by_read(&mut self, src: BorrowedFd<'_>) -> Result<Taken> {
        let mut buf = BytesMut::zeroed(self.limit(BUFFER));
        match call::read(src, &mut buf) {
            Ok(0) => Ok(Taken::Ended),
            Ok(n) => {
                self.taken += n as u64;
                // What is kept for a slow destination is counted by its bytes: so it is to take little
                // more memory than that.
                let bytes = if n < BUFFER / 4 {
                    Bytes::copy_from_slice(&buf[..n])
                } else {
                    buf.truncate(n);
                    buf.freeze()
                };
                for lane in self.lanes.iter_mut().filter(|lane| lane.error.is_none()) {
                    lane.backlog.push_back(bytes.clone());
                }
                Ok(Taken::Some)
            }
            // A file is always ready, and still says "not now": not for ever.
            Err(e) if errno::would_block(&e) && !self.refuses_for_ever() => Ok(Taken::Blocked),
            Err(e) => Err(self.source_failed(src, Backend::ReadWrite, e)),
        }
    }

    /// Counts a wait that moved nothing; whether a source that is always ready has had enough of them.
    fn refuses_for_ever(&mut self) -> bool {
        const TRIES: u32 = 100;
        let delivered: u64 = self.lanes.iter().map(|lane| lane.delivered).sum();
        let stalls = self.stalls.count(self.taken.wrapping_add(delivered));
        !self.facts.kind().is_stream() && stalls > TRIES
    }

    fn source_failed(&self, src: BorrowedFd<'_>, backend: Backend, error: io::Error) -> Error {
        if self.facts.kind().is_socket() && socket::listens(src) {
            return probe::refuse_listener();
        }
        let error = Error::io(ErrorKind::Io, Some(Side::Source), error);
        error.by(backend).after(self.taken, Bytes::new())
    }

    /// Gives each destination the `count` bytes in the trunk: the last one by handing it the trunk
    /// itself, the others by tee(2). What that leaves out is copied.
    fn share(&mut self, count: usize) {
        let Some(trunk) = &mut self.trunk else { return };
        let mut live: Vec<_> = self
            .lanes
            .iter_mut()
            .filter(|lane| lane.error.is_none())
            .collect();
        let Some((last, others)) = live.split_last_mut() else {
            return;
        };
        let mut short = false;
        for lane in others.iter_mut() {
            let Some(pipe) = &lane.pipe else { continue };
            let shared = call::tee(trunk.read_end(), pipe.write_end(), count);
            lane.held = shared.unwrap_or(0);
            short |= lane.held < count;
        }
        if short {
            let mut bytes = BytesMut::zeroed(count);
            let (got, result) = trunk.take(&mut bytes);
            bytes.truncate(got);
            let bytes = bytes.freeze();
            last.backlog.push_back(bytes.clone());
            for lane in others.iter_mut() {
                let had = lane.held;
                lane.spill_or_fail();
                if had < bytes.len() && lane.error.is_none() {
                    lane.backlog.push_back(bytes.slice(had..));
                }
            }
            if let Err(error) = result {
                for lane in live.iter_mut().filter(|lane| lane.error.is_none()) {
                    lane.fail(io::Error::new(error.kind(), error.to_string()));
                }
            }
            return;
        }
        if let Some(pipe) = &mut last.pipe {
            std::mem::swap(trunk, pipe);
            last.held = count;
        }
        for lane in live {
            // Behind a backlog, the pipe's bytes have to wait their turn.
            if lane.plain || !lane.backlog.is_empty() {
                lane.spill_or_fail();
            }
        }
    }

    /// Whether there are pipes for all, of one size, so that what fits one fits each.
    fn make_pipes(&mut self) -> bool {
        self.trunk.take_if(|trunk| !trunk.is_ours());
        let size = self.trunk.as_ref().map_or(ROUND, PrivatePipe::capacity);
        for lane in self.lanes.iter_mut().filter(|lane| lane.error.is_none()) {
            if !lane.pipe.as_ref().is_some_and(PrivatePipe::is_ours) {
                lane.pipe = PrivatePipe::new(size).ok();
            }
            if lane
                .pipe
                .as_ref()
                .is_none_or(|pipe| pipe.capacity() < size.min(ROUND))
            {
                return false;
            }
        }
        if self.trunk.is_none() {
            self.trunk = PrivatePipe::new(ROUND).ok();
        }
        self.trunk.is_some()
    }

    /// Waits until one of the sides is ready.
    fn wait(&mut self, src: BorrowedFd<'_>, source: bool, destinations: &[usize]) {
        self.refuses_for_ever();
        let mut sides = Vec::with_capacity(1 + destinations.len());
        if source {
            sides.push((src, false));
        }
        let dsts = destinations
            .iter()
            .filter_map(|&place| self.lanes.get(place));
        sides.extend(dsts.map(|lane| (lane.dst.as_fd(), true)));
        if source && !self.facts.kind().is_stream() || call::poll_any(&sides, None).is_err() {
            // poll(2) calls a file ready, whatever it says. Or there is no memory for it, or there are
            // more of them than RLIMIT_NOFILE now allows: no reason to let go of what is held for each.
            // Whoever is ready is found by trying.
            thread::sleep(Duration::from_millis(1));
        }
        self.stalls.pause(None);
    }
}

enum Taken {
    Some,
    Ended,
    Blocked,
}
