//! Regret: what the probe's choice costs beside the best backend, for each pair and size.
//!
//! `cargo bench --bench regret -- [--quick] [--rounds N] [--json FILE] [PAIR...]`. Small sizes are
//! moved by many transfers, each with a probe of its own. In each round all backends that fit and
//! the probe's choice take turns; a ratio is the median of the rounds' own.

mod support;

use std::fs::File;

use serde_json::{Value, json};
use support::{Cost, End, Estimate, KIB, Link, MIB, Way, ratio, size, take_turns};
use zcio::{Backend, TransferOptions};

const SIZES: [u64; 7] = [
    4 * KIB,
    16 * KIB,
    64 * KIB,
    256 * KIB,
    MIB,
    16 * MIB,
    256 * MIB,
];

/// One round moves at least so many bytes, and at most so many transfers.
const BATCH: u64 = 32 * MIB;
const TRANSFERS: u64 = 2048;

type Rows = Vec<Way<Option<Backend>>>;

fn main() {
    let args = support::begin();
    let sizes = if args.quick { &SIZES[..5] } else { &SIZES };
    let source = support::source(sizes[sizes.len() - 1].max(BATCH));
    println!(
        "{}\nratios: what was chosen to the best, median [95 % interval]",
        support::machine()
    );
    println!(
        "{:<13}{:>8}  {:<11}{:<11}{:<22}{:<11}{:<22}ms of CPU per GiB",
        "pair", "size", "chosen", "best, CPU", "ratio", "best, time", "ratio"
    );
    let mut rows = Vec::new();
    for (from, to) in pairs() {
        let pair = format!("{} -> {}", from.name(), to.name());
        if !args.wants(&pair) {
            continue;
        }
        let mut link = Link::new(from, to, &source);
        let fit = [None].into_iter().chain(fitting(&mut link).map(Some));
        let fit: Vec<Option<Backend>> = fit.collect();
        for &bytes in sizes {
            let batch = if args.quick { MIB } else { BATCH };
            let transfers = (batch / bytes).clamp(1, TRANSFERS);
            let (cell, ways) = cell(&mut link, &fit, bytes, transfers, args.rounds(15));
            println!(
                "{pair:<13}{:>8}  {}",
                size(bytes),
                cell.text(&ways, bytes * transfers)
            );
            rows.push(cell.json(&pair, bytes, &ways, bytes * transfers));
        }
        args.write(&rows);
    }
    summary(&rows);
}

fn pairs() -> impl Iterator<Item = (End, End)> {
    let to = |from| End::ALL.into_iter().map(move |to| (from, to));
    End::ALL.into_iter().flat_map(to)
}

/// What takes part: all that the page cache and private blocks are to see.
fn fitting(link: &mut Link) -> impl Iterator<Item = Backend> + use<> {
    let asked = |backend: &Backend| !matches!(backend, Backend::Direct | Backend::Reflink);
    let all: Vec<Backend> = Backend::ALL.into_iter().filter(asked).collect();
    let fit: Vec<Backend> = all.into_iter().filter(|b| link.takes(*b)).collect();
    fit.into_iter()
}

/// What was found of one pair and size.
struct Cell {
    chosen: Backend,
    cpu: (usize, Estimate),
    time: (usize, Estimate),
}

fn cell(
    link: &mut Link,
    fit: &[Option<Backend>],
    bytes: u64,
    transfers: u64,
    rounds: usize,
) -> (Cell, Rows) {
    let name = |forced: &Option<Backend>| forced.map_or("chosen", Backend::name);
    let mut ways: Rows = fit.iter().map(|way| Way::new(name(way), *way)).collect();
    let mut chosen = Backend::ReadWrite;
    take_turns(&mut ways, rounds, |forced| {
        let mut options = TransferOptions::new();
        if let Some(backend) = *forced {
            options.backend(backend);
        }
        link.run(bytes * transfers, |src, dst| {
            let mut moved = 0;
            for _ in 0..transfers {
                let (src, dst): (&File, &File) = (src, dst);
                let report = options
                    .transfer(src, dst, bytes)
                    .expect("a pair that serves");
                if forced.is_none() {
                    chosen = report.backend;
                }
                moved += report.bytes;
            }
            moved
        })
    });
    let best = |of: fn(&Cost) -> f64| {
        let forced = 1..ways.len();
        let best = forced.min_by(|a, b| {
            let median = |at: &usize| support::median(&ways[*at].costs, of);
            median(a).total_cmp(&median(b))
        });
        let best = best.expect("read/write serves every pair");
        (best, ratio(&ways[0].costs, &ways[best].costs, of))
    };
    let (cpu, time) = (best(|c| c.cpu), best(|c| c.time));
    (Cell { chosen, cpu, time }, ways)
}

impl Cell {
    fn text(&self, ways: &Rows, bytes: u64) -> String {
        let all: Vec<String> = ways
            .iter()
            .map(|way| format!("{} {:.0}", way.name, way.cpu_ms_per_gib(bytes)))
            .collect();
        format!(
            "{:<11}{:<11}{:<22}{:<11}{:<22}{}",
            self.chosen.name(),
            ways[self.cpu.0].name,
            self.cpu.1.to_string(),
            ways[self.time.0].name,
            self.time.1.to_string(),
            all.join(", ")
        )
    }

    fn json(&self, pair: &str, bytes: u64, ways: &Rows, moved: u64) -> Value {
        let ways_json: Vec<Value> = ways.iter().map(|way| way.json(moved)).collect();
        json!({
            "name": format!("{pair}, {}", size(bytes)),
            "pair": pair,
            "bytes": bytes,
            "rounds": ways[0].costs.len(),
            "chosen": self.chosen.name(),
            "best_by_cpu": ways[self.cpu.0].name,
            "cpu_ratio": self.cpu.1.json(),
            "best_by_time": ways[self.time.0].name,
            "time_ratio": self.time.1.json(),
            "ways": ways_json,
        })
    }
}

/// Median and worst over all cells; a cell counts as worse than a bound only where its whole
/// interval lies beyond.
fn summary(rows: &[Value]) {
    for key in ["cpu_ratio", "time_ratio"] {
        let mut cells: Vec<(f64, f64, &str)> = rows
            .iter()
            .map(|row| {
                let at = |i: usize| row[key][i].as_f64().unwrap_or(f64::NAN);
                (at(0), at(1), row["name"].as_str().unwrap_or_default())
            })
            .collect();
        cells.sort_by(|a, b| a.0.total_cmp(&b.0));
        let Some(worst) = cells.last() else { return };
        println!(
            "{key}: median of {} cells {:.3}, worst {:.3} ({}); beyond 1.10 with the whole interval: {}",
            cells.len(),
            cells[cells.len() / 2].0,
            worst.0,
            worst.2,
            cells.iter().filter(|cell| cell.1 > 1.10).count(),
        );
    }
}
