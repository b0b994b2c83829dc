//! Keeps metadata informed: registration, then a heartbeat at the interval that metadata gave, and at once when there are
//! results that metadata waits for.
//!
//! ```text
//!            ┌──────────────┐  number and interval   ┌──────────────────────────────┐
//!  start ───►│ Registering  │───────────────────────►│ Beating: news out, work back │
//!            └──────────────┘◄───────────────────────└──────────────────────────────┘
//!                 │          register_again, or too many news: new incarnation
//!                 ▼ wrong cluster or number: the process ends
//! ```
//!
//! A heartbeat never waits for disk work or repairs: what metadata asks for goes to bounded queues, pages of the inventory are
//! read beside and sent when they are there. Answers of a deposed leader (a lower term than seen) are ignored.

mod message;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use dfs_common::{
    ChunkId, ErrorCode,
    backoff::{Backoff, Policy},
    crash::{self, Point},
    disk::{DiskReport, ScrubOrder},
};
use dfs_proto::{
    WIRE_VERSION, convert,
    status::RpcError,
    v1::{self, HeartbeatResponse, InventoryRequest, RegisterNodeRequest, RegisterNodeResponse},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    data_dir::{DataDirError, Membership},
    engine::Usage,
    meta_client::MetaClient,
    node::Node,
    stamps::Stamps,
    worker::{deletes::Deletes, repair::Repairs},
};
use message::Inventory;

/// Least time between two heartbeats, however much there is to tell.
const GAP_MIN: Duration = Duration::from_millis(20);
/// Bounds of the interval that metadata may give.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));
/// How long a heartbeat waits for fresh figures of the disk before it sends the last ones.
const USAGE_WAIT: Duration = Duration::from_millis(500);
/// Chunks in a page of the inventory, whatever metadata asks for.
const PAGE_MAX: u32 = 8192;
/// One registration, with its search for the leader.
const REGISTER_DEADLINE: Duration = Duration::from_secs(5);

/// Why a node must end.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The data directory and metadata contradict each other.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Metadata was restored from a backup that does not know this node.
    #[error(
        "metadata was restored and has given this node the new number {0}, which is noted in the data directory: start it again"
    )]
    Renumbered(dfs_common::NodeId),
    /// Metadata refuses this node for good.
    #[error("metadata refuses this node: {0}")]
    Refused(RpcError),
}

/// How this node presents itself.
#[derive(Clone, Debug)]
pub struct Presentation {
    /// `host:port` under which clients and other nodes reach it.
    pub address: String,
    /// Failure domain; may be empty.
    pub rack: String,
}

/// The heartbeat of a node.
pub struct Heartbeat {
    node: Arc<Node>,
    meta: Arc<MetaClient>,
    stamps: Stamps,
    presentation: Presentation,
    deletes: Deletes,
    repairs: Repairs,
    interval: Duration,
    /// Highest epoch of metadata, and highest term of a leader in it, that answered.
    term: (u64, u64),
    usage: Usage,
    disks: Vec<DiskReport>,
    /// Number of the last order about scrubs that was carried out.
    scrub_order: u64,
    pages: (mpsc::Sender<Inventory>, mpsc::Receiver<Inventory>),
    /// The page that is being read or waits to be taken over: (run, after).
    page_wanted: Option<(u64, Option<ChunkId>)>,
    page: Option<Inventory>,
    failing: bool,
}

impl Heartbeat {
    /// A heartbeat that has not begun.
    #[must_use]
    pub fn new(
        node: Arc<Node>,
        meta: Arc<MetaClient>,
        stamps: Stamps,
        presentation: Presentation,
        deletes: Deletes,
        repairs: Repairs,
    ) -> Self {
        Self {
            node,
            meta,
            stamps,
            presentation,
            deletes,
            repairs,
            interval: INTERVAL.1,
            term: (0, 0),
            usage: Usage::default(),
            disks: vec![],
            scrub_order: 0,
            pages: mpsc::channel(1),
            page_wanted: None,
            page: None,
            failing: false,
        }
    }

    /// Registers and beats until it is cancelled.
    ///
    /// # Errors
    /// The node must end.
    pub async fn run(mut self) -> Result<std::convert::Infallible, Fatal> {
        loop {
            self.node.incarnation.store(rand::random(), Ordering::Relaxed);
            self.register().await?;
            self.beat().await;
        }
    }

    /// Registers, however long it takes.
    async fn register(&mut self) -> Result<(), Fatal> {
        let mut backoff = Backoff::new(Policy::default());
        loop {
            self.refresh_usage().await;
            let request = self.registration();
            let result = self
                .meta
                .call(REGISTER_DEADLINE, |mut client| {
                    let request = request.clone();
                    async move { client.register_node(request).await }
                })
                .await;
            match result.and_then(|response| Ok((membership(&response)?, response))) {
                Ok((member, _)) if self.is_former(member.epoch) => {
                    let delay = backoff.next_delay(&mut rand::rng());
                    sleep(delay).await;
                }
                Ok((membership, response)) => return self.join(membership, &response),
                Err(error) if is_final(error.code) => return Err(Fatal::Refused(error)),
                Err(error) => {
                    self.note_failure("registration with metadata failed and is retried", &error);
                    let delay = backoff.next_delay(&mut rand::rng());
                    sleep(delay).await;
                }
            }
        }
    }

    fn incarnation(&self) -> u64 {
        self.node.incarnation.load(Ordering::Relaxed)
    }

    fn registration(&self) -> RegisterNodeRequest {
        let cluster = self.stamps.membership().map(|member| convert::id_bytes(member.cluster.as_bytes()));
        RegisterNodeRequest {
            node_uuid: convert::id_bytes(self.stamps.uuid().as_bytes()),
            cluster_id: cluster.unwrap_or_default(),
            name: self.node.name.clone(),
            address: self.presentation.address.clone(),
            rack: self.presentation.rack.clone(),
            capacity_bytes: self.usage.capacity_bytes,
            used_bytes: self.usage.used_bytes,
            chunk_count: self.usage.chunks,
            incarnation: self.incarnation(),
            wire_version: WIRE_VERSION,
        }
    }

    fn join(&mut self, membership: Membership, response: &RegisterNodeResponse) -> Result<(), Fatal> {
        crash::point(Point::NodeRegistered);
        // A few bytes, once in the life of a node: not worth a thread.
        self.stamps.join(membership)?;
        self.learn(&response.meta_addresses);
        if self.node.membership.get().is_some_and(|ours| ours.node != membership.node) {
            return Err(Fatal::Renumbered(membership.node));
        }
        let _ = self.node.membership.set(membership);
        self.interval = Duration::from_millis(response.heartbeat_ms).clamp(INTERVAL.0, INTERVAL.1);
        self.failing = false;
        (self.page, self.page_wanted) = (None, None);
        let (node, cluster) = (membership.node, membership.cluster);
        tracing::info!(%node, %cluster, interval = ?self.interval, "registered with metadata");
        Ok(())
    }

    /// Beats until metadata does not know this incarnation any more or only a full inventory can tell the news.
    async fn beat(&mut self) {
        // The first one at once: it is how metadata asks for the inventory.
        let mut next = Instant::now();
        loop {
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.node.changes.woken() => {}
                Some(page) = self.pages.1.recv() => self.page_read(page),
            }
            if self.node.changes.take_overflow() {
                tracing::info!("too many changes for a difference: registering again for a full inventory");
                return;
            }
            let start = Instant::now();
            match self.exchange().await {
                Ok(answer) => {
                    if self.is_deposed(&answer) {
                        next = start + self.interval;
                        sleep(GAP_MIN).await;
                        continue;
                    }
                    self.failing = false;
                    if answer.register_again || self.is_new_epoch(&answer) {
                        tracing::info!("metadata does not know this node's run: registering again");
                        return;
                    } else {
                        next = if answer.more { start } else { start + self.interval };
                        self.obey(answer);
                    }
                }
                Err(error) => {
                    self.note_failure("a heartbeat failed and is retried", &error);
                    next = start + self.interval;
                }
            }
            sleep(GAP_MIN).await;
        }
    }

    async fn exchange(&mut self) -> Result<HeartbeatResponse, RpcError> {
        self.refresh_usage().await;
        let unreachable = self.node.changes.take_unreachable();
        let confirmed = self.node.changes.take_confirmed();
        let inventory_due = self.node.changes.take_inventory_due();
        let mut request =
            message::heartbeat(&self.node, self.incarnation(), self.usage, &unreachable, self.page.as_ref())?;
        request.confirmed = confirmed.iter().map(|id| convert::id_bytes(id.as_bytes())).collect();
        request.disks = self.disks.iter().map(Into::into).collect();
        (request.scrub_order, request.inventory_due) = (self.scrub_order, inventory_due);
        let has_page = request.inventory.is_some();
        if !has_page && self.page.is_some() {
            (self.page, self.page_wanted) = (None, None);
        }
        // Within one interval: a later heartbeat says more than a retry of this one.
        let answer = self
            .meta
            .call(self.interval.max(Duration::from_secs(1)), |mut client| {
                let request = request.clone();
                async move { client.heartbeat(request).await }
            })
            .await;
        if answer.is_err() {
            // What was confirmed and not told is asked again.
            unreachable.into_iter().for_each(|peer| self.node.changes.keep_unreachable(peer));
            if inventory_due {
                self.node.changes.keep_inventory_due();
            }
        } else if has_page {
            crash::point(Point::InventorySent);
        }
        answer
    }

    fn is_deposed(&mut self, answer: &HeartbeatResponse) -> bool {
        if self.is_former(answer.epoch) {
            return true;
        }
        let term = (answer.epoch, answer.leader_term);
        if term < self.term {
            tracing::debug!(?term, seen = ?self.term, "the answer of a deposed leader is ignored");
            return true;
        }
        self.term = term;
        false
    }

    /// Whether who answered is of the metadata that was given up in a restore or rescue: it is left, and nothing it orders is
    /// done, or it would delete what was written since.
    fn is_former(&mut self, epoch: u64) -> bool {
        let seen = self.stamps.membership().map_or(0, |member| member.epoch);
        if epoch >= seen {
            return false;
        }
        if !self.failing {
            tracing::warn!(
                epoch,
                seen,
                "metadata from before the last restore answers; it is ignored: stop those nodes"
            );
        }
        self.failing = true;
        self.meta.leave();
        true
    }

    /// Metadata was restored or rescued: it must be asked for this node's number, before anything it orders is done.
    fn is_new_epoch(&self, answer: &HeartbeatResponse) -> bool {
        self.stamps.membership().is_some_and(|member| member.epoch < answer.epoch)
    }

    /// The metadata nodes there are now, also for the next start.
    fn learn(&self, addresses: &[String]) {
        // A few bytes, when the membership changes or the node starts.
        if self.meta.learn(addresses)
            && let Err(error) = self.stamps.remember_metadata(addresses)
        {
            tracing::warn!(%error, "the addresses of the metadata nodes are not remembered");
        }
    }

    /// Hands out what metadata asks for.
    fn obey(&mut self, answer: HeartbeatResponse) {
        self.learn(&answer.meta_addresses);
        self.node.changes.acknowledged(answer.acked_seq);
        self.deletes.submit(answer.delete.iter().filter_map(|id| convert::chunk_id(id).ok()));
        self.repairs.submit(&answer.repair, answer.repair_streams);
        self.node.checks.submit(answer.confirm.iter().filter_map(|id| convert::chunk_id(id).ok()));
        if let Some(order) = answer.scrub {
            self.order_scrub(order);
        }
        match answer.inventory {
            Some(request) => self.want_page(&request),
            None => (self.page, self.page_wanted) = (None, None),
        }
    }

    /// Carries an order about scrubs out, once, and has metadata hear of it at once.
    fn order_scrub(&mut self, order: v1::ScrubOrder) {
        match ScrubOrder::try_from(order) {
            Ok(order) if order.number == self.scrub_order => {}
            Ok(order) => {
                self.node.scrubs.iter().for_each(|scrub| scrub.order(order.verb));
                self.scrub_order = order.number;
                self.node.changes.wake();
            }
            Err(error) => tracing::warn!(%error, "metadata sent an order that this node does not know"),
        }
    }

    /// Starts to read a page of the inventory, unless it is in work or waits to be taken over.
    fn want_page(&mut self, request: &InventoryRequest) {
        let after = match convert::chunk_id(&request.after) {
            Ok(id) => Some(id),
            Err(_) if request.after.is_empty() => None,
            Err(error) => {
                tracing::warn!(%error, "metadata asked for a malformed page of the inventory");
                return;
            }
        };
        let (run, limit) = (request.run, request.limit.clamp(1, PAGE_MAX) as usize);
        if self.page_wanted == Some((run, after)) {
            return;
        }
        (self.page, self.page_wanted) = (None, Some((run, after)));
        self.node.changes.watch();
        let (node, pages) = (self.node.clone(), self.pages.0.clone());
        self.node.tasks.spawn(async move {
            let stop = node.stop.clone();
            stop.run_until_cancelled(async {
                let page = node.on_disk(move |engine| engine.list(after, limit)).await;
                // The other end takes one at a time; it lives as long as the node.
                let _ = pages.send(Inventory { run, after, page }).await;
            })
            .await;
        });
    }

    fn page_read(&mut self, inventory: Inventory) {
        if self.page_wanted != Some((inventory.run, inventory.after)) {
            return;
        }
        match &inventory.page {
            Ok(page) => {
                for id in &page.damaged {
                    tracing::warn!(chunk = %id, "a chunk has a damaged footer; it is verified");
                    self.node.checks.suspect(*id);
                }
                self.page = Some(inventory);
            }
            Err(error) => {
                tracing::warn!(%error, "a page of the inventory cannot be read; metadata asks again");
                self.page_wanted = None;
            }
        }
    }

    async fn refresh_usage(&mut self) {
        // A disk that hangs must not silence the node: metadata then hears the last figures.
        let scrubs = self.node.scrubs.clone();
        match timeout(USAGE_WAIT, self.node.on_disk(move |engine| Ok((engine.usage()?, message::disks(&scrubs))))).await
        {
            Ok(Ok((usage, disks))) => (self.usage, self.disks) = (usage, disks),
            Ok(Err(error)) => tracing::warn!(%error, "free space is unknown"),
            Err(_) => tracing::debug!("the disk is too busy to ask for free space"),
        }
    }

    /// Logs the first failure of a row: a change of leader is normal, silence for long is visible in metadata.
    fn note_failure(&mut self, what: &str, error: &RpcError) {
        if self.failing {
            tracing::debug!(%error, "{what}");
        } else {
            tracing::info!(%error, "{what}");
        }
        self.failing = true;
    }
}

/// Answers to a registration that no retry changes.
fn is_final(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::WrongCluster
            | ErrorCode::WrongNode
            | ErrorCode::Incompatible
            | ErrorCode::InvalidArgument
            // It was removed for good.
            | ErrorCode::NotPermitted
    )
}

fn membership(response: &RegisterNodeResponse) -> Result<Membership, RpcError> {
    Ok(Membership {
        cluster: convert::cluster_id(&response.cluster_id)?,
        node: dfs_common::NodeId(response.node_id),
        epoch: response.epoch,
    })
}
