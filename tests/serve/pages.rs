//! What paths lead to: directories, their pages, the kinds of files.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use crate::rig::{Client, Server};

#[test]
fn kinds_by_name() {
    let server = Server::start(&[]);
    let mut client = Client::of(&server);
    let kinds = [
        ("page.html", "text/html; charset=utf-8"),
        ("notes.TXT", "text/plain; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("photo.jpg", "image/jpeg"),
        ("drawing.svg", "image/svg+xml"),
        ("archive.tar.gz", "application/gzip"),
        ("unknown", "application/octet-stream"),
    ];
    for (name, kind) in kinds {
        server.write(name, b"x");
        let answer = client.get(&format!("/{name}"), "");
        assert_eq!(answer.field("content-type"), Some(kind), "{name}");
        assert_eq!(answer.field("x-content-type-options"), Some("nosniff"));
    }
}

#[test]
fn directories() {
    let server = Server::start(&[]);
    let root = server.root();
    fs::create_dir_all(root.join("with index/deep")).unwrap();
    server.write("with index/index.html", b"the index");
    let mut client = Client::of(&server);
    for (target, location) in [
        ("/with%20index", "/with%20index/"),
        ("//with%20index", "/with%20index/"),
        ("/with%20index/deep?x=1", "/with%20index/deep/"),
        ("http://host/with%20index", "/with%20index/"),
    ] {
        let answer = client.get(target, "");
        assert_eq!(
            (answer.status, answer.field("location")),
            (301, Some(location))
        );
    }
    let index = client.get("/with%20index/", "");
    assert_eq!((index.status, &*index.body), (200, &b"the index"[..]));
    assert_eq!(
        index.field("content-type"),
        Some("text/html; charset=utf-8")
    );
    assert!(index.field("etag").is_some());
    assert_eq!(client.get("/with%20index/?a=b", "").body, b"the index");
    assert_eq!(client.get("/with%20index/index.html/", "").status, 404);
    assert_eq!(client.get("/none/", "").status, 404);
    assert_eq!(client.get(&format!("/{}", "a".repeat(300)), "").status, 404);
}

#[test]
fn a_listing_shows_every_name_as_it_is() {
    let server = Server::start(&[]);
    let root = server.root();
    let odd: [&[u8]; 7] = [
        b"plain.txt",
        b"<script>alert(1)<&\"'.html",
        b"javascript:alert(1)",
        b"50% #1?x=y",
        b"not \xff utf-8",
        "\u{2028}ö".as_bytes(),
        b"line\nbreak",
    ];
    for name in odd {
        fs::write(root.join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    fs::create_dir(root.join("sub<dir>")).unwrap();
    let mut client = Client::of(&server);
    let answer = client.get("/", "");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.field("content-type"),
        Some("text/html; charset=utf-8")
    );
    let page = String::from_utf8(answer.body).unwrap();
    assert!(
        !page.contains("<script") && !page.contains("href=\"javascript:"),
        "{page}"
    );
    assert!(
        page.contains("&lt;script&gt;alert(1)&lt;&amp;&quot;"),
        "{page}"
    );
    let links: Vec<&str> = page
        .split("href=\"")
        .skip(1)
        .map(|at| at.split('"').next().unwrap())
        .collect();
    // The one above, a directory, and the files.
    assert_eq!(links.len(), 2 + odd.len(), "{page}");
    assert!(
        links.contains(&"../") && links.contains(&"sub%3Cdir%3E/"),
        "{page}"
    );
    let mut contents: Vec<Vec<u8>> = Vec::new();
    for link in links {
        if link == "../" {
            // As far up as there is.
            assert_eq!(client.get("/../", "").status, 403);
        } else if link.ends_with('/') {
            let sub = String::from_utf8(client.get(&format!("/{link}"), "").body).unwrap();
            assert!(
                sub.contains("sub&lt;dir&gt;") && !sub.contains("sub<dir>"),
                "{sub}"
            );
            assert!(sub.contains("href=\"../\""), "{sub}");
        } else {
            contents.push(client.get(&format!("/{link}"), "").body);
        }
    }
    let mut names = odd.map(<[u8]>::to_vec);
    names.sort();
    contents.sort();
    assert_eq!(contents, names);
}

#[test]
fn links_that_stay_within_are_followed() {
    let server = Server::start(&[]);
    let root = server.root();
    fs::create_dir_all(root.join("a/b")).unwrap();
    server.write("file", b"content");
    symlink("../../file", root.join("a/b/link")).unwrap();
    symlink("a/b", root.join("short")).unwrap();
    let mut client = Client::of(&server);
    for target in [
        "/a/b/link",
        "/short/link",
        "/a/b/../../file",
        "/a/%2e%2e/file",
        "/a%2fb%2flink",
    ] {
        assert_eq!(client.get(target, "").body, b"content", "{target}");
    }
}
