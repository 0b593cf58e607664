//! Nothing is lost, whatever the kernel answers: every call of a transfer, made to fail in every
//! way, one at a time and in pairs.
//!
//! This binary has its own `read`, `splice` and so on in front of the C library's, so that the
//! crate runs as it is, against answers that a kernel seldom gives.
// Definitions in front of the C library's cannot be made without it.
#![allow(unsafe_code)]

#[path = "faults/bench.rs"]
mod bench;
#[path = "faults/case.rs"]
mod case;
mod common;
#[path = "faults/expect.rs"]
mod expect;
#[path = "faults/hooks.rs"]
mod hooks;
#[path = "common/interpose.rs"]
mod interpose;
#[path = "faults/plan.rs"]
mod plan;
#[path = "faults/runner.rs"]
mod runner;
#[path = "faults/sources.rs"]
mod sources;
#[path = "faults/std_copy.rs"]
mod std_copy;
#[path = "faults/table.rs"]
mod table;
#[path = "faults/tally.rs"]
mod tally;

use std::time::Duration;
use std::{panic, thread};

use bench::{End, PAIRS};
use case::{Case, Run};
use common::within;
use expect::{Expect, Scene};
use plan::{Answer, Rule, Script, Site, When};
use runner::{run, run_by_steps};
use sources::Sources;
use std_copy::{Outcome, Outcomes};
use tally::{Met, Tally};
use zcio::Side;

/// Every case of these pairs, by the files' own positions and by offset, with its run without a
/// fault. The pairs of each list go through in a thread of their own.
fn every_case(
    name: &'static str,
    body: impl Fn(&Case, &Run, &Sources, &mut Tally) + Copy + Send + Sync + 'static,
) -> Tally {
    let shares = [&PAIRS[..1], &PAIRS[1..4], &PAIRS[4..]];
    let matrix = move |pairs: &'static [(End, End)]| {
        let go = move |pulse: &common::Pulse| {
            let (sources, mut tally) = (Sources::new(), Tally::default());
            let ways = pairs
                .iter()
                .flat_map(|pair| [(*pair, false), (*pair, true)]);
            for (pair, by_offset) in ways {
                let files = pair.0 == End::File || pair.1 == End::File;
                if by_offset && !files {
                    continue;
                }
                for case in Case::all(pair, by_offset, &sources, &runner::look) {
                    let what = format!("{name}: {}", case.name());
                    pulse.at(what.clone());
                    let clean = run(&case, Script::default(), &sources);
                    if !clean.is_as_foreseen(&case) {
                        continue;
                    }
                    body(&case, &clean, &sources, &mut tally);
                    assert!(sources.are_unchanged(), "{what}: the source was written to");
                }
            }
            tally
        };
        within(60, go)
    };
    thread::scope(|scope| {
        let threads = shares.map(|pairs| scope.spawn(move || matrix(pairs)));
        let mut all = Tally::default();
        for thread in threads {
            let tally = thread.join();
            all.merge(tally.unwrap_or_else(|cause| panic::resume_unwind(cause)));
        }
        all
    })
}

/// The calls of a site that are made to fail: the first eight, and the last two, of which the very
/// last meets the source's end. By offset, where nothing else differs, some of these.
fn calls(case: &Case, seen: u32) -> impl Iterator<Item = u32> + use<> {
    let last = seen.saturating_sub(1).max(1)..=seen;
    let all = (1..=seen.min(8)).chain(last.filter(|at| *at > 8));
    let by_offset = case.by_offset;
    all.filter(move |at| !by_offset || matches!(at, 1 | 2 | 8) || *at == seen)
}

/// What a site can be made to answer.
fn answers(site: Site) -> impl Iterator<Item = Answer> {
    let all = Answer::ALL.into_iter();
    all.filter(move |answer| answer.is_for(site))
}

#[test]
fn one_fault_at_every_call() {
    let tally = every_case("one fault", |case, clean, sources, tally| {
        for site in Site::ALL {
            for answer in answers(site) {
                for at in calls(case, clean.script.seen(site)) {
                    let script = Script::new(&[Rule::once(site, at, answer)]);
                    let run = run(case, script, sources);
                    if run.script.fired() == [0] {
                        continue;
                    }
                    let scene = Scene::first(case, at > 1);
                    let met = Met { site, answer, at };
                    tally.judge(case, met, &scene, &run, clean);
                }
            }
        }
    });
    tally.conclude("one fault at every call", 15_000);
}

/// Every second call of a site answers EAGAIN; then the wait for it fails.
#[test]
fn a_fault_while_waiting() {
    let tally = every_case("waiting", |case, clean, sources, tally| {
        // Nothing is tried instead of waiting.
        if case.chain.len() > 1 || case.by_offset {
            return;
        }
        let scene = Scene::first(case, true);
        for site in Site::ALL {
            let Some(side) = scene.blocks(site).filter(|_| clean.script.seen(site) > 0) else {
                continue;
            };
            // With both sides to choose from, the source is looked at first.
            let ambiguous = scene.is_ambiguous(site);
            let when = if ambiguous {
                When::TwoOfThree
            } else {
                When::EveryOther
            };
            let again = Rule::new(site, when, Answer::Errno(libc::EAGAIN));
            let clean = run(case, Script::new(&[again]), sources);
            // The other numbers are one class with these.
            let told = [
                libc::EINTR,
                libc::EAGAIN,
                libc::EBADF,
                libc::EIO,
                libc::ENOMEM,
            ];
            let told = told.map(Answer::Errno).into_iter().chain([Answer::Zero]);
            for answer in told {
                for at in 1..=clean.script.seen(Site::Poll).min(8) {
                    let fault = Rule::once(Site::Poll, at, answer);
                    let run = run(case, Script::new(&[again, fault]), sources);
                    assert_eq!(
                        run.script.fired()[1],
                        1,
                        "{}: call {at} of poll",
                        case.name()
                    );
                    let looks = match scene.polls_first() {
                        // Before each of two calls, and when the second says EAGAIN first; then
                        // the destination is waited for.
                        true => at % 4 != 0,
                        false => ambiguous && at % 2 == 1,
                    };
                    let waits = Some(if looks { Side::Source } else { side });
                    let scene = Scene { waits, ..scene };
                    let met = Met {
                        site: Site::Poll,
                        answer,
                        at,
                    };
                    tally.judge(case, met, &scene, &run, &clean);
                }
            }
        }
    });
    tally.conclude("a fault while waiting", 2_000);
}

/// From one call of a site on, each is interrupted, or would block though the side is ready: nobody asks
/// for ever, and nothing is lost (B45). Where no other backend can go on, a deadline is heeded.
#[test]
fn a_fault_for_ever() {
    const SOON: Duration = Duration::from_millis(50);
    let tally = every_case("for ever", |case, clean, sources, tally| {
        let scene = Scene::first(case, true);
        let limited = !scene.fallback;
        for (site, errno) in Site::ALL
            .into_iter()
            .flat_map(|site| [(site, libc::EINTR), (site, libc::EAGAIN)])
        {
            // A wait goes on, however many signals come meanwhile. (EAGAIN, which POSIX allows poll(2),
            // Linux does not answer; it is taken for the same, at leisure.)
            if site == Site::Poll {
                continue;
            }
            let answer = Answer::Errno(errno);
            let some = calls(case, clean.script.seen(site)).filter(|at| matches!(at, 1 | 2 | 5));
            for at in some {
                let script = Script::new(&[Rule::new(site, When::From(at), answer)]);
                let run = match limited {
                    true => run(&case.limited(SOON), script, sources),
                    false => run(case, script, sources),
                };
                if run.script.fired() == [0] {
                    continue;
                }
                let verdict = scene.judge_for_ever(site, answer, limited, &run);
                tally.add(case, Met { site, answer, at }, &run, verdict);
            }
        }
    });
    tally.conclude("a fault for ever", 500);
}

/// A call is refused for good, and whatever goes on instead meets a fault of its own.
#[test]
fn a_fault_in_the_fallback() {
    let tally = every_case("fallback", |case, clean, sources, tally| {
        let refusal = Answer::Errno(libc::EINVAL);
        let refused = |site: Site, at| Rule::once(site, at, refusal);
        let scene = Scene::first(case, true);
        for site in Site::ALL {
            let seen = clean.script.seen(site);
            if scene.expect(site, refusal) != Expect::All || !scene.fallback || seen == 0 {
                continue;
            }
            for at in [1, 4].into_iter().filter(|at| *at <= seen) {
                let first = refused(site, at);
                let clean = run(case, Script::new(&[first]), sources);
                let Some(scene) = Scene::second(case, &clean) else {
                    continue;
                };
                let seen = |site: &Site| clean.script.seen(*site) > 0;
                for site in Site::ALL.into_iter().filter(seen) {
                    for answer in answers(site) {
                        for at in [1, 2] {
                            let second = Rule::once(site, at, answer);
                            let run = run(case, Script::in_order(&[first, second]), sources);
                            if run.script.fired()[1] == 0 {
                                continue;
                            }
                            let scene = Scene {
                                proven: at > 1,
                                ..scene
                            };
                            let met = Met { site, answer, at };
                            tally.judge(case, met, &scene, &run, &clean);
                        }
                    }
                }
            }
        }
    });
    tally.conclude("a fault in the fallback", 3_000);
}

/// A call moves half of what it was to, and the next one fails: what is left of a piece is handed
/// back, or goes on by the fallback.
#[test]
fn a_fault_after_half_a_piece() {
    let tally = every_case("half a piece", |case, clean, sources, tally| {
        let sites = Site::ALL.into_iter().filter(|site| site.moves());
        for site in sites.filter(|site| clean.script.seen(*site) > 2 && !case.by_offset) {
            let half = Rule::once(site, 2, Answer::Half);
            let clean = run(case, Script::new(&[half]), sources);
            let scene = Scene::first(case, true);
            for answer in answers(site) {
                let fault = Rule::once(site, 1, answer);
                let run = run(case, Script::in_order(&[half, fault]), sources);
                assert_eq!(run.script.fired(), [1, 1], "{}", case.name());
                tally.judge(
                    case,
                    Met {
                        site,
                        answer,
                        at: 3,
                    },
                    &scene,
                    &run,
                    &clean,
                );
            }
        }
    });
    tally.conclude("a fault after half a piece", 1_000);
}

/// The destination fails for good while bytes of a stream are in the private pipe, and reading them
/// back fails as well.
#[test]
fn a_fault_while_handing_back() {
    let tally = every_case("handing back", |case, clean, sources, tally| {
        let stream = case.pair.0 != End::File;
        if !stream || clean.script.seen(Site::SpliceOut) == 0 {
            return;
        }
        let gone = Answer::Errno(libc::EIO);
        let scene = Scene::first(case, true);
        for at in [1, 2, 5] {
            let first = Rule::once(Site::SpliceOut, at, gone);
            for answer in answers(Site::Reclaim) {
                let second = Rule::once(Site::Reclaim, 1, answer);
                let run = run(case, Script::in_order(&[first, second]), sources);
                assert_eq!(run.script.fired(), [1, 1], "{}", case.name());
                let expected = Expect::Fails(Some(Side::Destination));
                let verdict = expected.judge(gone, scene.backend, &run);
                let met = Met {
                    site: Site::Reclaim,
                    answer,
                    at: 1,
                };
                tally.add(case, met, &run, verdict);
            }
        }
    });
    tally.conclude("a fault while handing back", 200);
}

/// An event loop's way: nothing waits, and the side that a call would wait for is told.
#[test]
fn wherever_it_blocks() {
    let tally = every_case("blocking", |case, clean, sources, tally| {
        let scene = Scene::first(case, true);
        if case.chain.len() > 1 {
            return;
        }
        let answer = Answer::Errno(libc::EAGAIN);
        for site in Site::ALL {
            let Some(side) = scene.blocks(site) else {
                continue;
            };
            for at in calls(case, clean.script.seen(site)) {
                let mut rules = vec![Rule::once(site, at, answer)];
                if scene.is_ambiguous(site) {
                    // It says so twice where it means the destination.
                    rules.push(Rule::once(site, 1, answer));
                }
                let script = Script::in_order(&rules);
                let (run, blocked) = run_by_steps(case, script, sources, None);
                assert!(!run.script.fired().contains(&0), "{}", case.name());
                let verdict = match blocked[..] {
                    [told] if told == side => Expect::All.judge(answer, scene.backend, &run),
                    _ => Err(format!("blocked at {blocked:?}, not at the {side}")),
                };
                tally.add(case, Met { site, answer, at }, &run, verdict);
            }
        }
    });
    tally.conclude("wherever it blocks", 500);
}

/// Broken off after so many steps, each of which moved half of what it was to: what is in flight
/// is handed back, or the source rewound to it.
#[test]
fn broken_off_after_every_step() {
    let tally = every_case("breaking off", |case, clean, sources, tally| {
        if case.chain.len() > 1 {
            return;
        }
        for site in Site::ALL.into_iter().filter(|site| site.moves()) {
            let seen = clean.script.seen(site);
            for steps in (1..12).filter(|_| seen > 0) {
                let script = Script::new(&[Rule::new(site, When::EveryOther, Answer::Half)]);
                let (run, _) = run_by_steps(case, script, sources, Some(steps));
                let met = Met {
                    site,
                    answer: Answer::Half,
                    at: steps,
                };
                tally.add(case, met, &run, Ok(()));
            }
        }
    });
    tally.conclude("broken off after every step", 500);
}

/// The same pairs and faults for `std::io::copy`, beside ours: its outcomes are counted, and only
/// our own are asserted.
#[test]
fn beside_std_io_copy() {
    let (std, ours) = within(60, |pulse| {
        std_copy::silence_its_panics();
        let sources = Sources::new();
        let (mut std, mut ours) = (Outcomes::default(), Outcomes::default());
        for pair in PAIRS {
            pulse.at(format!("std::io::copy: {pair:?}"));
            let faults = |site, seen| {
                let at = (1..=8).filter(move |at| *at <= seen);
                answers(site).flat_map(move |answer| {
                    let at = at.clone();
                    at.map(move |at| Rule::once(site, at, answer))
                })
            };
            for (site, seen) in std_copy::sites(pair, &sources) {
                for rule in faults(site, seen) {
                    let (outcome, script) = std_copy::run(pair, Script::new(&[rule]), &sources);
                    if script.fired() == [1] {
                        std.add(rule.answer, outcome);
                    }
                }
            }
            let case = Case::by_choice(pair, &sources, &runner::look);
            let clean = run(&case, Script::default(), &sources);
            for site in Site::ALL {
                for rule in faults(site, clean.script.seen(site)) {
                    let run = run(&case, Script::new(&[rule]), &sources);
                    if run.script.fired() == [1] {
                        ours.add(rule.answer, std_copy::of(&run));
                    }
                }
            }
        }
        (std, ours)
    });
    let text = format!(
        "std::io::copy : zcio::transfer, the same faults at each call of each, {} : {} runs\n\n{}",
        std.total(),
        ours.total(),
        std_copy::markdown(&std, &ours)
    );
    tally::publish("beside std io copy", &text);
    for outcome in [
        Outcome::ErrorWithoutCount,
        Outcome::Lost,
        Outcome::Wrong,
        Outcome::Panicked,
    ] {
        assert_eq!(ours.count(outcome), 0, "{outcome:?}");
    }
}
