//! Writes the tables of `docs/benchmarks.md` and draws its pictures from the results beside it.
//!
//! `cargo bench --bench page`. With `--test` nothing is written, and a page that differs from the
//! results is an error.

#[path = "page/draw.rs"]
mod draw;
#[path = "page/tables.rs"]
mod tables;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The results of one bench, or of `compare --article`, as `--json` wrote them.
pub(crate) struct Results {
    machine: String,
    rows: Vec<Value>,
}

impl Results {
    /// `None` where that bench has not been run.
    fn read(dir: &Path, name: &str) -> Result<Option<Self>, Box<dyn Error>> {
        let path = dir.join(format!("{name}.json"));
        if !path.exists() {
            return Ok(None);
        }
        let value: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
        let rows = [&value["rows"], &value["article"]];
        let rows = rows.into_iter().find_map(|rows| rows.as_array().cloned());
        Ok(Some(Self {
            machine: value["machine"].as_str().unwrap_or_default().to_owned(),
            rows: rows.unwrap_or_default(),
        }))
    }
}

/// A table, by the name of the results that it is made of.
type Table = fn(&Results) -> String;

const TABLES: [(&str, Table); 7] = [
    ("versus", tables::contests),
    ("relay", tables::contests),
    ("message", tables::contests),
    ("file_copy", tables::contests),
    ("regret", tables::regret),
    ("growth", tables::growth),
    ("article", tables::article),
];

fn main() -> Result<(), Box<dyn Error>> {
    let only_check = std::env::args().any(|arg| matches!(arg.as_str(), "--test" | "--quick"));
    let docs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs");
    let (page, dir) = (docs.join("benchmarks.md"), docs.join("benchmarks"));
    let old = fs::read_to_string(&page)?;
    let mut new = old.clone();
    for (name, table) in TABLES {
        if let Some(results) = Results::read(&dir, name)? {
            new = replaced(&new, name, &table(&results))?;
        }
    }
    if only_check {
        let same = (old == new).then_some(());
        return Ok(
            same.ok_or("docs/benchmarks.md differs from its results: cargo bench --bench page")?
        );
    }
    fs::write(page, new)?;
    if let Some(regret) = Results::read(&dir, "regret")? {
        draw::throughput(&dir.join("throughput.svg"), &regret)?;
        draw::regret(&dir.join("regret.svg"), &regret)?;
    }
    let mut peers = Vec::new();
    for name in ["versus", "relay", "file_copy"] {
        peers.extend(Results::read(&dir, name)?);
    }
    draw::cpu(&dir.join("cpu.svg"), &peers)?;
    Ok(())
}

/// The page with what stands between a name's marks replaced.
fn replaced(page: &str, name: &str, table: &str) -> Result<String, Box<dyn Error>> {
    let (begin, end) = (
        format!("<!-- {name}: begin -->\n"),
        format!("<!-- {name}: end -->\n"),
    );
    let missing = || format!("the page has no marks for {name}");
    let (head, rest) = page.split_once(&begin).ok_or_else(missing)?;
    let (_, tail) = rest.split_once(&end).ok_or_else(missing)?;
    Ok([head, &begin, table, &end, tail].concat())
}
