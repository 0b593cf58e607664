//! The other side of each pair, in a process of its own, so that its work is not counted.
//!
//! This program starts itself again with a hidden subcommand. The data comes in by the child's
//! stdin, whatever that is, and for each run it answers with a line on stdout: the checksum of what
//! it received. When its stdin ends, because the parent is done or gone, so does it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use crate::cpu;
use crate::data::{BLOCK, Checksum, Pattern};

/// The process that receives now, at most one at a time. Here, so that whoever ends this program
/// can end that one first.
static CHILD: Mutex<Option<Child>> = Mutex::new(None);

/// On SIGINT and SIGTERM, ends the receiver before this process. Before any thread is started.
pub(crate) fn end_with_parent() -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            // Held until the end: the main thread has nothing more to say.
            let mut child = CHILD.lock();
            if let Ok(child) = &mut child {
                reap(child.take());
            }
            std::process::exit(128 + signal as i32);
        }
    });
    Ok(())
}

fn reap(child: Option<Child>) {
    if let Some(mut child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The receiving process, as its parent holds it.
pub(crate) struct Receiver {
    answers: BufReader<ChildStdout>,
}

impl Receiver {
    /// Starts a process that receives `bytes` per run on `data`, on processor `cpu`. `feed`: it
    /// connects there as well, and sends as many for each byte that it gets.
    pub(crate) fn start(
        data: OwnedFd,
        bytes: u64,
        cpu: Option<usize>,
        feed: Option<SocketAddr>,
    ) -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("receive").arg(bytes.to_string());
        if let Some(cpu) = cpu {
            command.arg("--cpu").arg(cpu.to_string());
        }
        if let Some(feed) = feed {
            command.arg("--feed").arg(feed.to_string());
        }
        let mut current = CHILD.lock().map_err(|e| io::Error::other(e.to_string()))?;
        let mut child = command.stdin(data).stdout(Stdio::piped()).spawn()?;
        let answers = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        *current = Some(child);
        Ok(Self {
            answers: BufReader::new(answers),
        })
    }

    /// Waits until a run's bytes have been received, and compares their checksum.
    pub(crate) fn expect(&mut self, checksum: u64) -> io::Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.trim_end() == format!("{checksum:016x}") {
            return Ok(());
        }
        let text = match line.trim_end() {
            "" => "the receiver ended before it had all bytes".to_owned(),
            other => format!("received checksum {other}, expected {checksum:016x}"),
        };
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    }
}

impl Drop for Receiver {
    /// Also where a run failed or panicked: no process stays behind.
    fn drop(&mut self) {
        if let Ok(mut child) = CHILD.lock() {
            reap(child.take());
        }
    }
}

/// The child's work.
pub(crate) fn receive(bytes: u64, cpu: Option<usize>, feed: Option<SocketAddr>) -> io::Result<()> {
    cpu::pin(cpu);
    if let Some(feed) = feed {
        let stream = TcpStream::connect(feed)?;
        // Ends with the process, or with the connection.
        thread::spawn(move || feed_runs(&stream, bytes));
    }
    // A plain descriptor: std's own stdin has a buffer of 8 KiB.
    let mut data = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut block = vec![0; BLOCK];
    loop {
        let mut sum = Checksum::new();
        let mut left = bytes;
        while left > 0 {
            let want = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
            let piece = &mut block[..want];
            match data.read_exact(piece) {
                Ok(()) => sum.add(piece),
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(e) => return Err(e),
            }
            left -= want as u64;
        }
        let mut stdout = io::stdout();
        writeln!(stdout, "{:016x}", sum.finish())?;
        stdout.flush()?;
    }
}

/// Sends `bytes` for each byte that comes in, until the connection ends either way.
fn feed_runs(mut stream: &TcpStream, bytes: u64) {
    while stream.read_exact(&mut [0]).is_ok() {
        if Pattern::for_each(bytes, |piece| stream.write_all(piece)).is_err() {
            return;
        }
    }
}
