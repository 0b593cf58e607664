//! The broker as a child process, and a client that says what it wants byte by byte.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    FetchRequest, ProduceRequest, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use kafka_protocol::records::{
    Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::{Data, example};

pub(crate) const ENGINES: [&str; 2] = ["auto", "read-write"];
/// More than the broker ever lets a client wait, and less than a test may take.
const LONG: Duration = Duration::from_secs(30);

/// A broker, ended with this.
pub(crate) struct Broker {
    pub(crate) child: Child,
    pub(crate) addr: SocketAddr,
    pub(crate) dir: TempDir,
}

impl Broker {
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::over(TempDir::new().expect("a directory"), options)
    }

    pub(crate) fn over(dir: TempDir, options: &[&str]) -> Self {
        let mut child = command(&dir, options).spawn().expect("the example");
        let mut line = String::new();
        let said = BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line);
        said.expect("a line");
        let addr = line.trim().parse().unwrap_or_else(|_| panic!("{line:?}"));
        Self { child, addr, dir }
    }

    pub(crate) fn client(&self) -> Client {
        let stream = TcpStream::connect(self.addr).expect("a listener");
        stream.set_read_timeout(Some(LONG)).expect("a limit");
        Client { stream, number: 0 }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("a process of ours");
    }

    /// Kills it as kill -9 does, and leaves what it has written.
    pub(crate) fn kill(mut self) -> TempDir {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
        let Self {
            child: _,
            addr: _,
            dir,
        } = &mut self;
        std::mem::replace(dir, TempDir::new().expect("a directory"))
    }

    pub(crate) fn end(&mut self) -> ExitStatus {
        let until = Instant::now() + LONG;
        loop {
            match self.child.try_wait().expect("a child") {
                Some(status) => return status,
                None if Instant::now() > until => panic!("it does not end"),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// The files of a topic, in their order.
    pub(crate) fn files(&self, topic: &str) -> Vec<PathBuf> {
        files(&self.dir, topic)
    }

    /// The most memory that it ever had, in KiB.
    pub(crate) fn peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("procfs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.expect("VmHWM").trim().trim_end_matches(" kB").trim();
        number.parse().expect("a number")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The broker's command, which says on which port it listens.
pub(crate) fn command(dir: &TempDir, options: &[&str]) -> Command {
    let mut command = Command::new(example("log_broker"));
    command.arg("--dir").arg(dir.path());
    command.args(["--listen", "127.0.0.1:0"]).args(options);
    // What it says of clients that wish it ill is much.
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

pub(crate) fn files(dir: &TempDir, topic: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.path().join(topic)).expect("a topic");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    number: i32,
}

impl Client {
    /// Asks, and takes the answer.
    pub(crate) fn call<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        self.ask(version, request);
        self.answer::<R>(version)
    }

    pub(crate) fn ask<R: Request>(&mut self, version: i16, request: &R) {
        self.number += 1;
        let mut frame = BytesMut::zeroed(4);
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.number)
            .with_client_id(Some(StrBytes::from_static_str("test")));
        let encoded = header.encode(&mut frame, R::header_version(version));
        encoded.expect("a header");
        request.encode(&mut frame, version).expect("a request");
        let len = u32::try_from(frame.len() - 4).expect("a frame");
        frame[..4].copy_from_slice(&len.to_be_bytes());
        self.send(&frame);
    }

    pub(crate) fn answer<R: Request>(&mut self, version: i16) -> R::Response {
        let mut frame = self.frame();
        let header = R::Response::header_version(version);
        let header = ResponseHeader::decode(&mut frame, header).expect("a header");
        assert_eq!(header.correlation_id, self.number);
        let answer = R::Response::decode(&mut frame, version).expect("an answer");
        assert!(frame.is_empty(), "{} bytes too many", frame.len());
        answer
    }

    pub(crate) fn frame(&mut self) -> Bytes {
        let mut len = [0; 4];
        self.stream.read_exact(&mut len).expect("a length");
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        self.stream.read_exact(&mut frame).expect("a whole answer");
        frame.into()
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("a broker that listens");
    }

    /// Produces one partition's records: an error, the first offset.
    pub(crate) fn produce(&mut self, topic: &str, records: &[u8]) -> (i16, i64) {
        let request = produced(topic, 0, -1, Some(Bytes::copy_from_slice(records)));
        let answer = self.call(7, &request);
        let partition = &answer.responses[0].partition_responses[0];
        (partition.error_code, partition.base_offset)
    }

    /// Fetches from one topic, waiting for nothing.
    pub(crate) fn fetch(&mut self, topic: &str, offset: i64, most: i32) -> PartitionData {
        let answer = self.call(11, &fetched(&[(topic, offset)], most, 0, 0));
        answer.responses[0].partitions[0].clone()
    }

    /// Everything from an offset on, by answers of at most so many bytes.
    pub(crate) fn all(&mut self, topic: &str, mut offset: i64, most: i32) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let data = self.fetch(topic, offset, most);
            assert_eq!(data.error_code, 0, "at {offset}");
            let records = data.records.expect("some or none");
            if records.is_empty() {
                assert_eq!(offset, data.high_watermark);
                return all;
            }
            for (first, batch) in batches(&records) {
                let count = i64::from(i32::from_be_bytes(batch[57..61].try_into().unwrap()));
                offset = first + count;
            }
            all.extend_from_slice(&records);
        }
    }

    /// Fails unless the broker closes the connection, without a word.
    pub(crate) fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Err(e) if e.kind() != std::io::ErrorKind::ConnectionReset => panic!("not closed: {e}"),
            _ => assert_eq!(rest, b""),
        }
    }
}

pub(crate) fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

pub(crate) fn produced(
    topic: &str,
    partition: i32,
    acks: i16,
    records: Option<Bytes>,
) -> ProduceRequest {
    let partition = PartitionProduceData::default()
        .with_index(partition)
        .with_records(records);
    let topic = TopicProduceData::default()
        .with_name(name(topic))
        .with_partition_data(vec![partition]);
    ProduceRequest::default()
        .with_acks(acks)
        .with_topic_data(vec![topic])
}

pub(crate) fn fetched(from: &[(&str, i64)], most: i32, wait: i32, least: i32) -> FetchRequest {
    let topics = from.iter().map(|(topic, offset)| {
        let partition = FetchPartition::default()
            .with_fetch_offset(*offset)
            .with_partition_max_bytes(most);
        FetchTopic::default()
            .with_topic(name(topic))
            .with_partitions(vec![partition])
    });
    FetchRequest::default()
        .with_max_wait_ms(wait)
        .with_min_bytes(least)
        .with_max_bytes(most)
        .with_session_epoch(-1)
        .with_topics(topics.collect())
}

/// A batch of `count` records whose values are `size` bytes of known data from `seed` on.
pub(crate) fn batch(seed: u64, count: i64, size: usize) -> Vec<u8> {
    let data = Data::new(seed);
    let records = (0..count).map(|i| Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset: i,
        sequence: i as i32,
        timestamp: 1_000 * seed as i64 + i,
        key: None,
        value: Some(data.bytes(i as u64 * size as u64, size).into()),
        headers: Default::default(),
    });
    let records: Vec<_> = records.collect();
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    let mut batch = BytesMut::new();
    RecordBatchEncoder::encode(&mut batch, &records, &options).expect("a batch");
    assert_eq!(batches(&batch).len(), 1);
    batch.to_vec()
}

/// The batch as the broker has to hand it out.
pub(crate) fn stored(batch: &[u8], first: i64) -> Vec<u8> {
    let mut stored = batch.to_vec();
    stored[..8].copy_from_slice(&first.to_be_bytes());
    stored[12..16].fill(0);
    stored
}

/// The batches in a row, each with its first offset.
pub(crate) fn batches(mut records: &[u8]) -> Vec<(i64, &[u8])> {
    let mut batches = Vec::new();
    while !records.is_empty() {
        let first = i64::from_be_bytes(records[..8].try_into().unwrap());
        let len = 12 + i32::from_be_bytes(records[8..12].try_into().unwrap()) as usize;
        assert!(len <= records.len(), "a batch cut short");
        batches.push((first, &records[..len]));
        records = &records[len..];
    }
    batches
}
