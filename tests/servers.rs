//! The examples `proxy`, `serve_raw` and `event_loop` as they are run: their own processes, told by
//! signals and options, and looked at from outside.

mod common;
#[path = "servers/program.rs"]
mod program;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use common::{Data, make};
use program::{Program, run};

/// Several times every buffer on the way.
const MUCH: u64 = 24 << 20;

/// Longer than anything here takes, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server to proxy to, and its address.
fn upstream() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    (listener, address)
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

/// Reads until the end, and holds every byte against `data`; how many there were.
fn receive(stream: &mut impl Read, data: Data) -> u64 {
    let (mut at, mut buf) = (0, vec![0; 256 << 10]);
    loop {
        match stream.read(&mut buf).expect("a connection") {
            0 => return at,
            n => {
                assert_eq!(data.check(at, &buf[..n]), Ok(()), "at {at}");
                at += n as u64;
            }
        }
    }
}

fn send(stream: &mut impl Write, data: Data, len: u64) {
    for at in (0..len).step_by(1 << 20) {
        let piece = data.bytes(at, (len - at).min(1 << 20) as usize);
        stream.write_all(&piece).expect("a connection");
    }
}

/// Whether nothing comes on this connection for a while, its end included.
fn is_silent(stream: &mut TcpStream) -> bool {
    stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .expect("a socket");
    let read = stream.read(&mut [0]);
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    read.is_err_and(|e| {
        matches!(
            e.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        )
    })
}

/// Both engines: what goes up and what comes down arrives, after half-closes too, and the line of
/// counts says how much it was.
#[test]
fn proxy_passes_both_ways_and_counts() {
    for engine in ["auto", "read-write"] {
        let (listener, to) = upstream();
        let mut proxy = Program::start("proxy", &["--to", &to, "--engine", engine, "--verbose"]);
        let mut client = connect(proxy.address());
        let mut server = accept(&listener);
        let (up, down) = (Data::new(1), Data::new(2));
        let mut sender = client.try_clone().expect("dup(2)");
        let sending = thread::spawn(move || {
            send(&mut sender, up, MUCH);
            sender.shutdown(Shutdown::Write).expect("connected");
        });
        assert_eq!(receive(&mut server, up), MUCH, "{engine}: up");
        sending.join().expect("sent");
        // Half open for a while: only one side has ended.
        assert!(is_silent(&mut client), "{engine}: the end came back");
        server.write_all(&down.bytes(0, 5)).expect("half open");
        let mut five = [0; 5];
        client.read_exact(&mut five).expect("half open");
        assert_eq!(five[..], down.bytes(0, 5));
        drop(server);
        assert_eq!(receive(&mut client, down), 0);
        drop(client);
        let line = proxy.line();
        assert!(line.contains(&MUCH.to_string()), "{engine}: {line}");
        assert!(line.contains("closed"), "{engine}: {line}");
        proxy.signal(Signal::SIGTERM);
        assert_eq!(proxy.exit_code(), Some(0), "{engine}");
    }
}

/// Urgent data (B41), which any client can send: what follows them passes, while the client stays.
#[test]
fn proxy_goes_on_behind_urgent_data() {
    const HALF: usize = 100_000;
    let (listener, to) = upstream();
    let mut proxy = Program::start("proxy", &["--to", &to, "--verbose"]);
    let mut client = connect(proxy.address());
    let mut server = accept(&listener);
    for data in [Data::new(3), Data::new(4)] {
        client.write_all(&data.bytes(0, HALF)).expect("connected");
        make::send_urgent(&client, 0).expect("connected");
        client
            .write_all(&data.bytes(HALF as u64, HALF))
            .expect("connected");
        let mut arrived = vec![0; 2 * HALF];
        server.read_exact(&mut arrived).expect("all of it");
        assert_eq!(data.check(0, &arrived), Ok(()));
        // And the other way.
        (client, server) = (server, client);
    }
    drop((client, server));
    let line = proxy.line();
    assert!(line.contains(&(2 * HALF).to_string()), "{line}");
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code(), Some(0));
}

/// SIGTERM: no more connections, those under way to their end, exit 0; a second one ends it at once.
#[test]
fn proxy_drains_on_sigterm() {
    let (listener, to) = upstream();
    let mut proxy = Program::start("proxy", &["--to", &to]);
    let address = proxy.address();
    let mut client = connect(address);
    let mut server = accept(&listener);
    proxy.signal(Signal::SIGTERM);
    proxy.refuses(address);
    let data = Data::new(3);
    let mut sender = client.try_clone().expect("dup(2)");
    let sending = thread::spawn(move || {
        send(&mut sender, data, MUCH);
        sender.shutdown(Shutdown::Write).expect("connected");
    });
    assert_eq!(receive(&mut server, data), MUCH);
    sending.join().expect("sent");
    assert!(proxy.is_running(), "the other direction is still open");
    server.write_all(b"and back").expect("connected");
    drop(server);
    let mut back = String::new();
    client.read_to_string(&mut back).expect("connected");
    assert_eq!(back, "and back");
    assert_eq!(proxy.exit_code(), Some(0));

    let mut proxy = Program::start("proxy", &["--to", &to]);
    let address = proxy.address();
    let _client = connect(address);
    let _server = accept(&listener);
    proxy.signal(Signal::SIGTERM);
    proxy.refuses(address);
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code(), Some(1));
}

#[test]
fn proxy_ends_the_idle_and_no_others() {
    let (listener, to) = upstream();
    let mut proxy = Program::start("proxy", &["--to", &to, "--idle", "0.8", "--verbose"]);
    let mut busy = connect(proxy.address());
    let mut busy_server = accept(&listener);
    let mut idle = connect(proxy.address());
    let _idle_server = accept(&listener);
    let began = Instant::now();
    let ending = thread::spawn(move || {
        assert_eq!(idle.read(&mut [0]).expect("an orderly end"), 0);
        began.elapsed()
    });
    for _ in 0..16 {
        busy.write_all(b"still here").expect("not idle");
        let mut said = [0; 10];
        busy_server.read_exact(&mut said).expect("not idle");
        thread::sleep(Duration::from_millis(100));
    }
    let took = ending.join().expect("ended");
    assert!(took >= Duration::from_millis(700), "{took:?}");
    let line = proxy.line();
    assert!(line.contains("idle"), "{line}");
    drop((busy, busy_server));
    assert!(proxy.line().contains("160 bytes"));
}

#[test]
fn proxy_has_no_more_connections_than_it_may() {
    let (listener, to) = upstream();
    let mut proxy = Program::start("proxy", &["--to", &to, "--max-connections", "1"]);
    let mut first = connect(proxy.address());
    let mut first_server = accept(&listener);
    // The kernel connects it; the proxy does not look at it yet.
    let mut second = connect(proxy.address());
    second.write_all(b"later").expect("connected");
    assert!(is_silent(&mut second));
    listener.set_nonblocking(true).expect("a socket");
    assert!(listener.accept().is_err(), "a second connection");
    listener.set_nonblocking(false).expect("a socket");
    first.write_all(b"now").expect("connected");
    first.shutdown(Shutdown::Write).expect("connected");
    let mut said = String::new();
    first_server.read_to_string(&mut said).expect("connected");
    assert_eq!(said, "now");
    drop((first, first_server));
    let mut second_server = accept(&listener);
    second.shutdown(Shutdown::Write).expect("connected");
    said.clear();
    second_server.read_to_string(&mut said).expect("connected");
    assert_eq!(said, "later");
    drop((second, second_server));
    proxy.signal(Signal::SIGINT);
    assert_eq!(proxy.exit_code(), Some(0));
}

/// A server that is not there costs the client its connection, and nobody else anything.
#[test]
fn proxy_outlives_a_server_that_is_not_there() {
    let (listener, to) = upstream();
    drop(listener);
    let mut proxy = Program::start("proxy", &["--to", &to, "--verbose"]);
    for _ in 0..3 {
        let mut client = connect(proxy.address());
        assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
        assert!(proxy.line().contains("no connection"));
    }
    assert!(proxy.is_running());
}

#[test]
fn wrong_options_are_named() {
    for (name, arguments, part) in [
        (
            "proxy",
            &[
                "--to",
                "127.0.0.1:1",
                "--idle",
                "1",
                "--engine",
                "read-write",
            ][..],
            "--idle",
        ),
        (
            "proxy",
            &["--to", "127.0.0.1:1", "--max-connections", "0"],
            "max-connections",
        ),
        ("proxy", &[], "--to"),
        ("serve_raw", &["--engine", "tea"], "tea"),
        ("event_loop", &["--count", "x"], "count"),
    ] {
        let mut all = vec!["--listen", "127.0.0.1:0"];
        all.extend(arguments);
        let output = run(name, &all);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {said}");
        assert!(said.contains(part), "{name}: {said}");
    }
    for name in ["proxy", "serve_raw", "event_loop"] {
        let output = run(name, &["--help"]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("--listen"),
            "{name}: {said}"
        );
    }
    for name in ["serve_raw", "event_loop"] {
        let output = run(name, &["--listen", "127.0.0.1:0", "/nonexistent"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains("/nonexistent"), "{name}: {said}");
    }
}

/// A file to serve.
fn file(data: Data, len: u64) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    send(file.as_file_mut(), data, len);
    file
}

#[test]
fn serve_raw_sends_the_file_to_all_and_drains_on_sigterm() {
    let data = Data::new(4);
    let len = MUCH + 12_345;
    let file = file(data, len);
    let path = file.path().to_str().expect("a plain name");
    for engine in ["auto", "read-write"] {
        let mut server = Program::start("serve_raw", &[path, "--engine", engine, "--verbose"]);
        let address = server.address();
        let many: Vec<_> = (0..8)
            .map(|_| thread::spawn(move || receive(&mut connect(address), data)))
            .collect();
        for one in many {
            assert_eq!(one.join().expect("received"), len, "{engine}");
        }
        for _ in 0..8 {
            let line = server.line();
            assert!(line.contains(&format!("{len} bytes")), "{engine}: {line}");
        }
        // One that has hardly begun: it gets everything all the same.
        let mut slow = connect(address);
        let mut first = [0; 1];
        slow.read_exact(&mut first).expect("connected");
        assert_eq!(data.check(0, &first), Ok(()));
        server.signal(Signal::SIGTERM);
        server.refuses(address);
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).expect("connected");
        assert_eq!(rest.len() as u64 + 1, len);
        assert_eq!(data.check(1, &rest), Ok(()));
        drop(slow);
        assert_eq!(server.exit_code(), Some(0), "{engine}");
    }
}

/// One thread, many connections: one that reads nothing holds up no other, one that goes away costs
/// only itself, and one that talks gets all that it is to get.
#[test]
fn event_loop_serves_many_at_once() {
    let data = Data::new(5);
    let len = MUCH + 4_321;
    let file = file(data, len);
    let path = file.path().to_str().expect("a plain name");
    let mut server = Program::start("event_loop", &[path, "--count", "20", "--verbose"]);
    let address = server.address();
    let mut stalled = connect(address);
    let mut gone = connect(address);
    gone.read_exact(&mut [0; 1000]).expect("connected");
    drop(gone);
    let mut talks = connect(address);
    talks.write_all(&[7; 100_000]).expect("connected");
    let many: Vec<_> = (0..17)
        .map(|_| thread::spawn(move || receive(&mut connect(address), data)))
        .collect();
    for one in many {
        assert_eq!(one.join().expect("received"), len);
    }
    assert_eq!(receive(&mut talks, data), len);
    assert_eq!(receive(&mut stalled, data), len);
    drop((talks, stalled));
    let lines: Vec<String> = (0..20).map(|_| server.line()).collect();
    let whole = lines
        .iter()
        .filter(|line| line.contains(&format!("{len} bytes by sendfile")));
    assert_eq!(whole.count(), 19, "{lines:#?}");
    assert_eq!(server.exit_code(), Some(0));
}

/// The processor time of a process that has nothing to do.
#[test]
fn nobody_to_serve_costs_nothing() {
    let (listener, to) = upstream();
    let empty = tempfile::NamedTempFile::new().expect("a temporary file");
    let path = empty.path().to_str().expect("a plain name");
    for (name, arguments) in [
        ("proxy", vec!["--to", &to]),
        ("serve_raw", vec![path]),
        ("event_loop", vec![path]),
    ] {
        let server = Program::start(name, &arguments);
        let _client = connect(server.address());
        thread::sleep(Duration::from_millis(200));
        let before = server.ticks();
        thread::sleep(Duration::from_secs(1));
        let spent = server.ticks() - before;
        assert!(spent <= 2, "{name}: {spent} ticks in a second");
    }
    drop(listener);
}
