//! A relay between two TCP connections: the crate's, awaiting and blocking, against tokio's, against
//! other crates' and against a bare loop. One peer sends and shuts down, the other receives all of
//! it and shuts down; each round has connections of its own.
//!
//! `cargo bench --features tokio --bench relay -- [--quick] [--rounds N] [--json FILE]`

mod support;

use std::fs::File;
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;

use support::awaiting;
use support::bare::{self, Loop};
use support::{End, Link, MIB, Way, judge, runtime, take_turns};

fn main() {
    let args = support::begin();
    let bytes = if args.quick { 4 * MIB } else { 256 * MIB };
    let source = support::source(0);
    println!("{}", support::machine());
    let mut rows = Vec::new();
    let awaiting: [(&str, Loop); 5] = [
        ("zcio::tokio::relay", by_relay),
        ("tokio::io::copy_bidirectional", by_tokio),
        ("tokio_splice2::copy_bidirectional", by_tokio_splice2),
        (
            "realm_io::bidi_zero_copy, as it comes",
            by_realm::<{ 64 << 10 }>,
        ),
        ("realm_io::bidi_zero_copy, 1 MiB", by_realm::<{ 1 << 20 }>),
    ];
    let blocking: [(&str, Loop); 3] = [
        ("zcio::relay", by_blocking_relay),
        ("bare splice, 256 KiB, one way", by_splice::<{ 256 << 10 }>),
        ("bare splice, 1 MiB, one way", by_splice::<{ 1 << 20 }>),
    ];
    let bounds = [("tokio::io::copy_bidirectional", 0.25)];
    for (name, ways) in [
        ("relay, awaiting", &awaiting[..]),
        ("relay, blocking", &blocking[..]),
    ] {
        let mut ways: Vec<Way<Loop>> = ways.iter().map(|(name, w)| Way::new(*name, *w)).collect();
        take_turns(&mut ways, args.rounds(21), |work| {
            let work = *work;
            let mut link = Link::new(End::Tcp, End::Tcp, &source);
            link.run_to_the_end(bytes, |a, b| work(a, b, bytes))
        });
        rows.push(judge(name, bytes, &ways, &bounds));
        args.write(&rows);
    }
}

/// A link's descriptor as the socket that it is.
fn socket(file: &File) -> TcpStream {
    TcpStream::from(OwnedFd::from(file.try_clone().expect("the socket, again")))
}

fn by_blocking_relay(a: &File, b: &File, _: u64) -> u64 {
    let report = zcio::relay(a, b).expect("a relay");
    report.a_to_b.bytes
}

fn by_splice<const CAPACITY: usize>(a: &File, b: &File, len: u64) -> u64 {
    let moved = bare::by_splice_through::<CAPACITY>(a, b, len);
    let ends = [(a, b), (b, a)].map(|(from, to)| (socket(from), socket(to)));
    for (from, to) in ends {
        // Nothing more comes: what is copied is the end.
        std::io::copy(&mut &from, &mut &to).expect("the end");
        to.shutdown(Shutdown::Write).expect("shutdown");
    }
    moved
}

/// Runs one of the awaiting relays.
fn on_runtime(
    a: &File,
    b: &File,
    relay: impl AsyncFnOnce(&mut tokio::net::TcpStream, &mut tokio::net::TcpStream) -> u64,
) -> u64 {
    runtime().block_on(async { relay(&mut awaiting::tcp(a), &mut awaiting::tcp(b)).await })
}

fn by_relay(a: &File, b: &File, _: u64) -> u64 {
    on_runtime(a, b, async |a, b| {
        let report = zcio::tokio::relay(&*a, &*b).await;
        report.expect("a relay").a_to_b.bytes
    })
}

fn by_tokio(a: &File, b: &File, _: u64) -> u64 {
    on_runtime(a, b, async |a, b| {
        let moved = tokio::io::copy_bidirectional(a, b).await;
        moved.expect("copy_bidirectional").0
    })
}

fn by_tokio_splice2(a: &File, b: &File, _: u64) -> u64 {
    on_runtime(a, b, async |a, b| {
        let traffic = tokio_splice2::copy_bidirectional(a, b).await;
        let traffic = traffic.expect("copy_bidirectional");
        assert!(traffic.error.is_none(), "{:?}", traffic.error);
        traffic.tx as u64
    })
}

fn by_realm<const CAPACITY: usize>(a: &File, b: &File, _: u64) -> u64 {
    realm_io::set_pipe_size(CAPACITY);
    on_runtime(a, b, async |a, b| {
        let moved = realm_io::bidi_zero_copy(a, b).await;
        moved.expect("bidi_zero_copy").0
    })
}
