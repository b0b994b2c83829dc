//! The runtime of a daemon.

use tokio::runtime::Builder;

/// A builder for a runtime with `threads` threads for network and protocol; work that blocks has threads of its own.
///
/// One thread is the default of every daemon and not a small machine's compromise: between tasks of one thread there are no
/// wake-ups, which are most of the CPU time of a small call, and one thread moves about 2 GB/s.
#[must_use]
pub fn builder(threads: u16) -> Builder {
    let mut builder = match threads {
        0 | 1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.worker_threads(usize::from(threads.max(1))).enable_all();
    builder
}
