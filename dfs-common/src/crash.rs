//! Crash points: places between two durable steps at which a process can be told to die.
//!
//! What a node does when it starts after a crash is only as good as its tests, and a kill at a random moment seldom hits the
//! moment between a rename and the fsync behind it. So each such moment has a [`Point`] in the code. With
//! `DFS_CRASH_POINT=NAME[:N]` in its environment a process kills itself by SIGKILL when it comes there for the `N`-th time (the
//! first, if no number is given): nothing is unwound, flushed or told, as when it is killed from outside.
//!
//! ```text
//! main: arm() ──► ... ──► point(ChunkRenamed) ── not this one, or too early: goes on
//!                                             └─ the N-th time: SIGKILL to itself
//! ```
//!
//! Unset, which is the rule, a point costs one relaxed load. The list here is all there are; docs/architecture.md says for each
//! what the next start finds, and which test shows it.

use std::{
    env,
    ffi::OsString,
    fmt,
    io::{self, Write as _},
    sync::atomic::{AtomicU16, AtomicU64, Ordering},
};

/// The environment variable.
pub const VARIABLE: &str = "DFS_CRASH_POINT";

macro_rules! points {
    ($($(#[doc = $doc:literal])+ $point:ident = $name:literal,)+) => {
        /// A place between two durable steps.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Point {
            $($(#[doc = $doc])+ $point,)+
        }

        impl Point {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$point,)+];

            /// Its name in the environment variable and in the documents.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)+
                }
            }
        }
    };
}

points! {
    /// Storage: all bytes and the footer are in the temporary file, nothing is synced.
    ChunkWritten = "chunk-written",
    /// Storage: the temporary file is synced and not renamed.
    ChunkSynced = "chunk-synced",
    /// Storage: the file has its name, and its directory is not synced.
    ChunkRenamed = "chunk-renamed",
    /// Storage, as the primary of an upload: its own copy is durable, nobody was told.
    PrimaryStored = "primary-stored",
    /// Storage, as a replica or the target of a repair: the copy is durable, the sender was not told.
    ReplicaStored = "replica-stored",
    /// Storage, as the primary of an upload: enough copies are durable, the client was not told.
    QuorumStored = "quorum-stored",
    /// Storage, as the primary of an upload: a copy came after the answer, metadata was not told.
    LateCopyStored = "late-copy-stored",
    /// Storage: chunks are deleted, metadata was not told.
    ChunksDeleted = "chunks-deleted",
    /// Storage: the data directory has its identity, and was never registered.
    IdentityStamped = "identity-stamped",
    /// Storage: registered, and the number is not noted.
    NodeRegistered = "node-registered",
    /// Storage: metadata has taken a page of the inventory over, its answer is not read.
    InventorySent = "inventory-sent",
    /// Storage, as the source of a repair: the target has its copy, metadata was not told.
    RepairCopied = "repair-copied",
    /// Metadata leader: a storage node is registered, it was not told.
    RegistrationApplied = "registration-applied",
    /// Metadata leader: a page of an inventory was compared with the record, what follows from it is not agreed on.
    InventoryCompared = "inventory-compared",
    /// Metadata leader: what a page of an inventory says is agreed on, the node was not told.
    InventoryApplied = "inventory-applied",
    /// Metadata leader: a storage node says that it has deleted doomed chunks, that is not agreed on.
    DeletionHeard = "deletion-heard",
    /// Metadata leader: other copies were confirmed, the one too many is in the record still.
    TrimConfirmed = "trim-confirmed",
    /// Metadata leader: the copy too many has left the record, its node was not told to delete it.
    TrimRecorded = "trim-recorded",
    /// Storage: a bad copy has its name in the quarantine, the directory that it was in is not synced.
    QuarantineRenamed = "quarantine-renamed",
    /// Storage: a bad copy is set aside, metadata was not told.
    CopySetAside = "copy-set-aside",
    /// Storage: a scrub has verified chunks, that is not noted.
    ScrubVerified = "scrub-verified",
    /// Storage: one of several data directories has the number of the node.
    DirectoryStamped = "directory-stamped",
    /// Metadata leader: a bad copy has left the record, its node was not told.
    BadCopyDropped = "bad-copy-dropped",
    /// Metadata leader: a source says that copies were made, that is not agreed on.
    RepairHeard = "repair-heard",
    /// Metadata leader: trash has become garbage, nothing of it is released.
    TrashDropped = "trash-dropped",
    /// Metadata leader: garbage was released, no node was told to delete its chunks.
    GarbageReleased = "garbage-released",
    /// Metadata leader: chunks that no file lists are doomed, no node was told to delete them.
    UnknownDoomed = "unknown-doomed",
    /// Metadata leader: a create is agreed on, the client was not told.
    CreateApplied = "create-applied",
    /// Metadata leader: a publication is agreed on, the client was not told.
    PublishApplied = "publish-applied",
    /// Metadata leader: a restoration from the trash is agreed on, the client was not told.
    RestoreApplied = "restore-applied",
    /// Metadata: entries are in a file of the log, and it is not synced.
    LogWritten = "log-written",
    /// Metadata: entries of the log are synced, nobody was told.
    LogFlushed = "log-flushed",
    /// Metadata: a vote is durable, the candidate was not told.
    VoteSaved = "vote-saved",
    /// Metadata: it is durable up to where the log is not needed, and the files of what is not are there still.
    LogPurged = "log-purged",
    /// Metadata: a file of the log has its final length for good, the next one is not there.
    LogSealed = "log-sealed",
    /// Metadata: one file of the log whose entries are purged is removed for good, others may be there still.
    LogShortened = "log-shortened",
    /// Metadata: a snapshot is written and synced under its temporary name.
    SnapshotWritten = "snapshot-written",
    /// Metadata: a snapshot has its name, and older ones and the log are there still.
    SnapshotRenamed = "snapshot-renamed",
    /// Metadata, as a follower: a snapshot came whole, under its temporary name.
    SnapshotReceived = "snapshot-received",
    /// Metadata, as a follower: a received snapshot has its name, the state in memory is the old one.
    SnapshotAdopted = "snapshot-adopted",
    /// Metadata, as a follower: the state is that of a received snapshot, the log is the old one.
    SnapshotInstalled = "snapshot-installed",
    /// Metadata: the node is stamped as a founder, the membership is not written.
    FormStamped = "form-stamped",
    /// Metadata, as a node that is filled: stamped as not complete.
    JoinBegun = "join-begun",
    /// Metadata, as a node that is filled: the leader's vote is durable, nothing was accepted from it.
    JoinPromised = "join-promised",
    /// Metadata, as a node that is filled: it has caught up, and is not stamped as complete.
    JoinCaughtUp = "join-caught-up",
    /// Metadata leader: a new node is a member without a vote.
    MemberLearner = "member-learner",
    /// Metadata: a membership in which two majorities count was applied, the final one is not written.
    MembershipJoint = "membership-joint",
    /// Metadata: the node has heard that it was removed, its directory is not stamped.
    RemovalHeard = "removal-heard",
    /// Metadata: the leader has given its lease up for this node, which has not stood for election.
    HeirAsked = "heir-asked",
    /// `dfs-meta restore`, `dfs-meta rescue`: the directory is stamped as unfinished.
    AnewBegun = "anew-begun",
    /// `dfs-meta restore`, `dfs-meta rescue`: the snapshot with the new membership is there.
    AnewSnapshot = "anew-snapshot",
    /// `dfs-meta restore`, `dfs-meta rescue`: the vote is saved.
    AnewVoted = "anew-voted",
    /// `dfs-meta restore`, `dfs-meta rescue`: the log is purged, the last stamp is missing.
    AnewPurged = "anew-purged",
    /// Client: a file was created, nothing of it is stored.
    CreateAnswered = "create-answered",
    /// Client: all chunks of a file are stored, it is not published.
    PublishStored = "publish-stored",
    /// Client: a file is published, its writer was not told.
    PublishAnswered = "publish-answered",
    /// Client: a lock is granted, a successor of the process would not know.
    LockGranted = "lock-granted",
    /// Mount: an open file is recorded for a successor, the kernel was not told its number.
    HandleRecorded = "handle-recorded",
    /// `dfsctl upload`: a chunk is stored, the manifest does not have it.
    UploadStored = "upload-stored",
    /// `dfsctl upload`: a chunk is in the manifest.
    UploadNoted = "upload-noted",
    /// `dfsctl upload`: the file is published, the manifest is there still.
    UploadPublished = "upload-published",
    /// `dfsctl meta backup`: the backup is complete under its temporary name.
    BackupWritten = "backup-written",
}

/// 0: none; else the number of the point plus one.
static ARMED: AtomicU16 = AtomicU16::new(0);
/// How often the point is still passed; the last time is the end.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// A crash point that was set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Armed {
    /// Where.
    pub point: Point,
    /// At which pass, 1 or more.
    pub pass: u64,
}

impl fmt::Display for Armed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { point, pass } = self;
        write!(f, "{VARIABLE} is set: this process kills itself at pass {pass} of {}", point.name())
    }
}

/// The variable makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ArmError {
    /// There is no such point.
    #[error("{VARIABLE}: there is no crash point {name:?}; known are {}; unset it for normal work", known())]
    Unknown {
        /// What was given.
        name: String,
    },
    /// The number behind the colon.
    #[error(
        "{VARIABLE}: {count:?} is no number of passes: give NAME or NAME:N with N from 1 on, or unset it for normal work"
    )]
    Count {
        /// What was given.
        count: String,
    },
}

fn known() -> String {
    Point::ALL.iter().map(|point| point.name()).collect::<Vec<_>>().join(", ")
}

/// Sets the point that the environment names, if it names one. To be called once, by `main`, which warns of the result: a
/// forgotten variable must not be a riddle.
///
/// # Errors
/// The point is unknown, or its number is none.
pub fn arm() -> Result<Option<Armed>, ArmError> {
    let armed = env::var_os(VARIABLE).filter(|text| !text.is_empty()).map(parse).transpose()?;
    if let Some(Armed { point, pass }) = armed {
        LEFT.store(pass, Ordering::Relaxed);
        ARMED.store(point as u16 + 1, Ordering::Relaxed);
    }
    Ok(armed)
}

fn parse(text: OsString) -> Result<Armed, ArmError> {
    let text = text.to_string_lossy();
    let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
    let point = Point::ALL.iter().copied().find(|point| point.name() == name);
    let point = point.ok_or_else(|| ArmError::Unknown { name: name.to_owned() })?;
    let pass = count.parse().ok().filter(|pass| *pass > 0);
    let pass = pass.ok_or_else(|| ArmError::Count { count: count.to_owned() })?;
    Ok(Armed { point, pass })
}

/// A place between two durable steps: the process dies here if it was told to.
#[inline]
pub fn point(point: Point) {
    if ARMED.load(Ordering::Relaxed) == point as u16 + 1 {
        pass(point);
    }
}

#[cold]
fn pass(point: Point) {
    // Wraps after the last pass, which nobody sees.
    if LEFT.fetch_sub(1, Ordering::Relaxed) != 1 {
        return;
    }
    // Standard error may be closed; dying matters more.
    drop(writeln!(io::stderr(), "crash point {}: this process kills itself", point.name()));
    // SAFETY: a plain system call on the own process; no memory is touched.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    // The signal ends all threads, this one included, but it may take a moment.
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, os::unix::process::ExitStatusExt as _, process::Command};

    use super::*;

    fn parsed(text: &str) -> Result<(&'static str, u64), String> {
        parse(text.into()).map(|armed| (armed.point.name(), armed.pass)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_with_or_without_a_number_is_a_point() {
        assert_eq!(parsed("chunk-renamed"), Ok(("chunk-renamed", 1)));
        assert_eq!(parsed("chunk-renamed:7"), Ok(("chunk-renamed", 7)));
        for text in ["chunk-renamed:0", "chunk-renamed:", "chunk-renamed:-1", "chunk-renamed:1:2"] {
            assert!(parsed(text).is_err_and(|error| error.contains("no number of passes")), "{text}");
        }
        let error = parsed("chunk-renmaed").expect_err("a slip");
        assert!(
            error.contains("chunk-renmaed") && error.contains("chunk-renamed") && error.contains("unset"),
            "{error}"
        );
    }

    #[test]
    fn names_are_unique_and_fit_their_variants() {
        let names: BTreeSet<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        for point in Point::ALL {
            let variant = format!("{point:?}").to_lowercase();
            assert_eq!(point.name().replace('-', ""), variant);
        }
    }

    /// Run by the next test in a process of its own.
    #[test]
    #[ignore = "dies"]
    fn dies_at_its_third_pass() {
        let armed = arm().expect("known").expect("set");
        assert_eq!(armed.pass, 3);
        for _ in 0..9 {
            point(Point::ChunkWritten);
        }
        for pass in 1..=3 {
            println!("pass {pass}");
            point(Point::ChunkRenamed);
        }
        unreachable!("killed before");
    }

    #[test]
    fn the_process_is_killed_at_the_pass_that_was_asked_for() {
        let me = env::current_exe().expect("known");
        let mut child = Command::new(me);
        child.args(["--ignored", "--exact", "--nocapture", "crash::tests::dies_at_its_third_pass"]);
        let output = child.env(VARIABLE, "chunk-renamed:3").output().expect("runs");
        assert_eq!(output.status.signal(), Some(libc::SIGKILL), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("pass 3"), "{said}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("crash point chunk-renamed"), "{output:?}");
    }
}
