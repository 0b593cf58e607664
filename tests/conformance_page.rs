//! `docs/conformance.md` against the tests' sources: every behaviour has its row, and every test that
//! a row names exists. (That they pass is for `tests/tiers` to say, which runs them.)

use std::fs;
use std::path::{Path, PathBuf};

/// The behaviours are numbered from 1.
const BEHAVIOURS: usize = 59;

/// Behaviours that no test holds yet: kTLS, and what may hold up a runtime.
const PENDING: [usize; 2] = [54, 55];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The cells of each row whose first cell is `B` and a number.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let cells = |line: &'_ str| -> bool {
        let number = line.strip_prefix("| B");
        number.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let rows = page.lines().filter(|line| cells(line));
    rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

/// What stands between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// All files with sources of the test binary `name`: its own, and those that it includes.
fn sources(name: &str) -> Vec<PathBuf> {
    let main = root().join("tests").join(format!("{name}.rs"));
    let text = fs::read_to_string(&main).unwrap_or_default();
    let included = text.lines().filter_map(|line| {
        let path = line.trim().strip_prefix("#[path = \"")?;
        Some(root().join("tests").join(path.strip_suffix("\"]")?))
    });
    std::iter::once(main.clone()).chain(included).collect()
}

/// Whether `word` stands in the text by itself.
fn has_word(text: &str, word: &str) -> bool {
    let outside = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    text.match_indices(word).any(|(at, _)| {
        outside(text[..at].chars().next_back()) && outside(text[at + word.len()..].chars().next())
    })
}

/// Whether a test of that name stands in the sources: as a function, or in the list of a macro
/// that makes functions.
fn exists(test: &str) -> bool {
    let parts: Vec<&str> = test.split("::").collect();
    let [binary, modules @ .., name] = &parts[..] else {
        return false;
    };
    let texts: Vec<String> = sources(binary)
        .iter()
        .map(|path| fs::read_to_string(path).unwrap_or_default())
        .collect();
    let known = |word: &str| texts.iter().any(|text| has_word(text, word));
    let as_function = texts
        .iter()
        .any(|text| text.contains("#[test]") && text.contains(&format!("fn {name}(")));
    let by_macro = texts.iter().any(|text| text.contains("macro_rules!")) && known(name);
    (as_function || by_macro) && modules.iter().all(|module| known(module))
}

#[test]
fn every_behaviour_has_its_row_and_every_test_exists() {
    let page = fs::read_to_string(root().join("docs/conformance.md")).expect("the page");
    let rows = rows(&page);
    let numbers: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    let held = (1..=BEHAVIOURS).filter(|n| !PENDING.contains(n));
    let expected: Vec<String> = held.map(|n| format!("B{n}")).collect();
    assert_eq!(numbers, expected);
    let mut missing = Vec::new();
    for row in &rows {
        let [number, _, tests, tier] = row[..] else {
            panic!("not four cells: {row:?}");
        };
        let named: Vec<&str> = quoted(tests).collect();
        assert!(!named.is_empty(), "{number} names no test");
        let by_root = named.iter().any(|test| test.starts_with("root::"));
        let others = named.iter().any(|test| !test.starts_with("root::"));
        let expected = match (others, by_root) {
            (true, true) => "default, root",
            (true, false) => "default",
            (false, _) => "root",
        };
        assert_eq!(tier, expected, "{number}: the tier of its tests");
        let gone = named.into_iter().filter(|test| !exists(test));
        missing.extend(gone.map(|test| format!("{number}: {test}")));
    }
    assert!(missing.is_empty(), "no such tests:\n{}", missing.join("\n"));
}

/// What the page's own test looks for is found where it is, and not where it is not.
#[test]
fn what_does_not_exist_is_missed() {
    assert!(exists("conformance_page::what_does_not_exist_is_missed"));
    assert!(exists("root::holes_are_kept"));
    assert!(exists("relay::blocking::half_close"));
    assert!(!exists("root::holes_are_not_kept"));
    assert!(!exists("no_such_file::holes_are_kept"));
    assert!(!exists("relay::no_such_module::half_close"));
    let rows = rows("| no | x |\n| B1 | a | `b::c` | d |\n| Bad | x |");
    assert_eq!(rows, [["B1", "a", "`b::c`", "d"]]);
}
