//! The same faults through the real kernel, by seccomp: each call of a transfer refused by a
//! listener, one at a time, and whole families of calls refused by a profile.
//!
//! Filters hold for one thread and cannot be taken off, so each transfer has a thread of its own.
//! No privilege is needed: `no_new_privs` is enough.
// Filters and their listeners have no safe wrapper among the dependencies.
#![allow(unsafe_code)]

#[path = "faults/bench.rs"]
mod bench;
#[allow(dead_code)] // What is shared with the faults within a process, it uses all of.
#[path = "faults/case.rs"]
mod case;
mod common;
#[allow(dead_code)]
#[path = "faults/expect.rs"]
mod expect;
#[path = "seccomp/filter.rs"]
mod filter;
#[allow(dead_code)]
#[path = "faults/plan.rs"]
mod plan;
#[path = "seccomp/profile.rs"]
mod profile;
#[path = "faults/sources.rs"]
mod sources;
#[path = "seccomp/supervise.rs"]
mod supervise;
#[path = "faults/table.rs"]
mod table;
#[allow(dead_code)]
#[path = "faults/tally.rs"]
mod tally;

use std::os::fd::AsFd;

use bench::PAIRS;
use case::Case;
use common::{skipped, within};
use expect::Scene;
use plan::{Answer, Rule, Script, Site};
use sources::Sources;
use tally::{Met, Tally};

/// The backends that would be tried, as the probe says.
fn look(case: &Case, sources: &Sources) -> Vec<zcio::Backend> {
    // No filesystem is made to look like another here.
    if case.shares {
        return Vec::new();
    }
    let bench = case.bench(sources);
    case.look(bench.src.as_fd(), bench.dst.as_fd())
}

#[test]
fn the_kernel_fails_one_call() {
    let tally = within(60, |pulse| {
        let (sources, mut tally) = (Sources::new(), Tally::default());
        for pair in PAIRS {
            let mut cases = Case::all(pair, false, &sources, &look);
            cases.retain(|case| case.asked.ends_with(" alone"));
            cases.push(Case::by_choice(pair, &sources, &look));
            for case in cases {
                pulse.at(case.name());
                let clean = match supervise::run(&case, Script::default(), &sources) {
                    Ok(run) => run,
                    Err(reason) => {
                        skipped("the_kernel_fails_one_call", format!("seccomp: {reason}"));
                        return None;
                    }
                };
                if !clean.is_as_foreseen(&case) {
                    continue;
                }
                for site in Site::ALL {
                    let seen = clean.script.seen(site);
                    let errnos = Answer::ALL
                        .into_iter()
                        .filter(|answer| matches!(answer, Answer::Errno(_)));
                    for answer in errnos {
                        for at in [1, 2, 8].into_iter().filter(|at| *at <= seen) {
                            let script = Script::new(&[Rule::once(site, at, answer)]);
                            let run = supervise::run(&case, script, &sources);
                            let run = run.expect("seccomp worked before");
                            assert_eq!(run.script.fired(), [1], "{}", case.name());
                            let scene = Scene::first(&case, at > 1);
                            tally.judge(&case, Met { site, answer, at }, &scene, &run, &clean);
                        }
                    }
                }
            }
            assert!(sources.are_unchanged(), "the source was written to");
        }
        Some(tally)
    });
    if let Some(tally) = tally {
        tally.conclude("the kernel fails one call", 1_600);
    }
}

/// What a profile leaves of a transfer of every pair: the bytes.
#[test]
fn profiles_that_leave_read_and_write() {
    let mut text =
        "| profile | pair | moved by | refused on the way |\n|---|---|---|---|\n".to_owned();
    for (profile, errno) in profile::ALL {
        let rows = within(60, move |pulse| {
            let (sources, mut rows) = (Sources::new(), String::new());
            for pair in PAIRS {
                let case = Case::by_choice(pair, &sources, &look);
                pulse.at(format!("{profile:?}, {}", case.name()));
                let run = match profile::run(&case, profile, errno, &sources) {
                    Ok(run) => run,
                    Err(reason) => {
                        skipped("profiles", format!("seccomp: {reason}"));
                        return None;
                    }
                };
                let what = format!("{profile:?}, errno {errno}, {}", case.name());
                assert_eq!(run.breach, None, "{what}: {:?}", run.result);
                let report = run.result.unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(report.bytes, run.whole, "{what}: {report:?}");
                rows += &profile::row(&case, profile, errno, &report);
            }
            Some(rows)
        });
        let Some(rows) = rows else { return };
        text += &rows;
    }
    tally::publish("profiles", &text);
}
