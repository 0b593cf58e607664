//! The runs counted, by call site and answer.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::plan::{Answer, Site};

/// How a run that met its fault came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// All bytes arrived.
    Recovered,
    /// It ended where the source seemed to end.
    Ended,
    /// An error with exact counts.
    Typed,
    /// It broke the oracle, or was not what is expected.
    Broken,
}

/// Runs by call site and answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    cells: BTreeMap<(Site, Answer), BTreeMap<Outcome, u64>>,
}

impl Table {
    pub(crate) fn add(&mut self, site: Site, answer: Answer, outcome: Outcome) {
        let cell = self.cells.entry((site, answer)).or_default();
        *cell.entry(outcome).or_default() += 1;
    }

    pub(crate) fn merge(&mut self, other: &Table) {
        for (key, cell) in &other.cells {
            for (outcome, count) in cell {
                *self
                    .cells
                    .entry(*key)
                    .or_default()
                    .entry(*outcome)
                    .or_default() += count;
            }
        }
    }

    pub(crate) fn count(&self, outcome: Option<Outcome>) -> u64 {
        let cells = self.cells.values().flat_map(BTreeMap::iter);
        let wanted = cells.filter(|(o, _)| outcome.is_none_or(|outcome| **o == outcome));
        wanted.map(|(_, count)| count).sum()
    }

    /// One row a site, one column an answer; in each cell the runs, and how many of them recovered.
    pub(crate) fn markdown(&self) -> String {
        let mut text = "| call \\ answer |".to_owned();
        for answer in Answer::ALL {
            let _ = write!(text, " {} |", answer.name());
        }
        text.push_str("\n|---|");
        text.push_str(&"---|".repeat(Answer::ALL.len()));
        for site in Site::ALL {
            if !self.cells.keys().any(|(s, _)| *s == site) {
                continue;
            }
            let _ = write!(text, "\n| {} |", site.name());
            for answer in Answer::ALL {
                let Some(cell) = self.cells.get(&(site, answer)) else {
                    text.push_str(" |");
                    continue;
                };
                let runs: u64 = cell.values().sum();
                let good = cell.get(&Outcome::Recovered).copied().unwrap_or(0);
                let _ = write!(text, " {good}/{runs} |");
            }
        }
        text.push('\n');
        text
    }
}
