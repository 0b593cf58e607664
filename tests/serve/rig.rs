//! The server as a child process, and a client that takes HTTP apart by hand.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::{Data, example};

pub(crate) const ENGINES: [&str; 2] = ["auto", "read-write"];

/// More than the server ever lets a client wait, and less than a test may take.
const LONG: Duration = Duration::from_secs(30);

/// A server, ended with this.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) addr: SocketAddr,
    /// What it serves is `root/` within; what lies beside that is not its business.
    pub(crate) dir: TempDir,
}

impl Server {
    pub(crate) fn start(options: &[&str]) -> Self {
        let dir = TempDir::new().expect("a directory");
        fs::create_dir(dir.path().join("root")).expect("a directory");
        Self::over(dir, options)
    }

    pub(crate) fn over(dir: TempDir, options: &[&str]) -> Self {
        let mut command = Command::new(example("serve"));
        command.arg("--root").arg(dir.path().join("root"));
        command.args(["--listen", "127.0.0.1:0"]).args(options);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the example");
        let mut line = String::new();
        let said = BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line);
        said.expect("a line");
        let addr = line
            .trim()
            .trim_start_matches("http://")
            .trim_end_matches('/');
        let addr = addr.parse().unwrap_or_else(|_| panic!("{line:?}"));
        Self { child, addr, dir }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.root().join(name), content).expect("room");
    }

    /// A file of known bytes.
    pub(crate) fn fill(&self, name: &str, len: usize) -> Vec<u8> {
        let content = Data::new(len as u64).bytes(0, len);
        self.write(name, &content);
        content
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("a process of ours");
    }

    /// Fails if it has ended, or does not answer.
    pub(crate) fn assert_alive(&mut self) {
        assert!(self.child.try_wait().expect("a child").is_none());
        self.write("alive", b"yes");
        assert_eq!(Client::of(self).get("/alive", "").body, b"yes");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A status, its fields and a body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The value of a field that is there once.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut named = self
            .fields
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name));
        let first = named.next();
        assert!(named.next().is_none(), "{name} twice: {self:?}");
        first.map(|(_, value)| value.as_str())
    }

    /// A short form to compare.
    pub(crate) fn told(&self) -> (u16, Option<&str>, &[u8]) {
        (self.status, self.field("content-range"), &self.body)
    }
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Client {
    pub(crate) fn of(server: &Server) -> Self {
        let stream = TcpStream::connect(server.addr).expect("a listener");
        stream.set_read_timeout(Some(LONG)).expect("a limit");
        let reader = BufReader::new(stream.try_clone().expect("dup(2)"));
        Self { stream, reader }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .write_all(bytes.as_ref())
            .expect("a server that listens");
    }

    /// Asks by a method for a target, with more fields.
    pub(crate) fn ask(&mut self, method: &str, target: &str, fields: &str) {
        self.send(format!(
            "{method} {target} HTTP/1.1\r\nHost: test\r\n{fields}\r\n"
        ));
    }

    pub(crate) fn get(&mut self, target: &str, fields: &str) -> Answer {
        self.ask("GET", target, fields);
        self.answer()
    }

    pub(crate) fn head(&mut self, target: &str, fields: &str) -> Answer {
        self.ask("HEAD", target, fields);
        self.answer_head()
    }

    /// A status and its fields.
    pub(crate) fn answer_head(&mut self) -> Answer {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a status line");
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest[..3].parse().ok());
        let status = status.unwrap_or_else(|| panic!("{line:?} for a status line"));
        let mut fields = Vec::new();
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).expect("a field");
            let line = line.strip_suffix("\r\n").expect("CR LF");
            match line.split_once(": ") {
                Some((name, value)) => fields.push((name.to_owned(), value.to_owned())),
                None if line.is_empty() => break,
                None => panic!("{line:?} for a field"),
            }
        }
        let body = Vec::new();
        Answer {
            status,
            fields,
            body,
        }
    }

    pub(crate) fn answer(&mut self) -> Answer {
        let mut answer = self.answer_head();
        if answer.status != 304 {
            let len = answer.field("content-length").expect("a length");
            answer.body = vec![0; len.parse().expect("a number")];
            self.reader
                .read_exact(&mut answer.body)
                .expect("the whole body");
        }
        answer
    }

    pub(crate) fn read_exact(&mut self, buf: &mut [u8]) {
        self.reader.read_exact(buf).expect("so many bytes");
    }

    /// Everything until the server closes, or resets, the connection.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Err(e) if e.kind() != std::io::ErrorKind::ConnectionReset => panic!("not closed: {e}"),
            _ => rest,
        }
    }

    pub(crate) fn assert_closed(&mut self) {
        assert_eq!(String::from_utf8_lossy(&self.rest()), "");
    }
}
