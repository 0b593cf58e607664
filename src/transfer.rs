//! The transfer as its user holds it: a pair of descriptors and how far it has come.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use bytes::Bytes;

use crate::backend::{Backend, ZeroCopyTransfer};
use crate::driver::{Audited, Driver, Plan};
use crate::error::Result;
use crate::report::{End, Progress, Report, Status};

/// A transfer that can stop wherever the kernel would block, and go on.
///
/// [`advance`](Self::advance) moves one piece. On non-blocking descriptors it never waits: it
/// says which side to wait for, and the caller's event loop does. The [`Transfer`] is the only
/// state; it can be put aside at any point and taken up again.
///
/// Bytes in flight (taken from the source, not yet in the destination) stay inside it. Dropping
/// it, or taking it apart by [`into_parts`](Self::into_parts), rewinds a seekable source to the
/// first byte that was not delivered; bytes in flight from a socket or a pipe would be lost, so
/// [`reclaim`](Self::reclaim) them first.
///
/// Each call asks both ends for their descriptors once, and uses what they answer. An [`AsFd`] that
/// answers another one later gets wrong bytes moved, as if the file behind a descriptor had been
/// exchanged, and nothing worse.
///
/// ```
/// use std::io::{Read, Write};
/// use zcio::{End, Status, TransferOptions};
///
/// let mut src = tempfile::tempfile()?;
/// src.write_all(&[7; 300_000])?;
/// let (mut peer, dst) = std::os::unix::net::UnixStream::pair()?;
/// dst.set_nonblocking(true)?;
///
/// let mut transfer = TransferOptions::new().src_offset(0).start(&src, &dst, u64::MAX)?;
/// let mut received = 0;
/// loop {
///     match transfer.advance()? {
///         Status::Moved(_) => {}
///         // An event loop would wait for `side` here, and meanwhile do something else.
///         Status::Blocked(_side) => received += peer.read(&mut [0; 65536])?,
///         Status::Finished(end) => break assert_eq!(end, End::SourceEnded),
///     }
/// }
/// assert_eq!(transfer.delivered(), 300_000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "a transfer moves nothing until it is advanced"]
pub struct Transfer<S: AsFd, D: AsFd> {
    driver: Driver,
    /// `None` only once `into_parts` has taken it.
    pair: Option<(S, D)>,
}

impl<S: AsFd, D: AsFd> Transfer<S, D> {
    pub(crate) fn start(plan: &Plan, src: S, dst: D, len: u64) -> Result<Self> {
        let driver = Driver::start(plan, src.as_fd(), dst.as_fd(), len)?;
        Ok(Self {
            driver,
            pair: Some((src, dst)),
        })
    }

    /// Starts a transfer by a backend of one's own: this one, without fallback, from both
    /// descriptors' own positions.
    ///
    /// Its counts are held against the contract. A step that claims more than its limit, delivered or in
    /// flight, or less than was in flight before, and a reclaim that gives back another number of bytes
    /// are errors of kind [`InvalidData`](std::io::ErrorKind::InvalidData). What such a step says to have
    /// moved is not counted; the bytes that the backend gives back are the error's. One that says that
    /// the source has ended, with bytes in flight, ends the transfer: they can be
    /// [taken back](Self::reclaim).
    ///
    /// # Errors
    /// Where the descriptors cannot serve, or the backend's
    /// [`assess`](ZeroCopyTransfer::assess) says that it does not.
    pub fn with_backend(
        src: S,
        dst: D,
        len: u64,
        backend: Box<dyn ZeroCopyTransfer + Send>,
    ) -> Result<Self> {
        let backend = Box::new(Audited::new(backend));
        let driver = Driver::with_backend(src.as_fd(), dst.as_fd(), len, backend)?;
        Ok(Self {
            driver,
            pair: Some((src, dst)),
        })
    }

    /// Moves at most one chunk: see [`chunk_size`](crate::TransferOptions::chunk_size). Never waits on a non-blocking
    /// descriptor; on a blocking one it waits as the kernel's call does.
    ///
    /// After `Finished`, it can be called again: where the source has grown meanwhile, it goes on.
    ///
    /// # Errors
    /// The error has the exact count and, where the source cannot rewind, the bytes that were
    /// taken and not delivered; none are in flight any more.
    pub fn advance(&mut self) -> Result<Status> {
        let (src, dst) = fds(&self.pair);
        self.driver.advance(src, dst)
    }

    /// The parts, for a form that awaits.
    #[cfg(feature = "tokio")]
    pub(crate) fn apart(&mut self) -> (&mut Driver, &S, &D) {
        let (src, dst) = parts(&self.pair);
        (&mut self.driver, src, dst)
    }

    /// Asks for `len` bytes more on the same pair, without probing again.
    pub fn extend(&mut self, len: u64) {
        self.driver.extend(len);
    }

    /// Bytes that have reached the destination.
    pub fn delivered(&self) -> u64 {
        self.driver.delivered()
    }

    /// Bytes taken from the source that are not yet in the destination.
    pub fn in_flight(&self) -> u64 {
        self.driver.in_flight()
    }

    /// Bytes that were asked for and have not reached the destination; those in flight are among
    /// them.
    pub fn remaining(&self) -> u64 {
        self.driver.remaining()
    }

    /// When to advance again, where [`rate`](crate::TransferOptions::rate) is what holds it up: `Blocked` then
    /// speaks of the limit, whichever side it names.
    pub fn resume_at(&self) -> Option<Instant> {
        self.driver.resume_at()
    }

    /// The backend at work.
    pub fn backend(&self) -> Backend {
        self.driver.backend()
    }

    /// Takes back what is in flight: a seekable source is rewound and the result is empty, from
    /// any other the bytes themselves come back, in order. Afterwards nothing is in flight.
    ///
    /// # Errors
    /// Where the kernel does not give them back; [`Error::undelivered`](crate::Error::undelivered)
    /// has those that came.
    pub fn reclaim(&mut self) -> Result<Bytes> {
        let (src, _) = fds(&self.pair);
        self.driver.reclaim(src)
    }

    /// What was done so far.
    pub fn report(&self) -> Report {
        self.driver.report()
    }

    /// The source.
    pub fn src(&self) -> &S {
        &parts(&self.pair).0
    }

    /// The destination.
    pub fn dst(&self) -> &D {
        &parts(&self.pair).1
    }

    /// Gives both ends back. A seekable source is rewound to the first byte that was not
    /// delivered.
    pub fn into_parts(mut self) -> (S, D) {
        self.close();
        self.pair.take().expect(WHOLE)
    }

    fn close(&mut self) {
        if self.pair.is_some() {
            let (src, dst) = fds(&self.pair);
            self.driver.close(src, dst);
        }
    }
}

impl<S: AsFd, D: AsFd> Drop for Transfer<S, D> {
    fn drop(&mut self) {
        self.close();
    }
}

const WHOLE: &str = "the pair is taken only where the transfer is consumed";

fn parts<S, D>(pair: &Option<(S, D)>) -> &(S, D) {
    pair.as_ref().expect(WHOLE)
}

/// A function of the pair alone, so that the driver can be borrowed beside it.
fn fds<S: AsFd, D: AsFd>(pair: &Option<(S, D)>) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
    let (src, dst) = parts(pair);
    (src.as_fd(), dst.as_fd())
}

/// The blocking form: advances until it ends, and waits where a non-blocking side makes it.
pub(crate) fn run(
    plan: &Plan,
    src: BorrowedFd<'_>,
    dst: BorrowedFd<'_>,
    len: u64,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Report> {
    if len == 0 {
        // Not even looked at.
        return Ok(Report::nothing());
    }
    // A transfer, and not a bare driver: should the watcher unwind, it rewinds the source.
    let mut transfer = Transfer::start(plan, src, dst, len)?;
    let driver = &mut transfer.driver;
    loop {
        match driver.advance(src, dst)? {
            Status::Moved(_) => {
                let (delivered, backend) = (driver.delivered(), driver.backend());
                if watch(Progress {
                    delivered,
                    len,
                    backend,
                })
                .is_break()
                {
                    break;
                }
            }
            Status::Blocked(side) => driver.wait(side, src, dst)?,
            Status::Finished(_) => return Ok(driver.report()),
        }
    }
    driver.stop(src)?;
    loop {
        match driver.advance(src, dst)? {
            Status::Moved(_) => {}
            Status::Blocked(side) => driver.wait(side, src, dst)?,
            Status::Finished(_) => break,
        }
    }
    let mut report = driver.report();
    if report.bytes < len {
        report.end = End::Stopped;
    }
    Ok(report)
}
