//! A log that Kafka's clients produce to and consume from: one process, one node, one partition a
//! topic. A topic appears when it is first written to or asked for.
//!
//! ```sh
//! cargo run --release --features tokio --example log_broker -- --dir DIR --listen 127.0.0.1:9092
//! kcat -b 127.0.0.1:9092 -t events -P < lines
//! kcat -b 127.0.0.1:9092 -t events -C -o beginning -e
//! ```
//!
//! Batches of records are stored as they arrive and fetched as they lie: the answer to a fetch is
//! one [`zcio::Message`] of a header and ranges of the log's files. `--engine read-write` reads
//! those ranges into memory and sends that, to compare with.
//!
//! What was acknowledged is in the page cache and outlives the process, `kill -9` included: at its
//! start the last file of a topic is checked batch by batch and cut at the last whole one. It does
//! not outlive a loss of power, unless `--sync` has it flushed before each acknowledgement.
//!
//! No goals: replication, groups and their offsets, transactions, idempotent producers (Java's ask
//! for `enable.idempotence=false`), retention, encryption, exactness of a search by time beyond the
//! index. Clients find the node under the address at which they reached it.
//!
//! On SIGTERM or SIGINT it accepts no more connections, answers the requests under way, and exits
//! with 0; a second signal ends it at once.

mod broker;
mod log;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use kafka_protocol::messages::ApiKey;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use zcio::Message;

use broker::Broker;
use wire::{Request, Result};

/// A log that Kafka's clients produce to and consume from.
#[derive(Debug, Parser)]
#[command(name = "log_broker")]
struct Args {
    /// Keeps the topics here, one directory each.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,

    /// Accepts connections here.
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,

    /// How fetched bytes move.
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    engine: Engine,

    /// Starts a new file once one would grow beyond this.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    segment_bytes: u64,

    /// Flushes to the disk before it acknowledges.
    #[arg(long)]
    sync: bool,

    /// Connections at once; more wait to be accepted.
    #[arg(long, value_name = "N", default_value_t = 500,
          value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// zcio's choice: sendfile(2), as a rule.
    Auto,
    /// Into memory, and from there.
    ReadWrite,
}

/// A connection on which nothing is asked for so long is closed.
const IDLE: Duration = Duration::from_secs(600);

// One thread is enough for the connections; what touches the disk is on the blocking pool.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match serve(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("log_broker: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: &Args) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let broker = Arc::new(Broker::open(args)?);
    let listener = TcpListener::bind(args.listen).await?;
    println!("log_broker: listening on {}", listener.local_addr()?);
    let slots = Arc::new(Semaphore::new(args.max_connections as usize));
    let (stop, stopped) = watch::channel(());
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            next = next => next,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        match accepted {
            Ok((client, from)) => {
                let (broker, stopped) = (Arc::clone(&broker), stopped.clone());
                tokio::spawn(async move {
                    if let Err(e) = connection(&broker, client, stopped).await {
                        eprintln!("log_broker: {from}: {e}");
                    }
                    drop(slot);
                });
            }
            Err(e) => {
                // No descriptor left, as a rule: there will be, when a connection ends.
                eprintln!("log_broker: accept: {e}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop((listener, stop));
    // All slots can be had once all connections have ended.
    tokio::select! {
        _ = slots.acquire_many(args.max_connections) => Ok(()),
        _ = terminate.recv() => Err(io::Error::other("ended before all connections had")),
        _ = interrupt.recv() => Err(io::Error::other("ended before all connections had")),
    }
}

/// Answers one client's requests in their order, until it leaves or the process is told to stop.
async fn connection(
    broker: &Arc<Broker>,
    mut client: TcpStream,
    mut stop: watch::Receiver<()>,
) -> Result<()> {
    client.set_nodelay(true)?;
    let here = client.local_addr()?;
    let (reader, writer) = client.split();
    let mut reader = BufReader::new(reader);
    // One sending for all answers: the socket is looked at once.
    let mut sending = Message::new().start(AsRef::<TcpStream>::as_ref(&writer))?;
    loop {
        let frame = tokio::select! {
            frame = timeout(IDLE, wire::frame(&mut reader)) => frame??,
            // It fails when `serve` has let go of the other end.
            _ = stop.changed() => return Ok(()),
        };
        let Some(frame) = frame else { return Ok(()) };
        let request = Request::parse(frame)?;
        let answer = if request.key == ApiKey::Fetch {
            tokio::select! {
                answer = broker.fetch(request) => answer?,
                _ = stop.changed() => return Ok(()),
            }
        } else {
            let broker = Arc::clone(broker);
            let answer = spawn_blocking(move || broker.answer(request, here)).await??;
            Message::new().bytes(answer)
        };
        sending.extend(&answer);
        zcio::tokio::drive_sending(&mut sending).await?;
    }
}
