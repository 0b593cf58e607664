//! Turns, medians, and intervals of paired ratios.

use std::fmt;

use serde_json::{Value, json};

use super::Cost;

/// A median and the interval that holds it in 95 of 100 cases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimate {
    pub(crate) mid: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Estimate {
    pub(crate) fn json(self) -> Value {
        json!([round(self.mid), round(self.low), round(self.high)])
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} [{:.3}, {:.3}]", self.mid, self.low, self.high)
    }
}

fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// The median and its interval by order statistics.
pub(crate) fn estimate(mut values: Vec<f64>) -> Estimate {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    let half = (0.98 * (values.len() as f64).sqrt()).ceil() as usize;
    let (upper, lower) = (values.len() / 2, (values.len() - 1) / 2);
    Estimate {
        mid: f64::midpoint(values[lower], values[upper]),
        low: values[lower.saturating_sub(half)],
        high: values[(upper + half).min(values.len() - 1)],
    }
}

pub(crate) fn median(costs: &[Cost], of: fn(&Cost) -> f64) -> f64 {
    estimate(costs.iter().map(of).collect()).mid
}

/// The ratio of what two ways took, round by round.
pub(crate) fn ratio(ours: &[Cost], theirs: &[Cost], of: fn(&Cost) -> f64) -> Estimate {
    let pairs = ours.iter().zip(theirs);
    estimate(pairs.map(|(ours, theirs)| of(ours) / of(theirs)).collect())
}

/// A way to do something, by name, and what each round took.
pub(crate) struct Way<W> {
    pub(crate) name: String,
    pub(crate) work: W,
    pub(crate) costs: Vec<Cost>,
}

impl<W> Way<W> {
    pub(crate) fn new(name: impl Into<String>, work: W) -> Self {
        Self {
            name: name.into(),
            work,
            costs: Vec::new(),
        }
    }

    pub(crate) fn cpu_ms_per_gib(&self, bytes: u64) -> f64 {
        median(&self.costs, |c| c.cpu) * 1e3 / gib(bytes)
    }

    pub(crate) fn gib_per_s(&self, bytes: u64) -> f64 {
        gib(bytes) / median(&self.costs, |c| c.time)
    }

    pub(crate) fn json(&self, bytes: u64) -> Value {
        json!({
            "way": self.name,
            "cpu_ms_per_gib": round(self.cpu_ms_per_gib(bytes)),
            "gib_per_s": round(self.gib_per_s(bytes)),
        })
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / super::GIB as f64
}

/// Lets all ways take turns, after one round that warms up, in an order that differs from round to
/// round: what one leaves in caches and allocators burdens the next, which must not always be the
/// same one.
pub(crate) fn take_turns<W>(
    ways: &mut [Way<W>],
    rounds: usize,
    mut run: impl FnMut(&mut W) -> Cost,
) {
    for round in 0..=rounds {
        for at in shuffled(ways.len(), round) {
            let cost = run(&mut ways[at].work);
            if round > 0 {
                ways[at].costs.push(cost);
            }
        }
    }
}

/// The numbers below `len`, in another order for each round.
fn shuffled(len: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    let mut state = 0x9e37_79b9_u64.wrapping_mul(round as u64 + 1);
    for last in (1..len).rev() {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        order.swap(last, (state >> 33) as usize % (last + 1));
    }
    order
}
