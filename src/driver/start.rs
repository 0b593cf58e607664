//! How a transfer starts: the probe asked, the first backend made, a file copied onto itself
//! bounded.

use std::io;
use std::os::fd::BorrowedFd;

use super::bounds::{SameFile, overlap};
use super::{Driver, FAIR, Place, Plan};
use crate::backend::{
    Backend, Direct, Endpoint, Kind, ReadWrite, Side, Splice, Unfit, ZeroCopyTransfer,
};
use crate::drop_behind::DropBehind;
use crate::error::{Error, ErrorKind, Result};
use crate::holes::Holes;
use crate::policy::Cache;
use crate::prealloc::Prealloc;
use crate::probe::{Probe, Queue, Wishes};
use crate::report::{End, Shares};
use crate::sys::call;
use crate::sys::sigpipe::Shield;

impl Driver {
    pub(crate) fn start(
        plan: &Plan,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
        len: u64,
    ) -> Result<Self> {
        let before = call::made();
        let probe = Probe::with(src, dst, &plan.wishes, len)?;
        let mut driver = Self::probed(plan, &probe, src, dst, len)?;
        driver.syscalls = call::made() - before;
        Ok(driver)
    }

    /// Starts on a pair that has been probed with the plan's wishes.
    pub(crate) fn probed(
        plan: &Plan,
        probe: &Probe,
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
        len: u64,
    ) -> Result<Self> {
        let wishes = &plan.wishes;
        let mut next = probe.queue();
        let Some(first) = next.pop() else {
            let unfit = match probe.verdict(probe.best()).err().unwrap_or(Unfit::Denied) {
                Unfit::Denied if wishes.wanted().is_none() => {
                    Unfit::Other("the options leave out every backend that serves")
                }
                unfit => unfit,
            };
            return Err(Error::unfit(probe.best(), unfit));
        };
        let forced = wishes.only.is_some();
        let backend = instance(
            first,
            wishes.cache,
            forced,
            next.contains(Backend::ReadWrite),
        );
        let mut driver = Self::new(src, dst, len, probe, backend, wishes)?;
        driver.next = next;
        driver.forced = forced;
        driver.chunk = plan.chunk;
        driver.set_limits(plan.limits);
        driver.cache = wishes.cache;
        driver.drop_behind = (wishes.cache != Cache::Normal).then(DropBehind::default);
        let (from, to) = (driver.src.endpoint(src, 0), driver.dst.endpoint(dst, 0));
        if driver.same_file.is_none() {
            driver.holes = Holes::new(&from, &to);
            driver.prealloc = Prealloc::new(&from, &to);
        }
        Ok(driver)
    }

    pub(crate) fn with_backend(
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
        len: u64,
        backend: Box<dyn ZeroCopyTransfer + Send>,
    ) -> Result<Self> {
        let before = call::made();
        let wishes = Wishes::default();
        let probe = Probe::with(src, dst, &wishes, len)?;
        let ends = (
            Endpoint::new(src, probe.src(), None),
            Endpoint::new(dst, probe.dst(), None),
        );
        if let Err(unfit) = backend.assess(&ends.0, &ends.1) {
            return Err(Error::unfit(backend.backend(), unfit));
        }
        let mut driver = Self::new(src, dst, len, &probe, backend, &wishes)?;
        driver.forced = true;
        // Its word is taken for the end from the first.
        driver.proven = true;
        driver.syscalls = call::made() - before;
        Ok(driver)
    }

    fn new(
        src_fd: BorrowedFd<'_>,
        dst_fd: BorrowedFd<'_>,
        len: u64,
        probe: &Probe,
        backend: Box<dyn ZeroCopyTransfer + Send>,
        wishes: &Wishes,
    ) -> Result<Self> {
        let src = Place {
            facts: *probe.src(),
            base: wishes.src_offset,
        };
        let dst = Place {
            facts: *probe.dst(),
            base: wishes.dst_offset,
        };
        let same_file = same_file(src_fd, dst_fd, &src, &dst, len)?;
        // Whoever made it non-blocking has other things to do.
        let fair = dst.facts.is_nonblocking() && dst.facts.kind().is_stream();
        // Only a pipe or a socket raises SIGPIPE, and most Rust programs ignore it.
        let raises = dst.facts.kind() == Kind::Pipe || dst.facts.kind().is_socket();
        Ok(Self {
            len,
            delivered: 0,
            src,
            dst,
            chunk: None,
            backend,
            proven: false,
            next: Queue::default(),
            cache: Cache::Normal,
            forced: false,
            refused: Vec::new(),
            shares: Shares::NONE,
            end: End::Stopped,
            syscalls: 0,
            shield: Shield::new(raises),
            holes: None,
            prealloc: None,
            drop_behind: None,
            same_file,
            pace: None,
            most: if fair { FAIR } else { u64::MAX },
        })
    }
}

/// A backend as the options want it. `or_plain`: read/write is there to give way to.
pub(super) fn instance(
    backend: Backend,
    cache: Cache,
    forced: bool,
    or_plain: bool,
) -> Box<dyn ZeroCopyTransfer + Send> {
    match backend {
        Backend::ReadWrite if cache != Cache::Normal => Box::new(ReadWrite::dontcache()),
        Backend::Splice if or_plain && !forced => Box::new(Splice::choosy()),
        Backend::Direct if cache != Cache::Bypass && !forced => Box::new(Direct::as_opened()),
        other => other.instance(),
    }
}

/// Where both sides are one file: how much there is to copy, and how far apart it lies.
fn same_file(
    src_fd: BorrowedFd<'_>,
    dst_fd: BorrowedFd<'_>,
    src: &Place,
    dst: &Place,
    len: u64,
) -> Result<Option<SameFile>> {
    if !src.facts.is_same_file(&dst.facts) || src.facts.kind() != Kind::File {
        return Ok(None);
    }
    let failed = |side| move |e| Error::io(ErrorKind::Io, Some(side), e);
    let size = src.facts.size_hint();
    let from = src
        .endpoint(src_fd, 0)
        .position()
        .map_err(failed(Side::Source))?;
    let to = if dst.facts.is_append() {
        size
    } else {
        dst.endpoint(dst_fd, 0)
            .position()
            .map_err(failed(Side::Destination))?
    };
    let same = SameFile {
        own: size.saturating_sub(from),
        apart: from.abs_diff(to),
    };
    let wanted = len.min(same.own);
    let shared = wanted > 0 && src.base.is_none() && dst.facts.is_append();
    if shared && call::is_one_description(src_fd, dst_fd) {
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
