//! The table of "Efficient data transfer through zero copy" (Palaniappan and Nagarajaratnam,
//! 2008): a file to a TCP socket by a loop of read and write, and by sendfile(2), then and now.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::time::Instant;

use indicatif::ProgressBar;
use serde_json::{Value, json};
use zcio::{Backend, TransferOptions};

use crate::chart::{Bar, Panel};
use crate::link::{Link, Pair};
use crate::measure::{self, Plan, Sample};
use crate::report::{figure, pretty};

/// A size in MB, and the article's milliseconds: by read and write, and by `transferTo`.
const THEN: [(u64, f64, f64); 8] = [
    (7, 156.0, 45.0),
    (21, 337.0, 128.0),
    (63, 843.0, 387.0),
    (98, 1320.0, 617.0),
    (200, 2124.0, 1150.0),
    (350, 3631.0, 1762.0),
    (700, 13498.0, 4422.0),
    (1000, 18399.0, 8537.0),
];

const MB: u64 = 1_000_000;
const LABELS: [&str; 3] = ["read/write, 4 KiB", "read/write, 64 KiB", "sendfile"];

/// One size's medians, in the order of [`LABELS`].
pub(crate) struct Outcome {
    mb: u64,
    then: [f64; 2],
    now: [Sample; 3],
    rounds: usize,
}

/// The sizes that the source file is long enough for.
fn sizes(plan: &Plan<'_>) -> impl Iterator<Item = (u64, f64, f64)> {
    let bytes = plan.bytes;
    THEN.into_iter().filter(move |(mb, ..)| mb * MB <= bytes)
}

/// How many steps [`run`] tells the bar of.
pub(crate) fn steps(plan: &Plan<'_>) -> u64 {
    (sizes(plan).count() * (plan.rounds + 1)) as u64
}

pub(crate) fn run(plan: &Plan<'_>, bar: &ProgressBar) -> io::Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for (done, (mb, normal, transfer_to)) in sizes(plan).enumerate() {
        bar.set_message(format!("{mb} MB, file -> TCP socket"));
        // A share of the time by size: most of it belongs to the large ones.
        let all: u64 = sizes(plan).map(|(mb, ..)| mb).sum();
        let budget = plan.budget.mul_f64(mb as f64 / all as f64);
        let began = Instant::now();
        let cpu = plan.receiver_cpu;
        let mut link = Link::new(Pair::FileTcp, plan.source, plan.dir, mb * MB, cpu)?;
        let mut samples = [const { Vec::new() }; 3];
        // The first size has one round more, which warms up.
        let warm_up = usize::from(done == 0);
        for round in 0..plan.rounds + warm_up {
            for way in measure::shuffled(samples.len(), round) {
                let (_, sample) = measure::run(&mut link, |link| one(way, link, mb * MB))?;
                if round >= warm_up {
                    samples[way].push(sample);
                }
            }
            bar.inc(1);
            if round >= warm_up && measure::is_last(began, round + 1, budget) {
                break;
            }
        }
        bar.set_position(((done + 1) * (plan.rounds + 1)) as u64);
        outcomes.push(Outcome {
            mb,
            then: [normal, transfer_to],
            rounds: samples[0].len(),
            now: samples.map(|samples| Sample::median(&samples)),
        });
    }
    bar.finish_and_clear();
    Ok(outcomes)
}

fn one(way: usize, link: &mut Link, bytes: u64) -> io::Result<(Backend, u64)> {
    let buffer = match way {
        0 => 4 << 10,
        1 => 64 << 10,
        _ => {
            let report = TransferOptions::new()
                .backend(Backend::Sendfile)
                .transfer(&link.src, &link.dst, bytes)?;
            return Ok((report.backend, report.syscalls()));
        }
    };
    let mut buf = vec![0; buffer];
    let (mut left, mut calls) = (bytes, 0);
    while left > 0 {
        let want = usize::try_from(left).map_or(buffer, |left| left.min(buffer));
        let n = link.src.read(&mut buf[..want])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        link.dst.write_all(&buf[..n])?;
        left -= n as u64;
        calls += 2;
    }
    Ok((Backend::ReadWrite, calls))
}

pub(crate) fn text(machine: &str, outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "The table of \"Efficient data transfer through zero copy\": a file to a TCP socket.\n\
         {machine}.\n\
         Loopback, page cache warm, medians. Times until the last byte was received. r/w: a loop of\n\
         read and write with such a buffer; its ratios to sendfile, for 4K and for 64K.\n\n\
         {:>7} |{:^31}|{:^31}|{:^24}\n",
        "", "time, ms", "CPU of the sender, ms", "the article (2008), ms",
    );
    let columns = format!(
        "{:>7}{:>8}{:>8}{:>8}",
        "r/w 4K", "r/w 64K", "sendf.", "ratio"
    );
    let then = format!("{:>7}{:>11}{:>6}", "normal", "transferTo", "ratio");
    let _ = writeln!(text, "{:>7} |{columns}|{columns}|{then}", "size");
    for outcome in outcomes {
        let now = |of: &dyn Fn(&Sample) -> f64| {
            let [small, large, sendfile] = outcome.now.each_ref().map(of);
            format!(
                "{:>7}{:>8}{:>8}{:>4.1}{:>4.1}",
                figure(small * 1e3),
                figure(large * 1e3),
                figure(sendfile * 1e3),
                small / sendfile,
                large / sendfile,
            )
        };
        let [normal, transfer_to] = outcome.then;
        let _ = writeln!(
            text,
            "{:>4} MB |{}|{}|{normal:>7}{transfer_to:>11}{:>6.1}",
            outcome.mb,
            now(&|s| s.wall),
            now(&|s| s.cpu),
            normal / transfer_to,
        );
    }
    text
}

pub(crate) fn json(machine: &str, outcomes: &[Outcome]) -> String {
    let row = |outcome: &Outcome| {
        let ways: Vec<Value> = LABELS
            .iter()
            .zip(&outcome.now)
            .map(|(way, sample)| {
                json!({
                    "way": way,
                    "ms": sample.wall * 1e3,
                    "ratio_to_sendfile": sample.wall / outcome.now[2].wall,
                    "cpu_ms": sample.cpu * 1e3,
                    "cpu_ratio_to_sendfile": sample.cpu / outcome.now[2].cpu,
                    "syscalls": sample.syscalls,
                    "mode_switches": 2 * sample.syscalls,
                })
            })
            .collect();
        json!({
            "bytes": outcome.mb * MB,
            "rounds": outcome.rounds,
            "ways": ways,
            "article_ms": { "normal": outcome.then[0], "transfer_to": outcome.then[1] },
            "article_ratio": outcome.then[0] / outcome.then[1],
        })
    };
    let rows: Vec<Value> = outcomes.iter().map(row).collect();
    pretty(&json!({ "machine": machine, "article": rows }))
}

pub(crate) fn panels(outcomes: &[Outcome]) -> Vec<Panel> {
    let panel = |outcome: &Outcome| Panel {
        title: format!("{} MB", outcome.mb),
        units: [
            "time, ms (less is better)",
            "CPU of the sender, ms (less is better)",
        ],
        bars: (0..LABELS.len())
            .map(|way| Bar {
                label: LABELS[way].to_owned(),
                values: [outcome.now[way].wall * 1e3, outcome.now[way].cpu * 1e3],
                accent: way == 2,
            })
            .collect(),
    };
    outcomes.iter().map(panel).collect()
}
