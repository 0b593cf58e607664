//! The example `log_broker`, spoken to in Kafka's protocol: what was produced is fetched byte for
//! byte, with either engine, after a kill as well; and what a client that wishes it ill can do.

mod common;
#[path = "log_broker/hostile.rs"]
mod hostile;
#[path = "log_broker/records.rs"]
mod records;
#[path = "log_broker/restart.rs"]
mod restart;
#[path = "log_broker/rig.rs"]
mod rig;
