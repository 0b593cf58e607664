//! A TCP proxy: passes every connection on to another address, both ways, by [`zcio::tokio`].
//!
//! ```sh
//! cargo run --release --features tokio --example proxy -- --listen 127.0.0.1:8080 --to 127.0.0.1:80
//! ```
//!
//! On SIGTERM or SIGINT it accepts no more connections, lets those under way come to their end, and
//! exits with 0; a second signal ends it at once. `--engine read-write` is tokio's own
//! `copy_bidirectional`, to compare with.

#[path = "common/accept.rs"]
mod accept;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use zcio::relay::{Direction, Flow, RelayEnd, RelayOptions};

/// Passes TCP connections on to another address, both ways.
#[derive(Debug, Parser)]
#[command(name = "proxy")]
struct Args {
    /// Accepts connections here: host and port.
    #[arg(long, value_name = "ADDR")]
    listen: String,

    /// Passes them on to here: host and port.
    #[arg(long, value_name = "ADDR")]
    to: String,

    /// How the bytes move.
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    engine: Engine,

    /// Ends a connection on which nothing has moved for so long. Only with `--engine auto`.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    idle: Option<Duration>,

    /// Connections at once; more wait to be accepted. Each takes two descriptors.
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,

    /// Prints a line of counts for each connection.
    #[arg(long)]
    verbose: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// zcio's relay: by splice(2) in quantity, by read(2) and write(2) in dribs.
    Auto,
    /// tokio's `copy_bidirectional`.
    ReadWrite,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number")?;
    if seconds <= 0.0 {
        return Err("no time at all".to_owned());
    }
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

// One thread is enough: it only tells the kernel what to move.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    if args.engine == Engine::ReadWrite && args.idle.is_some() {
        eprintln!("proxy: --idle needs --engine auto");
        return ExitCode::from(2);
    }
    match serve(Arc::new(args)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("proxy: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: Arc<Args>) -> io::Result<()> {
    let listener = accept::listen(&args.listen).await?;
    eprintln!("proxy: {} passes on to {}", listener.local_addr()?, args.to);
    accept::serve(listener, args.max_connections, |client, from, _| {
        let args = Arc::clone(&args);
        async move { connection(&args, client, from).await }
    })
    .await
}

async fn connection(args: &Args, client: TcpStream, from: SocketAddr) {
    let began = Instant::now();
    let outcome = match connect(&client, &args.to).await {
        Ok(server) => match args.engine {
            Engine::Auto => relay(args, &client, &server).await,
            Engine::ReadWrite => copy(client, server).await,
        },
        Err(e) => {
            let text = format!("no connection to {}: {e}", args.to);
            eprintln!("proxy: {text}");
            text
        }
    };
    if args.verbose {
        println!("{from}: {outcome}, {:.3} s", began.elapsed().as_secs_f64());
    }
}

async fn connect(client: &TcpStream, to: &str) -> io::Result<TcpStream> {
    let server = TcpStream::connect(to).await?;
    // Whoever sent it has decided that it is worth a packet.
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok(server)
}

/// Both directions by zcio, and what there is to say afterwards.
async fn relay(args: &Args, client: &TcpStream, server: &TcpStream) -> String {
    let mut options = RelayOptions::new();
    if let Some(limit) = args.idle {
        options.idle(limit);
    }
    let result = zcio::tokio::relay_with(&options, client, server).await;
    let (report, end) = match &result {
        Ok(report) => (
            report,
            match report.end {
                RelayEnd::Idle => "idle".to_owned(),
                _ => "closed".to_owned(),
            },
        ),
        Err(error) => {
            let direction = match error.direction() {
                Direction::AToB => "up",
                Direction::BToA => "down",
            };
            (error.report(), format!("{direction}: {}", error.error()))
        }
    };
    format!(
        "{} up, {} down, {end}",
        Line(&report.a_to_b),
        Line(&report.b_to_a)
    )
}

/// One direction's counts.
struct Line<'a>(&'a Flow);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line(flow) = self;
        write!(f, "{}", flow.bytes)?;
        if !flow.undelivered.is_empty() {
            write!(f, " + {} undelivered", flow.undelivered.len())?;
        }
        write!(f, " bytes by {} calls", flow.syscalls)
    }
}

/// Both directions by tokio's own.
async fn copy(mut client: TcpStream, mut server: TcpStream) -> String {
    match copy_bidirectional(&mut client, &mut server).await {
        Ok((up, down)) => format!("{up} bytes up, {down} bytes down, closed"),
        // It does not say how far it came.
        Err(e) => format!("failed: {e}"),
    }
}
