//! One way against others, in one table.

use serde_json::{Value, json};

use super::{Cost, Way, ratio, size};

/// Prints what each way took, and the ratio of the first to each of the others beside the bound
/// that it should keep. A bound holds unless the whole interval lies beyond. The name `bare` bounds
/// the best of those that begin with it, by processor time.
pub(crate) fn judge<W>(name: &str, bytes: u64, ways: &[Way<W>], bounds: &[(&str, f64)]) -> Value {
    let rounds = ways[0].costs.len();
    println!("\n{name}, {} a run, {rounds} rounds", size(bytes));
    println!(
        "  {:<34}{:>12}{:>9}  {:<24}{:<24}at most",
        "", "CPU, ms/GiB", "GiB/s", "ratio of CPU", "ratio of time"
    );
    let cpu = |way: &Way<W>| super::median(&way.costs, |c| c.cpu);
    let bare = |way: &&Way<W>| way.name.starts_with("bare");
    let best = ways
        .iter()
        .filter(bare)
        .min_by(|a, b| cpu(a).total_cmp(&cpu(b)))
        .map(|way| way.name.clone());
    let mut rows = Vec::new();
    for (at, way) in ways.iter().enumerate() {
        let mut row = way.json(bytes);
        let mut text = String::new();
        if at > 0 {
            let cpu = ratio(&ways[0].costs, &way.costs, |c: &Cost| c.cpu);
            let time = ratio(&ways[0].costs, &way.costs, |c: &Cost| c.time);
            row["cpu_ratio"] = cpu.json();
            row["time_ratio"] = time.json();
            let is_best = best.as_ref() == Some(&way.name);
            let bound = bounds
                .iter()
                .find(|(of, _)| *of == way.name || (*of == "bare" && is_best));
            text = format!("{:<24}{:<24}", cpu.to_string(), time.to_string());
            if let Some((_, bound)) = bound {
                row["at_most"] = json!(bound);
                let verdict = if cpu.low <= *bound {
                    "holds"
                } else {
                    "FALLS SHORT"
                };
                text += &format!("{bound} {verdict}");
            }
        }
        println!(
            "  {:<34}{:>12.0}{:>9.2}  {text}",
            way.name,
            way.cpu_ms_per_gib(bytes),
            way.gib_per_s(bytes),
        );
        rows.push(row);
    }
    json!({ "name": name, "bytes": bytes, "rounds": rounds, "ways": rows })
}
