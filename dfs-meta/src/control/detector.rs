//! The failure detector: who is alive, suspect or dead. Pure: the clock comes in with each call.
//!
//! ```text
//!            silence > suspect, or accused            silence > dead
//!   alive ────────────────────────────────► suspect ────────────────► dead
//!     ▲                                        │                        │
//!     └────────────────────────────────────────┴────────────────────────┘
//!                               a heartbeat
//! ```
//!
//! A node is *accused* when two others could not reach it since its last heartbeat, or one and it missed a beat. An
//! accusation makes suspect, so that reads and placements avoid the node at once; only silence makes dead, because one cut
//! cable between two nodes must not start the copying of a whole disk. Silence is never counted from before this leader
//! began to lead: it cannot know what the leader before heard.
//!
//! A node that falls out and comes back again and again is *flapping*. Its copies count and are read like any others, for they
//! are as good; but placements avoid it while there is a choice, for a time that doubles with every return and is forgotten
//! after a long rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use dfs_common::{NodeId, node::Health};

/// Accusers remembered for one node. Two suffice to make it suspect.
const ACCUSERS_MAX: usize = 8;

/// Returns within [`FLAP_REST`] that are forgiven: a restart for an update is one.
const FLAPS_FREE: u32 = 1;
/// First hold-down, in times of silence that make suspect; doubled with each further return.
const HOLD_FIRST: u32 = 2;
/// Longest hold-down.
const HOLD_MAX: Duration = Duration::from_secs(15 * 60);
/// A node that did not fall out for this long starts with a clean slate.
const FLAP_REST: Duration = Duration::from_secs(30 * 60);

/// Times of the detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often nodes report.
    pub heartbeat: Duration,
    /// Silence that makes suspect.
    pub suspect: Duration,
    /// Silence that makes dead.
    pub dead: Duration,
}

/// Who could not reach a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Accuser {
    /// Another storage node.
    Node(NodeId),
    /// A client session.
    Client(u64),
    /// A node that wants to register with its address: only one process can listen there.
    Successor,
}

#[derive(Debug, Default)]
struct Watch {
    heard: Option<Instant>,
    accusers: BTreeSet<Accuser>,
    /// When it last was accused: placements treat it as lately failed for a while, even when it reports again.
    accused: Option<Instant>,
    /// It said goodbye: suspect until it is heard again.
    left: bool,
    /// How often it came back since its last long rest.
    returns: u32,
    /// When it last came back.
    returned: Option<Instant>,
    /// Placements avoid it until then.
    held_until: Option<Instant>,
}

/// What the leader heard from and about storage nodes.
#[derive(Debug)]
pub struct Detector {
    timing: Timing,
    leader_since: Instant,
    nodes: BTreeMap<NodeId, Watch>,
}

impl Detector {
    /// A detector of a leader that leads since `leader_since` and has heard nothing yet.
    #[must_use]
    pub fn new(timing: Timing, leader_since: Instant) -> Self {
        Self { timing, leader_since, nodes: BTreeMap::new() }
    }

    /// A heartbeat or registration of `node` arrived.
    pub fn heard(&mut self, node: NodeId, now: Instant) {
        let watch = self.nodes.entry(node).or_default();
        watch.heard = Some(now);
        watch.accusers.clear();
        watch.left = false;
    }

    /// `accuser` could not reach `node`. An accusation of oneself is ignored.
    pub fn accuse(&mut self, node: NodeId, accuser: Accuser, now: Instant) {
        if accuser == Accuser::Node(node) {
            return;
        }
        let watch = self.nodes.entry(node).or_default();
        watch.accused = Some(now);
        if watch.accusers.len() < ACCUSERS_MAX {
            watch.accusers.insert(accuser);
        }
    }

    /// `node` announced that it stops.
    pub fn left(&mut self, node: NodeId) {
        self.nodes.entry(node).or_default().left = true;
    }

    /// `node`, which was suspect or dead, is alive again. Returns how often it came back lately if it is *flapping* now, which
    /// means that placements avoid it for a while.
    pub fn returned(&mut self, node: NodeId, now: Instant) -> Option<u32> {
        let suspect = self.timing.suspect;
        let watch = self.nodes.entry(node).or_default();
        let rested = watch.returned.is_some_and(|at| now.saturating_duration_since(at) > FLAP_REST);
        watch.returns = if rested { 1 } else { watch.returns.saturating_add(1) };
        watch.returned = Some(now);
        let flaps = watch.returns.checked_sub(FLAPS_FREE + 1)?;
        let hold = (suspect * HOLD_FIRST).saturating_mul(1 << flaps.min(16)).min(HOLD_MAX);
        watch.held_until = Some(now + hold);
        Some(watch.returns)
    }

    /// Whether `node` has come back so often lately that nothing new should be placed on it while there is a choice.
    #[must_use]
    pub fn is_held_down(&self, node: NodeId, now: Instant) -> bool {
        self.nodes.get(&node).and_then(|watch| watch.held_until).is_some_and(|until| now < until)
    }

    /// How long `node` has been silent, as far as this leader can know.
    #[must_use]
    pub fn silence(&self, node: NodeId, now: Instant) -> Duration {
        let heard = self.nodes.get(&node).and_then(|watch| watch.heard);
        now.saturating_duration_since(heard.map_or(self.leader_since, |heard| heard.max(self.leader_since)))
    }

    /// Whether `node` was heard by this leader at all.
    #[must_use]
    pub fn was_heard(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|watch| watch.heard.is_some())
    }

    /// Whether `node` was accused within the time that makes silence suspect.
    #[must_use]
    pub fn recently_accused(&self, node: NodeId, now: Instant) -> bool {
        let accused = self.nodes.get(&node).and_then(|watch| watch.accused);
        accused.is_some_and(|at| now.saturating_duration_since(at) < self.timing.suspect)
    }

    /// The health `node` should have, given the agreed one; `None` when nothing changes. One that is `excused` may be silent:
    /// that makes it suspect and not dead.
    #[must_use]
    pub fn judge(&self, node: NodeId, agreed: Health, excused: bool, now: Instant) -> Option<Health> {
        let silence = self.silence(node, now);
        let next = if silence > self.timing.dead && !excused {
            Health::Dead
        } else if silence > self.timing.suspect || self.is_accused(node, silence) {
            // A dead node that is still silent stays dead: a new leader's fresh count must not revive it.
            if agreed == Health::Dead { Health::Dead } else { Health::Suspect }
        } else if self.was_heard(node) {
            Health::Alive
        } else {
            agreed
        };
        (next != agreed).then_some(next)
    }

    /// Forgets nodes that are no longer registered.
    pub fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        self.nodes.retain(|node, _| keep(*node));
    }

    fn is_accused(&self, node: NodeId, silence: Duration) -> bool {
        let Some(watch) = self.nodes.get(&node) else { return false };
        let missed_a_beat = silence > self.timing.heartbeat + self.timing.heartbeat / 2;
        watch.left || watch.accusers.len() >= 2 || (missed_a_beat && !watch.accusers.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const N: NodeId = NodeId(1);
    const TIMING: Timing =
        Timing { heartbeat: Duration::from_secs(3), suspect: Duration::from_secs(10), dead: Duration::from_secs(30) };

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn silence_makes_suspect_then_dead_and_a_heartbeat_revives() {
        let t0 = Instant::now();
        let mut detector = Detector::new(TIMING, t0);
        detector.heard(N, t0 + secs(1));
        assert_eq!(detector.judge(N, Health::Alive, false, t0 + secs(11)), None);
        assert_eq!(detector.judge(N, Health::Alive, false, t0 + secs(12)), Some(Health::Suspect));
        assert_eq!(detector.judge(N, Health::Suspect, false, t0 + secs(31)), None);
        assert_eq!(detector.judge(N, Health::Suspect, false, t0 + secs(32)), Some(Health::Dead));
        detector.heard(N, t0 + secs(40));
        assert_eq!(detector.judge(N, Health::Dead, false, t0 + secs(40)), Some(Health::Alive));
    }

    #[test]
    fn accusations_make_suspect_at_once_but_never_dead() {
        let t0 = Instant::now();
        let mut detector = Detector::new(TIMING, t0);
        detector.heard(N, t0);
        detector.accuse(N, Accuser::Node(NodeId(2)), t0 + secs(1));
        assert_eq!(detector.judge(N, Health::Alive, false, t0 + secs(1)), None, "one accuser, no beat missed");
        assert_eq!(detector.judge(N, Health::Alive, false, t0 + secs(5)), Some(Health::Suspect), "and a beat missed");
        detector.accuse(N, Accuser::Client(7), t0 + secs(1));
        assert_eq!(detector.judge(N, Health::Alive, false, t0 + secs(1)), Some(Health::Suspect));
        for i in 0..100 {
            detector.accuse(N, Accuser::Client(i), t0 + secs(2));
        }
        assert_eq!(detector.judge(N, Health::Suspect, false, t0 + secs(2)), None);
        detector.heard(N, t0 + secs(3));
        assert_eq!(detector.judge(N, Health::Suspect, false, t0 + secs(3)), Some(Health::Alive));
        assert!(detector.recently_accused(N, t0 + secs(4)) && !detector.recently_accused(N, t0 + secs(13)));
    }

    #[test]
    fn a_node_that_left_is_suspect_until_it_is_back() {
        let t0 = Instant::now();
        let mut detector = Detector::new(TIMING, t0);
        detector.heard(N, t0);
        detector.left(N);
        assert_eq!(detector.judge(N, Health::Alive, false, t0), Some(Health::Suspect));
        detector.heard(N, t0 + secs(1));
        assert_eq!(detector.judge(N, Health::Suspect, false, t0 + secs(1)), Some(Health::Alive));
    }

    #[test]
    fn a_new_leader_keeps_the_dead_dead() {
        let t0 = Instant::now();
        let detector = Detector::new(TIMING, t0);
        assert_eq!(detector.judge(N, Health::Dead, false, t0 + secs(1)), None);
        assert_eq!(detector.judge(N, Health::Suspect, false, t0 + secs(1)), None, "unheard: as it was");
    }

    #[test]
    fn an_excused_node_is_suspect_however_long_it_is_silent_and_dead_when_the_excuse_ends() {
        let t0 = Instant::now();
        let mut detector = Detector::new(TIMING, t0);
        detector.heard(N, t0);
        assert_eq!(detector.judge(N, Health::Alive, true, t0 + secs(11)), Some(Health::Suspect));
        assert_eq!(detector.judge(N, Health::Suspect, true, t0 + secs(500)), None);
        assert_eq!(detector.judge(N, Health::Dead, true, t0 + secs(500)), None, "an excuse revives nobody");
        assert_eq!(detector.judge(N, Health::Suspect, false, t0 + secs(500)), Some(Health::Dead));
        detector.heard(N, t0 + secs(501));
        assert_eq!(detector.judge(N, Health::Suspect, true, t0 + secs(501)), Some(Health::Alive));
    }

    #[test]
    fn a_flapping_node_is_trusted_later_each_time_and_after_a_rest_again() {
        let mut now = Instant::now();
        let mut detector = Detector::new(TIMING, now);
        let held = |detector: &Detector, now: Instant| {
            (0..2000).take_while(|s| detector.is_held_down(N, now + secs(*s))).count() as u64
        };
        detector.returned(N, now);
        assert_eq!(held(&detector, now), 0, "a restart is no offence");
        for expected in [20, 40, 80, 160, 320, 640, 900, 900] {
            now += secs(60);
            detector.returned(N, now);
            assert_eq!(held(&detector, now), expected);
        }
        now += FLAP_REST + secs(1);
        detector.returned(N, now);
        assert_eq!(held(&detector, now), 0);
        detector.returned(N, now + secs(1));
        assert_eq!(held(&detector, now + secs(1)), 20);
    }

    #[test]
    fn a_successor_makes_suspect_only_a_node_that_missed_a_beat() {
        let t0 = Instant::now();
        let mut detector = Detector::new(TIMING, t0);
        detector.heard(N, t0);
        for _ in 0..9 {
            detector.accuse(N, Accuser::Successor, t0 + secs(1));
        }
        assert_eq!(detector.judge(N, Health::Alive, false, t0 + secs(4)), None);
        assert_eq!(detector.judge(N, Health::Alive, false, t0 + secs(5)), Some(Health::Suspect));
        detector.heard(N, t0 + secs(5));
        assert_eq!(detector.judge(N, Health::Suspect, false, t0 + secs(5)), Some(Health::Alive));
    }

    #[derive(Debug, Clone)]
    enum Event {
        Heard(u32),
        Accuse(u32, u32),
        Left(u32),
        NewLeader,
        Wait(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0..4u32).prop_map(Event::Heard),
            (0..4u32, 0..4u32).prop_map(|(a, b)| Event::Accuse(a, b)),
            (0..4u32).prop_map(Event::Left),
            Just(Event::NewLeader),
            (0..12_000u64).prop_map(Event::Wait),
        ]
    }

    proptest! {
        /// However irregular heartbeats are: one within each time of suspicion keeps a node alive, whatever happens to leaders.
        #[test]
        fn who_is_heard_in_time_is_never_suspected(
            gaps_ms in proptest::collection::vec(0..10_000u64, 1..100),
            leader_changes in proptest::collection::vec(any::<bool>(), 100),
        ) {
            let mut now = Instant::now();
            let mut detector = Detector::new(TIMING, now);
            detector.heard(N, now);
            for (gap, change) in gaps_ms.into_iter().zip(leader_changes) {
                now += Duration::from_millis(gap);
                prop_assert_eq!(detector.judge(N, Health::Alive, false, now), None);
                if change {
                    detector = Detector::new(TIMING, now);
                    prop_assert_eq!(detector.judge(N, Health::Alive, false, now), None);
                }
                detector.heard(N, now);
            }
        }

        /// A hold-down never lasts longer than its maximum, and never ends earlier because the node came back once more.
        #[test]
        fn hold_downs_grow_and_are_bounded(gaps_s in proptest::collection::vec(0..600u64, 1..40)) {
            let mut now = Instant::now();
            let mut detector = Detector::new(TIMING, now);
            let mut until = now;
            for gap in gaps_s {
                now += secs(gap);
                detector.returned(N, now);
                prop_assert!(!detector.is_held_down(N, now + HOLD_MAX));
                if until > now {
                    prop_assert!(detector.is_held_down(N, until - Duration::from_millis(1)));
                }
                until = detector.nodes[&N].held_until.unwrap_or(now);
            }
        }

        #[test]
        fn nobody_dies_but_by_silence_under_this_leader(events in proptest::collection::vec(event(), 1..80)) {
            let mut now = Instant::now();
            let mut detector = Detector::new(TIMING, now);
            let mut since = now;
            let mut agreed = [Health::Alive; 4];
            let mut heard = [now; 4];
            for event in events {
                match event {
                    Event::Heard(n) => {
                        detector.heard(NodeId(n), now);
                        heard[n as usize] = now;
                    }
                    Event::Accuse(n, by) => detector.accuse(NodeId(n), Accuser::Node(NodeId(by)), now),
                    Event::Left(n) => detector.left(NodeId(n)),
                    Event::NewLeader => {
                        detector = Detector::new(TIMING, now);
                        since = now;
                    }
                    Event::Wait(ms) => now += Duration::from_millis(ms),
                }
                for n in 0..4u32 {
                    let i = n as usize;
                    if let Some(next) = detector.judge(NodeId(n), agreed[i], false, now) {
                        if next == Health::Dead {
                            prop_assert!(now - heard[i].max(since) > TIMING.dead);
                            prop_assert!(now - since > TIMING.dead, "within the grace period of a new leader");
                        }
                        if next == Health::Alive {
                            prop_assert!(now - heard[i] <= TIMING.suspect);
                            detector.returned(NodeId(n), now);
                        }
                        agreed[i] = next;
                    }
                    prop_assert_eq!(detector.judge(NodeId(n), agreed[i], false, now), None, "judgements are stable");
                    let silence = now - heard[i].max(since);
                    if silence > TIMING.dead {
                        prop_assert_eq!(agreed[i], Health::Dead, "silence always kills");
                    } else if silence > TIMING.suspect {
                        prop_assert!(agreed[i] != Health::Alive, "a silent node is not trusted");
                    }
                }
            }
        }
    }
}
