//! Throughput of each backend that fits a pair, and of the probe's own choice, by size.
//!
//! `cargo bench --bench throughput`, or with a filter: `-- 'file -> TCP/16 MiB'`. Receivers are
//! threads of this process that drop what they read; bytes are counted at both ends. Time runs
//! until the last byte of a batch has been received.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use zcio::{Backend, ErrorKind, TransferOptions};

const SIZES: [(u64, &str); 5] = [
    (4 << 10, "4 KiB"),
    (64 << 10, "64 KiB"),
    (1 << 20, "1 MiB"),
    (16 << 20, "16 MiB"),
    (256 << 20, "256 MiB"),
];

type Connect = fn() -> Link;

const PAIRS: [(&str, Connect); 5] = [
    ("file -> TCP", || Link::new(source(), tcp(), None)),
    ("file -> UNIX", || {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        Link::new(source(), (own(ours), own(theirs)), None)
    }),
    ("file -> pipe", || {
        let (reader, writer) = nix::unistd::pipe().expect("a pipe");
        Link::new(source(), (own(writer), own(reader)), None)
    }),
    ("file -> file", || Link {
        src: source(),
        dst: tempfile::tempfile().expect("a temporary file"),
        is_fed: false,
        feed: None,
        received: None,
    }),
    ("TCP -> TCP", || {
        let (src, feeder) = tcp();
        Link::new(src, tcp(), Some(feeder))
    }),
];

fn own(fd: impl Into<OwnedFd>) -> File {
    File::from(fd.into())
}

/// A file of the largest size, written back so that the page cache is warm and clean.
fn source() -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    let block: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    for _ in 0..SIZES[SIZES.len() - 1].0 >> 20 {
        file.write_all(&block).expect("room for the source");
    }
    file.sync_all().expect("the source is written back");
    file
}

/// Both ends of a loopback connection.
fn tcp() -> (File, File) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
    let address = listener.local_addr().expect("its address");
    let ours = TcpStream::connect(address).expect("a loopback connection");
    let (theirs, _) = listener.accept().expect("the same, accepted");
    (own(ours), own(theirs))
}

/// A pair of descriptors, and the threads at the other ends.
struct Link {
    src: File,
    dst: File,
    is_fed: bool,
    /// Tells the feeding thread how many bytes to send.
    feed: Option<Sender<u64>>,
    /// Tells the receiving thread how many bytes to expect, and hears when they are there.
    received: Option<(Sender<u64>, Receiver<u64>)>,
}

impl Link {
    /// Threads that end with their connection: they are not waited for.
    fn new(src: File, (dst, mut peer): (File, File), feeder: Option<File>) -> Self {
        let (expect, expected) = channel::<u64>();
        let (answer, answers) = channel();
        thread::spawn(move || {
            let mut buf = vec![0; 256 << 10];
            for wanted in expected {
                let mut count = 0;
                while count < wanted {
                    match peer.read(&mut buf) {
                        Ok(n) if n > 0 => count += n as u64,
                        _ => break,
                    }
                }
                if answer.send(count).is_err() {
                    return;
                }
            }
        });
        let is_fed = feeder.is_some();
        let feed = feeder.map(|mut feeder| {
            let (feed, wanted) = channel::<u64>();
            thread::spawn(move || {
                let block = vec![7; 256 << 10];
                for mut left in wanted {
                    while left > 0 {
                        let len = left.min(block.len() as u64) as usize;
                        if feeder.write_all(&block[..len]).is_err() {
                            return;
                        }
                        left -= len as u64;
                    }
                }
            });
            feed
        });
        Self {
            src,
            dst,
            is_fed,
            feed,
            received: Some((expect, answers)),
        }
    }

    fn options(&self, forced: Option<Backend>) -> TransferOptions {
        let mut options = TransferOptions::new();
        if !self.is_fed {
            options.src_offset(0);
        }
        if let Some(backend) = forced {
            options.backend(backend);
        }
        options
    }

    /// Whether the kernel takes a backend that the probe let pass: a small transfer shows.
    fn takes(&mut self, options: &TransferOptions) -> bool {
        const LITTLE: u64 = 4 << 10;
        if self.is_fed {
            return true;
        }
        match options.transfer(&self.src, &self.dst, LITTLE) {
            Err(e) if e.kind() == ErrorKind::Unfit => {
                eprintln!("SKIPPED {e}");
                return false;
            }
            result => assert_eq!(result.expect("the transfer works").bytes, LITTLE),
        }
        if let Some((expect, answers)) = &self.received {
            expect.send(LITTLE).expect("the receiver lives");
            assert_eq!(answers.recv(), Ok(LITTLE), "received");
        }
        true
    }

    fn transfer(&self, options: &TransferOptions, bytes: u64) {
        let report = options.transfer(&self.src, &self.dst, bytes);
        let report = report.expect("the transfer works");
        assert_eq!(report.bytes, bytes, "delivered");
    }

    /// The time of `rounds` transfers of `bytes` each, counted at both ends.
    fn time(&mut self, options: &TransferOptions, bytes: u64, rounds: u64) -> Duration {
        let Some((expect, answers)) = &self.received else {
            return (0..rounds).map(|_| self.time_to_file(options, bytes)).sum();
        };
        let start = Instant::now();
        let total = bytes * rounds;
        expect.send(total).expect("the receiver lives");
        if let Some(feed) = &self.feed {
            feed.send(total).expect("the feeder lives");
        }
        for _ in 0..rounds {
            self.transfer(options, bytes);
        }
        let received = answers.recv().expect("the receiver lives");
        let time = start.elapsed();
        assert_eq!(received, total, "received");
        time
    }

    /// Into an empty file each time; emptying it is not measured.
    fn time_to_file(&mut self, options: &TransferOptions, bytes: u64) -> Duration {
        self.dst.set_len(0).expect("the destination can be emptied");
        self.dst.rewind().expect("the destination can rewind");
        // A virtual machine may hand memory that lies free back to its host, and pays for it
        // dearly when it is next used: so leave as much behind that was in use just now.
        black_box(vec![1_u8; bytes as usize]);
        let start = Instant::now();
        self.transfer(options, bytes);
        let time = start.elapsed();
        let found = self.dst.metadata().expect("the destination's size").len();
        assert_eq!(found, bytes, "in the file");
        time
    }
}

fn throughput(c: &mut Criterion) {
    for (pair, connect) in PAIRS {
        let mut link = connect();
        for (bytes, size) in SIZES {
            let mut group = c.benchmark_group(format!("{pair}/{size}"));
            group.throughput(Throughput::Bytes(bytes));
            // Large transfers vary little within a sample, and take long.
            if bytes > 1 << 20 {
                group.sampling_mode(SamplingMode::Flat);
            }
            for forced in [None].into_iter().chain(Backend::ALL.map(Some)) {
                let options = link.options(forced);
                let probe = options
                    .probe(&link.src, &link.dst)
                    .expect("a pair that serves");
                let name = match forced {
                    None => "probe's choice",
                    Some(backend) if probe.verdict(backend).is_ok() => backend.name(),
                    Some(_) => continue,
                };
                if !link.takes(&options) {
                    continue;
                }
                group.bench_function(BenchmarkId::from_parameter(name), |b| {
                    b.iter_custom(|rounds| link.time(&options, bytes, rounds));
                });
            }
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = throughput
}
criterion_main!(benches);
