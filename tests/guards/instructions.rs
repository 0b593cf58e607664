//! Instructions of probe, one-shot and advance, counted by callgrind, where it is installed.
//!
//! The test binary runs itself under it, with less and with more to do; the difference is what one
//! costs, whatever the start of the process does. The kernel's own instructions are not among them.
//! Compilers differ: the figures below are those of one, and hold to 3 % with it; with another,
//! half as many again are let pass.

use std::env;
use std::os::unix::fs::FileExt;
use std::process::Command;

use zcio::{Probe, Status, TransferOptions};

use crate::common::{make, skipped};

/// What the figures were counted with.
const COMPILER: &str = "rustc 1.95.";
/// What is done, and the instructions of one: without optimisation, and with it.
const FIGURES: [(&str, u64, u64); 4] = [
    ("probe", 12434, 1638),
    ("one-shot to a file", 21054, 2695),
    ("one-shot to a pipe", 19751, 2919),
    ("advance", 2650, 322),
];

const WHAT: &str = "ZCIO_GUARDS_WHAT";
const TIMES: &str = "ZCIO_GUARDS_TIMES";
/// Bytes of each, so that what the kernel moves takes no time.
const LEN: u64 = 64;
const FEW: u64 = 100;
const MANY: u64 = 1100;

fn work(what: &str, times: u64) {
    let (src, dst) = (make::memfd(), make::memfd());
    src.write_all_at(&vec![1; (LEN * MANY) as usize], 0)
        .unwrap();
    let (_far, near) = make::pipe();
    let mut options = TransferOptions::new();
    options.src_offset(0);
    match what {
        "probe" => {
            for _ in 0..times {
                std::hint::black_box(Probe::new(&src, &near).unwrap());
            }
        }
        "one-shot to a file" => {
            options.dst_offset(0);
            for _ in 0..times {
                assert_eq!(options.transfer(&src, &dst, LEN).unwrap().bytes, LEN);
            }
        }
        "one-shot to a pipe" => {
            // Copied bytes, of which a pipe holds more than it holds pages.
            options.backend(zcio::Backend::ReadWrite);
            for _ in 0..times {
                assert_eq!(options.transfer(&src, &near, 1).unwrap().bytes, 1);
            }
        }
        _ => {
            options.dst_offset(0);
            let mut transfer = options.start(&src, &dst, 0).unwrap();
            for _ in 0..times {
                transfer.extend(LEN);
                assert!(matches!(transfer.advance(), Ok(Status::Moved(_))));
            }
        }
    }
}

/// What callgrind counts of a child that does `what` so many times; or why there is no answer.
fn counted(what: &str, times: u64) -> Result<u64, String> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe().expect("a test binary"))
        .args([
            "--exact",
            "instructions::of_probe_and_driver",
            "--nocapture",
        ])
        .env(WHAT, what)
        .env(TIMES, times.to_string())
        .output()
        .map_err(|e| format!("valgrind: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said
        .lines()
        .find_map(|line| line.split("Collected :").nth(1));
    let number = collected.and_then(|number| number.trim().parse().ok());
    match number {
        Some(number) if output.status.success() => Ok(number),
        _ => Err(format!("valgrind ends with {}: {said}", output.status)),
    }
}

/// The compiler's version, as cargo runs it.
fn compiler() -> String {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-V").output();
    output.map_or(String::new(), |o| {
        String::from_utf8_lossy(&o.stdout).into_owned()
    })
}

#[test]
fn of_probe_and_driver() {
    if let (Ok(what), Ok(times)) = (env::var(WHAT), env::var(TIMES)) {
        return work(&what, times.parse().expect("a number"));
    }
    if !cfg!(target_arch = "x86_64") {
        return skipped("instructions", "the figures are of x86-64");
    }
    let known = compiler().starts_with(COMPILER);
    let mut wrong = Vec::new();
    for (what, plain, optimised) in FIGURES {
        let (few, many) = match (counted(what, FEW), counted(what, MANY)) {
            (Ok(few), Ok(many)) => (few, many),
            (Err(why), _) | (_, Err(why)) => return skipped("instructions", why),
        };
        let one = many.saturating_sub(few) / (MANY - FEW);
        let figure = if cfg!(debug_assertions) {
            plain
        } else {
            optimised
        };
        eprintln!("{what}: {one} instructions, {figure} expected");
        let slack = if known { figure * 3 / 100 } else { figure / 2 };
        // Fewer than that with the same compiler are worth a new figure.
        if one > figure + slack || (known && one + slack < figure) {
            wrong.push(format!("{what}: {one} instructions instead of {figure}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
