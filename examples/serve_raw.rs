//! Sends one file to everybody who connects, by [`zcio::tokio`], and nothing else: no protocol.
//!
//! ```sh
//! cargo run --release --features tokio --example serve_raw -- --listen 127.0.0.1:9000 FILE
//! ```
//!
//! On SIGTERM or SIGINT it accepts no more connections, lets those under way come to their end, and
//! exits with 0; a second signal ends it at once. `--engine read-write` is `tokio::io::copy`, to
//! compare with.

#[path = "common/accept.rs"]
mod accept;

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use zcio::TransferOptions;

/// Sends one file to everybody who connects.
#[derive(Debug, Parser)]
#[command(name = "serve_raw")]
struct Args {
    /// Accepts connections here: host and port.
    #[arg(long, value_name = "ADDR")]
    listen: String,

    /// The file.
    file: PathBuf,

    /// How the bytes move.
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    engine: Engine,

    /// Connections at once; more wait to be accepted.
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,

    /// Prints a line of counts for each connection.
    #[arg(long)]
    verbose: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// zcio's choice: sendfile(2), as a rule.
    Auto,
    /// `tokio::io::copy`.
    ReadWrite,
}

// One thread is enough: it only tells the kernel what to send.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match serve(Arc::new(Args::parse())).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("serve_raw: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: Arc<Args>) -> io::Result<()> {
    let file = open(&args.file)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", args.file.display())))?;
    let file = Arc::new(file);
    let listener = accept::listen(&args.listen).await?;
    eprintln!(
        "serve_raw: {} sends {}",
        listener.local_addr()?,
        args.file.display()
    );
    accept::serve(listener, args.max_connections, |client, from, _| {
        let (args, file) = (Arc::clone(&args), Arc::clone(&file));
        async move { connection(&args, &file, client, from).await }
    })
    .await
}

fn open(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
    }
    File::open(path)
}

async fn connection(args: &Args, file: &File, client: TcpStream, from: SocketAddr) {
    let began = Instant::now();
    let outcome = match args.engine {
        Engine::Auto => send(file, client).await,
        Engine::ReadWrite => copy(args, client).await,
    };
    if args.verbose {
        let outcome = outcome.unwrap_or_else(|e| format!("failed: {e}"));
        println!("{from}: {outcome}, {:.3} s", began.elapsed().as_secs_f64());
    }
}

/// Sends the file by zcio, and says how that went. The one description serves all connections:
/// an explicit offset leaves its position alone.
async fn send(file: &File, mut client: TcpStream) -> io::Result<String> {
    let mut options = TransferOptions::new();
    options.src_offset(0);
    let mut transfer = zcio::tokio::start(&options, file, &client, u64::MAX)?;
    let report = zcio::tokio::drive(&mut transfer).await?;
    drop(transfer);
    client.shutdown().await?;
    Ok(format!(
        "{} bytes by {}, {} calls",
        report.bytes,
        report.backend,
        report.syscalls()
    ))
}

/// Sends the file by tokio's own.
async fn copy(args: &Args, mut client: TcpStream) -> io::Result<String> {
    let mut file = tokio::fs::File::open(&args.file).await?;
    let bytes = tokio::io::copy(&mut file, &mut client).await?;
    client.shutdown().await?;
    Ok(format!("{bytes} bytes"))
}
