//! What is really on the disks: the chunks of files, asked of the storage nodes, against the record of the metadata nodes.
//!
//! A [`Fsck`] is fed with files and says what is wrong with their chunks. Every node is asked about every chunk, also those
//! that the record does not name. A window of chunks is under way at a time, so memory does not grow with the tree; a node
//! that does not answer is given up after two failures and named, so nothing hangs. What differs is looked at a second time
//! with a fresh record, because files and copies move while they are checked; what still differs is reported to metadata,
//! which starts the repair.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dfs_common::{ChunkId, ChunkRef, ErrorCode, InodeId, Layout, NodeId, node::NodeState};
use dfs_proto::{convert, status::RpcError, transport, v1, v1::storage_service_client::StorageServiceClient};
use futures::{StreamExt as _, stream};
use tonic::{Response, Status, transport::Channel};

use crate::{Dfs, Error, cluster::metadata};

/// Chunks under way at a time.
const WINDOW: usize = 4096;
/// Chunks asked about in one call.
const STAT_MAX: usize = 1024;
/// Chunks that one node verifies at a time: two keep its disk busy while the answer of one travels.
const VERIFY_PARALLEL: usize = 2;
/// Failures in a row after which a node is not asked any more.
const FAILURES_MAX: u32 = 2;
/// Layouts asked for at a time.
const LAYOUTS_PARALLEL: usize = 16;

/// A storage node that is asked.
#[derive(Debug)]
struct Asked {
    id: NodeId,
    name: String,
    state: NodeState,
    channel: Channel,
    failures: AtomicU32,
    error: Mutex<Option<String>>,
    /// How long its last answer took.
    answer: Mutex<Option<Duration>>,
    /// Since when the copy is known to be whole that was verified longest ago; 0 if one never was.
    verified_ns: Mutex<Option<i64>>,
}

impl Asked {
    fn is_given_up(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= FAILURES_MAX
    }

    fn note_verified(&self, answer: &v1::StatChunksResponse) {
        // A node of an older version does not say.
        let times = answer.verified_ns.iter().copied().chain(std::iter::repeat(0));
        let oldest = answer.present.iter().zip(times).filter(|(present, _)| **present).map(|(_, ns)| ns).min();
        let mut known = self.verified_ns.lock().unwrap_or_else(PoisonError::into_inner);
        *known = known.into_iter().chain(oldest).min();
    }

    fn failed(&self, error: &RpcError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.message.clone());
    }
}

/// Checks files; see the module.
pub struct Fsck {
    dfs: Dfs,
    cluster_id: Bytes,
    wanted: usize,
    verify: bool,
    nodes: Vec<Asked>,
    /// Dead nodes that nobody can answer for any more.
    gone: Vec<NodeId>,
}

/// A file to be checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    /// Path from the root without a leading slash.
    pub path: Vec<u8>,
    /// Its inode.
    pub ino: InodeId,
}

/// How a chunk stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Standing {
    /// As many good copies as wanted.
    Full,
    /// At least one good copy, fewer than wanted.
    UnderReplicated,
    /// No good copy was found, and some nodes that should have one could not be asked, or there are copies that are not recorded
    /// and were not verified.
    Unknown,
    /// No good copy anywhere.
    Lost,
}

/// What was found about one chunk that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Slot in the file.
    pub index: u64,
    /// The chunk.
    pub chunk: ChunkId,
    /// How it stands.
    pub standing: Standing,
    /// Nodes with a good copy: verified, or else recorded and there. A copy that is there, not recorded and not verified may be
    /// one that left the record because it is bad.
    pub good: Vec<NodeId>,
    /// Nodes that should have a copy and do not.
    pub missing: Vec<NodeId>,
    /// Nodes whose copy is bad.
    pub corrupt: Vec<NodeId>,
    /// Nodes that should have a copy and could not be asked.
    pub not_asked: Vec<NodeId>,
    /// Nodes with a copy that the record does not name.
    pub unrecorded: Vec<NodeId>,
}

/// What was found about one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileFindings {
    /// Path from the root without a leading slash.
    pub path: Vec<u8>,
    /// Chunks that are not as they should be.
    pub findings: Vec<Finding>,
}

/// How much was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Looked {
    /// Files.
    pub files: u64,
    /// Chunks, holes not counted.
    pub chunks: u64,
    /// Good copies found.
    pub copies: u64,
    /// Bytes of the chunks, one copy counted.
    pub bytes: u64,
}

/// One chunk of a window.
#[derive(Clone, Debug)]
struct Slot {
    file: usize,
    index: u64,
    chunk: ChunkRef,
}

/// What the nodes said about the chunks of a window.
#[derive(Debug, Default)]
struct Answers {
    present: HashMap<ChunkId, Vec<NodeId>>,
    corrupt: HashMap<ChunkId, Vec<NodeId>>,
    silent: BTreeSet<NodeId>,
}

impl Fsck {
    /// Prepares a check; with `verify` the nodes read every byte of the copies, otherwise they say what they have.
    ///
    /// # Errors
    /// No leader answers within the deadline.
    pub async fn new(dfs: &Dfs, verify: bool) -> Result<Self, Error> {
        let status = dfs.cluster_status().await?;
        let (mut nodes, mut gone) = (Vec::new(), Vec::new());
        // A node that got an empty disk comes back under its address as a new one: nobody answers for the old one any more.
        let is_followed = |node: &v1::NodeStatus| {
            let other = |other: &&v1::NodeStatus| other.address == node.address && other.node_id > node.node_id;
            status.nodes.iter().any(|found| other(&found))
        };
        for node in &status.nodes {
            let state = convert::state(node.state)?;
            if state == NodeState::Decommissioned {
                continue;
            }
            if state == NodeState::Dead && is_followed(node) {
                gone.push(NodeId(node.node_id));
                continue;
            }
            let channel = transport::connect(&node.address, dfs.options().connect_timeout)
                .map_err(|error| Error::new(ErrorCode::InvalidArgument, format!("node {}: {error}", node.name)))?;
            nodes.push(Asked {
                id: NodeId(node.node_id),
                name: node.name.clone(),
                state,
                channel,
                failures: AtomicU32::new(0),
                error: Mutex::default(),
                answer: Mutex::default(),
                verified_ns: Mutex::default(),
            });
        }
        let wanted = status.detector.map_or(1, |settings| settings.replication as usize);
        Ok(Self { dfs: dfs.clone(), cluster_id: status.cluster_id, wanted, verify, nodes, gone })
    }

    /// Whether the nodes read the copies: without that nobody knows whether they are good.
    #[must_use]
    pub fn verifies(&self) -> bool {
        self.verify
    }

    /// Copies wanted of each chunk.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// Name of a node.
    #[must_use]
    pub fn name(&self, node: NodeId) -> String {
        let known = self.nodes.iter().find(|asked| asked.id == node);
        known.map_or_else(|| format!("node {node}"), |asked| asked.name.clone())
    }

    /// Nodes that could not be asked so far: name, state, why.
    #[must_use]
    pub fn not_asked(&self) -> Vec<(String, NodeState, String)> {
        let error = |node: &Asked| node.error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.nodes.iter().filter_map(|node| Some((node.name.clone(), node.state, error(node)?))).collect()
    }

    /// How long each node took to say which chunks it has, the last time it was asked.
    #[must_use]
    pub fn answer_times(&self) -> Vec<(NodeId, Duration)> {
        let time = |node: &Asked| *node.answer.lock().unwrap_or_else(PoisonError::into_inner);
        self.nodes.iter().filter_map(|node| Some((node.id, time(node)?))).collect()
    }

    /// Since when (nanoseconds since the Unix epoch, the node's clock) each node knows every copy that was asked about to be
    /// whole; 0 if its scrub has not come to one of them yet. Nodes without a copy are left out.
    #[must_use]
    pub fn verified(&self) -> Vec<(NodeId, i64)> {
        let since = |node: &Asked| *node.verified_ns.lock().unwrap_or_else(PoisonError::into_inner);
        self.nodes.iter().filter_map(|node| Some((node.id, since(node)?))).collect()
    }

    /// Checks some files, and calls `progress` with how much was looked at since the last call. Files that are gone meanwhile are
    /// skipped. What is missing or corrupt is reported to metadata.
    ///
    /// # Errors
    /// Metadata does not answer within the deadline. A storage node that does not is a finding.
    pub async fn check(&self, files: &[Subject], mut progress: impl FnMut(Looked)) -> Result<Vec<FileFindings>, Error> {
        let mut found: BTreeMap<usize, Vec<Finding>> = BTreeMap::new();
        let mut window: Vec<Slot> = Vec::new();
        let mut layouts = stream::iter(files.iter().enumerate())
            .map(async |(file, subject)| (file, self.layout(subject.ino).await))
            .buffered(LAYOUTS_PARALLEL);
        while let Some((file, layout)) = layouts.next().await {
            let Some(Layout::Replicated { chunks, .. }) = layout? else { continue };
            progress(Looked { files: 1, ..Looked::default() });
            for (index, chunk) in (0..).zip(chunks).filter(|(_, chunk)| !chunk.is_hole()) {
                window.push(Slot { file, index, chunk });
                if window.len() == WINDOW {
                    self.check_window(files, std::mem::take(&mut window), &mut found, &mut progress).await?;
                }
            }
        }
        self.check_window(files, window, &mut found, &mut progress).await?;
        let named = |(file, findings): (usize, Vec<Finding>)| FileFindings { path: files[file].path.clone(), findings };
        Ok(found.into_iter().map(named).collect())
    }

    /// The published content; `None` if there is none (any more).
    async fn layout(&self, ino: InodeId) -> Result<Option<Layout>, Error> {
        match self.dfs.layout(ino).await {
            Ok((_, layout, _)) => Ok(Some(layout)),
            Err(error) if matches!(error.code, ErrorCode::NotFound | ErrorCode::Stale) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn check_window(
        &self,
        files: &[Subject],
        window: Vec<Slot>,
        found: &mut BTreeMap<usize, Vec<Finding>>,
        progress: &mut impl FnMut(Looked),
    ) -> Result<(), Error> {
        if window.is_empty() {
            return Ok(());
        }
        let answers = self.ask(&window).await;
        let first = window.iter().map(|slot| (slot, self.judge(slot, &answers)));
        let (suspicious, calm): (Vec<_>, Vec<_>) = first.partition(|(_, finding)| finding.is_fault());
        let slots: Vec<&Slot> = suspicious.iter().map(|(slot, _)| *slot).collect();
        let again = self.refresh(files, &slots).await?;
        let second = if again.is_empty() { Answers::default() } else { self.ask(&again).await };
        let mut findings: Vec<(usize, Finding)> =
            calm.into_iter().map(|(slot, finding)| (slot.file, finding)).collect();
        findings.extend(again.iter().map(|slot| (slot.file, self.judge(slot, &second))));
        self.report(findings.iter().map(|(_, finding)| finding)).await?;
        // What was read and bad counts, also when its node has dropped it since, or when a good one took its place.
        let mut bad: HashMap<(usize, u64), Vec<NodeId>> =
            suspicious.into_iter().map(|(slot, finding)| ((slot.file, slot.index), finding.corrupt)).collect();
        for (file, finding) in &mut findings {
            let earlier = bad.remove(&(*file, finding.index)).unwrap_or_default();
            let dropped: Vec<_> = earlier.into_iter().filter(|node| !finding.corrupt.contains(node)).collect();
            finding.corrupt.extend(dropped);
            finding.missing.retain(|node| !finding.corrupt.contains(node));
        }
        findings.retain(|(_, finding)| !finding.is_fine());
        findings.sort_by_key(|(file, finding)| (*file, finding.index));
        progress(Looked {
            files: 0,
            chunks: window.len() as u64,
            copies: answers.present.values().map(|nodes| nodes.len() as u64).sum(),
            bytes: window.iter().map(|slot| u64::from(slot.chunk.length)).sum(),
        });
        findings.into_iter().for_each(|(file, finding)| found.entry(file).or_default().push(finding));
        Ok(())
    }

    /// The same slots as their files have them now.
    async fn refresh(&self, files: &[Subject], slots: &[&Slot]) -> Result<Vec<Slot>, Error> {
        let mut fresh = Vec::new();
        for of_file in slots.chunk_by(|a, b| a.file == b.file) {
            let Some(file) = of_file.first().map(|slot| slot.file) else { continue };
            let Some(Layout::Replicated { chunks, .. }) = self.layout(files[file].ino).await? else { continue };
            for slot in of_file {
                let now = usize::try_from(slot.index).ok().and_then(|index| chunks.get(index));
                if let Some(chunk) = now.filter(|chunk| chunk.id == slot.chunk.id) {
                    fresh.push(Slot { chunk: chunk.clone(), ..(*slot).clone() });
                }
            }
        }
        Ok(fresh)
    }

    async fn ask(&self, window: &[Slot]) -> Answers {
        let chunks: BTreeMap<ChunkId, [u8; 32]> =
            window.iter().map(|slot| (slot.chunk.id, slot.chunk.sha256)).collect();
        let said = futures::future::join_all(self.nodes.iter().map(|node| self.ask_node(node, &chunks))).await;
        // Their copies are neither there nor missing: they are recorded until the node is removed, and are replaced long since.
        let mut answers = Answers { silent: self.gone.iter().copied().collect(), ..Answers::default() };
        for (node, said) in self.nodes.iter().zip(said) {
            let Some(said) = said else {
                answers.silent.insert(node.id);
                continue;
            };
            for (chunk, good) in said {
                let list = if good { &mut answers.present } else { &mut answers.corrupt };
                list.entry(chunk).or_default().push(node.id);
            }
        }
        answers
    }

    /// Which of the chunks a node has, and whether they are good; `None` if it does not answer.
    async fn ask_node(&self, node: &Asked, chunks: &BTreeMap<ChunkId, [u8; 32]>) -> Option<Vec<(ChunkId, bool)>> {
        let mut has = Vec::new();
        let ids: Vec<ChunkId> = chunks.keys().copied().collect();
        for part in ids.chunks(STAT_MAX) {
            let present = self.stat(node, part).await?;
            has.extend(part.iter().zip(present).filter(|(_, present)| *present).map(|(id, _)| *id));
        }
        if !self.verify {
            return Some(has.into_iter().map(|id| (id, true)).collect());
        }
        let verdicts: Vec<_> = stream::iter(has)
            .map(async |id| (id, self.verify_chunk(node, id, chunks[&id]).await))
            .buffer_unordered(VERIFY_PARALLEL)
            .collect()
            .await;
        let mut said = Vec::new();
        for (id, verdict) in verdicts {
            match verdict? {
                Verdict::Good => said.push((id, true)),
                Verdict::Corrupt => said.push((id, false)),
                Verdict::Gone => {}
            }
        }
        Some(said)
    }

    async fn stat(&self, node: &Asked, ids: &[ChunkId]) -> Option<Vec<bool>> {
        while !node.is_given_up() {
            let chunk_ids = ids.iter().map(|id| convert::id_bytes(id.as_bytes())).collect();
            let mut client = StorageServiceClient::new(node.channel.clone());
            let started = std::time::Instant::now();
            let call = client.stat_chunks(v1::StatChunksRequest { chunk_ids });
            match timed(self.dfs.options().rpc_timeout, call).await {
                Ok(answer) if answer.present.len() == ids.len() => {
                    node.failures.store(0, Ordering::Relaxed);
                    *node.error.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    *node.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(started.elapsed());
                    node.note_verified(&answer);
                    return Some(answer.present);
                }
                Ok(_) => node.failed(&RpcError::new(ErrorCode::Internal, "its answer has another length")),
                Err(error) => node.failed(&error),
            }
        }
        None
    }

    async fn verify_chunk(&self, node: &Asked, id: ChunkId, sha256: [u8; 32]) -> Option<Verdict> {
        while !node.is_given_up() {
            let request = v1::VerifyChunkRequest {
                chunk_id: convert::id_bytes(id.as_bytes()),
                cluster_id: self.cluster_id.clone(),
                node_id: node.id.0,
            };
            let mut client = StorageServiceClient::new(node.channel.clone());
            match timed(self.dfs.options().rpc_timeout, client.verify_chunk(request)).await {
                Ok(answer) => {
                    node.failures.store(0, Ordering::Relaxed);
                    return Some(if answer.sha256[..] == sha256 { Verdict::Good } else { Verdict::Corrupt });
                }
                Err(error) if error.code == ErrorCode::Corrupt => return Some(Verdict::Corrupt),
                Err(error) if error.code == ErrorCode::ChunkMissing => return Some(Verdict::Gone),
                Err(error) => node.failed(&error),
            }
        }
        None
    }

    fn judge(&self, slot: &Slot, answers: &Answers) -> Finding {
        judge(slot, answers, self.wanted, self.verify)
    }

    /// Tells metadata what is missing or bad, so that repair starts.
    async fn report(&self, findings: impl Iterator<Item = &Finding>) -> Result<(), Error> {
        for finding in findings {
            let missing = finding.missing.iter().map(|node| (*node, true, "fsck: the node does not have it"));
            let corrupt = finding.corrupt.iter().map(|node| (*node, false, "fsck: the copy is bad"));
            for (node, missing, reason) in missing.chain(corrupt) {
                let request = v1::ReportCorruptionRequest {
                    chunk_id: convert::id_bytes(finding.chunk.as_bytes()),
                    node_id: node.0,
                    reason: reason.to_owned(),
                    missing,
                };
                let what = || "reporting a bad copy".to_owned();
                let report = |c, q| async move { metadata(c).report_corruption(q).await };
                self.dfs.shared.cluster.call(&what, request, report).await?;
            }
        }
        Ok(())
    }
}

/// How a chunk stands after what the nodes said.
fn judge(slot: &Slot, answers: &Answers, wanted: usize, verified: bool) -> Finding {
    let chunk = &slot.chunk;
    let nodes = |map: &HashMap<ChunkId, Vec<NodeId>>| map.get(&chunk.id).cloned().unwrap_or_default();
    let (present, corrupt) = (nodes(&answers.present), nodes(&answers.corrupt));
    let (silent, answered): (Vec<NodeId>, Vec<NodeId>) =
        chunk.replicas.iter().partition(|node| answers.silent.contains(node));
    let missing: Vec<NodeId> =
        answered.into_iter().filter(|node| !present.contains(node) && !corrupt.contains(node)).collect();
    let (recorded, unrecorded): (Vec<NodeId>, Vec<NodeId>) =
        present.iter().copied().partition(|node| chunk.replicas.contains(node));
    let good = if verified { present } else { recorded };
    let standing = match good.len() {
        0 if silent.is_empty() && unrecorded.is_empty() => Standing::Lost,
        0 => Standing::Unknown,
        n if n < wanted => Standing::UnderReplicated,
        _ => Standing::Full,
    };
    let (index, chunk) = (slot.index, chunk.id);
    Finding { index, chunk, standing, good, missing, corrupt, not_asked: silent, unrecorded }
}

impl Finding {
    fn is_fine(&self) -> bool {
        self.standing == Standing::Full && !self.is_fault() && self.unrecorded.is_empty()
    }

    /// Whether something is wrong, rather than only not known or not recorded.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        !self.missing.is_empty() || !self.corrupt.is_empty() || self.standing == Standing::Lost
    }
}

enum Verdict {
    Good,
    Corrupt,
    /// It was deleted since it was listed.
    Gone,
}

/// The answer of a call, within a deadline.
async fn timed<R>(timeout: Duration, call: impl Future<Output = Result<Response<R>, Status>>) -> Result<R, RpcError> {
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(RpcError::new(ErrorCode::TimedOut, format!("no answer within {timeout:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(replicas: &[u32]) -> Slot {
        let replicas = replicas.iter().copied().map(NodeId).collect();
        Slot { file: 0, index: 0, chunk: ChunkRef { id: ChunkId([1; 32]), length: 1, sha256: [0; 32], replicas } }
    }

    fn present(nodes: &[u32]) -> Answers {
        let nodes = nodes.iter().copied().map(NodeId).collect();
        Answers { present: HashMap::from([(ChunkId([1; 32]), nodes)]), ..Answers::default() }
    }

    #[test]
    fn a_copy_that_is_not_recorded_counts_only_when_it_was_read() {
        for (recorded, verified, standing, good) in [
            (&[1, 2, 3][..], false, Standing::Full, 3),
            (&[3], false, Standing::UnderReplicated, 1),
            (&[3], true, Standing::Full, 3),
            (&[], false, Standing::Unknown, 0),
            (&[], true, Standing::Full, 3),
        ] {
            let finding = judge(&slot(recorded), &present(&[1, 2, 3]), 3, verified);
            assert_eq!((finding.standing, finding.good.len()), (standing, good), "{recorded:?} {verified}");
            assert_eq!(finding.unrecorded.len(), 3 - recorded.len());
            assert_eq!(finding.is_fine(), recorded.len() == 3);
        }
        assert_eq!(judge(&slot(&[1]), &present(&[]), 3, false).standing, Standing::Lost);
    }
}
