//! Runs, rounds and medians.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use zcio::{Backend, ErrorKind, TransferOptions};

use crate::cpu;
use crate::link::{Link, Pair};

/// How much is measured, and where.
#[derive(Clone, Copy)]
pub(crate) struct Plan<'a> {
    pub(crate) source: &'a File,
    pub(crate) dir: &'a Path,
    pub(crate) receiver_cpu: Option<usize>,
    pub(crate) bytes: u64,
    /// Rounds after the one that warms up.
    pub(crate) rounds: usize,
    /// On slow machines no further round is begun that would end later than this.
    pub(crate) budget: Duration,
}

/// What one run took.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) wall: f64,
    pub(crate) cpu: f64,
    pub(crate) syscalls: u64,
}

impl Sample {
    /// Each figure's median on its own.
    pub(crate) fn median(samples: &[Sample]) -> Sample {
        let middle = |of: &dyn Fn(&Sample) -> f64| {
            let mut all: Vec<f64> = samples.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            let half = all.len() / 2;
            if all.len() % 2 == 1 {
                all[half]
            } else {
                f64::midpoint(all[half - 1], all[half])
            }
        };
        Sample {
            wall: middle(&|s| s.wall),
            cpu: middle(&|s| s.cpu),
            syscalls: middle(&|s| s.syscalls as f64) as u64,
        }
    }
}

/// A way to move, and what it took.
pub(crate) struct Row {
    /// `None`: the probe's choice.
    pub(crate) forced: Option<Backend>,
    /// The backend that moved the bytes.
    pub(crate) backend: Backend,
    samples: Vec<Sample>,
}

impl Row {
    pub(crate) fn median(&self) -> Sample {
        Sample::median(&self.samples)
    }
}

/// Everything about one pair.
pub(crate) struct Outcome {
    pub(crate) pair: Pair,
    pub(crate) bytes: u64,
    pub(crate) rounds: usize,
    /// Forced backends from the cheapest by processor time on; the probe's choice comes last.
    pub(crate) rows: Vec<Row>,
    pub(crate) unfit: Vec<(Backend, String)>,
}

impl Outcome {
    pub(crate) fn chosen(&self) -> Option<Backend> {
        self.rows.last().map(|row| row.backend)
    }

    pub(crate) fn gib_per_s(&self, row: &Row) -> f64 {
        self.gib() / row.median().wall
    }

    pub(crate) fn cpu_ms_per_gib(&self, row: &Row) -> f64 {
        row.median().cpu * 1e3 / self.gib()
    }

    fn gib(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 30)
    }
}

/// Measures one run: from the first call until the other side has all bytes.
pub(crate) fn run(
    link: &mut Link,
    work: impl FnOnce(&mut Link) -> io::Result<(Backend, u64)>,
) -> io::Result<(Backend, Sample)> {
    link.prepare()?;
    let (start, before) = (Instant::now(), cpu::spent());
    link.go()?;
    let (backend, syscalls) = work(link)?;
    link.expect()?;
    let (wall, cpu) = (start.elapsed(), cpu::spent() - before);
    link.check()?;
    let sample = Sample {
        wall: wall.as_secs_f64(),
        cpu: cpu.as_secs_f64(),
        syscalls,
    };
    Ok((backend, sample))
}

/// Moves by the crate: by one backend, or as the probe chooses.
fn transfer(link: &Link, forced: Option<Backend>, bytes: u64) -> zcio::Result<(Backend, u64)> {
    let report = options(link, forced).transfer(&link.src, &link.dst, bytes)?;
    assert_eq!(report.bytes, bytes, "the source has as many");
    Ok((report.backend, report.syscalls()))
}

fn options(link: &Link, forced: Option<Backend>) -> TransferOptions {
    let mut options = TransferOptions::new();
    if let Some(backend) = forced {
        options.backend(backend);
    }
    if link.has_source_file() {
        options.src_offset(0);
    }
    options
}

/// The numbers below `len` in an order that differs from round to round: what one run leaves in
/// caches and allocators burdens the next, which must not always be the same one.
pub(crate) fn shuffled(len: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    let mut state = 0x9e37_79b9_u64.wrapping_mul(round as u64 + 1);
    for last in (1..len).rev() {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        order.swap(last, (state >> 33) as usize % (last + 1));
    }
    order
}

/// Whether another round, as long as those `done` since `began`, would go beyond the time allowed.
pub(crate) fn is_last(began: Instant, done: usize, budget: Duration) -> bool {
    let done = done as f64;
    began.elapsed().mul_f64((done + 1.0) / done) > budget
}

/// Measures every backend that fits a pair, and the probe's own choice, in turns.
pub(crate) fn measure(plan: &Plan<'_>, pair: Pair, bar: &ProgressBar) -> io::Result<Outcome> {
    let began = Instant::now();
    let mut link = Link::new(pair, plan.source, plan.dir, plan.bytes, plan.receiver_cpu)?;
    let mut rows = Vec::new();
    let mut unfit = Vec::new();
    // The first round warms up, and shows which backends the kernel takes after all.
    for forced in Backend::ALL.into_iter().map(Some).chain([None]) {
        if let Some(backend) = forced {
            let probe = options(&link, forced).probe(&link.src, &link.dst)?;
            if let Err(reason) = probe.verdict(backend) {
                unfit.push((backend, reason.to_string()));
                continue;
            }
        }
        let mut refusal = None;
        let warm_up = run(&mut link, |link| match transfer(link, forced, plan.bytes) {
            Err(e) if e.kind() == ErrorKind::Unfit && link.has_source_file() => {
                refusal = Some(e.to_string());
                Err(e.into())
            }
            other => Ok(other?),
        });
        match (warm_up, forced, refusal) {
            (Ok((backend, _)), ..) => rows.push(Row {
                forced,
                backend,
                samples: Vec::new(),
            }),
            // By the only backend allowed, nothing was moved: the receiver still waits.
            (Err(_), Some(backend), Some(reason)) => unfit.push((backend, reason)),
            (Err(e), ..) => return Err(e),
        }
    }
    bar.inc(1);
    for round in 0..plan.rounds {
        for at in shuffled(rows.len(), round) {
            let forced = rows[at].forced;
            let (backend, sample) = run(&mut link, |link| Ok(transfer(link, forced, plan.bytes)?))?;
            rows[at].backend = backend;
            rows[at].samples.push(sample);
        }
        bar.inc(1);
        // The one that warmed up counts as well.
        if is_last(began, round + 2, plan.budget) {
            break;
        }
    }
    let rounds = rows.first().map_or(0, |row| row.samples.len());
    rows.sort_by(|a, b| {
        let by_kind = a.forced.is_none().cmp(&b.forced.is_none());
        by_kind.then(a.median().cpu.total_cmp(&b.median().cpu))
    });
    Ok(Outcome {
        pair,
        bytes: plan.bytes,
        rounds,
        rows,
        unfit,
    })
}
