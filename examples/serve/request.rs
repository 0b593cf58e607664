//! The head of a request: parsed, and refused where it breaks the rules or brings a body.

use std::ops::Range;
use std::time::SystemTime;

use httparse::{EMPTY_HEADER, Error, Header, Status};
use percent_encoding::percent_decode_str;

/// The most bytes of a head, and the most fields in it.
const LARGEST: (usize, usize) = (16 << 10, 64);
const BAD: &str = "400 Bad Request";
const LARGE: &str = "431 Request Header Fields Too Large";

pub(crate) struct Request<'b> {
    pub(crate) head_only: bool,
    /// Below the root: decoded, and without slashes in front.
    pub(crate) path: Vec<u8>,
    /// The client may ask more on this connection.
    pub(crate) keep: bool,
    fields: [Header<'b>; LARGEST.1],
}

impl<'b> Request<'b> {
    /// The first request and its length, if all of it is there; or the status that refuses it, after
    /// which nobody can tell where the next one starts.
    pub(crate) fn parse(buf: &'b [u8]) -> Result<Option<(Self, usize)>, &'static str> {
        let mut fields = [EMPTY_HEADER; LARGEST.1];
        let mut head = httparse::Request::new(&mut fields);
        let len = match head.parse(buf) {
            Ok(Status::Complete(len)) => len,
            Ok(Status::Partial) if buf.len() < LARGEST.0 => return Ok(None),
            Ok(Status::Partial) | Err(Error::TooManyHeaders) => return Err(LARGE),
            Err(_) => return Err(BAD),
        };
        let head_only = head.method == Some("HEAD");
        if !head_only && head.method != Some("GET") {
            return Err("405 Method Not Allowed");
        }
        let (keep, path) = (head.version == Some(1), head.path.and_then(path));
        let (path, hosts) = (path.ok_or(BAD)?, usize::from(keep)..=1);
        let mut request = Self {
            head_only,
            path,
            keep,
            fields,
        };
        let garbled = request.any("content-length", |len| number(len).is_none());
        if garbled || !hosts.contains(&request.all("host").count()) {
            return Err(BAD);
        }
        // A body means nothing here, and to take one for the next request would be a hole.
        if request.any("transfer-encoding", |_| true) {
            return Err("411 Length Required");
        }
        if request.any("content-length", |len| number(len) != Some(0)) {
            return Err("413 Content Too Large");
        }
        let says = |what| request.any("connection", |said: &str| said.eq_ignore_ascii_case(what));
        request.keep = (keep || says("keep-alive")) && !says("close");
        Ok(Some((request, len)))
    }

    /// The values of all fields of a name.
    fn all(&self, name: &str) -> impl Iterator<Item = &'b str> {
        let fields = self.fields.iter();
        let named = fields.filter(move |field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| std::str::from_utf8(field.value).unwrap_or("?"))
    }

    /// Whether any element of the list that the fields of a name make up passes a test.
    fn any(&self, name: &str, test: impl Fn(&str) -> bool) -> bool {
        let mut elements = self.all(name).flat_map(|value| value.split(','));
        elements.any(|element| test(element.trim()))
    }

    fn date(&self, name: &str) -> Option<SystemTime> {
        httpdate::parse_http_date(self.all(name).next()?).ok()
    }

    /// Whether the client has this version already.
    pub(crate) fn has(&self, tag: &str, modified: SystemTime) -> bool {
        if self.any("if-none-match", |_| true) {
            let same = |known: &str| known == "*" || known.trim_start_matches("W/") == tag;
            return self.any("if-none-match", same);
        }
        self.date("if-modified-since") >= Some(modified)
    }

    /// The range that is asked for, of so many bytes; an empty one where there is no such range.
    pub(crate) fn range(&self, size: u64, tag: &str, modified: SystemTime) -> Option<Range<u64>> {
        // Of another version, it would not fit what the client has.
        let other = self.all("if-range").any(|known| known != tag);
        if self.head_only || (other && self.date("if-range") != Some(modified)) {
            return None;
        }
        let value = self.all("range").next()?;
        let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
        let (start, end) = match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1).min(size)),
            (Some(first), None) if last.is_empty() => (first, size),
            // The last so many bytes; an empty file has none to tell of, and goes whole.
            (None, Some(len)) if first.is_empty() && size > 0 => (size - size.min(len), size),
            // Malformed, or several: then the whole is a correct answer.
            _ => return None,
        };
        Some(start..end)
    }
}

/// Digits alone. More of them than there can be bytes are as good as the most.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// The path that a target names: `/path?query`, or the same behind a scheme and a host.
fn path(target: &str) -> Option<Vec<u8>> {
    let path = target.split('?').next()?;
    let path = match path.split_once("://") {
        Some((_, rest)) if !path.starts_with('/') => rest.split_once('/').map_or("", |it| it.1),
        _ => path.strip_prefix('/')?,
    };
    let decoded = percent_decode_str(path).skip_while(|byte| *byte == b'/');
    let decoded: Vec<u8> = decoded.collect();
    (!decoded.contains(&0)).then_some(decoded)
}
