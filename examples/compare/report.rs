//! The results as text, as JSON, and as panels of the chart.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use zcio::Backend;
use zcio::backend::Kind;
use zcio::probe::{Canary, Pages};

use crate::chart::{Bar, Panel};
use crate::measure::{Outcome, Plan, Row};

/// What the figures were measured on, in one line.
pub(crate) fn machine(dir: &Path, cpus: Option<(usize, usize)>) -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = match cpus {
        Some((sender, receiver)) => format!("sender on CPU {sender}, receiver on CPU {receiver}"),
        None => "one CPU for sender and receiver".to_owned(),
    };
    let files = match filesystem(dir) {
        Some(name) => format!("files in {} ({name})", dir.display()),
        None => format!("files in {}", dir.display()),
    };
    let debug = if cfg!(debug_assertions) {
        "; built without --release: expect slow figures"
    } else {
        ""
    };
    format!("Linux {}, {cpus}, {files}{debug}", kernel.trim())
}

/// The type of the filesystem that a directory lies on: that of the longest mount point above it.
fn filesystem(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let above = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, name) = (fields.next()?, fields.next()?);
        dir.starts_with(point).then_some((point.len(), name))
    });
    above
        .max_by_key(|(len, _)| *len)
        .map(|(_, name)| name.to_owned())
}

pub(crate) fn heading(machine: &str, canary: &Canary, plan: &Plan<'_>) -> String {
    format!(
        "{} MiB a run, medians of rounds in which all take turns, page cache warm.\n{machine}.\n\
         CPU, system calls, mode switches (two a call) and copies are the sending side's alone.\n\
         * marks the backend that the probe chose; the line below the backends is its own run,\n  \
         probing included.\n\
         What travels from a file, measured on this kernel: {}.\n",
        plan.bytes >> 20,
        travels(canary),
    )
}

/// The pairs of backend and destination for which it can be measured whether pages are shared.
const TRAVELS: [(Backend, Kind, &str); 6] = [
    (Backend::Sendfile, Kind::Pipe, "pipe"),
    (Backend::Sendfile, Kind::Unix, "UNIX"),
    (Backend::Sendfile, Kind::Tcp, "TCP"),
    (Backend::Splice, Kind::Pipe, "pipe"),
    (Backend::Splice, Kind::Unix, "UNIX"),
    (Backend::Splice, Kind::Tcp, "TCP"),
];

/// Where the file's own pages travel, where a copy does, where it cannot be told.
fn travels(canary: &Canary) -> String {
    let group = |wanted: Pages| {
        let seen = TRAVELS
            .iter()
            .filter(|(by, to, _)| canary.pages(*by, *to) == wanted);
        let seen: Vec<_> = seen.map(|(by, _, to)| format!("{by} to {to}")).collect();
        (!seen.is_empty()).then(|| format!("{wanted} by {}", seen.join(", ")))
    };
    let groups = [Pages::Shared, Pages::Copied, Pages::Unknown].map(group);
    groups.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

pub(crate) fn table(outcome: &Outcome) -> String {
    let mut text = format!(
        "\n{:<32}{:>9}{:>14}{:>11}{:>15}{:>12}\n",
        format!("{}, rounds: {}", outcome.pair.name(), outcome.rounds),
        "GiB/s",
        "CPU ms/GiB",
        "syscalls",
        "mode switches",
        "CPU copies",
    );
    for row in &outcome.rows {
        let mark = if row.forced.is_some() && row.forced == outcome.chosen() {
            '*'
        } else {
            ' '
        };
        let syscalls = row.median().syscalls;
        let _ = writeln!(
            text,
            "{mark} {:<30}{:>9}{:>14}{:>11}{:>15}{:>12}",
            label(row),
            figure(outcome.gib_per_s(row)),
            figure(outcome.cpu_ms_per_gib(row)),
            syscalls,
            2 * syscalls,
            outcome.pair.copies(row.backend),
        );
    }
    for (backend, reason) in &outcome.unfit {
        let _ = writeln!(text, "- {:<30}{reason}", backend.name());
    }
    text
}

fn label(row: &Row) -> String {
    match row.forced {
        Some(backend) => backend.to_string(),
        None => format!("probe's choice: {}", row.backend),
    }
}

/// Three digits that count, whatever the size.
pub(crate) fn figure(value: f64) -> String {
    let decimals = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 => 2,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

pub(crate) fn json(machine: &str, canary: &Canary, results: &[Outcome]) -> String {
    let pairs: Vec<Value> = results.iter().map(pair_json).collect();
    let travels = TRAVELS.map(|(backend, kind, to)| {
        let pages = canary.pages(backend, kind).to_string();
        json!({ "backend": backend.name(), "to": to, "pages": pages })
    });
    pretty(&json!({ "machine": machine, "travels": travels, "pairs": pairs }))
}

fn pair_json(outcome: &Outcome) -> Value {
    let rows: Vec<Value> = outcome
        .rows
        .iter()
        .map(|row| row_json(outcome, row))
        .collect();
    let unfit: Vec<Value> = outcome
        .unfit
        .iter()
        .map(|(backend, reason)| json!({ "backend": backend.name(), "reason": reason }))
        .collect();
    json!({
        "pair": outcome.pair.name(),
        "bytes": outcome.bytes,
        "rounds": outcome.rounds,
        "chosen": outcome.chosen().map(|backend| backend.name()),
        "rows": rows,
        "unfit": unfit,
    })
}

fn row_json(outcome: &Outcome, row: &Row) -> Value {
    let syscalls = row.median().syscalls;
    json!({
        "backend": row.backend.name(),
        "forced": row.forced.is_some(),
        "chosen": outcome.chosen() == Some(row.backend),
        "gib_per_s": outcome.gib_per_s(row),
        "cpu_ms_per_gib": outcome.cpu_ms_per_gib(row),
        "syscalls": syscalls,
        "mode_switches": 2 * syscalls,
        "cpu_copies": outcome.pair.copies(row.backend),
    })
}

pub(crate) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

pub(crate) fn panels(results: &[Outcome]) -> Vec<Panel> {
    let panel = |outcome: &Outcome| Panel {
        title: outcome.pair.name().to_owned(),
        units: [
            "CPU of the sender, ms per GiB (less is better)",
            "GiB/s (more is better)",
        ],
        bars: outcome
            .rows
            .iter()
            .map(|row| Bar {
                label: label(row),
                values: [outcome.cpu_ms_per_gib(row), outcome.gib_per_s(row)],
                accent: row.forced.is_none(),
            })
            .collect(),
    };
    results.iter().map(panel).collect()
}
