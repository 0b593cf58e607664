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
//! The first line on stdout is the address. On SIGTERM or SIGINT it answers the requests that it has
//! begun to serve and exits with 0; a second signal ends it at once.

#[path = "../common/accept.rs"]
mod accept;
mod broker;
mod log;
mod wire;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use kafka_protocol::messages::ApiKey;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use zcio::Message;

/// A log that Kafka's clients produce to and consume from.
#[derive(Debug, Parser)]
#[command(name = "log_broker")]
struct Args {
    /// Keeps the topics here, one directory each.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,

    /// Accepts connections here: host and port.
    #[arg(long, value_name = "ADDR")]
    listen: String,

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
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// zcio's choice: small ranges along with the header, large ones by sendfile(2), as a rule.
    Auto,
    /// Into a buffer, and from there, to compare with.
    ReadWrite,
}

/// A connection on which nothing is asked, or nothing taken of an answer, for so long is closed.
const IDLE: Duration = Duration::from_secs(600);

// One thread is enough for the connections; what waits for the disk is on the blocking pool.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let outcome = serve(Args::parse()).await;
    if let Err(e) = &outcome {
        eprintln!("log_broker: {e}");
    }
    ExitCode::from(u8::from(outcome.is_err()))
}

async fn serve(args: Args) -> io::Result<()> {
    let (listen, at_once) = (args.listen.clone(), args.max_connections);
    let dir = args.dir.display().to_string();
    let broker = broker::Broker::open(args);
    let broker = Arc::new(broker.map_err(|e| io::Error::other(format!("{dir}: {e}")))?);
    let listener = accept::listen(&listen).await?;
    // Whether anybody reads it is not our affair.
    let _ = writeln!(io::stdout(), "{}", listener.local_addr()?);
    accept::serve(listener, at_once, |client, from, ending| {
        let connection = connection(Arc::clone(&broker), client, ending);
        async move {
            if let Err(e) = connection.await {
                eprintln!("log_broker: {from}: {e}");
            }
        }
    })
    .await
}

/// Answers one client's requests in their order, until it leaves or the process is to end.
async fn connection(
    broker: Arc<broker::Broker>,
    mut client: TcpStream,
    mut ending: accept::Ending,
) -> wire::Result<()> {
    client.set_nodelay(true)?;
    let here = client.local_addr()?;
    let (reader, writer) = client.split();
    let mut reader = BufReader::new(reader);
    // One sending for all answers: the socket is looked at once.
    let mut sending = Message::new().start(AsRef::<TcpStream>::as_ref(&writer))?;
    loop {
        let request = tokio::select! {
            request = timeout(IDLE, wire::Request::read(&mut reader)) => request??,
            _ = ending.wait_for(|ending| *ending) => return Ok(()),
        };
        let answer = match request {
            None => return Ok(()),
            Some(request) if request.key == ApiKey::Fetch => tokio::select! {
                answer = broker.fetch(request) => answer?,
                _ = ending.wait_for(|ending| *ending) => return Ok(()),
            },
            Some(request) => {
                let broker = Arc::clone(&broker);
                let answer = spawn_blocking(move || broker.answer(request, here)).await??;
                Message::new().bytes(answer)
            }
        };
        sending.extend(&answer);
        timeout(IDLE, zcio::tokio::drive_sending(&mut sending)).await??;
    }
}
