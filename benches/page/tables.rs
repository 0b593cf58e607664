//! Results as Markdown.

use std::fmt::Write;

use serde_json::Value;

use crate::Results;

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn interval(value: &Value) -> String {
    match list(value) {
        [mid, low, high] => {
            let [mid, low, high] = [mid, low, high].map(number);
            format!("{mid:.3} [{low:.3}, {high:.3}]")
        }
        _ => String::new(),
    }
}

/// A bound is missed where the whole interval lies beyond.
fn verdict(bound: &Value, interval: &Value) -> String {
    let Some(bound) = bound.as_f64() else {
        return String::new();
    };
    let kept = number(&interval[1]) <= bound;
    format!("{bound:.2}: {}", if kept { "held" } else { "**missed**" })
}

fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = UNITS.iter().find(|(_, unit)| bytes >= *unit);
    unit.map_or(format!("{bytes} B"), |(name, unit)| {
        format!("{} {name}", bytes / unit)
    })
}

/// One table for all: what each way took, and the crate's ratio to it.
pub(crate) fn contests(results: &Results) -> String {
    let mut out = format!("{}.\n\n", results.machine);
    out += "| what | way | CPU, ms/GiB | GiB/s | CPU, ratio | time, ratio | CPU, at most |\n";
    out += "|---|---|---:|---:|---|---|---|\n";
    for row in &results.rows {
        if let [small, large] = list(&row["microseconds"]) {
            let (ratio, bound) = (interval(&row["time_ratio"]), &row["at_most"]);
            let _ = writeln!(
                out,
                "| {} | 10 MiB in {:.0} µs, 10 GiB in {:.0} µs | | | | {ratio} | time {} |",
                text(&row["name"]),
                number(small),
                number(large),
                verdict(bound, &row["time_ratio"]),
            );
            continue;
        }
        for (at, way) in list(&row["ways"]).iter().enumerate() {
            let name = match at {
                0 => format!(
                    "{}, {} rounds of {}",
                    text(&row["name"]),
                    row["rounds"],
                    size(row["bytes"].as_u64().unwrap_or_default())
                ),
                _ => String::new(),
            };
            let mut bound = verdict(&way["at_most"], &way["cpu_ratio"]);
            if at > 0 && row["time_at_most"].is_number() {
                bound += &format!(
                    "; time {}",
                    verdict(&row["time_at_most"], &way["time_ratio"])
                );
            }
            let _ = writeln!(
                out,
                "| {name} | {} | {:.0} | {:.2} | {} | {} | {bound} |",
                text(&way["way"]),
                number(&way["cpu_ms_per_gib"]),
                number(&way["gib_per_s"]),
                interval(&way["cpu_ratio"]),
                interval(&way["time_ratio"]),
            );
        }
    }
    out
}

/// By pair and size: what was chosen, and its ratio to the best by processor time and by time.
pub(crate) fn regret(results: &Results) -> String {
    let mut sizes: Vec<u64> = results
        .rows
        .iter()
        .filter_map(|row| row["bytes"].as_u64())
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut pairs: Vec<&str> = results.rows.iter().map(|row| text(&row["pair"])).collect();
    pairs.dedup();
    let mut out = format!("{}.\n\n", results.machine);
    for (key, by) in [("cpu_ratio", "processor time"), ("time_ratio", "time")] {
        let mut ratios: Vec<f64> = results
            .rows
            .iter()
            .map(|row| number(&row[key][0]))
            .collect();
        ratios.sort_by(f64::total_cmp);
        let beyond = |row: &&Value| number(&row[key][1]) > 1.10;
        let _ = writeln!(
            out,
            "By {by}: median {:.3}, worst {:.3} of {} cells; of {} the whole interval lies beyond 1.10 \
             (bold).\n",
            ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN),
            ratios.last().copied().unwrap_or(f64::NAN),
            ratios.len(),
            results.rows.iter().filter(beyond).count(),
        );
        let _ = write!(out, "| {by} |");
        sizes
            .iter()
            .for_each(|bytes| out += &format!(" {} |", size(*bytes)));
        out += &format!("\n|---|{}\n", "---|".repeat(sizes.len()));
        for pair in &pairs {
            let _ = write!(out, "| {pair} |");
            for bytes in &sizes {
                let cell = results.rows.iter().find(|row| {
                    text(&row["pair"]) == *pair && row["bytes"].as_u64() == Some(*bytes)
                });
                let cell = cell.map_or_else(String::new, |row| {
                    let ratio = format!("{} {:.2}", text(&row["chosen"]), number(&row[key][0]));
                    match beyond(&row) {
                        true => format!("**{ratio}**"),
                        false => ratio,
                    }
                });
                let _ = write!(out, " {cell} |");
            }
            out += "\n";
        }
        out += "\n";
    }
    out
}

pub(crate) fn growth(results: &Results) -> String {
    let mut out = format!("{}.\n\n", results.machine);
    out += "| what | size or number | CPU, ms/GiB | beside the smallest | most memory |\n";
    out += "|---|---|---:|---|---:|\n";
    for row in &results.rows {
        let name = text(&row["name"]);
        let points = list(&row["points"]);
        for point in points {
            let cpu = number(&point["cpu_ms_per_gib"]);
            let _ = writeln!(
                out,
                "| {name} | {} | {cpu:.0} | {:.2} | {} |",
                size(point["bytes"].as_u64().unwrap_or_default()),
                cpu / number(&points[0]["cpu_ms_per_gib"]),
                size(point["peak_memory"].as_u64().unwrap_or_default()),
            );
        }
        let ways = list(&row["ways"]).iter().zip(list(&row["to_one"]));
        for (way, to_one) in ways.rev() {
            let _ = writeln!(
                out,
                "| {name}, {} each | {} | {:.0} | {} | |",
                size(row["each"].as_u64().unwrap_or_default()),
                text(&way["way"]),
                number(&way["cpu_ms_per_gib"]),
                interval(&to_one["to_one"]),
            );
        }
    }
    out
}

/// Times in milliseconds, the article's and today's.
pub(crate) fn article(results: &Results) -> String {
    let mut out = format!("{}.\n\n", results.machine);
    out += "| size | 2008: normal | transferTo | ratio | today: read/write, 4 KiB | 64 KiB | sendfile | ratio |\n";
    out += "|---|---:|---:|---:|---:|---:|---:|---:|\n";
    for row in &results.rows {
        let then = &row["article_ms"];
        let now: Vec<f64> = list(&row["ways"])
            .iter()
            .map(|way| number(&way["ms"]))
            .collect();
        let [small, large, sendfile] = now[..] else {
            continue;
        };
        let _ = writeln!(
            out,
            "| {} MB | {} | {} | {:.1} | {small:.1} | {large:.1} | {sendfile:.1} | {:.1} |",
            number(&row["bytes"]) / 1e6,
            number(&then["normal"]),
            number(&then["transfer_to"]),
            number(&row["article_ratio"]),
            small / sendfile,
        );
    }
    out
}
