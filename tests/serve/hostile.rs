//! Clients that wish the server ill: each is refused or timed out, and others are served meanwhile.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::common::Data;
use crate::rig::{Client, ENGINES, Server};

const SECRET: &[u8] = b"nobody's business";

#[test]
fn nothing_outside_of_the_root() {
    let mut server = Server::start(&[]);
    let (dir, root) = (server.dir.path().to_owned(), server.root());
    fs::write(dir.join("secret"), SECRET).unwrap();
    fs::create_dir(root.join("sub")).unwrap();
    symlink(dir.join("secret"), root.join("absolute")).unwrap();
    symlink("../secret", root.join("relative")).unwrap();
    symlink("../../secret", root.join("sub/deep")).unwrap();
    symlink("..", root.join("up")).unwrap();
    symlink("/", root.join("top")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    let inside = dir.strip_prefix("/").unwrap().display();
    let mut targets: Vec<String> = [
        "/../secret",
        "/../../etc/passwd",
        "/%2e%2e/secret",
        "/%2E%2E%2fsecret",
        "/..%2fsecret",
        "/sub/../../secret",
        "/sub/%2e%2e/%2e%2e/secret",
        "/./.././secret",
        "/..",
        "/../",
        "/absolute",
        "/relative",
        "/sub/deep",
        "/up",
        "/up/",
        "/up/secret",
        "/top/",
        "/top/etc/passwd",
        "/magic/etc/passwd",
        "/loop",
        "/..\\secret",
        "/%5c..%5csecret",
        "/%252e%252e/secret",
        "http://test/../secret",
        "/root/../../secret",
        "//etc/passwd",
        "/%2fetc%2fpasswd",
        "///../secret",
        "/..;/secret",
        "/secret",
    ]
    .map(str::to_owned)
    .to_vec();
    targets.push(format!("/top/{inside}/secret"));
    targets.push(format!("//{inside}/secret"));
    targets.push(format!("/%2f{inside}/secret"));
    let mut client = Client::of(&server);
    for target in targets {
        for method in ["GET", "HEAD"] {
            client.ask(method, &target, "");
            let answer = if method == "GET" {
                client.answer()
            } else {
                client.answer_head()
            };
            assert!(matches!(answer.status, 403 | 404), "{target}: {answer:?}");
            let body = String::from_utf8_lossy(&answer.body);
            assert!(
                !body.contains("nobody") && !body.contains("root:"),
                "{target}: {body}"
            );
        }
    }
    server.assert_alive();
}

#[test]
fn what_is_no_file_is_not_opened_for_good() {
    let mut server = Server::start(&[]);
    let root = server.root();
    mkfifo(&root.join("fifo"), Mode::S_IRWXU).unwrap();
    let _listener = UnixListener::bind(root.join("socket")).unwrap();
    fs::create_dir(root.join("odd")).unwrap();
    mkfifo(&root.join("odd/index.html"), Mode::S_IRWXU).unwrap();
    let mut client = Client::of(&server);
    assert_eq!(client.get("/fifo", "").status, 403);
    assert_eq!(client.get("/odd/", "").status, 403);
    assert!(client.get("/socket", "").status >= 400);
    server.assert_alive();
}

#[test]
fn heads_that_break_the_rules() {
    let mut server = Server::start(&[]);
    server.write("file", b"content");
    let line =
        |field: &str| format!("GET /file HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n").into_bytes();
    let cases: [(u16, Vec<u8>); 24] = [
        (400, b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        (
            400,
            b"GET /file%00.txt HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        ),
        (400, b"GET /fi\0le HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        (400, line("X: a\0b")),
        (400, b"\0\0\0\0\r\n\r\n".to_vec()),
        (
            400,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        ),
        (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        (400, b"GET /file\r\n\r\n".to_vec()),
        (400, b"GET /file HTTP/1.1\r\n\r\n".to_vec()),
        (400, b"GET file HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        (400, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        (400, line("Host: b")),
        (400, line("no colon")),
        (400, line("X : space")),
        (400, line("Content-Length: x")),
        (400, line("Content-Length: -1")),
        (400, line("Content-Length: 0, x")),
        (411, line("Transfer-Encoding: chunked")),
        (
            411,
            line("Transfer-Encoding: identity\r\nContent-Length: 0"),
        ),
        (413, line("Content-Length: 5")),
        (413, line("Content-Length: 99999999999999999999999")),
        (413, line("Content-Length: 0\r\nContent-Length: 5")),
        (431, line(&"X: y\r\n".repeat(100))),
        (431, line(&format!("X: {}", "y".repeat(20_000)))),
    ];
    for (status, request) in cases {
        let text = String::from_utf8_lossy(&request[..request.len().min(80)]).into_owned();
        let mut client = Client::of(&server);
        client.send(&request);
        let answer = client.answer();
        assert_eq!(answer.status, status, "{text:?}");
        assert_eq!(answer.field("connection"), Some("close"), "{text:?}");
        client.assert_closed();
    }
    // What is odd and all right.
    let mut client = Client::of(&server);
    assert_eq!(
        client.get("/file", "Content-Length: 0\r\n").body,
        b"content"
    );
    assert_eq!(client.get("/file?%00", "").body, b"content");
    assert_eq!(client.get("/%zz", "").status, 404);
    server.assert_alive();
}

#[test]
fn a_body_is_never_taken_for_a_request() {
    let mut server = Server::start(&[]);
    server.write("file", b"content");
    let smuggled = "GET /file HTTP/1.1\r\nHost: a\r\n\r\n";
    let len = smuggled.len();
    for (method, field, status) in [
        ("POST", format!("Content-Length: {len}"), 405),
        ("PUT", "Transfer-Encoding: chunked".to_owned(), 405),
        ("DELETE", "Content-Length: 0".to_owned(), 405),
        ("OPTIONS", "X: y".to_owned(), 405),
        ("get", "X: y".to_owned(), 405),
        (
            "POST",
            format!("Expect: 100-continue\r\nContent-Length: {len}"),
            405,
        ),
        ("GET", format!("Content-Length: {len}"), 413),
        ("HEAD", format!("Content-Length: {len}"), 413),
        ("GET", "Transfer-Encoding: chunked".to_owned(), 411),
        (
            "GET",
            format!("Transfer-Encoding: chunked\r\nContent-Length: {len}"),
            411,
        ),
    ] {
        let mut client = Client::of(&server);
        client.send(format!(
            "{method} /file HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n{smuggled}"
        ));
        let answer = client.answer();
        assert_eq!(answer.status, status, "{method}, {field}");
        assert_eq!(answer.field("allow"), Some("GET, HEAD"));
        client.assert_closed();
    }
    server.assert_alive();
}

#[test]
fn a_head_of_a_mebibyte() {
    let mut server = Server::start(&[]);
    let much = "y".repeat(1 << 20);
    for request in [
        format!("GET /file HTTP/1.1\r\nHost: a\r\nX: {much}\r\n\r\n"),
        format!("GET /{much} HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET /file HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(1 << 17)),
        much.clone(),
    ] {
        let mut client = Client::of(&server);
        let mut stream = client.stream.try_clone().unwrap();
        // The server reads no more than it wants; the rest it takes only to throw it away.
        let sending = thread::spawn(move || stream.write_all(request.as_bytes()));
        assert_eq!(client.answer().status, 431);
        client.assert_closed();
        sending.join().unwrap().expect("no reset while it is sent");
    }
    server.assert_alive();
}

#[test]
fn slow_clients() {
    let mut server = Server::start(&["--patience", "1"]);
    let request = b"GET /file HTTP/1.1\r\nHost: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let clients: Vec<_> = (0..200)
        .map(|number| {
            let mut client = Client::of(&server);
            thread::spawn(move || {
                // Nothing, or a byte now and then; either way it must end before its request does.
                for byte in request
                    .iter()
                    .skip(if number % 4 == 0 { request.len() } else { 0 })
                {
                    if client.stream.write_all(&[*byte]).is_err() {
                        return;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
                let _ = client.rest();
            })
        })
        .collect();
    while clients.iter().any(|client| !client.is_finished()) {
        server.assert_alive();
        thread::sleep(Duration::from_millis(50));
    }
    for client in clients {
        client.join().unwrap();
    }
    server.assert_alive();
}

#[test]
fn slow_readers() {
    for engine in ENGINES {
        let mut server = Server::start(&["--patience", "1", "--engine", engine]);
        let len = 64 << 20;
        server.fill("large", len);
        // One that takes nothing is let go, in the middle of its answer.
        let mut idle = Client::of(&server);
        idle.ask("GET", "/large", "");
        // One that takes a little at a time is not, however long it takes.
        let mut slow = Client::of(&server);
        slow.ask("GET", "/large", "");
        let head = slow.answer_head();
        assert_eq!(head.field("content-length"), Some(&*len.to_string()));
        let mut got = vec![0; 12 << 20];
        for piece in got.chunks_mut(2 << 20) {
            thread::sleep(Duration::from_millis(400));
            slow.read_exact(piece);
        }
        Data::new(len as u64).check(0, &got).unwrap();
        let mut rest = Vec::new();
        let _ = idle.stream.read_to_end(&mut rest);
        assert!(rest.len() < len, "{engine}: it was given all of it");
        server.assert_alive();
    }
}

#[test]
fn no_more_connections_than_allowed() {
    let mut server = Server::start(&["--max-connections", "2"]);
    server.write("file", b"content");
    let mut first = Client::of(&server);
    let mut second = Client::of(&server);
    assert_eq!(first.get("/file", "").status, 200);
    assert_eq!(second.get("/file", "").status, 200);
    // The kernel takes the connection; the server does not, until another one ends.
    let mut third = Client::of(&server);
    third.ask("GET", "/file", "");
    third
        .stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    assert!(third.stream.peek(&mut [0]).is_err(), "answered");
    third
        .stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    drop(first);
    assert_eq!(third.answer().body, b"content");
    drop((second, third));
    server.assert_alive();
}
