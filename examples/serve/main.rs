//! A web server for the files below a directory: the head of each answer and its range of the file
//! go as one [`zcio::Message`].
//!
//! ```sh
//! cargo run --release --features tokio --example serve -- --root DIR --listen 127.0.0.1:8080
//! ```
//!
//! HTTP/1.1 as far as files need it: GET and HEAD, one range, conditional requests, kept connections,
//! pipelining. Nothing outside of the directory is served, wherever a path or a link leads. The first
//! line on stdout is the address. SIGTERM or SIGINT ends it when what it has begun is answered.

#[path = "../common/accept.rs"]
mod accept;
mod connection;
mod request;
mod site;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, ValueEnum};
use site::Site;

/// Serves the files below a directory by HTTP.
#[derive(Debug, Parser)]
#[command(name = "serve")]
struct Args {
    /// The directory.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,

    /// Accepts connections here: host and port.
    #[arg(long, value_name = "ADDR")]
    listen: String,

    /// How the bytes move.
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    engine: Engine,

    /// Connections at once; more wait to be accepted.
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,

    /// Ends a connection that has not asked, or has taken nothing of an answer, for so long.
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    patience: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// zcio's choice: small files along with the head, large ones by sendfile(2), as a rule.
    Auto,
    /// Into a buffer by `tokio::fs::File` and on by `write_all`, to compare with.
    ReadWrite,
}

// One thread is enough: it only tells the kernel what to send.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let outcome = serve(Args::parse()).await;
    if let Err(e) = &outcome {
        eprintln!("serve: {e}");
    }
    ExitCode::from(u8::from(outcome.is_err()))
}

async fn serve(args: Args) -> io::Result<()> {
    let listener = accept::listen(&args.listen).await?;
    let (at_once, root) = (args.max_connections, args.root.display().to_string());
    let site = Site::new(args).map_err(|e| io::Error::other(format!("the root {root}: {e}")))?;
    let site = Arc::new(site);
    // Whether anybody reads it is not our affair.
    let _ = writeln!(io::stdout(), "http://{}/", listener.local_addr()?);
    accept::serve(listener, at_once, |client, _, ending| {
        let connection = connection::serve(Arc::clone(&site), client, ending);
        // What fails here, fails because the client has gone: nobody is left to tell.
        async { drop(connection.await) }
    })
    .await
}
