//! Copies a file like cp(1), by the crate: `cargo run --release --example cp -- SRC DST`.

use std::error::Error;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use zcio::{Backend, Cache, Consistency, End, Reflink, Report, Side, TransferOptions};

/// Copy a file by the cheapest way that the kernel offers for the two.
///
/// SRC and DST may be anything that can be opened: files, devices, FIFOs. A new file gets SRC's
/// permission bits, less the umask. Holes stay holes where the filesystem can. On a terminal a
/// progress bar is shown.
#[derive(Parser)]
struct Args {
    /// Use this backend or fail, instead of letting the probe choose
    #[arg(long, value_parser = choice(&BACKENDS))]
    backend: Option<Backend>,
    /// Whether what was delivered may still change when SRC is written meanwhile
    #[arg(long, value_parser = choice(&CONSISTENCIES), default_value = "aliased")]
    consistency: Consistency,
    /// What the copy leaves in the page cache
    #[arg(long, value_parser = choice(&CACHES), default_value = "normal")]
    cache: Cache,
    /// Whether the copy may share SRC's blocks on disk
    #[arg(long, value_parser = choice(&REFLINKS), default_value = "auto")]
    reflink: Reflink,
    /// Say on stderr what was done, as lines of `key: value`
    #[arg(long, short)]
    verbose: bool,
    /// The file to copy
    #[arg(value_name = "SRC")]
    src: PathBuf,
    /// Where to; in a directory, the copy gets SRC's name
    #[arg(value_name = "DST")]
    dst: PathBuf,
}

const BACKENDS: [(&str, Backend); Backend::ALL.len()] = {
    let mut named = [("", Backend::ReadWrite); Backend::ALL.len()];
    let mut at = 0;
    while at < named.len() {
        named[at] = (Backend::ALL[at].name(), Backend::ALL[at]);
        at += 1;
    }
    named
};
const CONSISTENCIES: [(&str, Consistency); 2] = [
    ("aliased", Consistency::Aliased),
    ("snapshot", Consistency::Snapshot),
];
const CACHES: [(&str, Cache); 3] = [
    ("normal", Cache::Normal),
    ("drop-behind", Cache::DropBehind),
    ("bypass", Cache::Bypass),
];
const REFLINKS: [(&str, Reflink); 3] = [
    ("auto", Reflink::Auto),
    ("always", Reflink::Always),
    ("never", Reflink::Never),
];

/// Accepts the names in a table, which `--help` then lists.
fn choice<T: Copy + Send + Sync + 'static>(
    table: &'static [(&'static str, T)],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(table.iter().map(|(name, _)| *name)).try_map(|given| {
        let row = table.iter().find(|(name, _)| *name == given);
        row.map(|(_, value)| *value).ok_or("not in the list")
    })
}

fn main() -> ExitCode {
    match copy(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cp: {e}");
            ExitCode::FAILURE
        }
    }
}

fn copy(args: &Args) -> Result<(), Box<dyn Error>> {
    let (from, mut to) = (args.src.as_path(), args.dst.clone());
    let failed = |side: Side, path: &Path, what: &dyn Display| {
        format!("{side} {}: {what}; 0 bytes delivered", path.display())
    };
    let src = File::open(from).map_err(|e| failed(Side::Source, from, &e))?;
    let facts = src.metadata().map_err(|e| failed(Side::Source, from, &e))?;
    if facts.is_dir() {
        return Err(failed(Side::Source, from, &"it is a directory").into());
    }
    if to.is_dir() {
        to.push(from.file_name().ok_or("SRC has no name of its own")?);
    }
    let at_dst = |e: io::Error| failed(Side::Destination, &to, &e);
    let (dst, is_new) = open_destination(&to, &facts).map_err(at_dst)?;
    let seen = dst.metadata().map_err(at_dst)?;
    if (seen.dev(), seen.ino()) == (facts.dev(), facts.ino()) {
        let text = format!("it is the same file as {}", from.display());
        return Err(failed(Side::Destination, &to, &text).into());
    }
    if seen.is_file() && !is_new {
        dst.set_len(0).map_err(at_dst)?;
    }
    let report = transfer(args, &src, &dst, facts.len()).map_err(|e| {
        if is_new && e.delivered() == 0 {
            // As if it had not been tried; otherwise the part is left, as cp(1) does.
            let _ = fs::remove_file(&to);
        }
        failure(&e, from, &to)
    })?;
    // A quota or a file server may only complain now.
    nix::unistd::close(dst).map_err(|e| {
        let (to, bytes) = (to.display(), report.bytes);
        format!("destination {to}: on closing: {e}; {bytes} bytes delivered")
    })?;
    if args.verbose {
        eprint!("{}", lines(&report));
    }
    Ok(())
}

/// Opens the destination, and says whether it is new. Nothing of it is lost yet: it may turn out
/// to be the source.
fn open_destination(path: &Path, src: &fs::Metadata) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    // The set-user-ID bit and its kin are not for a copy to have.
    options.write(true).mode(src.permissions().mode() & 0o777);
    match options.clone().create_new(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok((options.open(path)?, false)),
        opened => Ok((opened?, true)),
    }
}

fn transfer(args: &Args, src: &File, dst: &File, size: u64) -> zcio::Result<Report> {
    let mut options = TransferOptions::new();
    options
        .consistency(args.consistency)
        .cache(args.cache)
        .reflink(args.reflink);
    if let Some(backend) = args.backend {
        options.backend(backend);
    }
    let bar = ProgressBar::new(size);
    if bar.is_hidden() {
        // stderr is no terminal.
        return options.transfer(src, dst, u64::MAX);
    }
    let look = "{bar:28} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {msg}";
    if let Ok(style) = ProgressStyle::with_template(look) {
        bar.set_style(style);
    }
    // Some backends move a GiB at a time; a bar should move more often.
    const GRAIN: NonZeroUsize = NonZeroUsize::new(16 << 20).unwrap();
    let result = options
        .chunk_size(GRAIN)
        .transfer_with(src, dst, u64::MAX, |progress| {
            bar.set_message(progress.backend.name());
            bar.set_position(progress.delivered);
            ControlFlow::Continue(())
        });
    bar.finish_and_clear();
    result
}

/// The error, which names the side, with the counts: bytes taken from a source that does not
/// rewind are gone with this process.
fn failure(error: &zcio::Error, from: &Path, to: &Path) -> String {
    let (from, to, delivered) = (from.display(), to.display(), error.delivered());
    let lost = match error.undelivered().len() {
        0 => String::new(),
        lost => format!(", {lost} more taken from the source"),
    };
    format!("{from} to {to}: {error}; {delivered} bytes delivered{lost}")
}

fn lines(report: &Report) -> String {
    let end = match report.end {
        End::Complete => "complete",
        End::SourceEnded => "source-ended",
        End::Stopped => "stopped",
    };
    let refused: Vec<String> = report
        .refused()
        .iter()
        .map(|(backend, reason)| format!("{backend} ({reason})"))
        .collect();
    let refused = if refused.is_empty() {
        "none".to_owned()
    } else {
        refused.join(", ")
    };
    format!(
        "bytes: {}\nbackend: {}\nend: {end}\nsyscalls: {}\nrefused: {refused}\n",
        report.bytes,
        report.backend,
        report.syscalls(),
    )
}
