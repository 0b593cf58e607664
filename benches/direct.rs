//! O_DIRECT at the device's speed: beside fio and dd, which it starts where they are installed, in
//! rounds that take turns.
//!
//! `cargo bench --bench direct`, with `--features io-uring` for the ring; `-- --quick` for a small
//! file and few rounds, `-- --dir DIR` for a device other than the temporary directory's.
//!
//! Bytes are counted, and each round's ratio is taken from figures of that round alone: devices, and
//! the machines that lend them, are not the same from one minute to the next.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use clap::Parser;
use zcio::{Backend, Cache, TransferOptions};

#[derive(Parser)]
struct Args {
    /// 64 MiB and three rounds.
    #[arg(long)]
    quick: bool,
    #[arg(long)]
    rounds: Option<usize>,
    /// Of the file that is copied.
    #[arg(long)]
    mib: Option<u64>,
    /// Where the files are made.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// cargo passes these on.
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    test: bool,
}

/// The files of a run.
struct Place {
    src: PathBuf,
    dst: PathBuf,
    mib: u64,
}

/// MiB/s, or `None` where the program is not to be had.
type Way = (&'static str, fn(&Place) -> Option<f64>);

/// Every way, in the order in which a round takes them.
const WAYS: [Way; 7] = [
    ("copy", |place| Some(place.copy(false))),
    ("fio, a reader and a writer", |place| {
        place.fresh();
        place.fio(true)
    }),
    ("dd bs=4M", Place::dd),
    ("copy onto a file of that size", |place| {
        Some(place.copy(true))
    }),
    ("fio, the same onto a file of that size", |place| {
        place.written();
        place.fio(true)
    }),
    ("cold file to TCP", |place| Some(place.send())),
    ("fio, reading alone", |place| place.fio(false)),
];

/// Ours, what it is held against, and the least that the ratio is to be.
const PAIRS: [(usize, usize, f64); 4] = [(0, 1, 0.90), (3, 4, 0.90), (0, 2, 1.10), (5, 6, 0.85)];

impl Place {
    fn open(path: &Path) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.custom_flags(libc::O_CLOEXEC);
        options.open(path).expect("the directory can be written")
    }

    fn options() -> TransferOptions {
        let mut options = TransferOptions::new();
        options.cache(Cache::Bypass);
        options
    }

    fn rate(&self, begun: Instant) -> f64 {
        self.mib as f64 / begun.elapsed().as_secs_f64()
    }

    fn fresh(&self) {
        let _ = std::fs::remove_file(&self.dst);
    }

    /// A destination that has its bytes already.
    fn written(&self) {
        if std::fs::metadata(&self.dst).is_ok_and(|meta| meta.len() == self.mib << 20) {
            return;
        }
        let dst = Self::open(&self.dst);
        let report = Self::options().transfer(Self::open(&self.src), dst, u64::MAX);
        assert_eq!(report.expect("room").bytes, self.mib << 20);
    }

    fn copy(&self, written: bool) -> f64 {
        if written {
            self.written();
        } else {
            self.fresh();
        }
        let (src, dst) = (Self::open(&self.src), Self::open(&self.dst));
        let begun = Instant::now();
        let report = Self::options().transfer(&src, &dst, u64::MAX);
        let rate = self.rate(begun);
        let report = report.expect("a copy");
        assert_eq!(report.shares(), [(Backend::Direct, self.mib << 20)]);
        rate
    }

    fn send(&self) -> f64 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
        let address = listener.local_addr().expect("its address");
        let dst = TcpStream::connect(address).expect("a loopback connection");
        let (mut peer, _) = listener.accept().expect("the same, accepted");
        let receiver = thread::spawn(move || {
            let (mut buf, mut count) = (vec![0; 1 << 20], 0);
            loop {
                match peer.read(&mut buf).expect("a peer") {
                    0 => return count,
                    n => count += n as u64,
                }
            }
        });
        let src = Self::open(&self.src);
        let begun = Instant::now();
        let report = Self::options().transfer(&src, dst, u64::MAX).expect("sent");
        let received = receiver.join().expect("no panic");
        let rate = self.rate(begun);
        assert_eq!(report.shares(), [(Backend::Direct, received)]);
        assert_eq!(received, self.mib << 20);
        rate
    }

    /// Jobs of 1 MiB, 16 in flight; the slower one's rate is how fast a copy could have been.
    fn fio(&self, writes: bool) -> Option<f64> {
        let mut command = Command::new("fio");
        command.args(["--output-format=json", "--ioengine=libaio", "--direct=1"]);
        command.args(["--bs=1M", "--iodepth=16", "--fallocate=keep"]);
        command.arg(format!("--size={}M", self.mib));
        command.args(["--name=reader", "--rw=read"]);
        command.arg(format!("--filename={}", self.src.display()));
        if writes {
            command.args(["--name=writer", "--rw=write"]);
            command.arg(format!("--filename={}", self.dst.display()));
        }
        let output = command.output().ok().filter(|out| out.status.success())?;
        let json = &output.stdout[output.stdout.iter().position(|byte| *byte == b'{')?..];
        let json: serde_json::Value = serde_json::from_slice(json).ok()?;
        let rates = json["jobs"].as_array()?.iter().map(|job| {
            let kind = if job["jobname"] == "writer" {
                "write"
            } else {
                "read"
            };
            assert_eq!(job[kind]["io_bytes"].as_u64(), Some(self.mib << 20));
            job[kind]["bw_bytes"].as_f64().unwrap_or(f64::NAN) / f64::from(1 << 20)
        });
        Some(rates.fold(f64::INFINITY, f64::min))
    }

    fn dd(&self) -> Option<f64> {
        self.fresh();
        let begun = Instant::now();
        let status = Command::new("dd")
            .arg(format!("if={}", self.src.display()))
            .arg(format!("of={}", self.dst.display()))
            .args(["bs=4M", "iflag=direct", "oflag=direct", "status=none"])
            .status();
        let rate = self.rate(begun);
        status.is_ok_and(|status| status.success()).then_some(rate)
    }
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

/// The ranks between which the median lies with 95 % certainty, whatever the distribution.
fn interval(sorted: &[f64]) -> (f64, f64) {
    let count = sorted.len();
    // Binomial with one half: the ranks left out on each side weigh at most 2.5 %.
    let (mut weight, mut below, mut left_out) = (0.5_f64.powi(count as i32), 0.0, 0);
    while left_out < count / 2 && below + weight <= 0.025 {
        below += weight;
        left_out += 1;
        weight *= (count - left_out + 1) as f64 / left_out as f64;
    }
    let left_out = left_out.saturating_sub(1).min(count / 2);
    (sorted[left_out], sorted[count - 1 - left_out])
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn main() {
    let args = Args::parse();
    let quick = args.quick || args.test;
    let mib = args.mib.unwrap_or(if quick { 64 } else { 512 });
    let rounds = args.rounds.unwrap_or(if quick { 3 } else { 15 });
    let dir = match args.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    let dir = dir.expect("a directory");
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    let place = Place { src, dst, mib };
    let mut file = File::create(&place.src).expect("the directory can be written");
    // No two blocks alike: a device may know zeros.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..mib {
        let block: Vec<u8> = (0..1 << 17)
            .flat_map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                seed.to_le_bytes()
            })
            .collect();
        file.write_all(&block).expect("room for the source");
    }
    file.sync_all().expect("fsync(2)");
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    nix::fcntl::posix_fadvise(&file, 0, 0, advice).expect("advice");

    let mut rates = vec![Vec::new(); WAYS.len()];
    for _ in 0..rounds {
        for (rates, (_, way)) in rates.iter_mut().zip(WAYS) {
            rates.push(way(&place));
        }
    }
    let by = if cfg!(feature = "io-uring") {
        "io-uring"
    } else {
        "a thread"
    };
    println!(
        "{mib} MiB, {rounds} rounds, read ahead by {by}\n\n| way | MiB/s, median |\n|---|---|"
    );
    for (rates, (name, _)) in rates.iter().zip(WAYS) {
        let known = sorted(rates.iter().flatten().copied());
        match known.is_empty() {
            true => println!("| {name} | SKIPPED: the program is not to be had |"),
            false => println!("| {name} | {:.0} |", median(&known)),
        }
    }
    println!("\n| ours / theirs | median | 95 % | at least |\n|---|---|---|---|");
    for (ours, theirs, least) in PAIRS {
        let both = rates[ours].iter().zip(&rates[theirs]);
        let ratios = sorted(both.filter_map(|(one, other)| Some((*one)? / (*other)?)));
        if !ratios.is_empty() {
            let (low, high) = interval(&ratios);
            let names = (WAYS[ours].0, WAYS[theirs].0);
            let middle = median(&ratios);
            println!(
                "| {} / {} | {middle:.2} | {low:.2} to {high:.2} | {least:.2} |",
                names.0, names.1
            );
        }
    }
}
