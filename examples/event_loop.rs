//! A file server without a runtime: one thread, edge-triggered epoll(7) by way of mio, and a
//! [`Transfer`] for each connection that is advanced by hand.
//!
//! ```sh
//! cargo run --release --example event_loop -- --listen 127.0.0.1:8080 FILE
//! ```
//!
//! A transfer never waits here: it says which side would have blocked, and the next edge of that side
//! makes it go on. It moves at most 2 MiB a turn, and everybody else has a turn before its next one.
//! A file that is not in the page cache does hold up the thread while the disk is read: where that
//! matters, see the feature `tokio`.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::net::{Shutdown, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use zcio::{Status, Transfer, TransferOptions};

/// Sends one file to everybody who connects, from an event loop driven by hand.
#[derive(Debug, Parser)]
#[command(name = "event_loop")]
struct Args {
    /// Accepts connections here: an address in numbers, and a port.
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,

    /// The file.
    file: PathBuf,

    /// Ends after so many connections.
    #[arg(long, value_name = "N")]
    count: Option<usize>,

    /// Prints a line of counts for each connection.
    #[arg(long)]
    verbose: bool,
}

const LISTENER: Token = Token(0);

fn main() -> ExitCode {
    let args = Args::parse();
    match Server::new(args).and_then(|mut server| server.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("event_loop: {e}");
            ExitCode::FAILURE
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
    }
    File::open(path)
}

struct Server {
    args: Args,
    file: Arc<File>,
    poll: Poll,
    listener: TcpListener,
    /// Whether more connections may wait to be accepted: an edge tells that once.
    pending: bool,
    connections: HashMap<Token, Connection>,
    /// Those that can go on, in the order of their turns.
    turns: VecDeque<Token>,
    accepted: usize,
}

struct Connection {
    from: SocketAddr,
    transfer: Transfer<Arc<File>, TcpStream>,
    /// Whether it is among `turns`.
    queued: bool,
    /// Everything is sent and the peer told; what is left to see is that it closes as well.
    sent: bool,
}

/// What became of a connection's turn.
enum Turn {
    /// There is more to do, and nothing to wait for.
    Again,
    /// The next edge will tell when to go on.
    Waits,
    Over,
}

impl Server {
    fn new(args: Args) -> io::Result<Self> {
        let file = open(&args.file)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", args.file.display())))?;
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(args.listen).map_err(|e| {
            io::Error::new(e.kind(), format!("cannot listen at {}: {e}", args.listen))
        })?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        eprintln!(
            "event_loop: {} sends {}",
            listener.local_addr()?,
            args.file.display()
        );
        Ok(Self {
            args,
            file: Arc::new(file),
            poll,
            listener,
            pending: true,
            connections: HashMap::new(),
            turns: VecDeque::new(),
            accepted: 0,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        while !self.is_over() {
            if self.pending && !self.is_full() {
                self.accept()?;
            }
            match self.poll.poll(&mut events, self.patience()) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => other?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.pending = true,
                    token => self.queue(token),
                }
            }
            // One turn for each; who comes along meanwhile has his in the next round.
            for _ in 0..self.turns.len() {
                self.turn();
            }
        }
        Ok(())
    }

    /// Whether no more connections are to be accepted.
    fn is_full(&self) -> bool {
        self.args.count.is_some_and(|count| self.accepted >= count)
    }

    fn is_over(&self) -> bool {
        self.is_full() && self.connections.is_empty()
    }

    /// How long to wait for events: not at all while somebody can go on.
    fn patience(&self) -> Option<Duration> {
        if !self.turns.is_empty() {
            Some(Duration::ZERO)
        } else if self.pending && !self.is_full() {
            // A connection could not be accepted, for want of descriptors as a rule.
            Some(Duration::from_millis(100))
        } else {
            None
        }
    }

    /// Accepts all that wait: there is no second edge for those left over.
    fn accept(&mut self) -> io::Result<()> {
        while !self.is_full() {
            match self.listener.accept() {
                Ok((stream, from)) => self.admit(stream, from)?,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.pending = false;
                    break;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    eprintln!("event_loop: accept: {e}");
                    break;
                }
            }
        }
        Ok(())
    }

    fn admit(&mut self, mut stream: TcpStream, from: SocketAddr) -> io::Result<()> {
        self.accepted += 1;
        let token = Token(self.accepted);
        // Both at once: the destination's room, and its end.
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, token, interest)?;
        // The file's one description serves all: an explicit offset leaves its position alone.
        let transfer =
            TransferOptions::new()
                .src_offset(0)
                .start(Arc::clone(&self.file), stream, u64::MAX);
        let connection = Connection {
            from,
            transfer: transfer?,
            queued: false,
            sent: false,
        };
        self.connections.insert(token, connection);
        self.queue(token);
        Ok(())
    }

    fn queue(&mut self, token: Token) {
        // An event may have come for one that has just ended.
        if let Some(connection) = self.connections.get_mut(&token) {
            if !std::mem::replace(&mut connection.queued, true) {
                self.turns.push_back(token);
            }
        }
    }

    /// Gives the first in line its turn.
    fn turn(&mut self) {
        let Some(token) = self.turns.pop_front() else {
            return;
        };
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        connection.queued = false;
        match connection.turn() {
            Ok(Turn::Again) => self.queue(token),
            Ok(Turn::Waits) => {}
            Ok(Turn::Over) => self.remove(token, None),
            Err(e) => self.remove(token, Some(e)),
        }
    }

    /// Lets go of a connection: closing its socket takes it out of the poll.
    fn remove(&mut self, token: Token, error: Option<io::Error>) {
        let Some(connection) = self.connections.remove(&token) else {
            return;
        };
        if self.args.verbose {
            let report = connection.transfer.report();
            let outcome = error.map_or("closed".to_owned(), |e| format!("failed: {e}"));
            println!(
                "{}: {} bytes by {}, {} calls, {outcome}",
                connection.from,
                report.bytes,
                report.backend,
                report.syscalls()
            );
        }
    }
}

impl Connection {
    fn turn(&mut self) -> io::Result<Turn> {
        if self.sent {
            return self.see_off();
        }
        match self.transfer.advance()? {
            Status::Moved(_) => Ok(Turn::Again),
            // Whichever side it is: the file never blocks, and the socket has edges.
            Status::Blocked(_) => Ok(Turn::Waits),
            Status::Finished(_) => {
                self.sent = true;
                self.transfer.dst().shutdown(Shutdown::Write)?;
                Ok(Turn::Again)
            }
        }
    }

    /// Waits for the peer's end, and heeds nothing that it says: a socket closed with bytes unread
    /// would answer by RST, which throws away what the peer has not received yet.
    fn see_off(&mut self) -> io::Result<Turn> {
        let mut rest = [0; 4096];
        match self.transfer.dst().read(&mut rest) {
            Ok(0) => Ok(Turn::Over),
            Ok(_) => Ok(Turn::Again),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(Turn::Waits),
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(Turn::Again),
            Err(e) => Err(e),
        }
    }
}
