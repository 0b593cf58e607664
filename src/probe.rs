//! Facts of two descriptors, a verdict for each backend, and the order in which they are tried.

mod canary;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

pub use canary::{Canary, Pages, canary};

use crate::backend::{Backend, Endpoint, Facts, Kind, Side, Unfit};
use crate::error::{Error, Result};
use crate::policy::{Cache, Consistency, Reflink};

use Backend::{CopyFileRange, Direct, Mmap, ReadWrite, Sendfile, Splice};

/// Kinds of source and of destination, a bound in bytes, and an order.
type Row = (
    &'static [Kind],
    &'static [Kind],
    u64,
    [Backend; Backend::ALL.len()],
);

/// The order in which the backends are tried for a kind of pair, best first: what measuring said
/// (`cargo bench --bench regret`), see `docs/backends.md`. All seven stand in each row; the verdicts
/// take out what does not serve. The first row counts that holds both kinds and whose bound, in bytes,
/// is above what the transfer is expected to move.
const PREFERENCE: [Row; 9] = {
    use Kind::{BlockDevice, CharDevice, File, Generated, Pipe, Stream, Tcp, Unix};
    const FILES: &[Kind] = &[File, BlockDevice];
    const SOCKETS: &[Kind] = &[Tcp, Unix, Stream];
    #[rustfmt::skip]
    const ANY: &[Kind] = &[File, Generated, BlockDevice, CharDevice, Pipe, Tcp, Unix, Stream];
    const C: Backend = CopyFileRange;
    const S: Backend = Sendfile;
    const P: Backend = Splice;
    const M: Backend = Mmap;
    const W: Backend = ReadWrite;
    /// What shares extents, and what was asked for, goes first anywhere.
    const fn row(rest: [Backend; 5]) -> [Backend; 7] {
        let [a, b, c, d, e] = rest;
        [Backend::Reflink, Direct, a, b, c, d, e]
    }
    [
        // Each page of the destination is filled by a copy whatever the call. One call does for a
        // few; in quantity, a large piece at a time is what counts, since it fills large folios.
        (FILES, FILES, MIB / 4, row([C, S, W, P, M])),
        (FILES, FILES, ALL, row([P, W, S, C, M])),
        // The pages themselves travel, by one call each piece.
        (FILES, &[Pipe, Tcp, Unix, Stream], ALL, row([S, P, M, W, C])),
        // Into a file and between sockets, a pipe has to be made: 4 calls.
        (
            SOCKETS,
            &[File, BlockDevice, Tcp, Unix, Stream],
            MIB / 4,
            row([W, P, S, C, M]),
        ),
        (SOCKETS, FILES, ALL, row([P, W, S, C, M])),
        // What a UNIX socket holds lies in pieces that TCP takes one by one.
        (&[Unix], &[Tcp, Stream], ALL, row([W, P, S, C, M])),
        (SOCKETS, ANY, ALL, row([P, S, W, C, M])),
        (&[Pipe], ANY, ALL, row([P, S, W, C, M])),
        (ANY, ANY, ALL, row([W, S, P, M, C])),
    ]
};

const MIB: u64 = 1 << 20;
/// However many bytes.
const ALL: u64 = u64::MAX;

/// Behind a network, the call that lets the server copy goes before any that fetches the bytes.
const REMOTE: [Backend; 7] = [
    Backend::Reflink,
    Direct,
    CopyFileRange,
    ReadWrite,
    Splice,
    Sendfile,
    Mmap,
];

/// What the options ask of the choice.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) only: Option<Backend>,
    pub(crate) denied: [bool; Backend::ALL.len()],
    pub(crate) consistency: Consistency,
    pub(crate) cache: Cache,
    pub(crate) reflink: Reflink,
    pub(crate) src_offset: Option<u64>,
    pub(crate) dst_offset: Option<u64>,
}

/// What can move bytes between two descriptors, in which order it is tried, and why.
///
/// A probe makes at most 8 system calls, all of which only look; it moves no data and changes
/// nothing on either descriptor. Its [`Display`](fmt::Display) is a table of one line a backend,
/// best first.
#[derive(Clone, Debug)]
pub struct Probe {
    src: Facts,
    dst: Facts,
    order: [Backend; Backend::ALL.len()],
    verdicts: [std::result::Result<(), Unfit>; Backend::ALL.len()],
    wanted: Backend,
}

impl Probe {
    /// Probes a pair for a transfer with default options.
    ///
    /// # Errors
    /// Where no transfer could serve the pair: a side that is a directory, an `O_PATH` descriptor,
    /// a datagram socket or an anonymous inode, that is not open for reading or writing as its
    /// side needs, or that is closed. As [`io::Error`], with an [`Error`] inside.
    pub fn new<S: AsFd, D: AsFd>(src: S, dst: D) -> io::Result<Self> {
        Ok(Self::with(
            src.as_fd(),
            dst.as_fd(),
            &Wishes::default(),
            ALL,
        )?)
    }

    /// Probes a pair for a transfer of up to `len` bytes.
    pub(crate) fn with(
        src: BorrowedFd<'_>,
        dst: BorrowedFd<'_>,
        wishes: &Wishes,
        len: u64,
    ) -> Result<Self> {
        let (src_facts, dst_facts) = survey(src, dst, wishes)?;
        let ends = (
            Endpoint::new(src, &src_facts, wishes.src_offset),
            Endpoint::new(dst, &dst_facts, wishes.dst_offset),
        );
        Ok(Self {
            order: order(&src_facts, &dst_facts, wishes.cache, len),
            verdicts: Backend::ALL.map(|backend| verdict(backend, wishes, &ends.0, &ends.1)),
            wanted: wishes.wanted().unwrap_or(ReadWrite),
            src: src_facts,
            dst: dst_facts,
        })
    }

    /// The backend that a transfer starts with. Where the options leave none that serves, the one
    /// that they insist on; its verdict says why not.
    pub fn best(&self) -> Backend {
        let first = self.candidates().next();
        first.unwrap_or(self.wanted)
    }

    /// The backends that serve, in the order in which a transfer tries them.
    pub fn candidates(&self) -> impl Iterator<Item = Backend> + '_ {
        self.order
            .into_iter()
            .filter(|backend| self.verdict(*backend).is_ok())
    }

    /// Whether a backend serves this pair.
    ///
    /// # Errors
    /// The reason why it does not.
    pub fn verdict(&self, backend: Backend) -> std::result::Result<(), Unfit> {
        self.verdicts[backend as usize]
    }

    /// What the source is.
    pub fn src(&self) -> &Facts {
        &self.src
    }

    /// What the destination is.
    pub fn dst(&self) -> &Facts {
        &self.dst
    }
}

/// Backends still to be tried, best first. Whether they serve is asked when it is their turn: the
/// first or the second nearly always does.
#[derive(Debug)]
pub(crate) struct Queue {
    order: [Backend; Backend::ALL.len()],
    tried: usize,
}

impl Queue {
    pub(crate) fn new(order: [Backend; Backend::ALL.len()]) -> Self {
        Self { order, tried: 0 }
    }

    /// With nothing to try.
    pub(crate) fn empty() -> Self {
        let (order, tried) = (Backend::ALL, Backend::ALL.len());
        Self { order, tried }
    }

    /// Takes the next one that serves.
    pub(crate) fn pop(&mut self, serves: impl Fn(Backend) -> bool) -> Option<Backend> {
        let found = self.rest().iter().position(|backend| serves(*backend));
        let at = found.map(|ahead| self.tried + ahead);
        self.tried = at.map_or(self.order.len(), |at| at + 1);
        at.and_then(|at| self.order.get(at).copied())
    }

    /// Those that were not taken yet, whether they serve or not.
    pub(crate) fn rest(&self) -> &[Backend] {
        self.order.get(self.tried..).unwrap_or_default()
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = self
            .order
            .into_iter()
            .filter(|backend| self.verdict(*backend).is_err());
        for (rank, backend) in self.candidates().enumerate() {
            let why = why(backend, self.src.kind(), self.dst.kind());
            writeln!(f, "{:>2}  {backend:<16} {why}", rank + 1)?;
        }
        for backend in refused {
            if let Err(unfit) = self.verdict(backend) {
                writeln!(f, " -  {backend:<16} {unfit}")?;
            }
        }
        Ok(())
    }
}

/// What is done for the price, in one clause.
fn why(backend: Backend, src: Kind, dst: Kind) -> &'static str {
    match backend {
        Backend::Reflink => "shares the source's extents where the filesystem can",
        CopyFileRange => "the filesystem copies, or its server",
        Sendfile if dst.is_stream() => "the pages themselves travel, one call",
        Sendfile => "the kernel copies page by page",
        Splice if src == Kind::Pipe || dst == Kind::Pipe => "pages change hands, one call",
        Splice if dst.is_stream() => "pages change hands through a private pipe",
        Splice => "through a private pipe, one copy into the destination's pages",
        Mmap => "one copy, out of a mapping",
        Direct => "between device and buffer, around the page cache",
        ReadWrite => "two copies, through a buffer of 256 KiB",
    }
}

/// The order in which the backends are tried to move up to `len` bytes, those that do not serve among
/// them.
pub(crate) fn order(
    src: &Facts,
    dst: &Facts,
    cache: Cache,
    len: u64,
) -> [Backend; Backend::ALL.len()] {
    let mut order = order_by_kind(src, dst, len);
    // Only read/write can leave nothing in the page cache by itself (RWF_DONTCACHE).
    if cache == Cache::DropBehind && dst.kind().is_cached() {
        let at = order.iter().position(|b| *b == ReadWrite).unwrap_or(2);
        order[2..=at].rotate_right(1);
    }
    order
}

fn order_by_kind(src: &Facts, dst: &Facts, len: u64) -> [Backend; Backend::ALL.len()] {
    if src.is_remote() && dst.is_remote() {
        return REMOTE;
    }
    let expected = match src.kind() {
        Kind::File => len.min(src.size_hint()),
        _ => len,
    };
    let row = PREFERENCE.iter().find(|(from, to, below, _)| {
        let few = expected < *below || *below == ALL;
        few && from.contains(&src.kind()) && to.contains(&dst.kind())
    });
    row.map_or(REMOTE, |(.., order)| *order)
}

/// Whether splice(2) goes before read(2) and write(2) where a pair has much to move.
pub(crate) fn prefers_splice(src: &Facts, dst: &Facts) -> bool {
    let order = order_by_kind(src, dst, ALL);
    order.iter().find(|b| matches!(b, Splice | ReadWrite)) == Some(&Splice)
}

/// Looks at both sides, as far as the options make it matter.
pub(crate) fn survey(
    src: BorrowedFd<'_>,
    dst: BorrowedFd<'_>,
    wishes: &Wishes,
) -> Result<(Facts, Facts)> {
    let mut from = look(src, Side::Source, wishes.src_offset)?;
    let mut to = look(dst, Side::Destination, wishes.dst_offset)?;
    complete((src, &mut from), (dst, &mut to), wishes);
    Ok((from, to))
}

/// Asks what is to be known of a pair beside what each side is.
pub(crate) fn complete(
    (src, from): (BorrowedFd<'_>, &mut Facts),
    (dst, to): (BorrowedFd<'_>, &mut Facts),
    wishes: &Wishes,
) {
    Facts::complete((src, from), (dst, to));
    if wishes.around_cache(from, to) {
        from.look_up_alignment(src);
        to.look_up_alignment(dst);
    }
    if wishes.consistency == Consistency::Snapshot && to.kind().is_stream() {
        from.look_up_seals(src);
    }
}

/// Whether a backend serves the pair as the options want it: from the facts alone.
#[inline]
pub(crate) fn verdict(
    backend: Backend,
    wishes: &Wishes,
    src: &Endpoint<'_>,
    dst: &Endpoint<'_>,
) -> std::result::Result<(), Unfit> {
    wishes.allow(backend, src.facts(), dst.facts())?;
    backend.assess(src, dst)
}

/// Looks at one side, and refuses what no backend can serve.
pub(crate) fn look(fd: BorrowedFd<'_>, side: Side, offset: Option<u64>) -> Result<Facts> {
    let facts = Facts::of(fd);
    let facts = facts.map_err(|e| Error::io(crate::error::ErrorKind::Io, Some(side), e))?;
    check(side, &facts, offset)?;
    Ok(facts)
}

/// Refuses descriptors that no backend can serve, and offsets where there are none.
pub(crate) fn check(side: Side, facts: &Facts, offset: Option<u64>) -> Result<()> {
    let kind = facts.kind();
    let refuse = |kind, text: String| Err(Error::input(side, kind, text));
    if kind.is_refused() {
        let class = match kind {
            Kind::Directory => io::ErrorKind::IsADirectory,
            Kind::Datagram => io::ErrorKind::Unsupported,
            _ => io::ErrorKind::InvalidInput,
        };
        return refuse(class, format!("it is {kind}"));
    }
    let (open, mode) = match side {
        Side::Source => (facts.is_readable(), "reading"),
        Side::Destination => (facts.is_writable(), "writing"),
    };
    if !open {
        return refuse(
            io::ErrorKind::PermissionDenied,
            format!("it is not open for {mode}"),
        );
    }
    let Some(offset) = offset else { return Ok(()) };
    if i64::try_from(offset).is_err() {
        return refuse(
            io::ErrorKind::InvalidInput,
            format!("offset {offset} is beyond 2^63 - 1, the largest there is"),
        );
    }
    if kind.is_socket() || kind == Kind::Pipe {
        return refuse(
            io::ErrorKind::NotSeekable,
            format!("it is {kind} and takes no offset"),
        );
    }
    if side == Side::Destination && facts.is_append() {
        return refuse(
            io::ErrorKind::InvalidInput,
            "it appends (O_APPEND), whatever the offset".to_owned(),
        );
    }
    Ok(())
}

/// A socket that listens has no bytes to give and no end.
pub(crate) fn refuse_listener() -> Error {
    let text = "it listens for connections, and has no bytes of its own";
    Error::input(Side::Source, io::ErrorKind::NotConnected, text)
}

impl Wishes {
    /// The one backend that the options insist on, if they do.
    pub(crate) fn wanted(&self) -> Option<Backend> {
        let shared = (self.reflink == Reflink::Always).then_some(Backend::Reflink);
        self.only.or(shared)
    }

    /// Whether the pair is to be moved around the page cache.
    fn around_cache(&self, src: &Facts, dst: &Facts) -> bool {
        let asked = self.cache == Cache::Bypass || self.only == Some(Direct);
        asked || src.is_direct() || dst.is_direct()
    }

    /// Whether the options let a backend take part.
    fn allow(&self, backend: Backend, src: &Facts, dst: &Facts) -> std::result::Result<(), Unfit> {
        if self.wanted().is_some_and(|wanted| wanted != backend) || self.denied[backend as usize] {
            return Err(Unfit::Denied);
        }
        match backend {
            Backend::Reflink if self.reflink == Reflink::Never => return Err(Unfit::Denied),
            Backend::Reflink => {}
            // Shared or an error, also where another backend was asked for.
            _ if self.reflink == Reflink::Always => return Err(Unfit::Denied),
            // On a filesystem that can share, this call shares when it likes.
            CopyFileRange if self.reflink == Reflink::Never && src.may_share_extents() => {
                return Err(Unfit::Denied);
            }
            Direct if !self.around_cache(src, dst) => return Err(Unfit::NotAsked),
            _ => {}
        }
        let aliases = matches!(backend, Sendfile | Splice)
            && src.kind().is_cached()
            && dst.kind().is_stream()
            && !src.is_sealed();
        if aliases && self.consistency == Consistency::Snapshot {
            return Err(Unfit::Aliases);
        }
        Ok(())
    }
}
