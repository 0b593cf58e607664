//! What `transfer` costs beside the bare call: file → TCP, 256 MiB, warm, the receiver in a process
//! of its own and pinned to another processor. Pairs, interleaved; the median of the paired ratios
//! and its 95 % interval. `cargo bench --bench overhead`; `-- --test` runs one pair.

use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::sendfile::sendfile64;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use zcio::{Status, TransferOptions};

const LEN: u64 = 256 << 20;
/// What `transfer` asks sendfile(2) for at a time.
const CHUNK: usize = 2 << 20;
const RECEIVER: &str = "ZCIO_OVERHEAD_RECEIVER";

fn pin(processor: usize) {
    let mut set = CpuSet::new();
    // On one processor there is nothing to keep apart.
    let _ = set.set(processor);
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}

fn cpu_ms() -> f64 {
    let now = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    now.tv_sec() as f64 * 1e3 + now.tv_nsec() as f64 / 1e6
}

fn receive(address: &str) -> io::Result<()> {
    pin(1);
    let mut socket = TcpStream::connect(address)?;
    let mut buf = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match socket.read(&mut buf)? {
            0 => break,
            n => total += n as u64,
        }
    }
    assert_eq!(total, LEN, "bytes received");
    Ok(())
}

fn receiver(address: &str) -> Child {
    Command::new(env::current_exe().unwrap())
        .env(RECEIVER, address)
        .spawn()
        .unwrap()
}

fn bare(src: &File, dst: &TcpStream) {
    let mut at = 0;
    while (at as u64) < LEN {
        let sent = sendfile64(dst.as_fd(), src.as_fd(), Some(&mut at), CHUNK).unwrap();
        assert_ne!(sent, 0);
    }
}

fn ours(src: &File, dst: &TcpStream) {
    let report = TransferOptions::new()
        .src_offset(0)
        .transfer(src, dst, LEN)
        .unwrap();
    assert_eq!(report.bytes, LEN);
}

fn measure(listener: &TcpListener, src: &File, send: fn(&File, &TcpStream)) -> f64 {
    let mut child = receiver(&listener.local_addr().unwrap().to_string());
    let (socket, _) = listener.accept().unwrap();
    let before = cpu_ms();
    send(src, &socket);
    let used = cpu_ms() - before;
    drop(socket);
    assert!(child.wait().unwrap().success());
    used
}

/// The system calls of one more advance of 4 KiB after `extend`.
fn calls_after_extend(listener: &TcpListener, src: &File) -> u64 {
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    let mut transfer = TransferOptions::new()
        .src_offset(0)
        .start(src, &near, 4096)
        .unwrap();
    let mut buf = [0; 4096];
    let mut calls = 0;
    for _ in 0..2 {
        let before = transfer.report().syscalls();
        assert!(matches!(transfer.advance().unwrap(), Status::Moved(n) if n.get() == 4096));
        calls = transfer.report().syscalls() - before;
        far.read_exact(&mut buf).unwrap();
        transfer.extend(4096);
    }
    calls
}

fn main() -> io::Result<()> {
    if let Ok(address) = env::var(RECEIVER) {
        return receive(&address);
    }
    pin(0);
    let rounds: usize = if env::args().any(|arg| arg == "--test") {
        1
    } else {
        151
    };
    let mut src = tempfile::tempfile()?;
    let piece = vec![0x5a; 1 << 20];
    for _ in 0..LEN >> 20 {
        src.write_all(&piece)?;
    }
    src.sync_all()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    measure(&listener, &src, bare);
    let (mut ratios, mut costs) = (Vec::new(), (Vec::new(), Vec::new()));
    for round in 0..rounds {
        // Each goes first every other time.
        let (ours, bare) = if round % 2 == 0 {
            let ours = measure(&listener, &src, ours);
            (ours, measure(&listener, &src, bare))
        } else {
            let bare = measure(&listener, &src, bare);
            (measure(&listener, &src, ours), bare)
        };
        ratios.push(ours / bare);
        costs.0.push(ours);
        costs.1.push(bare);
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let ratio = median(&mut ratios);
    // Order statistics: the interval that holds the median in 95 of 100 cases.
    let half = (0.98 * (rounds as f64).sqrt()).ceil() as usize;
    let middle = rounds / 2;
    let (low, high) = (middle.saturating_sub(half), (middle + half).min(rounds - 1));
    let per_gib = (1_u64 << 30) as f64 / LEN as f64;
    println!(
        "file to TCP, {} MiB, {rounds} pairs: transfer {:.0} ms of CPU per GiB, bare sendfile {:.0}, \
         ratio {ratio:.3} [{:.3}, {:.3}]",
        LEN >> 20,
        median(&mut costs.0) * per_gib,
        median(&mut costs.1) * per_gib,
        ratios[low],
        ratios[high],
    );
    println!(
        "system calls of an advance after extend: {}",
        calls_after_extend(&listener, &src)
    );
    Ok(())
}
