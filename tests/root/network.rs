//! A link of 8 Mbit/s between two network namespaces: a transfer waits, and waiting costs nothing.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};
use zcio::Backend;

use super::cell::{Sheet, content, is_unfit, is_whole, options, outcome};
use super::child::{need, run};
use crate::common::{Claim, Data, Pulse, SourceKind, drive, make, skipped};

/// Bits a second.
const RATE: u64 = 8_000_000;

const LEN: u64 = (1 << 20) + 777;

/// Far less than is sent, so that the sender has to wait.
const SEND_BUFFER: usize = 64 << 10;

const HERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const PORT: u16 = 7777;

/// This thread gets a network of its own, joined by the link to that of another thread, which
/// receives from one connection after the other and sends what came back by the channel.
fn link() -> Result<Receiver<Vec<u8>>, String> {
    need("ip")?;
    need("tc")?;
    let own = || unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("unshare(2): {e}"));
    own()?;
    let (named, name) = channel();
    let (joined, go_on) = channel();
    let (ready, listens) = channel();
    let (sender, received) = channel();
    thread::spawn(move || {
        let network = own().map(|()| {
            let this = std::fs::read_link("/proc/thread-self").expect("procfs");
            PathBuf::from("/proc").join(this).join("ns/net")
        });
        let failed = network.is_err();
        if named.send(network).is_ok() && !failed && go_on.recv() == Ok(()) {
            receive(&ready, &sender);
        }
    });
    let gone = |_| "the other network's thread is gone".to_owned();
    let network = name.recv().map_err(gone)??;
    let create = [
        "link", "add", "here", "type", "veth", "peer", "name", "there",
    ];
    run("ip", &create)?;
    let network = network.to_str().expect("a plain path");
    run("ip", &["link", "set", "there", "netns", network])?;
    set_up("here", HERE)?;
    let rate = format!("{RATE}bit");
    let shape = ["qdisc", "add", "dev", "here", "root", "tbf", "rate", &rate];
    run(
        "tc",
        &[&shape[..], &["burst", "16k", "latency", "50ms"]].concat(),
    )?;
    joined
        .send(())
        .map_err(|_| "the other network's thread is gone")?;
    listens.recv().map_err(gone)??;
    Ok(received)
}

fn receive(ready: &Sender<Result<(), String>>, sender: &Sender<Vec<u8>>) {
    let bound = set_up("there", THERE)
        .and_then(|()| TcpListener::bind((THERE, PORT)).map_err(|e| e.to_string()));
    let listener = match bound {
        Ok(listener) => listener,
        Err(e) => return drop(ready.send(Err(e))),
    };
    let _ = ready.send(Ok(()));
    for stream in listener.incoming() {
        let mut bytes = Vec::new();
        let read = stream.and_then(|mut stream| stream.read_to_end(&mut bytes));
        if read.is_err() || sender.send(bytes).is_err() {
            return;
        }
    }
}

fn set_up(name: &str, address: Ipv4Addr) -> Result<(), String> {
    run(
        "ip",
        &["addr", "add", &format!("{address}/24"), "dev", name],
    )?;
    run("ip", &["link", "set", name, "up"])
}

/// From a file and from a stream, by every backend, blocking and non-blocking: all bytes arrive,
/// without a stall, and the processor is hardly used meanwhile.
pub(crate) fn slow_link(pulse: &Pulse) {
    let received = match link() {
        Ok(received) => received,
        Err(reason) => return skipped("root slow link", reason),
    };
    let mut sheet = Sheet::new("8 Mbit/s");
    for (kind, nonblocking) in [
        (SourceKind::Memfd, false),
        (SourceKind::Memfd, true),
        (SourceKind::Unix, false),
        (SourceKind::Unix, true),
    ] {
        let mode = if nonblocking {
            "non-blocking"
        } else {
            "blocking"
        };
        sheet.row("veth", &format!("{kind:?} {mode}"), |backend| {
            pulse.at(format!("{kind:?} {mode} {backend:?}"));
            over_the_link(kind, nonblocking, backend, &received)
        });
    }
    sheet.conclude();
}

fn over_the_link(
    kind: SourceKind,
    nonblocking: bool,
    backend: Option<Backend>,
    received: &Receiver<Vec<u8>>,
) -> Result<String, String> {
    let source = kind.make(Data::new(LEN), LEN).map_err(|e| e.to_string())?;
    let stream = TcpStream::connect((THERE, PORT)).map_err(|e| format!("connect(2): {e}"))?;
    setsockopt(&stream, sockopt::SndBuf, &SEND_BUFFER).map_err(|e| e.to_string())?;
    make::set_nonblocking(&source, nonblocking && kind.is_stream());
    make::set_nonblocking(&stream, nonblocking);
    let (start, used) = (Instant::now(), processor_time());
    let result = if nonblocking {
        let started = options(backend).start(source.as_fd(), stream.as_fd(), u64::MAX);
        started.and_then(|mut transfer| {
            drive::to_end(&mut transfer)?;
            Ok(transfer.report())
        })
    } else {
        options(backend).transfer(&source, &stream, u64::MAX)
    };
    let (took, used) = (start.elapsed(), processor_time() - used);
    let claim = Claim::from(&result);
    let result = result.map_err(Box::new);
    // The receiver sees the end.
    drop(stream);
    let bytes = received.recv().map_err(|e| e.to_string())?;
    if bytes.len() as u64 != claim.delivered {
        return Err(format!("{} bytes arrived: {result:?}", bytes.len()));
    }
    content(LEN).check(0, &bytes)?;
    source.settle(claim.taken())?;
    if result.is_err() {
        is_unfit(&result)?;
        return Ok(outcome(backend, &result));
    }
    is_whole(&result, LEN)?;
    // What the buffers take is sent later; a stall is 200 ms a piece of 64 KiB, or an end never.
    let least = Duration::from_secs_f64((LEN - (LEN / 4)) as f64 * 8.0 / RATE as f64);
    if took < least / 2 || took > 3 * least + Duration::from_secs(2) {
        return Err(format!("{took:?} for {LEN} bytes at {RATE} bit/s"));
    }
    if used > took / 20 {
        return Err(format!("{used:?} of processor time in {took:?}"));
    }
    let calls = result.as_ref().map_or(0, |report| report.syscalls());
    let word = outcome(backend, &result);
    Ok(format!("{word} {} µs, {calls} calls", used.as_micros()))
}

/// Processor time that this thread has used.
fn processor_time() -> Duration {
    let time =
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock that is always there");
    time.into()
}
