//! The topics, and the answers to what clients ask.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{
    api_versions_response::*, fetch_response::PartitionData, list_offsets_response::*,
    metadata_response::*, produce_response::*, *,
};
use kafka_protocol::protocol::{Encodable, StrBytes};
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};
use zcio::Message;

use crate::log::{Log, Slice};
use crate::wire::{Request, Result, SERVED};
use crate::{Args, Engine};

const NODE: BrokerId = BrokerId(0);
/// Each keeps a file open.
const MOST_TOPICS: usize = 400;
/// The most that one answer carries, and the longest that a fetch waits.
const MOST_FETCHED: i32 = 1 << 30;
const LONGEST_WAIT: i32 = 60_000;

pub(crate) struct Broker {
    args: Args,
    topics: Mutex<BTreeMap<String, Arc<Log>>>,
    /// Held by whoever makes a topic.
    making: Mutex<()>,
    /// Told of every append: whoever waits looks whether it was for him.
    appended: Notify,
    /// No other process writes here.
    _lock: Flock<File>,
}

/// What there is to fetch from a partition: an error, the log's end, batches.
type Found = (i16, i64, Option<Slice>);

impl Broker {
    pub(crate) fn open(args: Args) -> io::Result<Self> {
        fs::create_dir_all(&args.dir)?;
        // No topic has such a name.
        let lock = File::create(args.dir.join("~lock"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e)?;
        let mut topics = BTreeMap::new();
        for entry in fs::read_dir(&args.dir)? {
            let entry = entry?;
            let name = entry.file_name().into_string().unwrap_or_default();
            if entry.file_type()?.is_dir() && is_valid(&name) {
                let log = Log::open(entry.path(), &args)?;
                topics.insert(name, Arc::new(log));
            }
        }
        Ok(Self {
            args,
            topics: Mutex::new(topics),
            making: Mutex::new(()),
            appended: Notify::new(),
            _lock: lock,
        })
    }

    fn log(&self, topic: &str, partition: i32) -> std::result::Result<Arc<Log>, ResponseError> {
        let log = self.topics.lock().unwrap().get(topic).map(Arc::clone);
        let log = log.filter(|_| partition == 0);
        log.ok_or(ResponseError::UnknownTopicOrPartition)
    }

    /// The topic's log, made where it is not there yet.
    fn make(&self, topic: &str, partition: i32) -> std::result::Result<Arc<Log>, ResponseError> {
        let _making = self.making.lock().unwrap();
        let known = self.topics.lock().unwrap().len();
        match self.log(topic, partition) {
            Err(_) if !is_valid(topic) => Err(ResponseError::InvalidTopicException),
            Err(e) if partition != 0 => Err(e),
            Err(_) if known >= MOST_TOPICS => Err(ResponseError::PolicyViolation),
            Err(_) => {
                let log = Log::open(self.args.dir.join(topic), &self.args);
                let log = Arc::new(log.map_err(|_| ResponseError::KafkaStorageError)?);
                let mut topics = self.topics.lock().unwrap();
                topics.insert(topic.to_owned(), Arc::clone(&log));
                Ok(log)
            }
            found => found,
        }
    }

    /// Answers everything but a fetch; no bytes where none are wanted. `here` is where the client
    /// reached this node. It waits for the disk.
    pub(crate) fn answer(&self, mut request: Request, here: SocketAddr) -> Result<Bytes> {
        let version = request.version;
        match request.key {
            ApiKey::ApiVersions => {
                let known = SERVED.iter().find(|(key, ..)| *key == request.key);
                let known = known.is_some_and(|(_, versions, _)| versions.contains(&version));
                let code = (!known).then_some(ResponseError::UnsupportedVersion.code());
                let apis = SERVED.iter().map(|(key, versions, _)| {
                    ApiVersion::default()
                        .with_api_key(*key as i16)
                        .with_min_version(*versions.start())
                        .with_max_version(*versions.end())
                });
                let answer = ApiVersionsResponse::default()
                    .with_error_code(code.unwrap_or(0))
                    .with_api_keys(apis.collect());
                // Whoever asks in a version unknown here understands the first.
                request.reply(&answer, if known { version } else { 0 })
            }
            ApiKey::Metadata => {
                let asked = request.decode()?;
                request.reply(&self.metadata(asked, version, here), version)
            }
            ApiKey::ListOffsets => {
                let asked = request.decode()?;
                request.reply(&self.list_offsets(asked, version), version)
            }
            _ => {
                let asked: ProduceRequest = request.decode()?;
                let acks = asked.acks;
                let (answer, failed) = self.produce(asked);
                self.appended.notify_waiters();
                match acks {
                    // The only way to tell.
                    0 if failed => Err("records without acknowledgement refused".into()),
                    0 => Ok(Bytes::new()),
                    _ => request.reply(&answer, version),
                }
            }
        }
    }

    fn metadata(&self, asked: MetadataRequest, version: i16, here: SocketAddr) -> MetadataResponse {
        let all = || {
            let topics = self.topics.lock().unwrap();
            let name = |name: &String| TopicName(StrBytes::from_string(name.clone()));
            topics.keys().map(name).collect::<Vec<_>>()
        };
        let names = match asked.topics {
            Some(topics) if version > 0 || !topics.is_empty() => {
                topics.into_iter().filter_map(|topic| topic.name).collect()
            }
            _ => all(),
        };
        let topics = names.into_iter().map(|name| {
            let log = match asked.allow_auto_topic_creation {
                true => self.make(&name, 0),
                false => self.log(&name, 0),
            };
            let partition = MetadataResponsePartition::default()
                .with_leader_id(NODE)
                .with_leader_epoch(if version < 7 { -1 } else { 0 })
                .with_replica_nodes(vec![NODE])
                .with_isr_nodes(vec![NODE]);
            MetadataResponseTopic::default()
                .with_name(Some(name))
                .with_error_code(log.as_ref().err().map_or(0, ResponseError::code))
                .with_partitions(log.map_or(Vec::new(), |_| vec![partition]))
        });
        let node = MetadataResponseBroker::default()
            .with_node_id(NODE)
            .with_host(StrBytes::from_string(here.ip().to_string()))
            .with_port(here.port().into());
        MetadataResponse::default()
            .with_topics(topics.collect())
            .with_controller_id(NODE)
            .with_brokers(vec![node])
    }

    fn list_offsets(&self, asked: ListOffsetsRequest, version: i16) -> ListOffsetsResponse {
        let topics = asked.topics.into_iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|partition| {
                let log = self.log(&topic.name, partition.partition_index);
                let found = log.map(|log| match partition.timestamp {
                    -1 => (log.offsets().end, -1),
                    -2 => (log.offsets().start, -1),
                    timestamp => log.find(timestamp).unwrap_or((-1, -1)),
                });
                let (offset, timestamp) = found.unwrap_or((-1, -1));
                ListOffsetsPartitionResponse::default()
                    .with_partition_index(partition.partition_index)
                    .with_error_code(found.err().as_ref().map_or(0, ResponseError::code))
                    .with_offset(offset)
                    .with_timestamp(timestamp)
                    .with_leader_epoch(if version < 4 { -1 } else { 0 })
            });
            ListOffsetsTopicResponse::default()
                .with_partitions(partitions.collect())
                .with_name(topic.name)
        });
        ListOffsetsResponse::default().with_topics(topics.collect())
    }

    /// Appends what was produced. Whether some of it was not.
    fn produce(&self, asked: ProduceRequest) -> (ProduceResponse, bool) {
        let mut failed = false;
        let topics = asked.topic_data.into_iter().map(|topic| {
            let partitions = topic.partition_data.iter().map(|partition| {
                let stored = match &partition.records {
                    _ if !(-1..=1).contains(&asked.acks) => Err(ResponseError::InvalidRequiredAcks),
                    None => Err(ResponseError::InvalidRecord),
                    Some(records) => self
                        .make(&topic.name, partition.index)
                        .and_then(|log| log.append(records)),
                };
                failed |= stored.is_err();
                PartitionProduceResponse::default()
                    .with_index(partition.index)
                    .with_error_code(stored.as_ref().err().map_or(0, ResponseError::code))
                    .with_base_offset(stored.unwrap_or(-1))
                    .with_log_start_offset(0)
            });
            TopicProduceResponse::default()
                .with_partition_responses(partitions.collect())
                .with_name(topic.name)
        });
        let topics = topics.collect();
        (ProduceResponse::default().with_responses(topics), failed)
    }

    /// What a fetch asked for, in the order in which it did, and whether to wait for more.
    fn find(&self, asked: &FetchRequest) -> (Vec<Found>, bool) {
        let (mut found, mut bytes, mut wait) = (Vec::new(), 0, true);
        let most = asked.max_bytes.clamp(0, MOST_FETCHED) as u64;
        for topic in &asked.topics {
            for partition in &topic.partitions {
                let (from, left) = (partition.fetch_offset, most.saturating_sub(bytes));
                let part = partition.partition_max_bytes.max(0) as u64;
                found.push(match self.log(&topic.topic, partition.partition) {
                    Err(e) => (e.code(), -1, None),
                    Ok(log) if !(log.offsets().start..=log.offsets().end).contains(&from) => (
                        ResponseError::OffsetOutOfRange.code(),
                        log.offsets().end,
                        None,
                    ),
                    Ok(log) => {
                        let slice = log.locate(from, part.min(left));
                        // The first may be longer than it was to be, so that a client gets on.
                        let slice = slice.filter(|slice| bytes == 0 || slice.len() <= left);
                        bytes += slice.as_ref().map_or(0, Slice::len);
                        wait &= slice.as_ref().is_none_or(|slice| slice.is_last);
                        (0, log.offsets().end, slice)
                    }
                });
            }
        }
        let enough = most.min(asked.min_bytes.max(0) as u64);
        wait &= bytes < enough && found.iter().all(|(error, ..)| *error == 0);
        (found, wait)
    }

    /// Answers a fetch, once there is enough or it has waited long enough.
    pub(crate) async fn fetch(&self, mut request: Request) -> Result<Message<'static>> {
        let (version, asked) = (request.version, request.decode::<FetchRequest>()?);
        let wait = asked.max_wait_ms.clamp(0, LONGEST_WAIT) as u64;
        let until = Instant::now() + Duration::from_millis(wait);
        let found = loop {
            let appended = self.appended.notified();
            let (found, wait) = self.find(&asked);
            if !wait || timeout_at(until, appended).await.is_err() {
                break found;
            }
        };
        let mut found = found.into_iter();
        let (mut answer, mut head) = (Message::new(), BytesMut::new());
        head.put_i32(0); // No throttling.
        if version >= 7 {
            head.put_slice(&[0; 6]); // No error, no session.
        }
        head.put_u32(asked.topics.len() as u32);
        for topic in &asked.topics {
            head.put_u16(topic.topic.len() as u16);
            head.put_slice(topic.topic.as_bytes());
            head.put_u32(topic.partitions.len() as u32);
            for (partition, (error, end, slice)) in topic.partitions.iter().zip(&mut found) {
                PartitionData::default()
                    .with_partition_index(partition.partition)
                    .with_error_code(error)
                    .with_high_watermark(end)
                    .with_last_stable_offset(end)
                    .with_log_start_offset(0)
                    .encode(&mut head, version)?;
                let Some(Slice { file, range, .. }) = slice else {
                    continue;
                };
                // It ends in the length of the records, of which it was given none.
                head.truncate(head.len() - 4);
                head.put_u32((range.end - range.start) as u32);
                answer = answer.bytes(head.split());
                answer = match self.args.engine {
                    Engine::Auto => answer.file(file, range),
                    Engine::ReadWrite => {
                        let mut bytes = vec![0; (range.end - range.start) as usize];
                        let read =
                            move || file.read_exact_at(&mut bytes, range.start).map(|()| bytes);
                        answer.bytes(spawn_blocking(read).await??)
                    }
                };
            }
        }
        answer = answer.bytes(head);
        let mut frame = BytesMut::new();
        frame.put_u32(answer.len() as u32 + 4);
        frame.put_i32(request.correlation);
        Ok(Message::new().bytes(frame).chain(answer))
    }
}

/// As Kafka has it, so that it is a name for a directory, too.
fn is_valid(topic: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..250).contains(&topic.len()) && topic.chars().all(fine) && topic != "." && topic != ".."
}
