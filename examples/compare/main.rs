//! Compares the ways to move bytes between two descriptors, on this machine.
//!
//! `cargo run --release --example compare` needs no argument: it makes its own input and its own
//! receivers on loopback, checks what they receive, and leaves nothing behind.

mod article;
mod chart;
mod cpu;
mod data;
mod link;
mod measure;
mod receiver;
mod report;

use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::link::Pair;
use crate::measure::Plan;

/// Compare every way to move bytes between two descriptors, and what the probe would choose.
///
/// For each pair (file to TCP socket, UNIX socket, file and pipe, TCP socket to TCP socket), each
/// backend that fits moves the same bytes in turns with the others, to a receiver in a process of
/// its own that checks them. The table shows throughput until the last byte was received, and the
/// processor time, system calls and copies of the sending side alone.
///
/// Temporary files are anonymous and gone when the program ends, however it ends.
#[derive(Parser)]
#[command(disable_help_subcommand = true, args_conflicts_with_subcommands = true)]
struct Args {
    /// Run the table of the article "Efficient data transfer through zero copy" instead: file to
    /// TCP socket, read/write with buffers of 4 KiB and 64 KiB against sendfile, 7 MB to 1 GB
    #[arg(long)]
    article: bool,
    /// Small sizes and few rounds, to see that everything works; the figures mean little
    #[arg(long)]
    quick: bool,
    /// Print the results as JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Draw the results as a bar chart as well, into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Where the temporary files lie: up to 1 GB with --article, else up to 256 MiB [default:
    /// /var/tmp, which is a disk more often than /tmp]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// The receiving process, which the program starts by itself
    #[command(hide = true)]
    Receive {
        bytes: u64,
        #[arg(long)]
        cpu: Option<usize>,
        #[arg(long)]
        feed: Option<SocketAddr>,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match &args.role {
        Some(Role::Receive { bytes, cpu, feed }) => {
            receiver::receive(*bytes, *cpu, *feed).map_err(Into::into)
        }
        None => compare(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("compare: {e}");
            ExitCode::FAILURE
        }
    }
}

fn compare(args: &Args) -> Result<(), Box<dyn Error>> {
    let dir = args.dir.clone().unwrap_or_else(|| {
        let lasting = PathBuf::from("/var/tmp");
        if lasting.is_dir() {
            lasting
        } else {
            std::env::temp_dir()
        }
    });
    receiver::end_with_parent()?;
    let cpus = cpu::two();
    cpu::pin(cpus.map(|(sender, _)| sender));
    let receiver_cpu = cpus.map(|(_, receiver)| receiver);
    let (bytes, rounds, budget) = match (args.article, args.quick) {
        (false, false) => (128 << 20, 15, Duration::from_secs(50)),
        (false, true) => (8 << 20, 3, Duration::from_secs(6)),
        (true, false) => (1_000_000_000, 5, Duration::from_secs(45)),
        (true, true) => (21_000_000, 3, Duration::from_secs(6)),
    };
    let machine = report::machine(&dir, cpus);
    let source = link::source_file(&dir, bytes)
        .map_err(|e| format!("no temporary file in {}: {e}", dir.display()))?;
    let plan = Plan {
        source: &source,
        dir: &dir,
        receiver_cpu,
        bytes,
        rounds,
        budget,
    };
    if args.article {
        let results = article::run(&plan, &bar(article::steps(&plan)))?;
        let text = article::text(&machine, &results);
        let json = article::json(&machine, &results);
        print(&if args.json { json } else { text })?;
        return draw(args, &machine, &article::panels(&results));
    }
    let bar = bar((Pair::ALL.len() * (rounds + 1)) as u64);
    let canary = zcio::probe::canary()?;
    let mut results = Vec::new();
    if !args.json {
        bar.suspend(|| print(&report::heading(&machine, &canary, &plan)))?;
    }
    let end = Instant::now() + budget;
    for (done, pair) in Pair::ALL.into_iter().enumerate() {
        // What one pair leaves of its share of the time goes to those that follow.
        let left = end.saturating_duration_since(Instant::now());
        let plan = Plan {
            budget: left / (Pair::ALL.len() - done) as u32,
            ..plan
        };
        bar.set_message(pair.name());
        let outcome = measure::measure(&plan, pair, &bar)?;
        bar.set_position(((done + 1) * (rounds + 1)) as u64);
        if !args.json {
            bar.suspend(|| print(&report::table(&outcome)))?;
        }
        results.push(outcome);
    }
    bar.finish_and_clear();
    if args.json {
        print(&report::json(&machine, &canary, &results))?;
    }
    draw(args, &machine, &report::panels(&results))
}

/// A progress bar on stderr; where that is no terminal, none. It draws only when it is told of
/// progress: a thread of its own would count as the sender's processor time.
fn bar(steps: u64) -> ProgressBar {
    let bar = ProgressBar::new(steps);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} rounds  {msg}") {
        bar.set_style(style);
    }
    bar
}

/// One write of the whole, so that a reader that goes away is an error and no panic.
fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn draw(args: &Args, machine: &str, panels: &[chart::Panel]) -> Result<(), Box<dyn Error>> {
    if let Some(file) = &args.svg {
        chart::draw(file, machine, panels).map_err(|e| format!("{}: {e}", file.display()))?;
        eprintln!("compare: chart written to {}", file.display());
    }
    Ok(())
}
