//! What goes wrong and when: a pure function of the seed.
//!
//! What destroys data falls on one storage node and one metadata node of a round only, since the promise is to survive the
//! loss of one copy until it is replaced. Everything else falls on anybody, several at a time.

use std::{fmt, time::Duration};

use crate::{network::Way, rng::Rng};

/// Longest time that a process stands still.
const STOP_MAX_MS: u64 = 12_000;

/// Which cluster it is for.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Names of the metadata nodes.
    pub metas: Vec<String>,
    /// Names of the storage nodes.
    pub storages: Vec<String>,
    /// Names of the mounts.
    pub mounts: Vec<String>,
    /// Mounts with a supervisor, which goes on when the process that serves dies.
    pub supervised: Vec<String>,
    /// Nodes whose disks are small file systems of their own.
    pub small_disks: Vec<String>,
}

/// Something that goes wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// `kill -9` of a process; it is started again afterwards.
    Kill(String),
    /// The same for all servers at once.
    KillAll,
    /// The same for the metadata leader of that moment.
    KillLeader,
    /// `kill -9` of the process that serves a mount, but not of its supervisor.
    KillServing(String),
    /// SIGSTOP, then SIGCONT.
    Stop(String),
    /// The same for the metadata leader of that moment.
    StopLeader,
    /// A machine is cut off from some others.
    Cut {
        /// The machine.
        host: String,
        /// Which ways.
        way: Way,
        /// From whom.
        others: Vec<String>,
    },
    /// A disk has no room left.
    Fill(String),
    /// Bits of some chunk files are flipped.
    FlipChunks(String),
    /// Some chunk files lose their end.
    CutChunks(String),
    /// A storage node gets an empty disk.
    WipeStorage(String),
    /// A metadata node is down while bits of its log are flipped.
    FlipLog(String),
    /// A metadata node is down while its log loses its end.
    CutLog(String),
    /// A metadata node gets an empty disk.
    WipeMeta(String),
}

impl Fault {
    /// One word for the kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::KillAll => "kill all",
            Self::KillLeader => "kill leader",
            Self::KillServing(_) => "kill serving",
            Self::Stop(_) => "stop",
            Self::StopLeader => "stop leader",
            Self::Cut { way: Way::Both, .. } => "cut",
            Self::Cut { .. } => "cut one way",
            Self::Fill(_) => "fill disk",
            Self::FlipChunks(_) => "flip bits of chunks",
            Self::CutChunks(_) => "truncate chunks",
            Self::WipeStorage(_) => "wipe storage",
            Self::FlipLog(_) => "flip bits of log",
            Self::CutLog(_) => "truncate log",
            Self::WipeMeta(_) => "wipe metadata",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillAll | Self::KillLeader | Self::StopLeader => write!(f, "{}", self.kind()),
            Self::Cut { host, way, others } => write!(f, "cut {way:?} {host} from {}", others.join(" ")),
            Self::Kill(name)
            | Self::KillServing(name)
            | Self::Stop(name)
            | Self::Fill(name)
            | Self::FlipChunks(name)
            | Self::CutChunks(name)
            | Self::WipeStorage(name)
            | Self::FlipLog(name)
            | Self::CutLog(name)
            | Self::WipeMeta(name) => write!(f, "{} {name}", self.kind()),
        }
    }
}

/// A fault at its time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Strike {
    /// Since the begin of the round.
    pub at: Duration,
    /// What.
    pub fault: Fault,
    /// Until its end.
    pub lasts: Duration,
    /// Random bits for what is decided when it happens: which bits, which files.
    pub salt: u64,
}

/// The faults of a round of the length `length`, in order of time.
#[must_use]
pub fn plan(seed: u64, shape: &Shape, length: Duration) -> Vec<Strike> {
    let mut rng = Rng::new(seed, 1);
    let mut planner = Planner { shape, victims: victims(&mut rng, shape), rng };
    let mut strikes = Vec::new();
    let mut at = planner.ms(500, 1500);
    while at < length {
        strikes.push(planner.strike(at));
        at += planner.ms(1200, 4500);
    }
    strikes
}

fn victims(rng: &mut Rng, shape: &Shape) -> [String; 2] {
    [rng.pick(&shape.storages).clone(), rng.pick(&shape.metas).clone()]
}

struct Planner<'a> {
    shape: &'a Shape,
    /// The storage node and the metadata node whose data may be destroyed; an empty name: that has been done.
    victims: [String; 2],
    rng: Rng,
}

impl Planner<'_> {
    fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.range(from, to))
    }

    fn strike(&mut self, at: Duration) -> Strike {
        let fault = self.fault();
        let lasts = match fault {
            Fault::Stop(_) | Fault::StopLeader => self.ms(500, STOP_MAX_MS),
            Fault::Cut { .. } => self.ms(1000, 12_000),
            Fault::Fill(_) => self.ms(2000, 10_000),
            Fault::KillAll => self.ms(100, 2000),
            _ => self.ms(200, 8000),
        };
        Strike { at, fault, lasts, salt: self.rng.next() }
    }

    fn fault(&mut self) -> Fault {
        let servers = [&self.shape.metas[..], &self.shape.storages[..]].concat();
        match self.rng.below(26) {
            0..=4 => Fault::Kill(self.rng.pick(&servers).clone()),
            5 => Fault::Kill(self.rng.pick(&self.shape.mounts).clone()),
            6 => Fault::KillLeader,
            7 if self.rng.once_in(2) => Fault::KillAll,
            8..=10 => Fault::Stop(self.rng.pick(&servers).clone()),
            11 => Fault::Stop(self.rng.pick(&self.shape.mounts).clone()),
            12 => Fault::StopLeader,
            13 => Fault::Fill(self.rng.pick(&self.shape.small_disks).clone()),
            14 | 15 => self.damage_chunks(),
            16 => self.damage_meta(),
            17 | 18 => Fault::KillServing(self.rng.pick(&self.shape.supervised).clone()),
            _ => self.cut(),
        }
    }

    fn cut(&mut self) -> Fault {
        let hosts = [&self.shape.metas[..], &self.shape.storages[..], &self.shape.mounts[..]].concat();
        let host = self.rng.pick(&hosts).clone();
        let way = *self.rng.pick(&[Way::Both, Way::Both, Way::Outward, Way::Inward]);
        // From everybody, or from some.
        let all = self.rng.once_in(2);
        let others = hosts.into_iter().filter(|other| *other != host && (all || self.rng.below(5) < 3)).collect();
        Fault::Cut { host, way, others }
    }

    fn damage_chunks(&mut self) -> Fault {
        let name = self.victims[0].clone();
        match self.rng.below(5) {
            0 => Fault::WipeStorage(name),
            1 | 2 => Fault::CutChunks(name),
            _ => Fault::FlipChunks(name),
        }
    }

    fn damage_meta(&mut self) -> Fault {
        let name = std::mem::take(&mut self.victims[1]);
        if name.is_empty() {
            return Fault::StopLeader;
        }
        match self.rng.below(3) {
            0 => Fault::WipeMeta(name),
            1 => Fault::CutLog(name),
            _ => Fault::FlipLog(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn shape() -> Shape {
        let names = |kind: &str, count| (1..=count).map(|i| format!("{kind}-{i}")).collect();
        Shape {
            metas: names("meta", 3),
            storages: names("storage", 4),
            mounts: names("mnt", 2),
            supervised: vec!["mnt-2".into()],
            small_disks: vec!["meta-3".into(), "storage-4".into()],
        }
    }

    #[test]
    fn a_seed_is_a_schedule() {
        let length = Duration::from_secs(60);
        assert_eq!(plan(7, &shape(), length), plan(7, &shape(), length));
        assert_ne!(plan(7, &shape(), length), plan(8, &shape(), length));
    }

    #[test]
    fn every_kind_comes_and_data_is_destroyed_on_one_node_of_a_kind_only() {
        let mut kinds = BTreeSet::new();
        for seed in 0..200 {
            let strikes = plan(seed, &shape(), Duration::from_secs(60));
            assert!(strikes.windows(2).all(|pair| pair[0].at <= pair[1].at));
            let (mut storages, mut metas) = (BTreeSet::new(), Vec::new());
            for strike in &strikes {
                kinds.insert(strike.fault.kind());
                match &strike.fault {
                    Fault::FlipChunks(name) | Fault::CutChunks(name) | Fault::WipeStorage(name) => {
                        storages.insert(name.clone());
                    }
                    Fault::FlipLog(name) | Fault::CutLog(name) | Fault::WipeMeta(name) => metas.push(name.clone()),
                    _ => {}
                }
            }
            assert!(storages.len() <= 1 && metas.len() <= 1, "seed {seed}: {storages:?} {metas:?}");
        }
        assert_eq!(kinds.len(), 15, "{kinds:?}");
    }
}
