//! The trash as the administrator sees it: pages in the order of paths. Restoring is a mutation like any other.
//!
//! The work of one read of the state is bounded by entries looked at, not by entries found.

use dfs_common::{FileId, name::PATH_MAX};
use dfs_proto::{
    convert::{self, id_bytes},
    status::RpcError,
    v1,
};

use super::{Service, invalid, session::millis};
use crate::fsm::{Command, Fact, Reason, Reply, State, Trashed, trash::Cursor};

/// Most entries of one answer, and of one command that gives up entries.
const PAGE_MAX: usize = 1024;
/// Entries looked at in one read of the state: about a millisecond.
const BUDGET: usize = 8192;
/// Longest time that content may be kept: ten years.
const RETENTION_MS_MAX: u64 = 10 * 366 * 86_400_000;
/// A path in the trash may be longer than one that programs can give.
const CURSOR_PATH_MAX: usize = 8 * PATH_MAX;

impl Service {
    pub(super) async fn handle_list_trash(
        &self,
        request: v1::ListTrashRequest,
    ) -> Result<v1::ListTrashResponse, RpcError> {
        let filter = Filter::new(request.filter)?;
        let after = cursor(request.after)?;
        let limit = match request.limit as usize {
            0 => PAGE_MAX,
            limit => limit.min(PAGE_MAX),
        };
        self.raft
            .read(|state| {
                let page = filter.page(state, after, limit);
                let retention_ns = state.trash_retention_ns();
                let entries = page.found.iter().filter_map(|id| {
                    state.trashed(*id).map(|(entry, size)| entry_to_wire(*id, entry, size, retention_ns))
                });
                v1::ListTrashResponse { entries: entries.collect(), next: page.next.map(cursor_to_wire) }
            })
            .await
    }

    pub(super) async fn handle_empty_trash(
        &self,
        request: v1::EmptyTrashRequest,
    ) -> Result<v1::EmptyTrashResponse, RpcError> {
        let filter = Filter::new(request.filter)?;
        let after = cursor(request.after)?;
        let (page, bytes) = self
            .raft
            .read(|state| {
                let page = filter.page(state, after, PAGE_MAX);
                let bytes = page.found.iter().filter_map(|id| state.trashed(*id)).map(|(_, size)| size).sum();
                (page, bytes)
            })
            .await?;
        let next = page.next.map(cursor_to_wire);
        let versions = page.found.len() as u64;
        if request.dry_run || page.found.is_empty() {
            return Ok(v1::EmptyTrashResponse { versions, bytes, next });
        }
        // What left the trash meanwhile is not counted.
        match self.control.apply(Command::DropTrash { file_ids: page.found }).await? {
            Reply::TrashDropped { versions, bytes } => {
                self.control.record_event(Fact::TrashEmptied { versions, bytes });
                Ok(v1::EmptyTrashResponse { versions, bytes, next })
            }
            other => {
                Err(RpcError::new(dfs_common::ErrorCode::Internal, format!("emptying the trash came to {other:?}")))
            }
        }
    }

    pub(super) async fn handle_trash_retention(
        &self,
        request: v1::TrashRetentionRequest,
    ) -> Result<v1::TrashRetentionResponse, RpcError> {
        if request.set {
            if request.retention_ms > RETENTION_MS_MAX {
                return Err(invalid("the trash keeps content for ten years at most"));
            }
            let retention_ns = i64::try_from(request.retention_ms * 1_000_000).unwrap_or(i64::MAX);
            let old_ms = self.raft.read(retention_ms).await?;
            self.control.apply(Command::SetTrashRetention { retention_ns }).await?;
            self.control.setting_changed("trash-retention-ms", old_ms, request.retention_ms);
            tracing::info!(retention_ms = request.retention_ms, "the retention of the trash was changed");
        }
        self.raft
            .read(|state| v1::TrashRetentionResponse {
                retention_ms: retention_ms(state),
                versions: state.counters().trash_versions,
            })
            .await
    }
}

/// The retention in milliseconds.
pub(super) fn retention_ms(state: &State) -> u64 {
    millis(std::time::Duration::from_nanos(u64::try_from(state.trash_retention_ns()).unwrap_or(0)))
}

struct Filter {
    path: Vec<u8>,
    whole: bool,
    since_ns: i64,
    until_ns: i64,
    id: Option<FileId>,
}

#[derive(Debug, Default, PartialEq)]
struct Page {
    found: Vec<FileId>,
    next: Option<Cursor>,
}

impl Filter {
    fn new(wire: Option<v1::TrashFilter>) -> Result<Self, RpcError> {
        let v1::TrashFilter { path, whole, since_ns, until_ns, file_id } = wire.unwrap_or_default();
        if path.len() > CURSOR_PATH_MAX {
            return Err(invalid("the path is too long"));
        }
        let id = if file_id.is_empty() { None } else { Some(convert::file_id(&file_id)?) };
        let path = if path.starts_with(b"/") { path.to_vec() } else { [b"/", &path[..]].concat() };
        // The root with all below it is everything.
        let whole = whole && path != b"/";
        Ok(Self { path, whole, since_ns, until_ns: if until_ns == 0 { i64::MAX } else { until_ns }, id })
    }

    fn takes(&self, at: &Cursor) -> bool {
        let is_time = (self.since_ns..self.until_ns).contains(&at.at_ns) || (self.since_ns == 0 && at.at_ns < 0);
        is_time && (!self.whole || matches!(at.path.get(self.path.len()), None | Some(b'/')))
    }

    /// At most `limit` entries behind `after`, and where to go on.
    fn page(&self, state: &State, after: Option<Cursor>, limit: usize) -> Page {
        if let Some(id) = self.id {
            return Page { found: state.trashed(id).map(|_| id).into_iter().collect(), next: None };
        }
        let mut page = Page::default();
        let first = Cursor::before(&self.path);
        let start = after.filter(|after| *after > first).unwrap_or(first);
        let entries = state.trash_after(start).take_while(|at| at.path.starts_with(&self.path));
        for (looked, at) in entries.enumerate() {
            if self.takes(at) {
                page.found.push(at.id);
            }
            if page.found.len() == limit || looked + 1 == BUDGET {
                page.next = Some(at.clone());
                break;
            }
        }
        page
    }
}

fn cursor(wire: Option<v1::TrashCursor>) -> Result<Option<Cursor>, RpcError> {
    let Some(v1::TrashCursor { path, at_ns, file_id }) = wire else { return Ok(None) };
    if path.len() > CURSOR_PATH_MAX {
        return Err(invalid("the path to go on behind is too long"));
    }
    Ok(Some(Cursor { path: path[..].into(), at_ns, id: convert::file_id(&file_id)? }))
}

fn cursor_to_wire(cursor: Cursor) -> v1::TrashCursor {
    v1::TrashCursor { path: cursor.path.to_vec().into(), at_ns: cursor.at_ns, file_id: id_bytes(cursor.id.as_bytes()) }
}

fn entry_to_wire(id: FileId, entry: &Trashed, size: u64, retention_ns: i64) -> v1::TrashEntry {
    let reason = match entry.reason {
        Reason::Removed => v1::TrashReason::Removed,
        Reason::Replaced => v1::TrashReason::Replaced,
    };
    v1::TrashEntry {
        file_id: id_bytes(id.as_bytes()),
        path: entry.path.to_vec().into(),
        ino: entry.ino.0,
        parent: entry.parent.0,
        reason: reason.into(),
        at_ns: entry.at_ns,
        expires_ns: entry.at_ns.saturating_add(retention_ns),
        size,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime_ns: entry.mtime_ns,
    }
}
