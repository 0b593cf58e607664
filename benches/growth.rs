//! Whether cost grows with the bytes alone: one transfer of 1 MiB to 64 GiB, and 1 to 10,000
//! transfers at once on tokio.
//!
//! `cargo bench --features tokio --bench growth -- [--quick] [--rounds N] [--json FILE] [FILTER...]`

mod support;

use std::cell::RefCell;
use std::fs::File;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio, exit};
use std::sync::Arc;
use std::time::Instant;
use std::{env, io};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::sendfile::sendfile64;
use serde_json::{Value, json};
use support::{Args, Cost, End, GIB, KIB, Link, MIB, Way, clock, judge, ratio, size, take_turns};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use zcio::TransferOptions;

const RECEIVER: &str = "ZCIO_BENCH_RECEIVER";

fn main() -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    if let Ok(order) = env::var(RECEIVER) {
        clock::pin(clock::THEIRS);
        // The bench may go away at any time: that is the end, and no failure.
        let _ = support::runtime().block_on(receive(&order));
        exit(0);
    }
    let args = support::begin();
    println!("{}", support::machine());
    let mut rows = Vec::new();
    if args.wants("by size, TCP -> TCP") {
        rows.push(by_size(&args, "by size, TCP -> TCP", End::Tcp, End::Tcp));
        args.write(&rows);
    }
    if args.wants("by size, sparse file -> pipe") {
        rows.push(by_size(
            &args,
            "by size, sparse file -> pipe",
            End::File,
            End::Pipe,
        ));
        args.write(&rows);
    }
    let at_once = "by transfers at once, file -> TCP";
    if args.wants(at_once) {
        rows.push(by_count(&args, at_once, most)?);
    }
    args.write(&rows);
    Ok(())
}

/// One transfer each. Small ones are repeated, so that there is something to measure.
fn by_size(args: &Args, name: &str, from: End, to: End) -> Value {
    let sizes = if args.quick {
        &[MIB, 4 * MIB][..]
    } else {
        &[MIB, 16 * MIB, 256 * MIB, 4 * GIB, 64 * GIB][..]
    };
    println!("\n{name}: one call each");
    let source = support::link::file();
    source
        .set_len(sizes[sizes.len() - 1])
        .expect("room for a hole");
    let mut link = Link::new(from, to, &source);
    // What is in the page cache of a hole would be another source.
    link.cold = from == End::File;
    let mut points = Vec::new();
    for &bytes in sizes {
        let repeats = (256 * MIB / bytes).clamp(1, if args.quick { 1 } else { 256 });
        let rounds = args.rounds(if bytes > GIB { 1 } else { 9 });
        let mut ways = [Way::new("zcio", ())];
        clock::peak_memory();
        let mut run = || {
            link.run(bytes * repeats, |src, dst| {
                let moved = |_| {
                    let report = zcio::transfer(src, dst, bytes);
                    report.expect("a pair that serves").bytes
                };
                (0..repeats).map(moved).sum()
            })
        };
        if bytes > GIB {
            // What warms up is little of it.
            ways[0].costs.push(run());
        } else {
            take_turns(&mut ways, rounds, |()| run());
        }
        let (cpu, peak) = (
            ways[0].cpu_ms_per_gib(bytes * repeats),
            clock::peak_memory(),
        );
        println!(
            "  {:>8}: {cpu:.0} ms of CPU per GiB, at most {} KiB of memory",
            size(bytes),
            peak / KIB
        );
        points.push(json!({
            "bytes": bytes,
            "rounds": rounds,
            "cpu_ms_per_gib": cpu,
            "peak_memory": peak,
        }));
    }
    json!({ "name": name, "points": points })
}

// --- many at once ------------------------------------------------------------------------------

const EACH: u64 = 256 * KIB;

/// The same number of transfers on 1, 10, .. connections at once.
fn by_count(args: &Args, name: &str, descriptors: u64) -> io::Result<Value> {
    // Each side has as many descriptors, and a few of its own.
    let most = if args.quick { 100 } else { 10_000 };
    let most = most.min(descriptors as usize - 50);
    let counts = (0..).map(|exponent| 10_usize.pow(exponent));
    let counts: Vec<usize> = counts.take_while(|count| *count <= most).collect();
    let source = Arc::new(support::source(EACH));
    let mut ways: Vec<Way<(usize, Mover)>> = counts
        .iter()
        .map(|count| Way::new(format!("{count} at once"), (*count, Mover::Zcio)))
        .collect();
    // The one that all others are compared with comes first in the table: the most at once.
    ways.reverse();
    let transfers = *counts.last().unwrap_or(&1);
    // What so many connections cost by themselves.
    let bare = format!("bare sendfile, {transfers} at once");
    ways.insert(1, Way::new(bare, (transfers, Mover::Bare)));
    take_turns(&mut ways, args.rounds(9), |(count, mover)| {
        many(&source, *count, transfers / *count, *mover).expect("connections")
    });
    let bytes = transfers as u64 * EACH;
    let mut row = judge(name, bytes, &ways, &[("1 at once", 1.5)]);
    let one = ways.last().unwrap_or(&ways[0]);
    let to_one: Vec<Value> = ways
        .iter()
        .map(|way| json!({ "way": way.name, "to_one": ratio(&way.costs, &one.costs, |c| c.cpu).json() }))
        .collect();
    row["to_one"] = json!(to_one);
    row["each"] = json!(EACH);
    Ok(row)
}

/// What `count` connections take on which `each` transfers follow one another.
fn many(source: &Arc<File>, count: usize, each: usize, mover: Mover) -> io::Result<Cost> {
    support::runtime().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        support::link::choose_congestion(&listener);
        let receiver = receiver(listener.local_addr()?, count)?;
        let mut sockets = Vec::new();
        for _ in 0..count {
            sockets.push(listener.accept().await?.0);
        }
        // A connection begins slowly, and buffers grow: not what is compared.
        let sockets = send_all(source, sockets, 1, mover).await?;
        let (start, before) = (Instant::now(), clock::process());
        drop(send_all(source, sockets, each, mover).await?);
        // Nothing else is left to do on this thread.
        let received = receiver.wait_with_output()?.stdout;
        let cost = Cost {
            cpu: clock::process() - before,
            time: start.elapsed().as_secs_f64(),
        };
        let expected = (count * (1 + each)) as u64 * EACH;
        assert_eq!(String::from_utf8_lossy(&received), expected.to_string());
        Ok(cost)
    })
}

/// So many transfers on each of the connections, at once.
async fn send_all(
    source: &Arc<File>,
    sockets: Vec<TcpStream>,
    times: usize,
    mover: Mover,
) -> io::Result<Vec<TcpStream>> {
    let tasks: Vec<_> = sockets
        .into_iter()
        .map(|socket| tokio::spawn(send(Arc::clone(source), socket, times, mover)))
        .collect();
    let mut done = Vec::with_capacity(tasks.len());
    for task in tasks {
        done.push(task.await??);
    }
    Ok(done)
}

/// Who moves the bytes: the crate, or a loop without a thought for cold files and errors.
#[derive(Clone, Copy)]
enum Mover {
    Zcio,
    Bare,
}

async fn send(
    source: Arc<File>,
    socket: TcpStream,
    times: usize,
    mover: Mover,
) -> io::Result<TcpStream> {
    let mut options = TransferOptions::new();
    options.src_offset(0);
    for _ in 0..times {
        if let Mover::Bare = mover {
            let mut at = 0;
            while at < EACH as i64 {
                socket.writable().await?;
                let sent = socket.try_io(Interest::WRITABLE, || {
                    let left = EACH as usize - at as usize;
                    Ok(sendfile64(&socket, &source, Some(&mut at), left)?)
                });
                match sent {
                    Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
                    _ => {}
                }
            }
            continue;
        }
        let mut transfer = zcio::tokio::start(&options, &*source, &socket, EACH)?;
        assert_eq!(zcio::tokio::drive(&mut transfer).await?.bytes, EACH);
    }
    Ok(socket)
}

/// A process that connects `count` times and drops what it gets.
fn receiver(address: SocketAddr, count: usize) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .env(RECEIVER, format!("{address} {count}"))
        .stdout(Stdio::piped())
        .spawn()
}

/// In the receiver: prints how many bytes came.
async fn receive(order: &str) -> io::Result<()> {
    let (address, count) = order.split_once(' ').unwrap_or_default();
    let count: usize = count.parse().unwrap_or_default();
    let mut tasks = Vec::new();
    for _ in 0..count {
        tasks.push(tokio::spawn(drain(TcpStream::connect(address).await?)));
    }
    let mut total = 0;
    for task in tasks {
        total += task.await??;
    }
    print!("{total}");
    Ok(())
}

async fn drain(socket: TcpStream) -> io::Result<u64> {
    // One for all: only one of them reads at a time.
    thread_local!(static BUF: RefCell<Vec<u8>> = RefCell::new(vec![0; 256 << 10]));
    let mut total = 0;
    loop {
        socket.readable().await?;
        match BUF.with_borrow_mut(|buf| socket.try_read(buf)) {
            Ok(0) => return Ok(total),
            Ok(n) => total += n as u64,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}
