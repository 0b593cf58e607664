//! Limits of the process, lowered for a while.
// setrlimit(2) and ignoring a signal have no safe calls among the dependencies.
#![allow(unsafe_code, dead_code, unreachable_pub)]

type Resource = libc::__rlimit_resource_t;

/// Lowers a soft limit, as long as it lives.
pub struct Limit {
    resource: Resource,
    before: libc::rlimit,
}

impl Limit {
    pub fn new(resource: Resource, soft: u64) -> Self {
        let mut before = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: `before` has room for one rlimit.
        let asked = unsafe { libc::getrlimit(resource, &raw mut before) };
        assert_eq!(asked, 0);
        let limit = Self { resource, before };
        limit.set(libc::rlimit {
            rlim_cur: soft,
            ..before
        });
        limit
    }

    fn set(&self, limit: libc::rlimit) {
        // SAFETY: `limit` is one rlimit, only read.
        let set = unsafe { libc::setrlimit(self.resource, &raw const limit) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.set(self.before);
    }
}

/// Has a file that reaches its limit answer EFBIG, and no more.
pub fn ignore_sigxfsz() {
    // SAFETY: no code of ours runs for an ignored signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
