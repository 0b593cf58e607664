//! Reusable zero-copy I/O for Linux.
#[cfg(not(target_os = "linux"))]
compile_error!("zcio moves bytes by Linux system calls: it builds for Linux only");

pub mod backend;
mod driver;
mod drop_behind;
mod error;
mod facts;
mod holes;
mod options;
mod policy;
mod probe;
mod sys;
mod transfer;

pub use backend::{Backend, Endpoint, Fault, Side, Step, Unfit, ZeroCopyTransfer};
pub use error::{Error, ErrorKind, Result};
pub use options::{Progress, TransferOptions};
pub use policy::{Cache, Consistency, Reflink};
pub use probe::Probe;
pub use transfer::{End, Report, Status, Transfer, transfer};
