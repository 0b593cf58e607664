//! Runs judged and counted.

use std::collections::BTreeMap;
use std::io::Write;

use crate::case::{Case, Run};
use crate::expect::{Expect, Scene};
use crate::plan::{Answer, Site};
use crate::table::{Outcome, Table};

/// What a matrix came to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) table: Table,
    /// One of each case, site and answer, in words.
    samples: BTreeMap<(String, Site, Answer), String>,
}

/// The fault that a run met.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Met {
    pub(crate) site: Site,
    pub(crate) answer: Answer,
    pub(crate) at: u32,
}

impl Tally {
    /// Judges one run by what is expected of the scene. `clean` is the run without the fault.
    pub(crate) fn judge(&mut self, case: &Case, met: Met, scene: &Scene, run: &Run, clean: &Run) {
        let expected = scene.expect(met.site, met.answer);
        let verdict = expected
            .judge(met.answer, scene.backend, run)
            .and_then(|()| waited(met, scene, expected, run))
            .and_then(|()| bounded(met, run, clean));
        self.add(case, met, run, verdict);
    }

    /// Counts one run, by the oracle's verdict and another.
    pub(crate) fn add(&mut self, case: &Case, met: Met, run: &Run, verdict: Result<(), String>) {
        let Met { site, answer, at } = met;
        let verdict = run.breach.clone().map_or(Ok(()), Err).and(verdict);
        let outcome = match (&verdict, &run.result) {
            (Err(_), _) => Outcome::Broken,
            (_, Ok(report)) if report.bytes == run.whole => Outcome::Recovered,
            (_, Ok(_)) => Outcome::Ended,
            (_, Err(_)) => Outcome::Typed,
        };
        self.table.add(site, answer, outcome);
        if let Err(breach) = verdict {
            let (name, site_name, answer_name) = (case.name(), site.name(), answer.name());
            let text = format!("{name}: {answer_name} at call {at} of {site_name}: {breach}");
            self.samples.entry((name, site, answer)).or_insert(text);
        }
    }

    pub(crate) fn merge(&mut self, other: Tally) {
        self.table.merge(&other.table);
        self.samples.extend(other.samples);
    }

    /// Prints what was counted, past the harness's capture, keeps it for the documents, and fails
    /// where a promise was broken or fewer than `least` faults struck.
    pub(crate) fn conclude(&self, name: &str, least: u64) {
        let count = |outcome| self.table.count(Some(outcome));
        let total = self.table.count(None);
        let (recovered, ended) = (count(Outcome::Recovered), count(Outcome::Ended));
        let (typed, broken) = (count(Outcome::Typed), count(Outcome::Broken));
        let text = format!(
            "{name}: recovered/all by call and answer\n\n{}\n\
             {name}: faults injected: {total}, all bytes delivered: {recovered}, ended where the \
             source said so: {ended}, error with exact counts: {typed}; bytes lost, duplicated or \
             miscounted: {broken}\n",
            self.table.markdown()
        );
        publish(name, &text);
        let lines = self.samples.values().take(20).map(String::as_str);
        let some = lines.collect::<Vec<_>>().join("\n");
        assert!(broken == 0, "{broken} runs broke a promise:\n{some}");
        assert!(total >= least, "only {total} faults struck, not {least}");
    }
}

/// Prints past the harness's capture, and keeps a copy beside the test binaries.
pub(crate) fn publish(name: &str, text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
    let file = format!(
        "{}/{}.md",
        env!("CARGO_TARGET_TMPDIR"),
        name.replace(' ', "-")
    );
    let _ = std::fs::write(file, text);
}

/// After EAGAIN, the side was waited for that the call had named.
fn waited(met: Met, scene: &Scene, expected: Expect, run: &Run) -> Result<(), String> {
    let unless = met.answer != Answer::Errno(libc::EAGAIN) || expected != Expect::All;
    let Some(side) = scene.polls(met.site).filter(|_| !unless) else {
        return Ok(());
    };
    match run.polled {
        Some(polled) if polled == side => Ok(()),
        other => Err(format!("{other:?} was waited for, not the {side}")),
    }
}

/// No more system calls than twice those without a fault, and 16.
fn bounded(met: Met, run: &Run, clean: &Run) -> Result<(), String> {
    let (now, most) = (run.script.total(), 2 * clean.script.total() + 16);
    // A pipe of one page takes as many more as it is smaller.
    let small = met.site == Site::PipeSize && !matches!(met.answer, Answer::Errno(_));
    if now > most && !small {
        return Err(format!("{now} calls, of at most {most}"));
    }
    Ok(())
}
