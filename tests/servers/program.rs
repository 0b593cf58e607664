//! A built example under way as a process of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::PATIENCE;

/// Builds the examples, as this test was built, and says where one is. (Cargo builds them along with
/// all tests, but not with one that is asked for by name.)
fn executable(name: &str) -> PathBuf {
    static FOUND: OnceLock<Vec<PathBuf>> = OnceLock::new();
    let all = FOUND.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args([
                "build",
                "--all-features",
                "--message-format=json",
                "--manifest-path",
            ])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .args([
                "--example=proxy",
                "--example=serve_raw",
                "--example=event_loop",
            ]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let built = cargo.stderr(Stdio::inherit()).output().expect("cargo");
        assert!(built.status.success(), "the examples do not build");
        let artifacts = String::from_utf8_lossy(&built.stdout).into_owned();
        let paths = artifacts.lines().filter_map(|line| {
            let artifact: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(PathBuf::from(artifact.get("executable")?.as_str()?))
        });
        paths.collect()
    });
    let found = all.iter().find(|path| path.ends_with(name));
    found
        .unwrap_or_else(|| panic!("no {name} among {all:?}"))
        .clone()
}

/// Runs it to its end.
pub(crate) fn run(name: &str, arguments: &[&str]) -> Output {
    Command::new(executable(name))
        .args(arguments)
        .output()
        .expect("it was just built")
}

/// A server on a port of its own. It ends with this value.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    address: SocketAddr,
    lines: Receiver<String>,
}

impl Program {
    /// Starts it and waits until it listens.
    pub(crate) fn start(name: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(executable(name))
            .args(["--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it was just built");
        let mut said = BufReader::new(child.stderr.take().expect("piped"));
        let mut first = String::new();
        said.read_line(&mut first).expect("a line");
        // The rest goes to this test's own.
        thread::spawn(move || {
            said.lines()
                .map_while(Result::ok)
                .for_each(|line| eprintln!("{line}"));
        });
        let address = first
            .split_whitespace()
            .nth(1)
            .and_then(|word| word.parse().ok());
        let address =
            address.unwrap_or_else(|| panic!("{name} does not say where it listens: {first}"));
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            address,
            lines,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line of counts")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it runs");
    }

    /// Waits until it accepts nobody any more: until then, its port is not to be had. (To connect
    /// and see would leave it with one more connection to drain.)
    pub(crate) fn refuses(&self, address: SocketAddr) {
        let until = Instant::now() + PATIENCE;
        while TcpListener::bind(address).is_err() {
            assert!(Instant::now() < until, "it goes on listening");
            thread::sleep(Duration::from_millis(10));
        }
        assert!(TcpStream::connect(address).is_err(), "somebody listens");
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Waits until it has ended by itself.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Processor time so far, in hundredths of a second.
    pub(crate) fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("procfs");
        // Behind the name, which may hold anything, in brackets: user and system time.
        let fields = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        fields
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process number"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
