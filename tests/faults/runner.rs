//! One transfer with this binary's own system calls under a script.

use std::os::fd::{AsFd, BorrowedFd};

use bytes::Bytes;
use zcio::{Backend, Side, Status};

use crate::bench::Bench;
use crate::case::{Case, Made, Run, open_descriptors};
use crate::hooks::{self, Stage};
use crate::plan::Script;
use crate::sources::Sources;

/// The backends that would be tried where files look as the case has them look.
pub(crate) fn look(case: &Case, sources: &Sources) -> Vec<Backend> {
    let mut bench = case.bench(sources);
    let (mut stage, src, dst) = stage(case, &mut bench, Script::default());
    hooks::run(&mut stage, || case.look(src, dst))
}

fn stage<'a>(
    case: &Case,
    bench: &'a mut Bench,
    script: Script,
) -> (Stage<'a>, BorrowedFd<'a>, BorrowedFd<'a>) {
    let numbers = case.numbers(bench);
    let stage = Stage {
        script,
        numbers,
        peers: &mut bench.peers,
        shares: case.shares,
        polled: None,
    };
    (stage, bench.src.as_fd(), bench.dst.as_fd())
}

/// Transfers everything under `script`, and holds what became of it to the oracle.
pub(crate) fn run(case: &Case, script: Script, sources: &Sources) -> Run {
    run_with(case, script, sources, |src, dst| Made {
        result: case.options.transfer(src, dst, u64::MAX),
        handed_back: Bytes::new(),
    })
}

/// As [`run`], step by step, and told which sides would have been waited for. After
/// `most` steps that moved something, it is broken off.
pub(crate) fn run_by_steps(
    case: &Case,
    script: Script,
    sources: &Sources,
    most: Option<u32>,
) -> (Run, Vec<Side>) {
    let mut blocked = Vec::new();
    let run = run_with(case, script, sources, |src, dst| {
        let mut handed_back = Bytes::new();
        let mut go = || {
            let mut transfer = case.options.start(src, dst, u64::MAX)?;
            let mut moved = 0;
            loop {
                match transfer.advance()? {
                    Status::Moved(_) => moved += 1,
                    Status::Blocked(side) => blocked.push(side),
                    Status::Finished(_) => break,
                }
                if most == Some(moved) {
                    handed_back = transfer.reclaim()?;
                    break;
                }
            }
            Ok(transfer.report())
        };
        let result = go();
        Made {
            result,
            handed_back,
        }
    });
    (run, blocked)
}

fn run_with(
    case: &Case,
    script: Script,
    sources: &Sources,
    work: impl FnOnce(BorrowedFd<'_>, BorrowedFd<'_>) -> Made,
) -> Run {
    let mut bench = case.bench(sources);
    // The feeder is closed when the last byte is in.
    let feeder = bench.peers.feeder();
    let open = || open_descriptors() & !feeder;
    let before = open();
    let (mut stage, src, dst) = stage(case, &mut bench, script);
    let made = hooks::run(&mut stage, || work(src, dst));
    let (script, polled) = (stage.script, stage.polled);
    let leaks = open() != before;
    Run::new(made, script, polled, leaks, bench)
}
