//! The floors: imports go only downward, no mechanism knows another, and `unsafe` lives in
//! `src/sys/` alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The floor of each file, by its path within `src/`; of a directory's, where it ends in `/`. A
/// submodule without an entry stands where its module does.
const FLOORS: [(&str, u32); 23] = [
    ("lib.rs", 9),
    ("tokio.rs", 8),
    ("message.rs", 7),
    ("relay.rs", 7),
    ("fan_out.rs", 7),
    ("options.rs", 7),
    ("transfer.rs", 6),
    ("report.rs", 3),
    ("driver.rs", 5),
    ("probe.rs", 4),
    ("relay/engine.rs", 5),
    ("holes.rs", 4),
    ("drop_behind.rs", 4),
    ("prealloc.rs", 4),
    ("error.rs", 3),
    ("backend/mod.rs", 2),
    ("backend/outcome.rs", 2),
    ("backend/reserve.rs", 2),
    ("backend/", 3),
    ("facts.rs", 1),
    ("policy.rs", 1),
    ("pace.rs", 1),
    ("map_file.rs", 1),
];

fn source_files() -> BTreeMap<String, String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut dirs) = (BTreeMap::new(), vec![src.clone()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path
                    .strip_prefix(&src)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                files.insert(name, code_of(&fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(files.len() > 20, "{files:?}");
    files
}

/// A file's code without its line comments and documentation.
fn code_of(text: &str) -> String {
    let lines = text.lines().map(|line| {
        // `//` within a string stands behind a colon (an address) or does not occur.
        let comment = line
            .match_indices("//")
            .map(|(at, _)| at)
            .find(|at| !line[..*at].ends_with(':'));
        &line[..comment.unwrap_or(line.len())]
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The floor of a file: `sys/` is the ground.
fn floor(file: &str) -> u32 {
    if file.starts_with("sys/") {
        return 0;
    }
    let module = file.split('/').next().unwrap_or(file);
    let names = [file, &format!("{module}/"), &format!("{module}.rs")];
    let found = names
        .into_iter()
        .find_map(|name| FLOORS.iter().find(|(of, _)| *of == name));
    found
        .unwrap_or_else(|| panic!("src/{file} has no floor: give it one in this test"))
        .1
}

/// The file that a module of the crate's root stands in.
fn file_of(files: &BTreeMap<String, String>, module: &str) -> Option<String> {
    let names = [format!("{module}.rs"), format!("{module}/mod.rs")];
    names.into_iter().find(|name| files.contains_key(name))
}

/// The words that follow `prefix` in the code: the names after `crate::`, or after `super::`, those
/// in braces one by one.
fn words_after(code: &str, prefix: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        let list = match rest.strip_prefix('{') {
            Some(inner) => &inner[..inner.find('}').unwrap_or(inner.len())],
            None => rest,
        };
        let names = list.split(',').map(|item| {
            let item = item.trim_start();
            let end = item.find(|c: char| !c.is_alphanumeric() && c != '_');
            item[..end.unwrap_or(item.len())].to_owned()
        });
        let many = if rest.starts_with('{') { usize::MAX } else { 1 };
        words.extend(names.take(many).filter(|name| !name.is_empty()));
    }
    words
}

#[test]
fn imports_go_only_downward() {
    let files = source_files();
    let mut wrong = Vec::new();
    for (file, code) in &files {
        for module in words_after(code, "crate::") {
            // A macro or an item of the crate's root is no module; the root re-exports only.
            let Some(target) = file_of(&files, &module) else {
                if file != "lib.rs" {
                    wrong.push(format!("{file} names crate::{module} by way of lib.rs"));
                }
                continue;
            };
            // A module and its submodules are one; the module's own file stands above them.
            let family = file.strip_suffix(".rs") == Some(&*module)
                || file.starts_with(&format!("{module}/"));
            if family || floor(&target) < floor(file) {
                continue;
            }
            wrong.push(format!(
                "{file} (floor {}) imports {module} (floor {})",
                floor(file),
                floor(&target)
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What a mechanism may know: its parent's vocabulary and the ground.
#[test]
fn no_mechanism_knows_another() {
    let files = source_files();
    let mechanisms: Vec<(&String, &String)> = files
        .iter()
        .filter(|(file, _)| file.starts_with("backend/") && floor(file) == 3)
        .collect();
    // A mechanism's parts, in a directory of its name, are held to the same.
    let modules: Vec<&str> = mechanisms
        .iter()
        .map(|(file, _)| &file["backend/".len()..file.len() - 3])
        .filter(|module| !module.contains('/'))
        .collect();
    assert_eq!(modules.len(), 7, "{modules:?}");
    let types = [
        "Reflink",
        "CopyFileRange",
        "Sendfile",
        "Splice",
        "Mmap",
        "Direct",
        "ReadWrite",
    ];
    for (file, code) in mechanisms {
        for word in words_after(code, "crate::") {
            assert_eq!(word, "sys", "src/{file} imports crate::{word}");
        }
        // A part names the mechanism that it is a part of.
        let own = file["backend/".len()..].split_once('/').map(|(own, _)| own);
        let is_own =
            |word: &str| own.is_some_and(|own| own.replace('_', "") == word.to_lowercase());
        for word in words_after(code, "super::") {
            if is_own(&word) {
                continue;
            }
            let another = modules.contains(&&*word) || types.contains(&&*word);
            assert!(!another, "src/{file} imports super::{word}");
        }
    }
}

#[test]
fn unsafe_lives_in_sys_alone() {
    for (file, code) in source_files() {
        let words = |word: &str| {
            code.split(|c: char| !c.is_alphanumeric() && c != '_')
                .filter(|w| *w == word)
                .count()
        };
        if file.starts_with("sys/") {
            continue;
        }
        assert_eq!(words("unsafe"), 0, "src/{file} has unsafe code");
        assert_eq!(
            words("unsafe_code"),
            0,
            "src/{file} changes the lint on unsafe code"
        );
    }
}

/// The test itself: it sees what it is to find.
#[test]
fn the_reader_reads() {
    let code =
        code_of("use crate::{a, b::C}; // use crate::d\nlet x = crate::e::f(); /// crate::g");
    assert_eq!(words_after(&code, "crate::"), ["a", "b", "e"]);
    assert_eq!(
        words_after("use super::{\n    A,\n    B,\n};", "super::"),
        ["A", "B"]
    );
}
