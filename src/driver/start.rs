//! How a transfer starts: the probe asked, the first backend made, a file copied onto itself
//! bounded.

use std::io;
use std::os::fd::BorrowedFd;

use super::bounds::{SameFile, overlap};
use super::{Driver, FAIR, Place, Plan};
use crate::backend::{
    Backend, Direct, Endpoint, Facts, Kind, ReadWrite, Side, Splice, Unfit, ZeroCopyTransfer,
};
use crate::error::{Error, ErrorKind, Result};
use crate::holes::Holes;
use crate::pace::{Pace, Stalls};
use crate::policy::Cache;
use crate::prealloc::Prealloc;
use crate::probe::{self, Queue, Wishes};
use crate::report::{End, Shares};
use crate::sys::sigpipe::Shield;
use crate::sys::{call, fork};

impl Driver {
    pub(crate) fn start(
        plan: &Plan,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
        len: u64,
    ) -> Result<Self> {
        Self::look_and_start(plan, src, dst, len, None)
    }

    /// Starts with a backend of the caller's own, and without fallback.
    pub(crate) fn with_backend(
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
        len: u64,
        backend: Box<dyn ZeroCopyTransfer + Send>,
    ) -> Result<Self> {
        Self::look_and_start(&Plan::default(), src, dst, len, Some(backend))
    }

    fn look_and_start(
        plan: &Plan,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
        len: u64,
        own: Option<Box<dyn ZeroCopyTransfer + Send>>,
    ) -> Result<Self> {
        let before = call::made();
        let (from, to) = probe::survey(src, dst, &plan.wishes)?;
        let mut driver = Self::surveyed(plan, (src, from), (dst, to), len, own)?;
        driver.syscalls = call::made() - before;
        Ok(driver)
    }

    /// Starts on a pair that has been looked at with the plan's wishes, by a backend of the caller's
    /// own if there is one.
    pub(crate) fn surveyed(
        plan: &Plan,
        (src, from): (BorrowedFd<'_>, Facts),
        (dst, to): (BorrowedFd<'_>, Facts),
        len: u64,
        own: Option<Box<dyn ZeroCopyTransfer + Send>>,
    ) -> Result<Self> {
        let wishes = &plan.wishes;
        let src_end = Endpoint::new(src, &from, wishes.src_offset);
        let dst_end = Endpoint::new(dst, &to, wishes.dst_offset);
        let is_own = own.is_some();
        let mut next = Queue::empty();
        let backend = match own {
            Some(own) => match own.assess(&src_end, &dst_end) {
                Ok(()) => own,
                Err(unfit) => return Err(Error::unfit(own.backend(), unfit)),
            },
            None => {
                next = Queue::new(probe::order(&from, &to, wishes.cache, len));
                first(&mut next, wishes, &src_end, &dst_end)?
            }
        };
        if backend.backend() != Backend::Splice {
            refuse_own_pipe((src, &from), (dst, &to))?;
        }
        let same_file = same_file(&src_end, &dst_end, len)?;
        let (mut holes, mut prealloc) = (None, None);
        if same_file.is_none() && !is_own {
            holes = Holes::new(&src_end, &dst_end);
            prealloc = Prealloc::new(&src_end, &dst_end);
        }
        // One's own may call itself what it likes.
        let endangered = to.kind() == Kind::Pipe || to.kind().is_socket();
        let raises = is_own && endangered || raises(backend.backend(), to.kind());
        // Whoever made it non-blocking has other things to do.
        let fair = to.is_nonblocking() && to.kind().is_stream();
        Ok(Self {
            len,
            delivered: 0,
            src: Place::new(from, wishes.src_offset),
            dst: Place::new(to, wishes.dst_offset),
            chunk: plan.chunk,
            backend,
            proven: is_own,
            own: is_own,
            false_end: None,
            stalls: Stalls::default(),
            next,
            wishes: *wishes,
            refused: Vec::new(),
            shares: Shares::NONE,
            end: End::Stopped,
            syscalls: 0,
            process: fork::process(),
            shield: Shield::new(raises),
            holes: holes.map(Box::new),
            prealloc,
            drop_behind: (wishes.cache != Cache::Normal).then(Box::default),
            same_file: same_file.map(Box::new),
            pace: Pace::new(plan.limits).map(Box::new),
            most: if fair { FAIR } else { u64::MAX },
        })
    }
}

/// The first backend that serves.
fn first(
    next: &mut Queue,
    wishes: &Wishes,
    src: &Endpoint<'_>,
    dst: &Endpoint<'_>,
) -> Result<Box<dyn ZeroCopyTransfer + Send>> {
    let verdict = |backend| probe::verdict(backend, wishes, src, dst);
    let serves = |backend| verdict(backend).is_ok();
    let Some(first) = next.pop(serves) else {
        let wanted = wishes.wanted().unwrap_or(Backend::ReadWrite);
        let unfit = match verdict(wanted).err().unwrap_or(Unfit::Denied) {
            Unfit::Denied if wishes.wanted().is_none() => {
                Unfit::Other("the options leave out every backend that serves")
            }
            unfit => unfit,
        };
        return Err(Error::unfit(wanted, unfit));
    };
    let or_plain = first == Backend::Splice && serves(Backend::ReadWrite);
    Ok(instance(first, wishes, or_plain))
}

/// Whether a backend can raise SIGPIPE on a destination of this kind. Read/write sees to that itself.
pub(super) fn raises(backend: Backend, dst: Kind) -> bool {
    (dst == Kind::Pipe || dst.is_socket()) && backend != Backend::ReadWrite
}

/// A backend as the options want it. `or_plain`: read/write is there to give way to.
pub(super) fn instance(
    backend: Backend,
    wishes: &Wishes,
    or_plain: bool,
) -> Box<dyn ZeroCopyTransfer + Send> {
    let (cache, forced) = (wishes.cache, wishes.only.is_some());
    match backend {
        Backend::ReadWrite if cache != Cache::Normal => Box::new(ReadWrite::dontcache()),
        Backend::Splice if or_plain && !forced => Box::new(Splice::choosy()),
        Backend::Direct if cache != Cache::Bypass && !forced => Box::new(Direct::as_opened()),
        other => other.instance(),
    }
}

/// Where both sides are one file or lie on one disk: how much there is to copy, and how far apart it
/// lies.
fn same_file(src: &Endpoint<'_>, dst: &Endpoint<'_>, len: u64) -> Result<Option<SameFile>> {
    let Some((src_start, dst_start)) = src.facts().in_common(dst.facts()) else {
        return Ok(None);
    };
    let failed = |side| move |e| Error::io(ErrorKind::Io, Some(side), e);
    let size = match src.kind() {
        Kind::BlockDevice => call::device_size(src.fd()).map_err(failed(Side::Source))?,
        _ => src.facts().size_hint(),
    };
    let from = src.position().map_err(failed(Side::Source))?;
    let to = if dst.facts().is_append() {
        size
    } else {
        dst.position().map_err(failed(Side::Destination))?
    };
    let same = SameFile {
        own: size.saturating_sub(from),
        apart: (src_start + from).abs_diff(dst_start + to),
    };
    let wanted = len.min(same.own);
    let shared = wanted > 0 && src.offset().is_none() && dst.facts().is_append();
    if shared && call::is_one_description(src.fd(), dst.fd()) {
        // What is appended would move the place where the source is read.
        let text = "it appends, and its position is the source's own";
        let kind = io::ErrorKind::InvalidInput;
        return Err(Error::input(Side::Destination, kind, text));
    }
    if wanted > same.apart {
        return Err(overlap());
    }
    Ok(Some(same))
}

/// Refuses a pipe onto itself: its own bytes would go round for ever. splice(2) refuses that as well, so
/// it is looked into only where another call is made.
pub(super) fn refuse_own_pipe(
    (src, from): (BorrowedFd<'_>, &Facts),
    (dst, to): (BorrowedFd<'_>, &Facts),
) -> Result<()> {
    if (from.kind(), to.kind()) == (Kind::Pipe, Kind::Pipe) && call::is_same_inode(src, dst) {
        return Err(Error::input(
            Side::Destination,
            io::ErrorKind::InvalidInput,
            "it is the source itself",
        ));
    }
    Ok(())
}
