//! Arguments, and the file of results.

use std::path::{Path, PathBuf};
use std::{env, fs};

use serde_json::{Value, json};

/// `cargo bench --bench NAME -- [--quick] [--rounds N] [--json FILE] [FILTER...]`
pub(crate) struct Args {
    /// Small sizes and few rounds, to see that everything works. `--test` says the same.
    pub(crate) quick: bool,
    rounds: Option<usize>,
    json: Option<PathBuf>,
    filters: Vec<String>,
}

impl Args {
    pub(crate) fn parse() -> Self {
        let mut parsed = Self {
            quick: false,
            rounds: None,
            json: None,
            filters: Vec::new(),
        };
        let mut args = env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => {}
                "--quick" | "--test" => parsed.quick = true,
                "--rounds" => {
                    let rounds = args.next().and_then(|n| n.parse().ok());
                    parsed.rounds = Some(rounds.expect("--rounds takes a number"));
                }
                "--json" => {
                    // cargo runs a bench in the package's own directory.
                    parsed.json = Some(args.next().expect("--json takes a file").into());
                }
                option if option.starts_with('-') => panic!("{option} is no option of this bench"),
                filter => parsed.filters.push(filter.to_owned()),
            }
        }
        parsed
    }

    /// How many rounds, where `full` is meant.
    pub(crate) fn rounds(&self, full: usize) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { full })
    }

    /// Whether what is called so is asked for: all is, without a filter.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter))
    }

    /// Writes rows, each with a `name`, to the file that was asked for. Rows of other names that it
    /// has from an earlier run stay.
    pub(crate) fn write(&self, rows: &[Value]) {
        let Some(path) = &self.json else { return };
        let mut all: Vec<Value> = read(path)
            .into_iter()
            .filter(|old| rows.iter().all(|new| new["name"] != old["name"]))
            .collect();
        all.extend_from_slice(rows);
        // A row a line: short, and a later run's differences can be read.
        let rows: Vec<String> = all.iter().map(Value::to_string).collect();
        let text = format!(
            "{{\"machine\": {},\n\"rows\": [\n{}\n]}}\n",
            json!(machine()),
            rows.join(",\n")
        );
        fs::write(path, text).expect("the results can be written");
    }
}

/// The rows of a file of results; none where there is no such file.
pub(crate) fn read(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    value["rows"].as_array().cloned().unwrap_or_default()
}

/// What was measured on, in one line.
pub(crate) fn machine() -> String {
    let line = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key));
        line.map_or_else(String::new, |line| {
            line.rsplit(": ").next().unwrap_or(line).trim().to_owned()
        })
    };
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processors = cpuinfo.lines().filter(|line| line.starts_with("processor"));
    format!(
        "Linux {}, {} processors ({}), loopback with {}, page cache warm",
        line("/proc/sys/kernel/osrelease", ""),
        processors.count(),
        line("/proc/cpuinfo", "model name"),
        super::link::congestion(),
    )
}
