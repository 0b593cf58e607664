//! What a transfer may be asked for beyond source, destination and length.

use std::io;
use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::time::Instant;

use crate::backend::Backend;
use crate::driver::Plan;
use crate::error::Result;
use crate::policy::{Cache, Consistency, Reflink};
use crate::probe::Probe;
use crate::report::{Progress, Report};
use crate::transfer::{Transfer, run};

/// Options for a transfer, set like those of [`std::fs::OpenOptions`].
///
/// ```
/// use std::io::{Read, Seek, Write};
/// use zcio::{Consistency, TransferOptions};
///
/// let mut src = tempfile::tempfile()?;
/// src.write_all(b"header and body")?;
/// let mut dst = tempfile::tempfile()?;
///
/// let report = TransferOptions::new()
///     .src_offset(11)
///     .consistency(Consistency::Snapshot)
///     .transfer(&src, &dst, 4)?;
/// assert_eq!(report.bytes, 4);
///
/// let mut text = String::new();
/// dst.rewind()?;
/// dst.read_to_string(&mut text)?;
/// assert_eq!(text, "body");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct TransferOptions {
    plan: Plan,
}

impl TransferOptions {
    /// The defaults: both descriptors' own positions, the probe's choice with fallback, aliasing
    /// allowed, the page cache as the kernel sees fit, extents shared where they can be.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes from this offset on, and leaves the source's own position alone. The default is
    /// the source's own position, which then moves by what was taken.
    pub fn src_offset(&mut self, offset: u64) -> &mut Self {
        self.plan.wishes.src_offset = Some(offset);
        self
    }

    /// Puts bytes from this offset on, and leaves the destination's own position alone. The
    /// default is the destination's own position, which then moves by what was delivered.
    pub fn dst_offset(&mut self, offset: u64) -> &mut Self {
        self.plan.wishes.dst_offset = Some(offset);
        self
    }

    /// At most so many bytes at once: what is in flight, what passes between two looks at the
    /// watcher of [`transfer_with`](Self::transfer_with), and what one
    /// [`advance`](Transfer::advance) moves. By default each backend's own grain: 256 KiB
    /// (read-write) to 1 GiB (copy-file-range), a whole file by reflink. A hole is one piece,
    /// however large.
    pub fn chunk_size(&mut self, bytes: NonZeroUsize) -> &mut Self {
        self.plan.chunk = Some(bytes);
        self
    }

    /// This backend or an error. By default the probe chooses, and what proves unfit gives way to
    /// the next without losing a byte.
    pub fn backend(&mut self, backend: Backend) -> &mut Self {
        self.plan.wishes.only = Some(backend);
        self
    }

    /// Never this backend. Can be called for several.
    pub fn deny(&mut self, backend: Backend) -> &mut Self {
        self.plan.wishes.denied[backend as usize] = true;
        self
    }

    /// Whether what was delivered may still change with the source.
    pub fn consistency(&mut self, consistency: Consistency) -> &mut Self {
        self.plan.wishes.consistency = consistency;
        self
    }

    /// What the transfer leaves in the page cache.
    pub fn cache(&mut self, cache: Cache) -> &mut Self {
        self.plan.wishes.cache = cache;
        self
    }

    /// Whether extents may be shared.
    pub fn reflink(&mut self, reflink: Reflink) -> &mut Self {
        self.plan.wishes.reflink = reflink;
        self
    }

    /// At most so many bytes per second, evenly, once a first piece has gone at once: what the rate
    /// allows in a tenth of a second, and 4 KiB at least. That is for each transfer anew, so many
    /// small ones are not limited. A hole that is skipped takes no time. [`Transfer::resume_at`] tells
    /// an event loop when to go on; the blocking form sleeps.
    pub fn rate(&mut self, bytes_per_second: NonZeroU64) -> &mut Self {
        self.plan.limits.rate = Some(bytes_per_second);
        self
    }

    /// After this time nothing moves any more: an error of [`io::ErrorKind::TimedOut`] with the
    /// exact count. A call that the kernel blocks, on a blocking descriptor, is not broken off.
    pub fn deadline(&mut self, deadline: Instant) -> &mut Self {
        self.plan.limits.deadline = Some(deadline);
        self
    }

    /// Moves up to `len` bytes and returns when they are delivered, when the source has ended, or
    /// with an error. Non-blocking descriptors are waited for with poll(2).
    ///
    /// # Errors
    /// As [`transfer`](crate::transfer()).
    pub fn transfer<S: AsFd, D: AsFd>(&self, src: S, dst: D, len: u64) -> Result<Report> {
        self.transfer_with(src, dst, len, |_| ControlFlow::Continue(()))
    }

    /// As [`transfer`](Self::transfer), calling `watch` after each piece. Where it answers
    /// `Break`, what is in flight is still delivered (or a seekable source rewound), and the
    /// report says [`End::Stopped`](crate::End::Stopped).
    ///
    /// # Errors
    /// As [`transfer`](crate::transfer()).
    pub fn transfer_with<S: AsFd, D: AsFd>(
        &self,
        src: S,
        dst: D,
        len: u64,
        mut watch: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Report> {
        run(&self.plan, src.as_fd(), dst.as_fd(), len, &mut watch)
    }

    /// Starts a transfer that moves when it is told to: see [`Transfer`].
    ///
    /// # Errors
    /// Where the descriptors or the options make no sense together, or no backend serves.
    pub fn start<S: AsFd, D: AsFd>(&self, src: S, dst: D, len: u64) -> Result<Transfer<S, D>> {
        Transfer::start(&self.plan, src, dst, len)
    }

    /// What [`transfer`](Self::transfer) with these options would choose, and why.
    ///
    /// # Errors
    /// As [`Probe::new`].
    pub fn probe<S: AsFd, D: AsFd>(&self, src: S, dst: D) -> io::Result<Probe> {
        Ok(Probe::with(
            src.as_fd(),
            dst.as_fd(),
            &self.plan.wishes,
            u64::MAX,
        )?)
    }
}

/// Moves up to `len` bytes from `src` to `dst`; `u64::MAX` means until the source ends.
///
/// The cheapest way that the kernel offers for the pair is chosen by a [`Probe`](crate::Probe),
/// and what proves unfit gives way to the next without losing a byte. Both descriptors' own
/// positions are used and moved; for offsets, progress and policies see [`TransferOptions`].
/// Non-blocking descriptors are waited for with poll(2).
///
/// A source that ends early is no error: the report says [`End::SourceEnded`](crate::End::SourceEnded). With `len` 0,
/// neither descriptor is touched.
///
/// # Errors
/// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) before anything is touched;
/// [`ErrorKind::Io`](crate::ErrorKind::Io) with the kernel's answer;
/// [`ErrorKind::Unfit`](crate::ErrorKind::Unfit) where the options leave no backend that serves;
/// [`ErrorKind::SourceTruncated`](crate::ErrorKind::SourceTruncated). Each time
/// [`Error::delivered`](crate::Error::delivered) is exact, and what was taken from a source that
/// cannot rewind and not delivered is in [`Error::undelivered`](crate::Error::undelivered).
///
/// ```
/// use std::io::{Read, Seek, Write};
///
/// let mut src = tempfile::tempfile()?;
/// src.write_all(b"moved by the kernel")?;
/// src.rewind()?;
/// let (mut reader, writer) = std::io::pipe()?;
///
/// let report = zcio::transfer(&src, &writer, u64::MAX)?;
/// assert_eq!(report.bytes, 19);
/// drop(writer);
///
/// let mut text = String::new();
/// reader.read_to_string(&mut text)?;
/// assert_eq!(text, "moved by the kernel");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn transfer<S: AsFd, D: AsFd>(src: S, dst: D, len: u64) -> Result<Report> {
    TransferOptions::new().transfer(src, dst, len)
}
