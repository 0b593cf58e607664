//! What lies below the root and nothing else, as answers. The kernel resolves each path with
//! `RESOLVE_BENEATH`, which neither `..` nor a link leads out of.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use httpdate::fmt_http_date;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use tokio::task::spawn_blocking;
use zcio::Message;

use crate::Args;
use crate::request::Request;

/// `RESOLVE_CACHED` (Linux 5.12): EAGAIN where the disk would have to be waited for.
const CACHED: ResolveFlag = ResolveFlag::from_bits_retain(0x20);
/// What is encoded in a link.
const ODD: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'/');

/// A status, the fields that this answer alone has, a line each, and a body.
pub(crate) struct Reply(&'static str, String, Message<'static>);

impl Reply {
    /// A status alone, with a field, and as text for whoever looks at it.
    pub(crate) fn status(status: &'static str, field: &str) -> Self {
        let field = format!("{field}\r\nContent-Type: text/plain\r\n");
        Self(status, field, Message::new().bytes(format!("{status}\n")))
    }

    /// Head and body in one.
    pub(crate) fn message(self, head_only: bool, keep: bool) -> Message<'static> {
        let Self(status, fields, body) = self;
        let (now, len) = (fmt_http_date(SystemTime::now()), body.len());
        let connection = if keep { "keep-alive" } else { "close" };
        let mut head = format!(
            "HTTP/1.1 {status}\r\nDate: {now}\r\nConnection: {connection}\r\n{fields}\
             X-Content-Type-Options: nosniff\r\n"
        );
        // That of a 304 would be the file's, which does not follow.
        if !status.starts_with("304") {
            head += &format!("Content-Length: {len}\r\n");
        }
        let head = Message::new().bytes(head + "\r\n");
        if head_only { head } else { head.chain(body) }
    }
}

/// The root, open, and what the caller wants.
pub(crate) struct Site(File, pub(crate) Args);

impl Site {
    pub(crate) fn new(args: Args) -> io::Result<Self> {
        let site = Self(File::open(&args.root)?, args);
        // A kernel or a sandbox without openat2(2) says so now.
        site.resolve(b"./", ResolveFlag::empty())?;
        Ok(site)
    }

    /// What a request gets.
    pub(crate) async fn reply(self: &Arc<Self>, request: &Request<'_>) -> Reply {
        self.find(request).await.unwrap_or_else(|e| {
            let status = match Errno::from_raw(e.raw_os_error().unwrap_or(0)) {
                Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG => "404 Not Found",
                // EXDEV: it leads out of the root.
                Errno::EACCES | Errno::EPERM | Errno::EXDEV | Errno::ELOOP => "403 Forbidden",
                _ => "500 Internal Server Error",
            };
            Reply::status(status, "Cache-Control: no-store")
        })
    }

    async fn find(self: &Arc<Self>, request: &Request<'_>) -> io::Result<Reply> {
        let path = &request.path;
        let (file, meta) = self.open(path).await?;
        if !meta.is_dir() {
            return answer(request, path, file, &meta);
        }
        if !path.is_empty() && !path.ends_with(b"/") {
            // Where the links on its page lead depends on the slash.
            let to = format!("Location: /{}/", percent_encode(path, ODD));
            return Ok(Reply::status("301 Moved Permanently", &to));
        }
        let index = [path, &b"index.html"[..]].concat();
        match self.open(&index).await {
            Ok((file, meta)) => answer(request, &index, file, &meta),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let path = path.clone();
                let page = spawn_blocking(move || listing(&path, file)).await??;
                let kind = "Content-Type: text/html; charset=utf-8\r\n".to_owned();
                Ok(Reply("200 OK", kind, Message::new().bytes(page)))
            }
            Err(e) => Err(e),
        }
    }

    async fn open(self: &Arc<Self>, path: &[u8]) -> io::Result<(File, Metadata)> {
        let file = match self.resolve(path, CACHED) {
            // Before Linux 5.12, EINVAL.
            Err(Errno::EAGAIN | Errno::EINVAL) => {
                let (site, path) = (Arc::clone(self), path.to_vec());
                spawn_blocking(move || site.resolve(&path, ResolveFlag::empty())).await??
            }
            done => done?,
        };
        file.metadata().map(|meta| (file, meta))
    }

    fn resolve(&self, path: &[u8], flags: ResolveFlag) -> nix::Result<File> {
        let path = if path.is_empty() { b"." } else { path };
        // A FIFO is not waited for, and a terminal not taken over.
        let open = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS | flags;
        let how = OpenHow::new().flags(open).resolve(resolve);
        openat2(&self.0, path, how).map(File::from)
    }
}

/// A file: whole, the range that is asked for, or that the client has it already.
fn answer(request: &Request<'_>, path: &[u8], file: File, meta: &Metadata) -> io::Result<Reply> {
    if !meta.is_file() {
        return Err(Errno::EACCES.into());
    }
    let (size, inode) = (meta.len(), meta.ino());
    // Up to the end of the year 9999, the last that a date can tell.
    let (seconds, nanos) = (meta.mtime().clamp(0, 253_402_300_799), meta.mtime_nsec());
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs());
    let tag = format!("\"{inode:x}-{size:x}-{seconds:x}.{nanos:x}\"");
    let date = fmt_http_date(modified);
    let mut fields = format!("ETag: {tag}\r\nLast-Modified: {date}\r\n");
    if request.has(&tag, modified) {
        return Ok(Reply("304 Not Modified", fields, Message::new()));
    }
    let kind = mime_guess::from_path(&*String::from_utf8_lossy(path));
    let kind = kind.first_raw().unwrap_or("application/octet-stream");
    let charset = ["", "; charset=utf-8"][usize::from(kind.starts_with("text/"))];
    fields += &format!("Content-Type: {kind}{charset}\r\nAccept-Ranges: bytes\r\n");
    let Some(range) = request.range(size, &tag, modified) else {
        return Ok(Reply("200 OK", fields, Message::new().file(file, 0..size)));
    };
    if range.is_empty() {
        let field = format!("Content-Range: bytes */{size}");
        return Ok(Reply::status("416 Range Not Satisfiable", &field));
    }
    let (first, last) = (range.start, range.end - 1);
    fields += &format!("Content-Range: bytes {first}-{last}/{size}\r\n");
    let part = Message::new().file(file, range);
    Ok(Reply("206 Partial Content", fields, part))
}

/// A page with the names in a directory.
fn listing(path: &[u8], dir: File) -> io::Result<String> {
    let mut links = Vec::new();
    for entry in Dir::from_fd(dir.into())?.iter() {
        let entry = entry?;
        let mut name = entry.file_name().to_bytes().to_vec();
        name.extend((entry.file_type() == Some(Type::Directory)).then_some(b'/'));
        let (link, text) = (percent_encode(&name, ODD), escaped(&name));
        if name != b"./" {
            links.push(format!("<li><a href=\"{link}\">{text}</a>\n"));
        }
    }
    links.sort();
    let (title, links) = (escaped(path), links.concat());
    Ok(format!(
        "<!DOCTYPE html>\n<title>/{title}</title>\n<h1>/{title}</h1>\n<ul>\n{links}</ul>\n"
    ))
}

fn escaped(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text).replace('&', "&amp;");
    let text = text.replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;")
}
