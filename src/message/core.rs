//! A sending without its destination: where it stands, and the call that comes next.

use std::io;
use std::num::NonZeroUsize;
#[cfg(feature = "tokio")]
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use bytes::Bytes;

use super::run::{PIECES, Run, read_at};
use super::zerocopy::ZeroCopy;
use super::{Message, Part, SharedFile};
#[cfg(feature = "tokio")]
use crate::backend::FAIR;
use crate::backend::{Backend, Facts, Kind, Side, Unfit};
use crate::driver::{Driver, Plan};
use crate::error::{Error, ErrorKind, Result};
use crate::probe;
use crate::report::{End, Report, Shares, Status};
use crate::sys::sigpipe::Shield;
use crate::sys::{call, errno, gather, socket, zerocopy};

/// Files up to this go along with the memory around them, by pread(2) and one gather. CPU per
/// message with a header of 200 bytes, in us, so against two calls (sendmsg(2) and sendfile(2), and
/// the looks at the file that these want): TCP on loopback 4 KiB 6.8 : 8.6, 8 KiB 7.6 : 8.8, 16 KiB
/// 8.5 : 8.9, 32 KiB 10.5 : 9.2.
const INLINE: u64 = 16 << 10;
/// A pipe of its own costs a part more than splice(2) saves, up to this.
const WORTH_A_PIPE: u64 = 1 << 20;
/// From here on pinning pages may cost less than copying them (the kernel's documentation says
/// 10 KB). Loopback always copies, so it could not be measured here.
const ZEROCOPY: usize = 16 << 10;

/// A sending without its destination.
#[derive(Debug)]
pub(crate) struct Core<'a> {
    /// What is being sent; parts that are done with go when all are, or when more come.
    parts: Vec<Part<'a>>,
    /// How many of them have gone.
    pub(super) gone: usize,
    /// The part that the next byte is of, and its offset therein.
    pub(super) index: usize,
    pub(super) offset: u64,
    pub(super) delivered: u64,
    pub(super) remaining: u64,
    /// What is known of the destination.
    facts: Facts,
    shield: Shield,
    /// The next part that goes by a driver, counted over all that there were.
    file: Option<(usize, Driver)>,
    /// What was sent last may be held back, since more was to follow at once.
    held_back: bool,
    /// Whether small files are read only as far as they are in the page cache.
    at_hand: bool,
    /// What is known of the last file. Its number means the same file while no part goes.
    known: Option<(RawFd, Facts)>,
    pub(super) zerocopy: Option<ZeroCopy>,
    shares: Shares,
    refused: Vec<(Backend, Unfit)>,
    syscalls: u64,
}

impl<'a> Core<'a> {
    pub(super) fn new(message: &Message<'a>, dst: BorrowedFd<'_>) -> Result<Self> {
        let before = call::made();
        let mut facts = probe::look(dst, Side::Destination, None)?;
        facts.look_up_filesystem(dst);
        // Sockets have MSG_NOSIGNAL.
        let shield = Shield::new(facts.kind() == Kind::Pipe);
        Ok(Self {
            parts: message.parts.clone(),
            gone: 0,
            index: 0,
            offset: 0,
            delivered: 0,
            remaining: message.len,
            facts,
            shield,
            file: None,
            held_back: false,
            at_hand: false,
            known: None,
            zerocopy: None,
            shares: Shares::NONE,
            refused: Vec::new(),
            syscalls: call::made() - before,
        })
    }

    pub(super) fn extend(&mut self, message: &Message<'a>) {
        self.let_go();
        self.parts.extend_from_slice(&message.parts);
        self.remaining = self.remaining.saturating_add(message.len);
    }

    /// Lets the parts go that are delivered.
    fn let_go(&mut self) {
        self.parts.drain(..self.index);
        self.gone += self.index;
        self.index = 0;
        self.known = None;
    }

    pub(super) fn outstanding(&self) -> u64 {
        self.zerocopy.as_ref().map_or(0, ZeroCopy::outstanding)
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn remaining(&self) -> u64 {
        self.remaining
    }

    /// What is known of the destination.
    #[cfg(feature = "tokio")]
    pub(crate) fn dst_facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) fn report(&self) -> Report {
        let end = if self.remaining == 0 {
            End::Complete
        } else {
            End::Stopped
        };
        let (shares, refused) = (self.shares.clone(), self.refused.clone());
        Report::new(Backend::ReadWrite, end, refused, shares, self.syscalls)
    }

    /// The next file: which part it is, what comes next of it, and whether that goes along with the
    /// memory around it.
    #[cfg(feature = "tokio")]
    pub(crate) fn next_file(&self) -> Option<(usize, BorrowedFd<'_>, Range<u64>, bool)> {
        let mut ahead = self.parts.iter().enumerate().skip(self.index);
        ahead.find_map(|(i, part)| match part {
            Part::File { file, range } => {
                let at = range.start + if i == self.index { self.offset } else { 0 };
                let inline = range.end - at <= INLINE && !self.is_at_driver();
                let end = range.end.min(at + FAIR as u64);
                Some((self.gone + i, file.as_fd(), at..end, inline))
            }
            Part::Bytes(_) => None,
        })
    }

    /// As [`advance`](Self::advance), except that it says `Blocked(Source)` where a small file is not
    /// in the page cache.
    #[cfg(feature = "tokio")]
    pub(crate) fn advance_at_hand(&mut self, dst: BorrowedFd<'_>) -> Result<Status> {
        self.at_hand = true;
        let result = self.advance(dst);
        self.at_hand = false;
        result
    }

    pub(crate) fn advance(&mut self, dst: BorrowedFd<'_>) -> Result<Status> {
        let before = call::made();
        let result = self.step(dst);
        if matches!(result, Err(_) | Ok(Status::Blocked(Side::Source))) {
            // More does not follow at once.
            self.let_go_on(dst);
        }
        self.syscalls += call::made() - before;
        result.map_err(|error| {
            let held = error.undelivered().clone();
            error.after(self.delivered, held)
        })
    }

    fn step(&mut self, dst: BorrowedFd<'_>) -> Result<Status> {
        if let Some(zerocopy) = &mut self.zerocopy {
            zerocopy.reap(dst).map_err(of_destination)?;
        }
        if self.remaining == 0 {
            return Ok(match self.outstanding() {
                0 => Status::Finished(End::Complete),
                _ => Status::Blocked(Side::Destination),
            });
        }
        // The one file that this call has to do with, asked for its descriptor once.
        let file = self.near_file();
        let src = file.as_ref().map(|file| file.as_fd());
        if !self.is_at_driver() {
            let Some(mut run) = self.collect(src, dst)? else {
                return Ok(Status::Blocked(Side::Source));
            };
            if !run.is_empty() {
                let result = self.send(&run, dst);
                run.keep_buffer();
                if result.as_ref().is_ok_and(|bytes| *bytes > 0) {
                    self.held_back = run.more && self.facts.kind() == Kind::Tcp;
                }
                return match result {
                    Ok(0) => Err(of_destination(io::ErrorKind::WriteZero.into())),
                    Ok(bytes) => Ok(self.moved(bytes, Backend::ReadWrite)),
                    Err(e) if errno::would_block(&e) => Ok(Status::Blocked(Side::Destination)),
                    Err(e) => Err(of_destination(e)),
                };
            }
        }
        let (Some((_, driver)), Some(src)) = (&mut self.file, src) else {
            return Ok(Status::Finished(End::Complete));
        };
        match driver.advance(src, dst)? {
            Status::Moved(bytes) => {
                let backend = driver.backend();
                self.held_back = false;
                Ok(self.moved(bytes.get(), backend))
            }
            Status::Finished(_) => Err(truncated().by(driver.backend())),
            blocked @ Status::Blocked(_) => Ok(blocked),
        }
    }

    /// Has TCP send what it holds back: what comes next has to be waited for, or does not come.
    pub(crate) fn let_go_on(&mut self, dst: BorrowedFd<'_>) {
        if std::mem::take(&mut self.held_back) {
            socket::push(dst);
        }
    }

    /// The first file that a call from here on can come to.
    fn near_file(&self) -> Option<SharedFile<'a>> {
        let near = self.parts[self.index..].iter().take(PIECES + 1);
        let mut files = near.filter_map(|part| match part {
            Part::File { file, .. } => Some(Arc::clone(file)),
            Part::Bytes(_) => None,
        });
        files.next()
    }

    fn is_at_driver(&self) -> bool {
        let at = self.gone + self.index;
        self.file.as_ref().is_some_and(|(part, _)| *part == at)
    }

    /// What the next call sends: memory up to the next file, or with it if that is a small one, and
    /// on to the one after. Where a file has to go by a driver, that is made here, so that one that
    /// cannot serve is found out before what stands in front of it has gone. `None` where a small
    /// file is not at hand.
    fn collect(&mut self, src: Option<BorrowedFd<'_>>, dst: BorrowedFd<'_>) -> Result<Option<Run>> {
        let mut run = Run::default();
        let mut from = self.offset;
        for at in self.index..self.parts.len() {
            if run.is_full() {
                break;
            }
            match &self.parts[at] {
                Part::Bytes(bytes) => run.add_memory(bytes.slice(from as usize..)),
                Part::File { .. } if run.has_file() => break,
                Part::File { range, .. } => {
                    let Some(src) = src else { break };
                    let (start, len) = (range.start + from, range.end - range.start - from);
                    let inline =
                        (len <= INLINE).then(|| read_at(src, start, len as usize, self.at_hand));
                    match inline {
                        Some(Ok(Some(buf))) => run.add_file(buf, len as usize),
                        Some(Ok(None)) => return Err(truncated().by(Backend::ReadWrite)),
                        Some(Err(e)) if self.at_hand && errno::would_block(&e) => return Ok(None),
                        // A large one; or the driver finds a way, or tells what the matter is.
                        Some(Err(_)) | None => {
                            self.prepare(at, from, src, dst)?;
                            break;
                        }
                    }
                }
            }
            from = 0;
        }
        run.more = (run.bytes as u64) < self.remaining;
        Ok(Some(run))
    }

    /// Makes a driver for what is left of a file part, from `from` on, unless there is one.
    fn prepare(
        &mut self,
        at: usize,
        from: u64,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
    ) -> Result<()> {
        let place = self.gone + at;
        let made = self.file.as_ref().is_some_and(|(part, _)| *part == place);
        let (false, Some(Part::File { range, .. })) = (made, self.parts.get(at)) else {
            return Ok(());
        };
        let len = range.end - range.start - from;
        let mut plan = Plan::default();
        plan.wishes.src_offset = Some(range.start + from);
        plan.wishes.denied[Backend::Splice as usize] = len < WORTH_A_PIPE;
        let mut facts = match self.known {
            Some((fd, facts)) if fd == src.as_raw_fd() => facts,
            _ => probe::look(src, Side::Source, None)?,
        };
        probe::check(Side::Source, &facts, plan.wishes.src_offset)?;
        let mut to = self.facts;
        probe::complete((src, &mut facts), (dst, &mut to), &plan.wishes);
        self.known = Some((src.as_raw_fd(), facts));
        let mut driver = Driver::surveyed(&plan, (src, facts), (dst, to), len, None)?;
        driver.be_fair();
        self.file = Some((place, driver));
        Ok(())
    }

    fn send(&mut self, run: &Run, dst: BorrowedFd<'_>) -> io::Result<usize> {
        let slices = run.slices();
        if !self.facts.kind().is_socket() {
            return self.shield.run(|| gather::write(dst, &slices));
        }
        // The buffer is used again at once: nothing to be lent.
        if let Some(zerocopy) = &mut self.zerocopy {
            if zerocopy.on && run.bytes >= ZEROCOPY && !run.has_file() {
                zerocopy.lend(run.memory());
                let result = gather::send(dst, &slices, run.more, true);
                let Err(error) = result else { return result };
                zerocopy.settle(1);
                match error.raw_os_error() {
                    // Nothing is pinned, and still it is too much: it will never do.
                    Some(libc::ENOBUFS) => zerocopy.on = zerocopy.outstanding() > 0,
                    // A socket that takes the option, and then not the send (kTLS).
                    Some(libc::EOPNOTSUPP | libc::EINVAL) => zerocopy.on = false,
                    _ => return Err(error),
                }
            }
        }
        gather::send(dst, &slices, run.more, false)
    }

    /// Takes note of bytes that have reached the destination.
    fn moved(&mut self, bytes: usize, backend: Backend) -> Status {
        let count = (bytes as u64).min(self.remaining);
        self.delivered += count;
        self.remaining -= count;
        self.shares.add(backend, count);
        self.offset += count;
        while let Some(part) = self.parts.get(self.index) {
            if self.offset < part.len() {
                break;
            }
            self.offset -= part.len();
            self.index += 1;
        }
        let here = self.gone + self.index;
        if let Some((_, driver)) = self.file.take_if(|(part, _)| *part < here) {
            for refusal in driver.report().refused() {
                if !self.refused.contains(refusal) {
                    self.refused.push(*refusal);
                }
            }
        }
        if self.remaining == 0 {
            self.let_go();
        }
        let moved = NonZeroUsize::new(bytes);
        moved.map_or(Status::Finished(End::Complete), Status::Moved)
    }

    /// Waits until a side is ready, as long as it takes; once everything is delivered, until the
    /// kernel is done with a buffer.
    pub(super) fn wait(&mut self, side: Side, dst: BorrowedFd<'_>) -> Result<()> {
        let before = call::made();
        let at_driver = self.is_at_driver();
        let timed_out = || {
            // A blocking socket answers EAGAIN only when its own time limit has run out.
            let blocking = self.facts.kind().is_socket() && !self.facts.is_nonblocking();
            blocking && socket::timeout(dst, libc::SO_SNDTIMEO).is_some()
        };
        let result = match (&mut self.file, self.parts.get(self.index)) {
            (Some((_, driver)), Some(Part::File { file, .. })) if at_driver => {
                driver.wait(side, file.as_fd(), dst)
            }
            (_, None) => zerocopy::wait(dst).map_err(of_destination),
            _ if timed_out() => Err(of_destination(io::ErrorKind::TimedOut.into())),
            _ => call::poll(dst, true, None)
                .map(drop)
                .map_err(of_destination),
        };
        self.syscalls += call::made() - before;
        result.map_err(|error| error.after(self.delivered, Bytes::new()))
    }

    /// Leaves nothing behind but what the kernel still sends from.
    pub(super) fn close(&mut self, dst: BorrowedFd<'_>) {
        self.let_go_on(dst);
        if let Some(zerocopy) = &mut self.zerocopy {
            zerocopy.close(dst);
        }
        if let Some((part, driver)) = &mut self.file {
            if let Some(Part::File { file, .. }) = self.parts.get(*part - self.gone) {
                driver.close(file.as_fd(), dst);
            }
        }
    }

    /// The error that a failure outside of any call here becomes.
    #[cfg(feature = "tokio")]
    pub(crate) fn fail(&self, side: Side, error: io::Error) -> Error {
        Error::io(ErrorKind::Io, Some(side), error).after(self.delivered, Bytes::new())
    }
}

fn truncated() -> Error {
    let text = "the file ends before the range that the message has of it";
    let error = io::Error::new(io::ErrorKind::UnexpectedEof, text);
    Error::io(ErrorKind::SourceTruncated, Some(Side::Source), error)
}

fn of_destination(error: io::Error) -> Error {
    Error::io(ErrorKind::Io, Some(Side::Destination), error).by(Backend::ReadWrite)
}
