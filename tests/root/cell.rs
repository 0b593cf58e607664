//! One transfer with a side on a filesystem, held to the oracle.

use std::fmt::Write as _;
use std::io::Write as _;

use zcio::{Backend, Error, ErrorKind, Report, Side, TransferOptions};

use super::disk::{Disk, drop_cached};
use crate::common::{
    Before, Claim, Content, Data, Destination, DestinationKind, Source, SourceKind, oracle,
};

/// What stands at the two ends, seen from the filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// Source and destination on it.
    Same,
    ToMemfd,
    ToPipe,
    ToTcp,
    FromMemfd,
    FromPipe,
    FromTcp,
}

impl Ends {
    pub(crate) const ALL: [Ends; 7] = [
        Ends::Same,
        Ends::ToMemfd,
        Ends::ToPipe,
        Ends::ToTcp,
        Ends::FromMemfd,
        Ends::FromPipe,
        Ends::FromTcp,
    ];
    /// The source alone is on the filesystem.
    pub(crate) const FROM_IT: [Ends; 3] = [Ends::ToMemfd, Ends::ToPipe, Ends::ToTcp];
    /// The destination alone is on the filesystem.
    pub(crate) const INTO_IT: [Ends; 3] = [Ends::FromMemfd, Ends::FromPipe, Ends::FromTcp];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Ends::Same => "file→file",
            Ends::ToMemfd => "file→memfd",
            Ends::ToPipe => "file→pipe",
            Ends::ToTcp => "file→tcp",
            Ends::FromMemfd => "memfd→file",
            Ends::FromPipe => "pipe→file",
            Ends::FromTcp => "tcp→file",
        }
    }

    pub(crate) fn source_is_file(self) -> bool {
        !matches!(self, Ends::FromPipe | Ends::FromTcp)
    }

    pub(crate) fn destination_is_file(self) -> bool {
        !matches!(self, Ends::ToPipe | Ends::ToTcp)
    }

    /// The source: on the disk the file `source`, which was made before.
    pub(crate) fn source(self, disk: &Disk, content: &Content) -> Source {
        let kind = match self {
            Ends::FromMemfd => SourceKind::Memfd,
            Ends::FromPipe => SourceKind::Pipe,
            Ends::FromTcp => SourceKind::Tcp,
            _ => return disk.open(content.clone()),
        };
        let Content::Known(data, len) = content else {
            panic!("only known bytes flow");
        };
        kind.make(*data, *len).expect("a source")
    }

    pub(crate) fn destination(self, disk: &Disk) -> Destination {
        let kind = match self {
            Ends::ToMemfd => DestinationKind::Memfd,
            Ends::ToPipe => DestinationKind::Pipe,
            Ends::ToTcp => DestinationKind::Tcp,
            _ => return disk.destination("destination"),
        };
        kind.make().expect("a destination")
    }

    /// Whether a backend serves these ends where nothing goes wrong: what is expected of it, said
    /// apart from the probe.
    pub(crate) fn served_by(self, backend: Backend, disk: &Disk, by_offset: bool) -> bool {
        match backend {
            Backend::Reflink => self == Ends::Same && disk.fs.shares(),
            Backend::CopyFileRange => self == Ends::Same,
            Backend::Sendfile => {
                self.source_is_file() && !(by_offset && self.destination_is_file())
            }
            Backend::Mmap => self.source_is_file(),
            // A memfd takes it where tmpfs does, and then so does every disk here.
            Backend::Direct => disk.takes_direct,
            _ => true,
        }
    }
}

/// What became of a transfer.
pub(crate) type Moved = Result<Report, Box<Error>>;

/// Every backend by itself, and the probe's choice.
pub(crate) fn choices() -> impl Iterator<Item = Option<Backend>> {
    let forced = Backend::ALL.into_iter().map(Some);
    std::iter::once(None).chain(forced)
}

/// Known bytes for a source, and how many.
pub(crate) fn content(len: u64) -> Content {
    Content::Known(Data::new(len), len)
}

/// Options that force a backend, or leave it to the probe.
pub(crate) fn options(backend: Option<Backend>) -> TransferOptions {
    let mut options = TransferOptions::new();
    if let Some(backend) = backend {
        options.backend(backend);
    }
    options
}

/// What is to be moved, and from where to where.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) options: TransferOptions,
    /// Explicit offsets; `None` stands for the descriptor's own position, which is 0.
    pub(crate) offsets: (Option<u64>, Option<u64>),
    pub(crate) len: u64,
    /// The source's bytes can be read again afterwards.
    pub(crate) readable: bool,
    /// What was written is looked at as the device has it.
    pub(crate) on_device: bool,
}

impl Cell {
    pub(crate) fn new(ends: Ends, backend: Option<Backend>) -> Self {
        Self {
            options: options(backend),
            offsets: (None, None),
            len: u64::MAX,
            readable: true,
            on_device: ends.destination_is_file() && ends != Ends::ToMemfd,
        }
    }

    /// Transfers, and holds what became of it to the oracle. Both ends are closed by it.
    pub(crate) fn run(&self, source: Source, destination: Destination) -> Result<Moved, String> {
        let before = Before::new(&source, &destination);
        let mut options = self.options.clone();
        let (from, to) = self.offsets;
        from.map(|at| options.src_offset(at));
        to.map(|at| options.dst_offset(at));
        let result = options.transfer(&source, &destination, self.len);
        let claim = Claim::from(&result);
        if self.on_device {
            nix::unistd::fsync(&destination).map_err(|e| format!("fsync(2): {e}"))?;
            drop_cached(&destination);
        }
        let at = from.unwrap_or(0);
        let destination = match to {
            Some(to) => destination.delivered_from(to),
            None => destination,
        };
        let verdict = if self.readable {
            before.verdict(source, destination, self.offsets, at, &claim)
        } else {
            let left = before.leaves(&source, &destination, self.offsets, &claim);
            left.and(oracle::arrived(&source.content, destination, at, &claim))
        };
        let wrong = |breach| format!("{breach}; it says {result:?}");
        verdict.map_err(wrong)?;
        Ok(result.map_err(Box::new))
    }
}

/// That nothing was done: this backend does not serve the pair.
pub(crate) fn is_unfit(result: &Moved) -> Result<(), String> {
    match result {
        Err(e) if e.kind() == ErrorKind::Unfit && e.delivered() == 0 => Ok(()),
        other => Err(format!("expected not to serve: {other:?}")),
    }
}

/// That all of it arrived.
pub(crate) fn is_whole(result: &Moved, len: u64) -> Result<(), String> {
    match result {
        Ok(report) if report.bytes == len => Ok(()),
        other => Err(format!("expected all {len} bytes: {other:?}")),
    }
}

/// That it failed with one of these errnos at this side; how far it came.
pub(crate) fn fails(result: &Moved, side: Side, errnos: &[i32]) -> Result<u64, String> {
    let Err(error) = result else {
        return Err(format!("expected to fail: {result:?}"));
    };
    let errno = error.io_error().and_then(std::io::Error::raw_os_error);
    let typed = error.kind() == ErrorKind::Io
        && error.side() == Some(side)
        && errno.is_some_and(|n| errnos.contains(&n));
    if typed {
        Ok(error.delivered())
    } else {
        Err(format!(
            "expected the {side} to fail with {errnos:?}: {error:?}"
        ))
    }
}

/// A test's table: what each backend did, and what was wrong with it.
#[derive(Debug)]
pub(crate) struct Sheet {
    what: &'static str,
    wrong: Vec<String>,
}

impl Sheet {
    pub(crate) fn new(what: &'static str) -> Self {
        let wrong = Vec::new();
        Self { what, wrong }
    }

    /// One row, printed past the capture of the test harness: what became of each choice of a
    /// backend in a word, or what was wrong.
    pub(crate) fn row(
        &mut self,
        fs: &str,
        ends: &str,
        mut body: impl FnMut(Option<Backend>) -> Result<String, String>,
    ) {
        let mut text = format!("root | {:<12} | {fs:<7} | {ends:<10}", self.what);
        for backend in choices() {
            let by = backend.map_or("auto", Backend::name);
            let word = body(backend).unwrap_or_else(|breach| {
                let what = self.what;
                self.wrong
                    .push(format!("{what}, {fs}, {ends}, {by}: {breach}"));
                "WRONG".to_owned()
            });
            let _ = write!(text, " | {by} {word}");
        }
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// Fails the test where anything was wrong.
    pub(crate) fn conclude(self) {
        let count = self.wrong.len();
        assert!(count == 0, "{count} wrong:\n{}", self.wrong.join("\n"));
    }
}

/// What a transfer came to, in a word.
pub(crate) fn outcome(backend: Option<Backend>, result: &Moved) -> String {
    match (backend, result) {
        (None, Ok(report)) => report.backend.to_string(),
        (Some(_), Ok(_)) => "ok".to_owned(),
        (_, Err(error)) if error.kind() == ErrorKind::Unfit && error.delivered() == 0 => {
            "–".to_owned()
        }
        (_, Err(error)) => {
            let side = match error.side() {
                Some(Side::Source) => "src",
                Some(Side::Destination) => "dst",
                None => "?",
            };
            let errno = error.io_error().and_then(std::io::Error::raw_os_error);
            let errno = nix::errno::Errno::from_raw(errno.unwrap_or(0));
            format!("{errno:?}({side}) at {}", error.delivered())
        }
    }
}
