//! `std::io::copy` under the same faults, for comparison: not asserted to be right, but counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe, catch_unwind};

use crate::bench::{Bench, End};
use crate::case::Run;
use crate::hooks::{self, Stage};
use crate::plan::{Answer, Numbers, Script, Site};
use crate::sources::{Medium, Sources};

/// What became of a copy, as its caller can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// All bytes arrived, and it said so.
    All,
    /// It ended short with the true count, where the source seemed to end.
    Ended,
    /// An error, and the count is the true one.
    ErrorWithCount,
    /// An error after bytes were delivered, and nothing says how many.
    ErrorWithoutCount,
    /// Bytes were taken from the source and neither delivered nor given back.
    Lost,
    /// The destination holds something else than it said, or than it should.
    Wrong,
    Panicked,
}

impl Outcome {
    const ALL: [(Outcome, &'static str); 7] = [
        (Outcome::All, "all bytes"),
        (Outcome::Ended, "ended there"),
        (Outcome::ErrorWithCount, "error, count known"),
        (Outcome::ErrorWithoutCount, "error, count unknown"),
        (Outcome::Lost, "bytes lost"),
        (Outcome::Wrong, "count or bytes wrong"),
        (Outcome::Panicked, "panic"),
    ];
}

/// One copy of a pair by `std::io::copy` under a script.
pub(crate) fn run(pair: (End, End), script: Script, sources: &Sources) -> (Outcome, Script) {
    let mut bench = Bench::new(pair, false, Medium::Disk, sources);
    let whole = bench.whole().len() as u64;
    // Descriptors of its own, on the same descriptions: the bench looks at both ends afterwards.
    let dup = |fd: &OwnedFd| fd.try_clone().expect("a descriptor is left");
    let (src, dst) = (dup(&bench.src), dup(&bench.dst));
    let mut stage = Stage {
        script,
        numbers: Numbers {
            src: src.as_raw_fd(),
            dst: dst.as_raw_fd(),
            reopens: false,
        },
        peers: &mut bench.peers,
        shares: false,
        polled: None,
    };
    let copied = catch_unwind(AssertUnwindSafe(|| {
        hooks::run(&mut stage, || from(pair, src, dst))
    }));
    let script = stage.script;
    let outcome = match (copied, bench.settle()) {
        (Err(_), _) => Outcome::Panicked,
        (_, Err(_)) => Outcome::Wrong,
        (Ok(copied), Ok(held)) => match copied {
            // From a stream they are gone. In a file they still are, and only its position is wrong.
            _ if held.taken != held.delivered && pair.0 != End::File => Outcome::Lost,
            Ok(count) if count != held.delivered => Outcome::Wrong,
            Ok(count) if count == whole => Outcome::All,
            Ok(_) => Outcome::Ended,
            Err(_) if held.taken == 0 => Outcome::ErrorWithCount,
            Err(_) => Outcome::ErrorWithoutCount,
        },
    };
    (outcome, script)
}

/// What became of one of our transfers, by the same measure.
pub(crate) fn of(run: &Run) -> Outcome {
    match (&run.breach, &run.result) {
        (Some(_), _) => Outcome::Wrong,
        (None, Ok(report)) if report.bytes == run.whole => Outcome::All,
        (None, Ok(_)) => Outcome::Ended,
        (None, Err(_)) => Outcome::ErrorWithCount,
    }
}

/// `std::io::copy` between the standard library's own types, by which it chooses its way.
fn from(pair: (End, End), src: OwnedFd, dst: OwnedFd) -> io::Result<u64> {
    match pair.0 {
        End::File | End::Pipe => to(pair.1, &mut File::from(src), dst),
        End::Tcp => to(pair.1, &mut TcpStream::from(src), dst),
        End::Unix => to(pair.1, &mut UnixStream::from(src), dst),
    }
}

fn to(end: End, src: &mut impl io::Read, dst: OwnedFd) -> io::Result<u64> {
    match end {
        End::File | End::Pipe => io::copy(src, &mut File::from(dst)),
        End::Tcp => io::copy(src, &mut TcpStream::from(dst)),
        End::Unix => io::copy(src, &mut UnixStream::from(dst)),
    }
}

/// Keeps the messages of `std::io::copy`'s own failed assertions, which are counted, out of the
/// output.
pub(crate) fn silence_its_panics() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let own = info
            .location()
            .is_some_and(|at| at.file().contains("kernel_copy"));
        if !own {
            usual(info);
        }
    }));
}

/// Outcomes by answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcomes(BTreeMap<Answer, BTreeMap<Outcome, u64>>);

impl Outcomes {
    pub(crate) fn add(&mut self, answer: Answer, outcome: Outcome) {
        *self
            .0
            .entry(answer)
            .or_default()
            .entry(outcome)
            .or_default() += 1;
    }

    pub(crate) fn count(&self, outcome: Outcome) -> u64 {
        self.0.values().filter_map(|row| row.get(&outcome)).sum()
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.values().flat_map(BTreeMap::values).sum()
    }
}

/// Both, side by side: one row an answer.
pub(crate) fn markdown(std: &Outcomes, ours: &Outcomes) -> String {
    let mut text = "| answer |".to_owned();
    for (_, name) in Outcome::ALL {
        let _ = write!(text, " {name} |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(Outcome::ALL.len()));
    let cell = |of: &Outcomes, answer, outcome| {
        let row: Option<&BTreeMap<_, _>> = of.0.get(&answer);
        row.and_then(|row| row.get(&outcome)).copied().unwrap_or(0)
    };
    for answer in Answer::ALL {
        let _ = write!(text, "\n| {} |", answer.name());
        for (outcome, _) in Outcome::ALL {
            let (std, ours) = (cell(std, answer, outcome), cell(ours, answer, outcome));
            let _ = write!(text, " {std} : {ours} |");
        }
    }
    let _ = write!(text, "\n| all |");
    for (outcome, _) in Outcome::ALL {
        let _ = write!(text, " {} : {} |", std.count(outcome), ours.count(outcome));
    }
    text.push('\n');
    text
}

/// The sites at which a copy of this pair calls, each with how often.
pub(crate) fn sites(pair: (End, End), sources: &Sources) -> Vec<(Site, u32)> {
    let (outcome, script) = run(pair, Script::default(), sources);
    assert_eq!(
        outcome,
        Outcome::All,
        "std::io::copy without a fault, {pair:?}"
    );
    let all = Site::ALL.into_iter().map(|site| (site, script.seen(site)));
    all.filter(|(_, seen)| *seen > 0).collect()
}
