//! What was produced is fetched.

use std::thread;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    ApiVersionsRequest, FetchRequest, ListOffsetsRequest, MetadataRequest,
};
use kafka_protocol::records::RecordBatchDecoder;
use nix::sys::signal::Signal;

use crate::common::Data;
use crate::rig::{Broker, Client, ENGINES, batch, batches, fetched, name, produced, stored};

/// Batches of one to 40 records of up to 20,000 bytes, many times the size of a file: what the log
/// must hold, and the first offset of each.
fn fill(client: &mut Client, topic: &str, count: u64) -> (Vec<u8>, Vec<i64>) {
    let (mut log, mut firsts, mut next) = (Vec::new(), Vec::new(), 0);
    for seed in 0..count {
        let records = 1 + (seed as i64 * 7) % 40;
        let batch = batch(seed, records, (seed as usize * 7919) % 20_000);
        assert_eq!(client.produce(topic, &batch), (0, next));
        log.extend_from_slice(&stored(&batch, next));
        firsts.push(next);
        next += records;
    }
    (log, firsts)
}

#[test]
fn every_byte_from_every_offset() {
    for engine in ENGINES {
        let broker = Broker::start(&["--engine", engine, "--segment-bytes", "1000000"]);
        let mut client = broker.client();
        let (log, firsts) = fill(&mut client, "a", 60);
        assert!(
            broker.files("a").len() > 5,
            "{engine}: {:?}",
            broker.files("a")
        );
        for most in [1, 100_000, 1 << 30] {
            assert!(client.all("a", 0, most) == log, "{engine}, {most} at once");
        }
        let end = client.fetch("a", 0, 1).high_watermark;
        for offset in 0..end {
            let data = client.fetch("a", offset, 1);
            let records = data.records.expect("some");
            // It begins at most an index step before, and goes beyond.
            let got = batches(&records);
            let within = firsts.partition_point(|first| *first <= offset) - 1;
            let at = got.iter().position(|(first, _)| *first == firsts[within]);
            let at = at.unwrap_or_else(|| panic!("{engine}: {offset} is not in {got:?}"));
            let before: usize = got[..at].iter().map(|(_, batch)| batch.len()).sum();
            assert!(before < 4096, "{engine}: {before} bytes too early");
        }
        let beyond = client.fetch("a", end + 1, 1 << 20);
        assert_eq!(beyond.error_code, ResponseError::OffsetOutOfRange.code());
        assert_eq!(
            client.fetch("a", -1, 1).error_code,
            ResponseError::OffsetOutOfRange.code()
        );
    }
}

#[test]
fn records_come_out_as_they_went_in() {
    let broker = Broker::start(&[]);
    let mut client = broker.client();
    for seed in 0..3 {
        assert_eq!(
            client.produce("a", &batch(seed, 100, 500)).1,
            seed as i64 * 100
        );
    }
    let mut records = client.fetch("a", 0, 1 << 20).records.expect("some");
    // The decoder checks the CRC.
    let sets = RecordBatchDecoder::decode_all(&mut records).expect("whole batches");
    let records: Vec<_> = sets.into_iter().flat_map(|set| set.records).collect();
    assert_eq!(records.len(), 300);
    for (i, record) in records.iter().enumerate() {
        assert_eq!(record.offset, i as i64);
        let value = Data::new(i as u64 / 100).bytes(i as u64 % 100 * 500, 500);
        assert_eq!(record.value.as_deref(), Some(&value[..]));
    }
}

#[test]
fn several_topics_are_one_answer_in_every_version() {
    for engine in ENGINES {
        let broker = Broker::start(&["--engine", engine]);
        let mut client = broker.client();
        let topics = ["one", "two", "three"];
        let logs = topics.map(|topic| fill(&mut client, topic, 10).0);
        for version in 4..=11 {
            let mut from: Vec<_> = topics.iter().map(|topic| (*topic, 0)).collect();
            from.insert(1, ("absent", 0));
            let answer = client.call(version, &fetched(&from, 1 << 30, 0, 1));
            assert_eq!(answer.responses.len(), 4);
            for topic in &answer.responses {
                let data = &topic.partitions[0];
                match topics.iter().position(|name| *name == topic.topic.as_str()) {
                    Some(i) => assert!(data.records.as_ref().unwrap() == &logs[i], "{version}"),
                    None => {
                        let absent = ResponseError::UnknownTopicOrPartition.code();
                        assert_eq!(data.error_code, absent);
                        assert_eq!(data.records.as_deref(), Some(&[][..]));
                    }
                }
            }
        }
        // Two topics that exceed the whole: one of them gives way.
        let most = logs[0].len() as i32;
        let answer = client.call(4, &fetched(&[("one", 0), ("two", 0)], most, 0, 1));
        let lens = answer
            .responses
            .iter()
            .map(|topic| topic.partitions[0].records.as_ref());
        let lens: Vec<_> = lens.map(|records| records.unwrap().len()).collect();
        assert_eq!(lens, [logs[0].len(), 0]);
    }
}

#[test]
fn a_fetch_waits_for_what_it_asks_for() {
    let broker = Broker::start(&[]);
    let (mut client, mut other) = (broker.client(), broker.client());
    let batch = batch(1, 10, 1000);
    client.produce("a", &batch);
    // Nothing comes: an empty answer, in the end.
    assert!(
        client
            .call(11, &fetched(&[("a", 10)], 1 << 20, 50, 1))
            .responses[0]
            .partitions[0]
            .records
            .as_ref()
            .unwrap()
            .is_empty()
    );
    // More than a batch is asked for, and of a topic that others write to as well.
    let least = batch.len() as i32 + 1;
    client.ask(11, &fetched(&[("a", 10)], 1 << 20, 60_000, least));
    client.stream.set_nonblocking(true).unwrap();
    for produced in 0..2 {
        thread::sleep(Duration::from_millis(100));
        let early = client.stream.peek(&mut [0; 1]);
        assert!(early.is_err(), "answered after {produced} batches");
        other.produce("b", &batch);
        other.produce("a", &batch);
    }
    client.stream.set_nonblocking(false).unwrap();
    let answer = client.answer::<FetchRequest>(11);
    let records = answer.responses[0].partitions[0].records.clone().unwrap();
    assert!(records == [stored(&batch, 10), stored(&batch, 20)].concat());
}

#[test]
fn producers_and_consumers_at_once() {
    const BATCHES: u64 = 50;
    let broker = Broker::start(&["--segment-bytes", "300000"]);
    broker.client().produce("a", &batch(1_000, 1, 1));
    thread::scope(|scope| {
        for producer in 0..4 {
            let mut client = broker.client();
            scope.spawn(move || {
                for i in 0..BATCHES {
                    let (error, _) = client.produce("a", &batch(producer * BATCHES + i, 5, 3000));
                    assert_eq!(error, 0);
                }
            });
        }
        let consume = |_| {
            let mut client = broker.client();
            scope.spawn(move || {
                let (mut all, mut offset) = (Vec::new(), 0);
                while offset < 1 + 4 * 5 * BATCHES as i64 {
                    let answer = client.call(11, &fetched(&[("a", offset)], 200_000, 10_000, 1));
                    let records = answer.responses[0].partitions[0].records.clone().unwrap();
                    for (first, batch) in batches(&records) {
                        // A small one may be sent along with the first again.
                        if first >= offset {
                            assert_eq!(first, offset, "a gap");
                            offset += i64::from(batch[60]);
                            all.extend_from_slice(batch);
                        }
                    }
                }
                all
            })
        };
        let consumers: Vec<_> = (0..3).map(consume).collect();
        let got: Vec<_> = consumers.into_iter().map(|c| c.join().unwrap()).collect();
        assert!(got[0] == got[1] && got[1] == got[2]);
        let log: Vec<u8> = broker
            .files("a")
            .iter()
            .flat_map(|f| std::fs::read(f).unwrap())
            .collect();
        assert!(got[0] == log);
    });
}

#[test]
fn without_acknowledgement_there_is_no_answer() {
    let broker = Broker::start(&[]);
    let mut client = broker.client();
    let batch = batch(3, 4, 100);
    client.ask(7, &produced("a", 0, 0, Some(batch.clone().into())));
    // The next answer is that to the next request.
    assert_eq!(
        client.fetch("a", 0, 1 << 20).records.unwrap(),
        stored(&batch, 0)
    );
    client.ask(
        7,
        &produced("a", 0, 0, Some(Bytes::from_static(b"not a batch"))),
    );
    client.assert_closed();
}

#[test]
fn offsets_are_told() {
    let broker = Broker::start(&[]);
    let mut client = broker.client();
    let (_, firsts) = fill(&mut client, "a", 20);
    let end = client.fetch("a", 0, 1).high_watermark;
    let mut ask = |topic: &str, timestamp| {
        let partition = ListOffsetsPartition::default().with_timestamp(timestamp);
        let topic = ListOffsetsTopic::default()
            .with_name(name(topic))
            .with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default().with_topics(vec![topic]);
        let mut answers = (1..=5).map(|version| {
            let answer = client.call(version, &request);
            let partition = &answer.topics[0].partitions[0];
            (partition.error_code, partition.offset)
        });
        let first = answers.next().unwrap();
        assert!(answers.all(|answer| answer == first));
        first
    };
    assert_eq!(ask("a", -2), (0, 0));
    assert_eq!(ask("a", -1), (0, end));
    // Batch 12 has the timestamps from 12,000 on, and is longer than an index step.
    assert_eq!(ask("a", 12_000), (0, firsts[12]));
    assert_eq!(ask("a", i64::MAX), (0, -1));
    assert_eq!(
        ask("b", -1),
        (ResponseError::UnknownTopicOrPartition.code(), -1)
    );
}

#[test]
fn topics_appear_where_that_is_wanted() {
    let broker = Broker::start(&[]);
    let mut client = broker.client();
    let mut ask = |topic: Option<&str>, make| {
        let topic =
            topic.map(|topic| vec![MetadataRequestTopic::default().with_name(Some(name(topic)))]);
        let request = MetadataRequest::default()
            .with_topics(topic)
            .with_allow_auto_topic_creation(make);
        let answer = client.call(8, &request);
        assert_eq!(answer.brokers[0].port, i32::from(broker.addr.port()));
        assert_eq!(answer.brokers[0].host.as_str(), "127.0.0.1");
        let topics = answer.topics.iter();
        let told = topics.map(|t| {
            (
                t.name.clone().unwrap().to_string(),
                t.error_code,
                t.partitions.len(),
            )
        });
        told.collect::<Vec<_>>()
    };
    let absent = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(ask(Some("a"), false), [("a".to_owned(), absent, 0)]);
    assert_eq!(ask(Some("a"), true), [("a".to_owned(), 0, 1)]);
    assert_eq!(ask(Some("a"), false), [("a".to_owned(), 0, 1)]);
    ask(Some("b"), true);
    assert_eq!(
        ask(None, true),
        [("a".to_owned(), 0, 1), ("b".to_owned(), 0, 1)]
    );
    let invalid = ResponseError::InvalidTopicException.code();
    let long = "x".repeat(250);
    for bad in ["", ".", "..", "../a", "~lock", "a/b", "a\0b", "ä", &long] {
        assert_eq!(ask(Some(bad), true), [(bad.to_owned(), invalid, 0)]);
    }
    assert_eq!(broker.files("a").len(), 1);
    // In the directory are the two, and the lock.
    assert_eq!(broker.files(".").len(), 3);
}

#[test]
fn what_it_speaks_it_says() {
    let broker = Broker::start(&[]);
    let mut client = broker.client();
    let told = client.call(3, &ApiVersionsRequest::default());
    let range = |key| {
        let api = told.api_keys.iter().find(|api| api.api_key == key);
        api.map(|api| (api.min_version, api.max_version))
    };
    assert_eq!((range(0), range(1)), (Some((3, 8)), Some((4, 11))));
    for version in 3..=8 {
        let answer = client.call(version, &produced("a", 0, 1, Some(batch(1, 1, 1).into())));
        assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
    }
    for version in 0..=8 {
        let answer = client.call(
            version,
            &MetadataRequest::default().with_topics(Some(vec![])),
        );
        assert_eq!(answer.topics.len(), usize::from(version == 0));
    }
}

#[test]
fn it_ends_when_told_to() {
    let mut broker = Broker::start(&[]);
    let (mut client, mut idle) = (broker.client(), broker.client());
    client.produce("a", &batch(1, 1, 1));
    client.ask(11, &fetched(&[("a", 1)], 1 << 20, 60_000, 1));
    thread::sleep(Duration::from_millis(100));
    broker.signal(Signal::SIGTERM);
    client.assert_closed();
    idle.assert_closed();
    assert_eq!(broker.end().code(), Some(0));
}
