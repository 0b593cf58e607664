//! `transfer` against the loop that a user would write over the best bare call, against
//! `std::io::copy`, and its awaiting form against `tokio::io::copy`.
//!
//! `cargo bench --features tokio --bench versus -- [--quick] [--rounds N] [--json FILE] [PAIR...]`

mod support;

use std::fs::File;

use support::awaiting;
use support::bare::{self, Loop};
use support::{End, Link, MIB, Way, judge, take_turns};

/// A pair, what else moves bytes there, and the bounds for the first against the others.
struct Line {
    name: &'static str,
    from: End,
    to: End,
    ways: Vec<(&'static str, Loop)>,
    bounds: &'static [(&'static str, f64)],
}

const K64: usize = 64 << 10;
const K256: usize = 256 << 10;
const M1: usize = 1 << 20;

fn lines() -> Vec<Line> {
    use End::{File, Pipe, Tcp, Unix};
    let line = |name, from, to, ways, bounds| Line {
        name,
        from,
        to,
        ways,
        bounds,
    };
    let std: (&str, Loop) = ("std::io::copy", bare::by_std_copy);
    let sendfile: (&str, Loop) = ("bare sendfile", bare::by_sendfile);
    let splice: (&str, Loop) = ("bare splice", bare::by_splice);
    let through_64: (&str, Loop) = ("bare splice, 64 KiB", bare::by_splice_through::<K64>);
    let through_256: (&str, Loop) = ("bare splice, 256 KiB", bare::by_splice_through::<K256>);
    let through_1m: (&str, Loop) = ("bare splice, 1 MiB", bare::by_splice_through::<M1>);
    let rw: (&str, Loop) = ("bare read/write, 256 KiB", bare::by_read_write::<K256>);
    let rw_64: (&str, Loop) = ("read/write, 64 KiB", bare::by_read_write::<K64>);
    let allocated: (&str, Loop) = (
        "bare fallocate, read/write, 256 KiB",
        bare::allocated_read_write::<K256>,
    );
    let spliced: (&str, Loop) = (
        "bare fallocate, splice, 1 MiB pipe",
        bare::allocated_splice_through::<M1>,
    );
    let straight: (&str, Loop) = ("bare fallocate, splice", bare::allocated_splice);
    let ranged: (&str, Loop) = ("bare copy_file_range", bare::by_copy_file_range);
    vec![
        line(
            "file -> TCP",
            File,
            Tcp,
            vec![sendfile, rw_64, std],
            &[("bare", 1.03), ("std::io::copy", 0.45)],
        ),
        line(
            "file -> UNIX",
            File,
            Unix,
            vec![sendfile, through_64, through_256, std],
            &[("bare", 1.03)],
        ),
        line(
            "file -> pipe",
            File,
            Pipe,
            vec![sendfile, splice, std],
            &[("bare", 1.03), ("std::io::copy", 0.25)],
        ),
        line(
            "TCP -> TCP",
            Tcp,
            Tcp,
            vec![through_256, through_1m, rw, std],
            &[("bare", 1.03), ("std::io::copy", 0.50)],
        ),
        line(
            "pipe -> file",
            Pipe,
            File,
            vec![splice, straight, rw, allocated],
            &[("bare", 1.03)],
        ),
        line(
            "file -> file",
            File,
            File,
            vec![rw, allocated, spliced, sendfile, ranged],
            &[("bare", 1.03)],
        ),
        line(
            "TCP -> file",
            Tcp,
            File,
            vec![rw_64, rw, allocated, spliced],
            &[("bare", 1.03), ("read/write, 64 KiB", 0.40)],
        ),
    ]
}

fn by_transfer(src: &File, dst: &File, len: u64) -> u64 {
    let report = zcio::transfer(src, dst, len).expect("a pair that serves");
    report.bytes
}

fn main() {
    let args = support::begin();
    let bytes = if args.quick { 4 * MIB } else { 256 * MIB };
    let source = support::source(bytes);
    println!("{}", support::machine());
    let mut rows = Vec::new();
    let mut run = |line: Line, ours: (&'static str, Loop)| {
        if !args.wants(line.name) {
            return;
        }
        let mut link = Link::new(line.from, line.to, &source);
        let all = [ours].into_iter().chain(line.ways);
        let mut ways: Vec<Way<Loop>> = all.map(|(name, work)| Way::new(name, work)).collect();
        take_turns(&mut ways, args.rounds(21), |work| {
            let work = *work;
            link.run(bytes, |src, dst| work(src, dst, bytes))
        });
        rows.push(judge(line.name, bytes, &ways, line.bounds));
        args.write(&rows);
    };
    for line in lines() {
        run(line, ("zcio", by_transfer));
    }
    let line = Line {
        name: "file -> TCP, awaiting",
        from: End::File,
        to: End::Tcp,
        ways: vec![("tokio::io::copy", by_tokio_copy)],
        bounds: &[("tokio::io::copy", 0.10)],
    };
    run(line, ("zcio::tokio", by_awaiting));
}

fn by_awaiting(src: &File, dst: &File, len: u64) -> u64 {
    support::runtime().block_on(async {
        let src = src.try_clone().expect("the source, again");
        let report = zcio::tokio::transfer(&src, &awaiting::tcp(dst), len).await;
        report.expect("a pair that serves").bytes
    })
}

fn by_tokio_copy(src: &File, dst: &File, len: u64) -> u64 {
    awaiting::by_tokio_copy(End::File, End::Tcp, src, dst, len)
}
