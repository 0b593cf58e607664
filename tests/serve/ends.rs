//! How the server ends, and what it does where a file or a client ends first.

use std::fs::OpenOptions;
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::Data;
use crate::rig::{Client, ENGINES, Server};

const LARGE: usize = 48 << 20;

#[test]
fn a_signal_ends_it_when_all_is_answered() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut server = Server::start(&[]);
        server.fill("large", LARGE);
        let mut idle = Client::of(&server);
        assert_eq!(idle.get("/large", "Range: bytes=0-0\r\n").status, 206);
        let mut begun = Client::of(&server);
        begun.send("GET /large HTTP/1.1\r\nHost: a\r\nRange: bytes=");
        let mut busy = Client::of(&server);
        busy.ask("GET", "/large", "");
        let head = busy.answer_head();
        assert_eq!(head.field("content-length"), Some(&*LARGE.to_string()));
        server.signal(signal);
        idle.assert_closed();
        // It has stopped to listen before it closed that one.
        assert!(TcpStream::connect(server.addr).is_err());
        begun.send("1-2\r\n\r\n");
        let answer = begun.answer();
        assert_eq!(
            (answer.status, answer.field("connection")),
            (206, Some("close"))
        );
        begun.assert_closed();
        assert!(
            server.child.try_wait().unwrap().is_none(),
            "ended before all was sent"
        );
        let mut got = vec![0; LARGE];
        busy.read_exact(&mut got);
        Data::new(LARGE as u64).check(0, &got).unwrap();
        busy.assert_closed();
        drop(busy);
        assert_eq!(server.child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::start(&[]);
    server.fill("large", LARGE);
    let mut stuck = Client::of(&server);
    stuck.ask("GET", "/large", "");
    stuck.answer_head();
    let mut idle = Client::of(&server);
    assert_eq!(idle.get("/large", "Range: bytes=0-0\r\n").status, 206);
    server.signal(Signal::SIGTERM);
    idle.assert_closed();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.child.wait().unwrap().code(), Some(1));
}

#[test]
fn a_file_that_shrinks_ends_its_answer() {
    for engine in ENGINES {
        let mut server = Server::start(&["--engine", engine]);
        server.fill("large", LARGE);
        let mut client = Client::of(&server);
        client.ask("GET", "/large", "");
        client.answer_head();
        let file = OpenOptions::new()
            .write(true)
            .open(server.root().join("large"));
        file.unwrap().set_len(1 << 20).unwrap();
        // No byte is made up for those that are gone, and nothing follows that the client might
        // take for them.
        assert!(client.rest().len() < LARGE, "{engine}");
        server.assert_alive();
    }
}

#[test]
fn a_client_that_leaves_costs_nobody_anything() {
    for engine in ENGINES {
        let mut server = Server::start(&["--engine", engine]);
        server.fill("large", LARGE);
        for turn in 0..50 {
            let mut client = Client::of(&server);
            client.ask("GET", "/large", "");
            if turn % 2 == 0 {
                client.answer_head();
            }
        }
        server.assert_alive();
        // What they had open is closed again.
        let open = || {
            let listed = std::fs::read_dir(format!("/proc/{}/fd", server.child.id()));
            let links = listed
                .unwrap()
                .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
            links.filter(|link| link.ends_with("large")).count()
        };
        for _ in 0..200 {
            if open() == 0 {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(open(), 0, "{engine}: files are left open");
        server.assert_alive();
    }
}

#[test]
fn what_is_wrong_at_the_start_is_said() {
    let test = std::env::current_exe().unwrap();
    let binary = test.ancestors().nth(2).unwrap().join("examples/serve");
    // Builds it.
    drop(Server::start(&[]));
    for root in ["/nowhere", "/etc/passwd"] {
        let mut command = Command::new(&binary);
        let output = command
            .args(["--root", root, "--listen", "127.0.0.1:0"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.starts_with(&format!("serve: the root {root}: ")),
            "{said}"
        );
    }
}
