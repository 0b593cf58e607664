//! Kafka's framing: requests off the wire, answers onto it.

use std::error::Error;
use std::io;
use std::ops::RangeInclusive;

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion};
use tokio::io::{AsyncRead, AsyncReadExt};

use Field::{Array, Blob, Fixed, Text};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The longest request.
pub(crate) const LONGEST: usize = 16 << 20;
/// The longest of those that bring no records.
const LONGEST_QUESTION: usize = 1 << 20;
/// The most topics and partitions that a request may name.
const MOST_ITEMS: u32 = 10_000;

/// What a request is made of, as far as its length depends on it: so many bytes, a length of two
/// bytes and a text, one of four and a blob, a number of items and those.
pub(crate) enum Field {
    Fixed(usize),
    Text,
    Blob,
    Array(Fields),
}

/// Each with the version from which on it is there.
type Fields = &'static [(i16, Field)];

/// What is served, in which versions: those before lengths became variable, which all clients
/// speak. What an ApiVersions request says of the client is not looked at.
#[rustfmt::skip]
pub(crate) const SERVED: [(ApiKey, RangeInclusive<i16>, Fields); 5] = [
    (ApiKey::Produce, 3..=8, &[(0, Text), (0, Fixed(6)), (0, Array(&[
        (0, Text), (0, Array(&[(0, Fixed(4)), (0, Blob)]))]))]),
    (ApiKey::Fetch, 4..=11, &[(0, Fixed(17)), (7, Fixed(8)), (0, Array(&[
        (0, Text), (0, Array(&[(0, Fixed(16)), (5, Fixed(8)), (9, Fixed(4))]))])),
        (7, Array(&[(0, Text), (0, Array(&[(0, Fixed(4))]))])), (11, Text)]),
    (ApiKey::ListOffsets, 1..=5, &[(0, Fixed(4)), (2, Fixed(1)), (0, Array(&[
        (0, Text), (0, Array(&[(0, Fixed(12)), (4, Fixed(4))]))]))]),
    (ApiKey::Metadata, 0..=8, &[(0, Array(&[(0, Text)])), (4, Fixed(1)), (8, Fixed(2))]),
    (ApiKey::ApiVersions, 0..=3, &[]),
];

/// A request whose body can be decoded without allocating more than it is long, give or take.
pub(crate) struct Request {
    pub(crate) key: ApiKey,
    pub(crate) version: i16,
    pub(crate) correlation: i32,
    body: Bytes,
}

impl Request {
    /// The next request; `None` where the client has left.
    pub(crate) async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<Self>> {
        let len = match from.read_i32().await {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            len => usize::try_from(len?).unwrap_or(usize::MAX),
        };
        if len > LONGEST {
            return Err("a request that is too long".into());
        }
        // It grows with what arrives, not with what was announced.
        let mut frame = Vec::new();
        if from.take(len as u64).read_to_end(&mut frame).await? < len {
            return Err("a request cut short".into());
        }
        Self::parse(frame.into()).map(Some)
    }

    fn parse(mut frame: Bytes) -> Result<Self> {
        let len = frame.len();
        let (key, version) = (frame.try_get_i16()?, frame.try_get_i16()?);
        let correlation = frame.try_get_i32()?;
        let served = SERVED.iter().find(|(api, ..)| *api as i16 == key);
        let (key, versions, fields) = served.ok_or("a request of a kind that is not served")?;
        let key = *key;
        if key != ApiKey::ApiVersions {
            if !versions.contains(&version) {
                return Err(format!("version {version} of {key:?} is not served").into());
            }
            if key != ApiKey::Produce && len > LONGEST_QUESTION {
                return Err(format!("{key:?} that is too long").into());
            }
            pass(&mut frame, &[(0, Text)], version, &mut 0).ok_or("a header cut short")?;
            // The decoder would allocate for as many items as an array claims to have.
            let mut rest = frame.clone();
            let whole = pass(&mut rest, fields, version, &mut MOST_ITEMS.clone());
            if whole.is_none() || rest.has_remaining() {
                return Err(format!("a malformed {key:?}").into());
            }
        }
        Ok(Self {
            key,
            version,
            correlation,
            body: frame,
        })
    }

    pub(crate) fn decode<T: Decodable>(&mut self) -> Result<T> {
        Ok(T::decode(&mut self.body, self.version)?)
    }

    /// The answer in its frame, in a version of its own.
    pub(crate) fn reply<T: Encodable + HeaderVersion>(
        &self,
        answer: &T,
        version: i16,
    ) -> Result<Bytes> {
        let mut frame = BytesMut::zeroed(4);
        let header = ResponseHeader::default().with_correlation_id(self.correlation);
        header.encode(&mut frame, T::header_version(version))?;
        answer.encode(&mut frame, version)?;
        let len = frame.len() as u32 - 4;
        frame[..4].copy_from_slice(&len.to_be_bytes());
        Ok(frame.freeze())
    }
}

/// Passes over fields, keeping nothing; `None` where they are not all there, or too many.
fn pass(buf: &mut Bytes, fields: Fields, version: i16, items: &mut u32) -> Option<()> {
    for (_, field) in fields.iter().filter(|(since, _)| *since <= version) {
        let len = match field {
            Fixed(len) => *len,
            // A negative length stands for none.
            Text => usize::try_from(buf.try_get_i16().ok()?).unwrap_or(0),
            Blob => usize::try_from(buf.try_get_i32().ok()?).unwrap_or(0),
            Array(of) => {
                for _ in 0..buf.try_get_i32().ok()? {
                    *items = items.checked_sub(1)?;
                    pass(buf, of, version, items)?;
                }
                0
            }
        };
        if buf.len() < len {
            return None;
        }
        buf.advance(len);
    }
    Some(())
}
