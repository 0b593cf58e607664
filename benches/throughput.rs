//! Throughput of each backend that fits a pair, of the probe's own choice, of the bare loop over the
//! same calls, of `std::io::copy` and `tokio::io::copy`, by size, from a warm and from a cold page
//! cache.
//!
//! `cargo bench --bench throughput`, or with a filter: `-- 'file -> TCP/16 MiB'`. Bytes are counted at
//! both ends, and time runs until the last byte of a batch has been received.

mod support;

use std::env;
use std::fs::File;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use support::bare::{self, Loop};
use support::{End, GIB, KIB, Link, MIB, awaiting, clock, peer, size};
use zcio::{Backend, TransferOptions};

const PAIRS: [(End, End); 7] = [
    (End::File, End::Tcp),
    (End::File, End::Unix),
    (End::File, End::Pipe),
    (End::File, End::File),
    (End::Tcp, End::Tcp),
    (End::Tcp, End::File),
    (End::Pipe, End::File),
];
const SIZES: [u64; 7] = [512, 4 * KIB, 64 * KIB, MIB, 16 * MIB, 256 * MIB, GIB];

/// The loop that a user would write over the calls of a backend.
fn bare_loop(backend: Backend, from: End, to: End) -> Option<Loop> {
    match backend {
        Backend::Sendfile => Some(bare::by_sendfile),
        Backend::CopyFileRange => Some(bare::by_copy_file_range),
        Backend::Splice if from == End::Pipe || to == End::Pipe => Some(bare::by_splice),
        Backend::Splice => Some(bare::by_splice_through::<{ 256 << 10 }>),
        Backend::ReadWrite => Some(bare::by_read_write::<{ 256 << 10 }>),
        _ => None,
    }
}

/// Everything that moves `bytes` bytes, by name.
type Work = Box<dyn Fn(&File, &File) -> u64>;

fn ways(link: &mut Link, from: End, to: End, bytes: u64) -> Vec<(String, Work)> {
    let transfer = |options: TransferOptions| -> Work {
        Box::new(move |src, dst| {
            let report = options.transfer(src, dst, bytes);
            report.expect("the transfer works").bytes
        })
    };
    let mut ways = vec![("zcio".to_owned(), transfer(TransferOptions::new()))];
    for backend in Backend::ALL {
        if matches!(backend, Backend::Direct | Backend::Reflink) || !link.takes(backend) {
            continue;
        }
        let mut options = TransferOptions::new();
        options.backend(backend);
        ways.push((format!("zcio by {backend}"), transfer(options)));
        if let Some(bare) = bare_loop(backend, from, to) {
            let work: Work = Box::new(move |src, dst| bare(src, dst, bytes));
            ways.push((format!("bare {backend}"), work));
        }
    }
    let std = move |src: &File, dst: &File| bare::by_std_copy(src, dst, bytes);
    ways.push(("std::io::copy".to_owned(), Box::new(std)));
    let tokio = move |src: &File, dst: &File| awaiting::by_tokio_copy(from, to, src, dst, bytes);
    ways.push(("tokio::io::copy".to_owned(), Box::new(tokio)));
    ways
}

fn throughput(c: &mut Criterion, is_test: bool) {
    let sizes = if is_test { &SIZES[..4] } else { &SIZES };
    let source = support::source(sizes[sizes.len() - 1]);
    for (from, to) in PAIRS {
        let pair = format!("{} -> {}", from.name(), to.name());
        for cold in [false, true] {
            let mut link = Link::new(from, to, &source);
            link.cold = cold;
            for &bytes in sizes {
                // Only a file has a cold state, and what is fetched is a page at least.
                if cold && (from != End::File || bytes < MIB) {
                    continue;
                }
                let state = if cold { ", cold" } else { "" };
                let mut group = c.benchmark_group(format!("{pair}/{}{state}", size(bytes)));
                group.throughput(Throughput::Bytes(bytes));
                // Large transfers vary little within a sample, and take long.
                if bytes > MIB {
                    group.sampling_mode(SamplingMode::Flat);
                }
                for (name, work) in ways(&mut link, from, to, bytes) {
                    // A runtime leaves its descriptors non-blocking, which is not for the others.
                    let mut own = name
                        .starts_with("tokio")
                        .then(|| Link::new(from, to, &source));
                    let link = own.as_mut().unwrap_or(&mut link);
                    link.cold = cold;
                    group.bench_function(BenchmarkId::from_parameter(name), |b| {
                        b.iter_custom(|rounds| {
                            let cost = link.run_each(bytes, rounds, &work);
                            Duration::from_secs_f64(cost.time)
                        });
                    });
                }
                group.finish();
            }
        }
    }
}

fn main() {
    peer::serve_if_asked();
    clock::pin(clock::OURS);
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    throughput(&mut criterion, env::args().any(|arg| arg == "--test"));
    criterion.final_summary();
}
