//! What the kernel may keep of names and attributes, and for how long.
//!
//! While the cluster tells this mount what others change, the kernel keeps names and attributes for minutes, and is told to
//! forget what changed. Every answer of the cluster to the question for changes is good for a moment (the bound): when the next
//! one is not there by then, the lease is over, everything is forgotten, and until there is an answer again the kernel keeps
//! what it gets for that short time only.
//!
//! ```text
//!            answer: complete as of t          t + bound passes, or the cluster says "forget everything"
//!   SHORT ───────────────────────────► LEASED ──────────────────────────────────────────────────────────► SHORT
//!                                       │  ▲    the kernel forgets all names, and attributes of open files
//!                                       └──┘ answer: names and inodes are forgotten, lease until t + bound
//! ```
//!
//! Answers to the kernel may be older than what it was told to forget: pages of a listing are fetched ahead, and an answer may
//! be on its way while a change comes in. So each is marked with the number of changes known when it was asked for ([`Mark`]),
//! and what changed since then is handed out to be asked for again at once. The last step is out of sight: the kernel makes an
//! inode only after it took the answer, and being told to forget an inode that is not there yet does nothing. So attributes are
//! forgotten once more a moment later.

use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use dfs_common::InodeId;
use lru::LruCache;

use super::inode::lock;

/// How long the kernel keeps things under a lease. It bounds what a mount can show that cannot forget because its own process
/// stands still.
const LEASED_TTL: Duration = Duration::from_secs(60);
/// A shorter bound cannot be held by questions that a leader answers in good time: then nothing is kept under a lease.
const BOUND_MIN: Duration = Duration::from_millis(400);
/// How long the kernel may take to make an inode of an answer that it has.
const SETTLE: Duration = Duration::from_millis(500);
/// Inodes whose last change is remembered. Forgetting one costs questions, nothing else.
const RECENT_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// How long a change may take effect after its caller was told that it failed: longer than any deadline, the cluster's
/// included.
const DOUBT: Duration = Duration::from_secs(300);

/// The kernel's caches.
pub(crate) trait Kernel: Send + Sync {
    /// Attributes are asked for again. This takes no lock that an operation on the inode could hold.
    fn forget_attr(&self, ino: InodeId);
    /// The listing of a directory is asked for again, by whoever has it open as well.
    fn forget_listing(&self, dir: InodeId);
    /// A name is asked for again. This may wait for operations in the directory, but not for the caller.
    fn forget_entry(&self, parent: InodeId, name: &[u8]);
    /// All names are asked for again, and with them attributes; whether the kernel can do that.
    fn forget_all_entries(&self) -> bool;
}

/// How much was known when something was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mark(u64);

/// What programs have open, and so the kernel reaches without a name.
#[derive(Clone, Default, Debug)]
pub(crate) struct Reached {
    pub(crate) files: Vec<InodeId>,
    pub(crate) dirs: Vec<InodeId>,
}

/// How it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// The kernel keeps nothing for long, and is not meant to.
    Off,
    /// What others change is told.
    Leased,
    /// For so long it has not been told; `None`: not yet.
    Lost(Option<Duration>),
}

struct State {
    /// Changes so far.
    count: u64,
    /// Number of the last change of each inode; of a directory also that of its entries.
    recent: LruCache<InodeId, u64>,
    /// The highest number that was dropped from `recent`: everything may have changed then.
    dropped: u64,
    leased_until: Option<Instant>,
    lost_since: Option<Instant>,
    doubt_until: Option<Instant>,
    /// Inodes whose attributes were forgotten, and are to be once more.
    settling: VecDeque<(Instant, Vec<InodeId>)>,
}

/// What this mount knows of changes.
pub(crate) struct Coherence {
    /// How long the kernel may keep things without a lease, which is also how long a lease lasts.
    bound: Duration,
    kernel: OnceLock<Box<dyn Kernel>>,
    state: Mutex<State>,
}

impl Coherence {
    /// Without a lease.
    pub(crate) fn new(bound: Duration) -> Self {
        let state = State {
            count: 0,
            recent: LruCache::new(RECENT_MAX),
            dropped: 0,
            leased_until: None,
            lost_since: None,
            doubt_until: None,
            settling: VecDeque::new(),
        };
        Self { bound, kernel: OnceLock::new(), state: Mutex::new(state) }
    }

    /// The kernel is there.
    pub(crate) fn connect(&self, kernel: Box<dyn Kernel>) {
        // There is one session, so this is called once.
        let _ = self.kernel.set(kernel);
    }

    /// The longest time that what others changed may go unseen.
    pub(crate) fn bound(&self) -> Duration {
        self.bound
    }

    /// To be taken before something is asked of the cluster.
    pub(crate) fn mark(&self) -> Mark {
        Mark(lock(&self.state).count)
    }

    /// How long the kernel may keep a name that it has just asked for. (While it asks it holds a lock of the directory that
    /// forgetting a name waits for.)
    pub(crate) fn entry_ttl(&self) -> Duration {
        self.ttl_in(&lock(&self.state))
    }

    /// How long the kernel may keep a name that does not exist: without a lease not at all, since programs wait for names.
    pub(crate) fn negative_ttl(&self) -> Option<Duration> {
        let state = lock(&self.state);
        is_leased(&state).then(|| self.ttl_in(&state))
    }

    /// How long the kernel may keep what was asked for at `mark` and depends on `inodes`.
    pub(crate) fn ttl(&self, mark: Mark, inodes: &[InodeId]) -> Duration {
        let state = lock(&self.state);
        if state.has_changed(mark, inodes) { Duration::ZERO } else { self.ttl_in(&state) }
    }

    /// Whether one of `inodes` may have changed since `mark`; of a directory also its entries.
    pub(crate) fn has_changed(&self, mark: Mark, inodes: &[InodeId]) -> bool {
        lock(&self.state).has_changed(mark, inodes)
    }

    fn ttl_in(&self, state: &State) -> Duration {
        if is_leased(state) { self.bound.max(LEASED_TTL) } else { self.bound }
    }

    /// This mount has changed something; the kernel knows, and answers that are on their way may not.
    pub(crate) fn changed_here(&self, ino: InodeId) {
        lock(&self.state).changed(ino);
    }

    /// This mount has changed attributes of which the kernel does not know.
    pub(crate) fn attr_changed_here(&self, ino: InodeId) {
        self.changed_here(ino);
        self.forget_attrs(&[ino]);
    }

    /// Others have changed the attributes of inodes.
    pub(crate) fn attrs_changed(&self, inodes: &[InodeId]) {
        let mut state = lock(&self.state);
        inodes.iter().for_each(|ino| state.changed(*ino));
        if !inodes.is_empty() {
            state.settling.push_back((Instant::now(), inodes.to_vec()));
        }
        drop(state);
        self.forget_attrs(inodes);
    }

    /// Has attributes forgotten once more that others had changed a while before `now`.
    pub(crate) fn forget_again(&self, now: Instant) {
        let mut state = lock(&self.state);
        let due = state.settling.partition_point(|(at, _)| now.saturating_duration_since(*at) >= SETTLE);
        let due: Vec<InodeId> = state.settling.drain(..due).flat_map(|(_, inodes)| inodes).collect();
        drop(state);
        self.forget_attrs(&due);
    }

    fn forget_attrs(&self, inodes: &[InodeId]) {
        if let Some(kernel) = self.kernel.get() {
            inodes.iter().for_each(|ino| kernel.forget_attr(*ino));
        }
    }

    /// The cluster has told everything up to `as_of`; whether the lease is a new one.
    pub(crate) fn renew(&self, as_of: Instant) -> bool {
        let mut state = lock(&self.state);
        state.lost_since = None;
        state.leased_until.replace(as_of + self.bound).is_none()
    }

    /// Whether there is a lease.
    pub(crate) fn is_leased(&self) -> bool {
        is_leased(&lock(&self.state))
    }

    /// When the lease ends, if there is one.
    pub(crate) fn leased_until(&self) -> Option<Instant> {
        lock(&self.state).leased_until
    }

    /// The lease is over: the kernel forgets all names, and of what it may reach without a name the attributes, and the listings.
    /// Whether there was a lease.
    pub(crate) fn lose(&self, reached: &Reached) -> bool {
        let mut state = lock(&self.state);
        let was_leased = state.leased_until.take().is_some();
        state.lost_since.get_or_insert_with(Instant::now);
        state.all_changed();
        drop(state);
        if was_leased {
            self.forget_all(reached);
        }
        was_leased
    }

    fn forget_all(&self, reached: &Reached) {
        if let Some(kernel) = self.kernel.get() {
            kernel.forget_all_entries();
            self.forget_attrs(&reached.files);
            for dir in &reached.dirs {
                kernel.forget_attr(*dir);
                kernel.forget_listing(*dir);
            }
        }
    }

    /// A change by this mount may take effect, now or later, without the kernel being told that it did: everything is
    /// forgotten as by [`Coherence::lose`], and what this mount changes is told like what others change for a while.
    pub(crate) fn doubt(&self, reached: &Reached) {
        let mut state = lock(&self.state);
        state.doubt_until = Some(Instant::now() + DOUBT);
        state.all_changed();
        let is_leased = state.leased_until.is_some();
        drop(state);
        if is_leased {
            self.forget_all(reached);
        }
    }

    /// The kernel has what a process before this one gave it: all of that is forgotten, and what that process has begun may take
    /// effect yet.
    pub(crate) fn take_over(&self, reached: &Reached) {
        self.doubt(reached);
        self.forget_all(reached);
    }

    /// Whether what this mount changes must be told to it, too.
    pub(crate) fn is_in_doubt(&self) -> bool {
        lock(&self.state).doubt_until.is_some_and(|until| Instant::now() < until)
    }

    /// For people.
    pub(crate) fn standing(&self) -> Standing {
        let state = lock(&self.state);
        match (is_leased(&state), state.lost_since) {
            _ if self.bound < BOUND_MIN => Standing::Off,
            (true, _) => Standing::Leased,
            (false, since) => Standing::Lost(since.map(|since| since.elapsed())),
        }
    }

    /// Whether there can be a lease: the kernel can forget everything at once, and is meant to keep something for long enough.
    pub(crate) fn can_lease(&self) -> bool {
        self.bound >= BOUND_MIN && self.kernel.get().is_some_and(|kernel| kernel.forget_all_entries())
    }

    /// The kernel forgets names and the listings of their directories. For who may wait.
    pub(crate) fn forget_entries(&self, entries: &[(InodeId, Vec<u8>)]) {
        let Some(kernel) = self.kernel.get() else { return };
        let mut last = None;
        for (parent, name) in entries {
            if last.replace(*parent) != Some(*parent) {
                kernel.forget_listing(*parent);
            }
            kernel.forget_entry(*parent, name);
        }
    }
}

fn is_leased(state: &State) -> bool {
    state.leased_until.is_some_and(|until| Instant::now() < until)
}

impl State {
    fn has_changed(&self, mark: Mark, inodes: &[InodeId]) -> bool {
        let changed = |ino| self.recent.peek(ino).is_some_and(|last| *last > mark.0);
        self.dropped > mark.0 || inodes.iter().any(changed)
    }

    fn all_changed(&mut self) {
        self.count += 1;
        self.dropped = self.count;
        self.recent.clear();
    }

    fn changed(&mut self, ino: InodeId) {
        self.count += 1;
        if let Some((old, number)) = self.recent.push(ino, self.count)
            && old != ino
        {
            self.dropped = self.dropped.max(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const BOUND: Duration = Duration::from_secs(1);
    const A: InodeId = InodeId(10);
    const B: InodeId = InodeId(11);

    #[derive(Default, Clone)]
    struct Told(Arc<Mutex<Vec<String>>>);

    impl Kernel for Told {
        fn forget_attr(&self, ino: InodeId) {
            lock(&self.0).push(format!("attr {ino}"));
        }
        fn forget_listing(&self, dir: InodeId) {
            lock(&self.0).push(format!("listing {dir}"));
        }
        fn forget_entry(&self, parent: InodeId, name: &[u8]) {
            lock(&self.0).push(format!("entry {parent} {}", name.escape_ascii()));
        }
        fn forget_all_entries(&self) -> bool {
            lock(&self.0).push("all".into());
            true
        }
    }

    fn leased() -> (Coherence, Told) {
        let (coherence, told) = (Coherence::new(BOUND), Told::default());
        coherence.connect(Box::new(told.clone()));
        coherence.renew(Instant::now());
        (coherence, told)
    }

    #[test]
    fn things_are_kept_for_long_only_under_a_lease() {
        let coherence = Coherence::new(BOUND);
        let mark = coherence.mark();
        assert_eq!((coherence.ttl(mark, &[A]), coherence.negative_ttl()), (BOUND, None));
        assert!(coherence.renew(Instant::now()));
        assert_eq!((coherence.ttl(mark, &[A]), coherence.entry_ttl()), (LEASED_TTL, LEASED_TTL));
        assert_eq!(coherence.negative_ttl(), Some(LEASED_TTL));
        assert!(!coherence.renew(Instant::now()), "it goes on");
        // An answer that was long on its way.
        coherence.renew(Instant::now().checked_sub(2 * BOUND).expect("the clock has run for a while"));
        assert_eq!((coherence.ttl(mark, &[A]), coherence.negative_ttl()), (BOUND, None));
    }

    #[test]
    fn an_answer_that_is_older_than_a_change_is_not_kept() {
        let (coherence, told) = leased();
        let old = coherence.mark();
        coherence.attrs_changed(&[A]);
        assert_eq!(coherence.ttl(old, &[B, A]), Duration::ZERO);
        assert_eq!(coherence.ttl(old, &[B]), LEASED_TTL);
        assert_eq!(coherence.ttl(coherence.mark(), &[A]), LEASED_TTL, "asked for afterwards");
        coherence.changed_here(B);
        assert_eq!(coherence.ttl(old, &[B]), Duration::ZERO);
        assert_eq!(*lock(&told.0), ["attr 10"], "the kernel knows what its own programs do");
    }

    #[test]
    fn attributes_are_forgotten_once_more_a_moment_later() {
        let (coherence, told) = leased();
        let begun = Instant::now();
        coherence.attrs_changed(&[A, B]);
        coherence.forget_again(begun);
        assert_eq!(lock(&told.0).len(), 2, "not yet");
        coherence.forget_again(begun + 10 * SETTLE);
        coherence.forget_again(begun + 20 * SETTLE);
        assert_eq!(*lock(&told.0), ["attr 10", "attr 11", "attr 10", "attr 11"]);
    }

    #[test]
    fn names_are_forgotten_with_the_listings_of_their_directories() {
        let (coherence, told) = leased();
        coherence.forget_entries(&[(A, b"x".to_vec()), (A, b"y".to_vec()), (B, b"x".to_vec())]);
        assert_eq!(*lock(&told.0), ["listing 10", "entry 10 x", "entry 10 y", "listing 11", "entry 11 x"]);
    }

    #[test]
    fn changes_that_are_not_remembered_count_for_everything() {
        let (coherence, _) = leased();
        let old = coherence.mark();
        (0..=RECENT_MAX.get() as u64).for_each(|ino| coherence.changed_here(InodeId(100 + ino)));
        assert_eq!(coherence.ttl(old, &[A]), Duration::ZERO);
        assert_eq!(coherence.ttl(coherence.mark(), &[A]), LEASED_TTL);
    }

    #[test]
    fn a_lost_lease_forgets_everything_once() {
        let (coherence, told) = leased();
        let old = coherence.mark();
        let reached = Reached { files: vec![A], dirs: vec![B] };
        assert!(coherence.lose(&reached));
        assert_eq!(*lock(&told.0), ["all", "attr 10", "attr 11", "listing 11"]);
        assert_eq!(coherence.ttl(old, &[B]), Duration::ZERO, "it may have changed unheard");
        assert_eq!(coherence.ttl(coherence.mark(), &[B]), BOUND);
        assert!(matches!(coherence.standing(), Standing::Lost(Some(_))));
        assert!(!coherence.lose(&reached));
        assert_eq!(lock(&told.0).len(), 4);
        assert!(coherence.renew(Instant::now()));
        assert_eq!(coherence.standing(), Standing::Leased);
    }

    #[test]
    fn a_change_without_a_certain_outcome_makes_everything_doubtful() {
        let (coherence, told) = leased();
        let old = coherence.mark();
        assert!(!coherence.is_in_doubt());
        coherence.doubt(&Reached { files: vec![A], dirs: vec![] });
        assert_eq!(*lock(&told.0), ["all", "attr 10"]);
        assert!(coherence.is_in_doubt());
        assert_eq!(coherence.ttl(old, &[B]), Duration::ZERO);
        assert_eq!((coherence.ttl(coherence.mark(), &[B]), coherence.standing()), (LEASED_TTL, Standing::Leased));
    }

    #[test]
    fn without_a_cache_or_with_a_very_short_one_there_is_no_lease() {
        for bound in [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(399)] {
            let coherence = Coherence::new(bound);
            coherence.connect(Box::new(Told::default()));
            assert!(!coherence.can_lease(), "{bound:?}");
            assert_eq!(coherence.standing(), Standing::Off);
            assert_eq!(coherence.ttl(coherence.mark(), &[A]), bound);
        }
        let (coherence, _) = leased();
        assert!(coherence.can_lease());
    }
}
