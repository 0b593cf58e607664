//! Files: whole, in part, or known already; one connection for many of them.

use std::fs::{self, FileTimes};
use std::time::{Duration, SystemTime};

use crate::rig::{Client, ENGINES, Server};

const LEN: usize = (1 << 20) + 3;

#[test]
fn whole_files_of_all_sizes() {
    for engine in ENGINES {
        let server = Server::start(&["--engine", engine]);
        let mut client = Client::of(&server);
        let inline = 32 << 10;
        for len in [
            0,
            1,
            4096,
            inline - 1,
            inline,
            inline + 1,
            LEN,
            (9 << 20) + 1,
        ] {
            let content = server.fill("file", len);
            for _ in 0..2 {
                let answer = client.get("/file", "");
                assert_eq!(answer.status, 200);
                assert!(answer.body == content, "{engine}, {len} bytes");
                assert_eq!(answer.field("accept-ranges"), Some("bytes"));
                assert_eq!(answer.field("connection"), Some("keep-alive"));
            }
        }
    }
}

#[test]
fn head_is_get_without_a_body() {
    let server = Server::start(&[]);
    server.fill("file", LEN);
    let mut client = Client::of(&server);
    for target in ["/file", "/", "/none", "/file/"] {
        let (head, get) = (client.head(target, ""), client.get(target, ""));
        let fields = |answer: &crate::rig::Answer| {
            let fields = answer.fields.iter().filter(|(name, _)| name != "Date");
            fields.cloned().collect::<Vec<_>>()
        };
        assert_eq!(
            (head.status, fields(&head)),
            (get.status, fields(&get)),
            "{target}"
        );
    }
    // A range has no meaning for it.
    assert_eq!(client.head("/file", "Range: bytes=0-0\r\n").status, 200);
}

#[test]
fn ranges() {
    for engine in ENGINES {
        let server = Server::start(&["--engine", engine]);
        let content = server.fill("file", LEN);
        server.fill("empty", 0);
        let mut client = Client::of(&server);
        let last = LEN - 1;
        let parts = [
            ("0-0", 0..1),
            ("5-10", 5..11),
            ("0-", 0..LEN),
            ("1000-", 1000..LEN),
            ("1000-99999999999999999999999", 1000..LEN),
            ("-1", last..LEN),
            ("-100000", LEN - 100_000..LEN),
            ("-99999999999999999999999", 0..LEN),
            (&format!("{last}-{last}"), last..LEN),
            ("65536-524287", 65536..524_288),
        ];
        for (set, range) in parts {
            let answer = client.get("/file", &format!("Range: bytes={set}\r\n"));
            let told = format!("bytes {}-{}/{LEN}", range.start, range.end - 1);
            let expected = (206, Some(told.as_str()), &content[range]);
            assert!(
                answer.told() == expected,
                "{engine}, {set}: {:?}",
                answer.fields
            );
        }
        let unsatisfied = format!("bytes */{LEN}");
        for set in [&format!("{LEN}-"), "99999999999999999999-", "-0"] {
            let answer = client.get("/file", &format!("Range: bytes={set}\r\n"));
            assert_eq!(
                (answer.status, answer.field("content-range")),
                (416, Some(&*unsatisfied))
            );
        }
        // What nobody understands, or only those who send several parts, is as if it were not there.
        for set in [
            "bytes=5-4",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=0-1,3-4",
            "lines=0-1",
        ] {
            let answer = client.get("/file", &format!("Range: {set}\r\n"));
            assert!(
                answer.told() == (200, None, &content),
                "{set}: {:?}",
                answer.fields
            );
        }
        assert_eq!(client.get("/empty", "Range: bytes=0-\r\n").status, 416);
        assert_eq!(client.get("/empty", "Range: bytes=-5\r\n").status, 200);
    }
}

#[test]
fn a_version_that_the_client_has_is_not_sent() {
    let server = Server::start(&[]);
    let content = server.fill("file", 5000);
    let at = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
    let file = fs::File::open(server.root().join("file")).unwrap();
    file.set_times(FileTimes::new().set_modified(at)).unwrap();
    let mut client = Client::of(&server);
    let first = client.get("/file", "");
    let tag = first.field("etag").unwrap().to_owned();
    assert!(
        tag.starts_with('"') && tag.ends_with('"') && tag.len() > 2,
        "{tag} is not strong"
    );
    let date = "Tue, 14 Nov 2023 22:13:20 GMT";
    assert_eq!(first.field("last-modified"), Some(date));
    let (before, after) = (
        "Tue, 14 Nov 2023 22:13:19 GMT",
        "Tue, 14 Nov 2023 22:13:21 GMT",
    );
    let cases = [
        (format!("If-None-Match: {tag}\r\n"), 304),
        (format!("If-None-Match: W/{tag}\r\n"), 304),
        (format!("If-None-Match: \"x\", {tag} , \"y\"\r\n"), 304),
        (
            format!("If-None-Match: \"x\"\r\nIf-None-Match: {tag}\r\n"),
            304,
        ),
        ("If-None-Match: *\r\n".to_owned(), 304),
        ("If-None-Match: \"x\"\r\n".to_owned(), 200),
        (format!("If-Modified-Since: {date}\r\n"), 304),
        (format!("If-Modified-Since: {after}\r\n"), 304),
        (format!("If-Modified-Since: {before}\r\n"), 200),
        ("If-Modified-Since: yesterday\r\n".to_owned(), 200),
        // The tag is the better witness.
        (
            format!("If-None-Match: \"x\"\r\nIf-Modified-Since: {date}\r\n"),
            200,
        ),
        (
            format!("If-None-Match: {tag}\r\nIf-Modified-Since: {before}\r\n"),
            304,
        ),
        (format!("If-None-Match: {tag}\r\nRange: bytes=0-1\r\n"), 304),
    ];
    for (fields, status) in &cases {
        let answer = client.get("/file", fields);
        assert_eq!(answer.status, *status, "{fields}");
        assert_eq!(answer.field("etag"), Some(&*tag));
        assert_eq!(
            client.head("/file", fields).status,
            *status,
            "HEAD, {fields}"
        );
    }
    let told = Some("bytes 1-2/5000");
    for (known, part) in [
        (&*tag, true),
        (date, true),
        ("\"x\"", false),
        (before, false),
    ] {
        let answer = client.get(
            "/file",
            &format!("Range: bytes=1-2\r\nIf-Range: {known}\r\n"),
        );
        match part {
            true => assert_eq!(answer.told(), (206, told, &content[1..3]), "{known}"),
            false => assert!(answer.told() == (200, None, &content), "{known}"),
        }
    }
    // A weak tag does not tell one byte from another.
    let weak = client.get(
        "/file",
        &format!("Range: bytes=1-2\r\nIf-Range: W/{tag}\r\n"),
    );
    assert_eq!(weak.status, 200);
    // The same size and date, and another file.
    fs::write(server.root().join("new"), &content).unwrap();
    fs::rename(server.root().join("new"), server.root().join("file")).unwrap();
    file.set_times(FileTimes::new().set_modified(at)).unwrap();
    assert_eq!(
        client
            .get("/file", &format!("If-None-Match: {tag}\r\n"))
            .status,
        200
    );
}

#[test]
fn requests_in_a_row_are_answered_in_a_row() {
    for engine in ENGINES {
        let server = Server::start(&["--engine", engine]);
        let contents = [0, 10, 4096, 40_000, 700_000].map(|len| {
            let content = server.fill(&len.to_string(), len);
            (len, content)
        });
        let mut requests = Vec::new();
        for turn in 0..40 {
            let (len, _) = contents[turn % 5];
            let method = if turn % 7 == 3 { "HEAD" } else { "GET" };
            let request = format!("{method} /{len} HTTP/1.1\r\nHost: a\r\n\r\n");
            requests.extend_from_slice(request.as_bytes());
        }
        // In one piece, and in pieces that end anywhere.
        for piece in [requests.len(), 7, 1000] {
            let mut client = Client::of(&server);
            let mut stream = client.stream.try_clone().unwrap();
            let requests = requests.clone();
            let sending = std::thread::spawn(move || {
                for piece in requests.chunks(piece) {
                    std::io::Write::write_all(&mut stream, piece).unwrap();
                }
            });
            for turn in 0..40 {
                let (len, content) = &contents[turn % 5];
                let head_only = turn % 7 == 3;
                let answer = if head_only {
                    client.answer_head()
                } else {
                    client.answer()
                };
                assert_eq!(answer.field("content-length"), Some(&*len.to_string()));
                assert!(
                    head_only || answer.body == *content,
                    "{engine}, {turn}, {len} bytes"
                );
            }
            sending.join().unwrap();
            client.ask("GET", "/10", "Connection: close\r\n");
            assert_eq!(client.answer().field("connection"), Some("close"));
            client.assert_closed();
        }
    }
}

#[test]
fn who_keeps_a_connection() {
    let server = Server::start(&[]);
    server.fill("file", 10);
    let cases = [
        ("HTTP/1.1\r\nHost: a", true),
        ("HTTP/1.1\r\nHost: a\r\nConnection: Close", false),
        ("HTTP/1.1\r\nHost: a\r\nConnection: x, close", false),
        ("HTTP/1.0", false),
        ("HTTP/1.0\r\nConnection: Keep-Alive", true),
        ("HTTP/1.0\r\nConnection: keep-alive, close", false),
    ];
    for (rest, kept) in cases {
        let mut client = Client::of(&server);
        client.send(format!("GET /file {rest}\r\n\r\n"));
        let answer = client.answer();
        assert_eq!(answer.body.len(), 10);
        match kept {
            true => {
                assert_eq!(answer.field("connection"), Some("keep-alive"), "{rest}");
                assert_eq!(client.get("/file", "").status, 200, "{rest}");
            }
            false => {
                assert_eq!(answer.field("connection"), Some("close"), "{rest}");
                client.assert_closed();
            }
        }
    }
    // One that says that it will ask no more is still answered.
    let mut client = Client::of(&server);
    client.ask("GET", "/file", "");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.answer().body.len(), 10);
    client.assert_closed();
}
