//! What a client that wishes it ill, or is broken, can do.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{ApiVersionsResponse, MetadataRequest};
use kafka_protocol::protocol::Decodable;

use crate::common::Data;
use crate::rig::{Broker, batch, produced, stored};

/// A request's start: key, version, correlation, no name.
fn head(key: i16, version: i16) -> BytesMut {
    let mut head = BytesMut::new();
    head.put_i16(key);
    head.put_i16(version);
    head.put_i32(1);
    head.put_i16(-1);
    head
}

fn framed(body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap();
    [&len.to_be_bytes()[..], body].concat()
}

/// It answers as if nothing had been.
fn assert_well(broker: &mut Broker) {
    assert!(
        broker.child.try_wait().expect("a child").is_none(),
        "it has ended"
    );
    let mut client = broker.client();
    let records = batch(7, 3, 100);
    let (error, first) = client.produce("well", &records);
    assert_eq!(error, 0);
    let log = client.fetch("well", first, 1 << 20).records.unwrap();
    assert!(log.ends_with(&stored(&records, first)));
    // A megabyte is much for it, and what was announced was gigabytes.
    assert!(broker.peak() < 64 << 10, "{} KiB", broker.peak());
}

#[test]
fn records_that_are_none_are_refused() {
    let mut broker = Broker::start(&[]);
    let mut client = broker.client();
    let good = batch(1, 5, 200);
    let change = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        bad
    };
    // With a CRC that is right for what it says.
    let sealed = |at: usize, bytes: &[u8]| {
        let mut bad = change(at, bytes);
        let crc = crc32c::crc32c(&bad[21..]);
        bad[17..21].copy_from_slice(&crc.to_be_bytes());
        bad
    };
    let corrupt = ResponseError::CorruptMessage.code();
    let invalid = ResponseError::InvalidRecord.code();
    let format = ResponseError::UnsupportedForMessageFormat.code();
    let cases = [
        ("a bit of a value", change(good.len() - 3, b"\xff"), corrupt),
        ("the CRC", change(17, &[0; 4]), corrupt),
        ("cut short", good[..good.len() - 1].to_vec(), corrupt),
        ("a byte too many", [&good[..], b"x"].concat(), corrupt),
        ("half a header", good[..30].to_vec(), corrupt),
        ("a length of 0", change(8, &[0; 4]), corrupt),
        ("a negative length", change(8, &[0xff; 4]), corrupt),
        (
            "a length of 2 GiB",
            change(8, &[0x7f, 0xff, 0xff, 0xff]),
            corrupt,
        ),
        ("an older format", change(16, &[1]), format),
        ("no records", sealed(57, &[0; 4]), corrupt),
        (
            "records beyond the last offset",
            sealed(57, &[0, 0, 0, 9]),
            corrupt,
        ),
        (
            "a last offset of 2^31 - 1",
            sealed(23, &[0x7f, 0xff, 0xff, 0xff]),
            corrupt,
        ),
        ("a transaction", sealed(21, &[0, 0x10]), invalid),
        ("a control batch", sealed(21, &[0, 0x20]), invalid),
        ("nothing", Vec::new(), invalid),
    ];
    for (what, records, error) in cases {
        assert_eq!(client.produce("a", &records), (error, -1), "{what}");
        // A good one in front does not help it.
        if error == corrupt {
            let both = [&good[..], &records].concat();
            assert_eq!(
                client.produce("a", &both),
                (error, -1),
                "{what}, behind a good one"
            );
        }
    }
    let mut refuse = |partition, acks, records: Option<Bytes>| {
        let answer = client.call(7, &produced("a", partition, acks, records));
        answer.responses[0].partition_responses[0].error_code
    };
    let records = Some(Bytes::from(good.clone()));
    assert_eq!(refuse(0, -1, None), invalid);
    assert_eq!(
        refuse(1, -1, records.clone()),
        ResponseError::UnknownTopicOrPartition.code()
    );
    assert_eq!(
        refuse(0, 2, records.clone()),
        ResponseError::InvalidRequiredAcks.code()
    );
    // None of it has left anything behind.
    let log = client.fetch("a", 0, 1 << 20);
    assert_eq!((log.high_watermark, log.records.unwrap().len()), (0, 0));
    assert_eq!(std::fs::metadata(&broker.files("a")[0]).unwrap().len(), 0);
    assert_well(&mut broker);
}

#[test]
fn lengths_that_lie_cost_nothing() {
    let mut broker = Broker::start(&[]);
    for len in [i32::MIN, -1, 0, 1, 7, (16 << 20) + 1, i32::MAX] {
        let mut client = broker.client();
        client.send(&len.to_be_bytes());
        client.send(&[0; 7]);
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        client.assert_closed();
    }
    // The most that is allowed, announced a hundred times and not sent.
    let waiting: Vec<_> = (0..100)
        .map(|_| {
            let mut client = broker.client();
            client.send(&(16_i32 << 20).to_be_bytes());
            client.send(&[0; 100]);
            client
        })
        .collect();
    assert_well(&mut broker);
    drop(waiting);
    // Arrays of two thousand million items, in each request at each depth.
    let count = [0x7f, 0xff, 0xff, 0xff];
    let one_topic = [&[0, 0, 0, 1, 0, 1, b'a'][..], &count].concat();
    let requests: [(i16, i16, usize, &[u8]); 9] = [
        (0, 7, 8, &count),
        (0, 7, 8, &one_topic),
        (1, 4, 17, &count),
        (1, 11, 25, &one_topic),
        (1, 11, 25, &[&[0, 0, 0, 0][..], &count].concat()),
        (2, 1, 4, &count),
        (2, 5, 5, &one_topic),
        (3, 0, 0, &count),
        (3, 8, 0, &count),
    ];
    for (key, version, fixed, rest) in requests {
        let mut body = head(key, version);
        // In a Produce request the first of these are a name's length.
        body.extend_from_slice(&vec![0; fixed]);
        body.extend_from_slice(rest);
        body.extend_from_slice(&[0; 300_000]);
        let mut client = broker.client();
        client.send(&framed(&body));
        client.assert_closed();
    }
    // Text that is not UTF-8, records that go beyond the request.
    let mut text = head(3, 4);
    text.extend_from_slice(&[0, 0, 0, 1, 0, 2, 0xff, 0xfe, 1]);
    let mut beyond = head(0, 3);
    beyond.extend_from_slice(&[0xff, 0xff, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, b'a']);
    beyond.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x7f, 0, 0, 0, 1, 2, 3]);
    for body in [text, beyond] {
        let mut client = broker.client();
        client.send(&framed(&body));
        client.assert_closed();
    }
    assert_well(&mut broker);
}

#[test]
fn what_is_not_served_is_not_answered() {
    let mut broker = Broker::start(&[]);
    let unserved = [
        (0, 2),
        (0, 9),
        (1, 3),
        (1, 12),
        (2, 0),
        (2, 6),
        (3, 9),
        (3, -1),
        (4, 0),
    ];
    for (key, version) in [(10, 0), (11, 5), (22, 0), (-1, 0), (i16::MAX, 0)]
        .into_iter()
        .chain(unserved)
    {
        let mut client = broker.client();
        client.send(&framed(&head(key, version)));
        client.assert_closed();
    }
    // But for a question about versions, in whatever version.
    for version in [4, 99, i16::MAX, -1] {
        let mut client = broker.client();
        client.send(&framed(&head(18, version)));
        let mut answer = client.frame().split_off(4);
        let answer = ApiVersionsResponse::decode(&mut answer, 0).expect("version 0");
        assert_eq!(answer.error_code, ResponseError::UnsupportedVersion.code());
        assert_eq!(answer.api_keys.len(), 5);
        // And the connection goes on.
        client.call(1, &MetadataRequest::default().with_topics(Some(vec![])));
    }
    assert_well(&mut broker);
}

#[test]
fn garbage_is_survived() {
    let mut broker = Broker::start(&[]);
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().expect("a number"));
    println!("SEED={seed}");
    let data = Data::new(seed);
    for round in 0..2_000_u64 {
        let at = round * 5_003;
        let dice = data.bytes(at, 8);
        let len = 10 + (usize::from(dice[0]) << (dice[1] % 4));
        let mut body = head(i16::from(dice[2] % 5), i16::from(dice[3] % 12));
        if dice[4] % 8 == 0 {
            body.clear();
        }
        let mut noise = data.bytes(at + 8, len);
        // Small numbers get further than large ones.
        for (i, byte) in noise.iter_mut().enumerate() {
            if dice[5] & (1 << (i % 8)) != 0 || dice[6] % 2 == 0 {
                *byte = u8::from(*byte > 200);
            }
        }
        body.extend_from_slice(&noise);
        let mut client = broker.client();
        client.send(&framed(&body));
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        // An answer or none, but an end.
        let ended = std::io::copy(&mut client.stream, &mut std::io::sink());
        if let Err(e) = ended {
            assert_eq!(
                e.kind(),
                std::io::ErrorKind::ConnectionReset,
                "round {round}"
            );
        }
    }
    assert_well(&mut broker);
}
