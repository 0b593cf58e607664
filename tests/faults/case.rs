//! A transfer to be tried, what became of it, and the oracle that every one is held to.

use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use zcio::{Backend, Cache, ErrorKind, Report, Result, Side, TransferOptions};

use crate::bench::{Bench, End, Held};
use crate::common::skipped;
use crate::plan::{Numbers, Script};
use crate::sources::{CHUNK, Medium, OFFSETS, Sources};

/// A transfer to be tried: a pair, how it is asked for, and what then is at work first.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) pair: (End, End),
    pub(crate) by_offset: bool,
    pub(crate) options: TransferOptions,
    /// How it was asked for, in words.
    pub(crate) asked: String,
    /// The backends that will be tried, in order.
    pub(crate) chain: Vec<Backend>,
    /// The files look as if they could share extents.
    pub(crate) shares: bool,
}

impl Case {
    pub(crate) fn name(&self) -> String {
        let (from, to) = (self.pair.0.name(), self.pair.1.name());
        let place = if self.by_offset { " by offset" } else { "" };
        format!("{from} to {to}{place}, {}", self.asked)
    }

    /// Every way to ask for a transfer of this pair: each backend alone, and each with those after
    /// it to fall back on.
    pub(crate) fn all(
        pair: (End, End),
        by_offset: bool,
        sources: &Sources,
        look: Look<'_>,
    ) -> Vec<Case> {
        let mut base = TransferOptions::new();
        base.chunk_size(NonZeroUsize::new(CHUNK).expect("not zero"));
        if by_offset && pair.0 == End::File {
            base.src_offset(OFFSETS.0);
        }
        if by_offset && pair.1 == End::File {
            base.dst_offset(OFFSETS.1);
        }
        let mut cases = Vec::new();
        let mut add = |options: &TransferOptions, asked: String, shares| {
            let case = Case {
                pair,
                by_offset,
                options: options.clone(),
                asked,
                chain: Vec::new(),
                shares,
            };
            let chain = look(&case, sources);
            if !chain.is_empty() {
                cases.push(Case { chain, ..case });
            }
        };
        // Extents are shared from block to block only.
        let alone = Backend::ALL
            .into_iter()
            .filter(|b| !by_offset || *b != Backend::Reflink);
        for backend in alone {
            let only = base.clone().backend(backend).clone();
            add(
                &only,
                format!("{backend} alone"),
                backend == Backend::Reflink,
            );
        }
        let bench = Bench::new(pair, by_offset, Medium::Disk, sources);
        let probe = base
            .probe(&bench.src, &bench.dst)
            .expect("a pair that can be served");
        let mut left = base.clone();
        // What read/write cannot do, nothing else is tried for.
        let candidates: Vec<_> = probe.candidates().collect();
        for backend in candidates {
            if backend == Backend::ReadWrite || by_offset && pair.1 != End::File {
                left.deny(backend);
                continue;
            }
            add(&left, format!("from {backend} on"), false);
            left.deny(backend);
        }
        if matches!(pair, (End::Tcp, End::Tcp) | (End::Unix, End::File)) && !by_offset {
            // More than a pipe holds by default: then a larger one is asked for.
            let large = NonZeroUsize::new(2 * CHUNK).expect("not zero");
            let mut large = base.clone().chunk_size(large).clone();
            let alone = large.clone().backend(Backend::Splice).clone();
            add(&alone, "splice alone, large pieces".to_owned(), false);
            if pair.1 == End::File {
                large.deny(Backend::ReadWrite);
            }
            add(&large, "from splice on, large pieces".to_owned(), false);
        }
        if pair == (End::File, End::File) {
            if !by_offset {
                add(&base, "sharing first".to_owned(), true);
            }
            add(
                base.clone().cache(Cache::DropBehind),
                "dropping behind".to_owned(),
                false,
            );
        }
        if pair.0 == End::File || pair.1 == End::File {
            add(
                base.clone().cache(Cache::Bypass),
                "bypassing the cache".to_owned(),
                false,
            );
        }
        cases
    }

    /// As a caller asks who leaves the choice to the probe.
    pub(crate) fn by_choice(pair: (End, End), sources: &Sources, look: Look<'_>) -> Case {
        let mut options = TransferOptions::new();
        options.chunk_size(NonZeroUsize::new(CHUNK).expect("not zero"));
        let mut case = Case {
            pair,
            by_offset: false,
            options,
            asked: "by choice".to_owned(),
            chain: Vec::new(),
            shares: false,
        };
        case.chain = look(&case, sources);
        case
    }

    /// The same with a deadline, from now on.
    pub(crate) fn limited(&self, limit: Duration) -> Case {
        let mut case = self.clone();
        case.options.deadline(Instant::now() + limit);
        case
    }

    fn medium(&self) -> Medium {
        if self.asked.contains("direct") || self.asked.contains("bypass") {
            Medium::Memory
        } else {
            Medium::Disk
        }
    }

    /// A pair for this transfer.
    pub(crate) fn bench(&self, sources: &Sources) -> Bench {
        Bench::new(self.pair, self.by_offset, self.medium(), sources)
    }

    pub(crate) fn numbers(&self, bench: &Bench) -> Numbers {
        Numbers {
            src: bench.src.as_raw_fd(),
            dst: bench.dst.as_raw_fd(),
            reopens: self.chain.first() == Some(&Backend::Direct),
        }
    }

    /// The backends that would be tried, as `probe` says of a pair for it.
    pub(crate) fn look(&self, src: BorrowedFd<'_>, dst: BorrowedFd<'_>) -> Vec<Backend> {
        let probe = self.options.probe(src, dst);
        probe
            .expect("a pair that can be served")
            .candidates()
            .collect()
    }
}

/// Says which backends would be tried.
pub(crate) type Look<'a> = &'a dyn Fn(&Case, &Sources) -> Vec<Backend>;

/// What a transfer said of itself, and what was taken back from it.
pub(crate) struct Made {
    pub(crate) result: Result<Report>,
    pub(crate) handed_back: Bytes,
}

/// What became of one transfer.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) result: Result<Report>,
    pub(crate) script: Script,
    /// The side that poll(2) last waited for.
    pub(crate) polled: Option<Side>,
    /// The bytes that there were to move.
    pub(crate) whole: u64,
    /// What the oracle found wrong.
    pub(crate) breach: Option<String>,
}

impl Run {
    /// Holds what was made of a pair to the oracle.
    pub(crate) fn new(
        made: Made,
        script: Script,
        polled: Option<i32>,
        leaks: bool,
        bench: Bench,
    ) -> Self {
        let polled = match polled {
            Some(fd) if fd == bench.src.as_raw_fd() => Some(Side::Source),
            Some(fd) if fd == bench.dst.as_raw_fd() => Some(Side::Destination),
            _ => None,
        };
        let whole = bench.whole();
        let breach = match bench.settle() {
            _ if leaks => Err("descriptors are left open".to_owned()),
            Ok(held) => accounts(&made, held, whole),
            Err(breach) => Err(breach),
        };
        Run {
            result: made.result,
            script,
            polled,
            whole: whole.len() as u64,
            breach: breach.err(),
        }
    }
}

impl Run {
    /// Whether this run, without a fault, went as the probe foresaw: all bytes, by the first
    /// backend. Where an older kernel refuses that pair to it, it is said so aloud; anything else
    /// fails the test.
    pub(crate) fn is_as_foreseen(&self, case: &Case) -> bool {
        let name = case.name();
        assert_eq!(self.breach, None, "{name}, without a fault");
        match &self.result {
            Ok(report) if report.refused().is_empty() => {
                assert_eq!(report.bytes, self.whole, "{name}, without a fault");
                true
            }
            Ok(report) => {
                skipped(&name, format!("refused here: {:?}", report.refused()));
                false
            }
            Err(error) if error.kind() == ErrorKind::Unfit && error.delivered() == 0 => {
                skipped(&name, error);
                false
            }
            Err(error) => panic!("{name}, without a fault: {error}"),
        }
    }
}

/// The descriptors that are open in this thread's table, which has few, as bits.
pub(crate) fn open_descriptors() -> u64 {
    let is_open = |fd| {
        // SAFETY: F_GETFD takes no pointer, and any number will do.
        unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
    };
    (0..64)
        .filter(|fd| is_open(*fd))
        .fold(0, |bits, fd| bits | 1 << fd)
}

/// Taken = delivered + handed back, and the counts are the ends' own.
fn accounts(made: &Made, held: Held, whole: &[u8]) -> std::result::Result<(), String> {
    let result = &made.result;
    let (delivered, back): (u64, &[u8]) = match result {
        Ok(report) => (report.bytes, &made.handed_back),
        Err(error) => (error.delivered(), error.undelivered()),
    };
    if delivered != held.delivered {
        return Err(format!(
            "claims {delivered} bytes, the destination has {}",
            held.delivered
        ));
    }
    if delivered + back.len() as u64 != held.taken {
        let back = back.len();
        let taken = held.taken;
        return Err(format!(
            "{taken} bytes taken, {delivered} delivered and {back} handed back"
        ));
    }
    let expected = &whole[delivered as usize..][..back.len()];
    if back != expected {
        return Err("what was handed back is not what comes next".to_owned());
    }
    if let Ok(report) = result {
        let shares: u64 = report.shares().iter().map(|(_, bytes)| bytes).sum();
        if shares != report.bytes {
            return Err(format!("shares of {shares} in {} bytes", report.bytes));
        }
    }
    Ok(())
}
