//! The event log: a page, or what comes next.

use std::time::Duration;

use dfs_proto::{status::RpcError, v1};

use super::{Service, invalid};
use crate::fsm::{Event, Fact, Severity, State, event::Field};

/// Events in one answer: with their words less than 1 MiB.
const PAGE_MAX: usize = 1000;
/// Longest wait for the next event. Less than any caller's timeout of a call.
const WAIT_MAX: Duration = Duration::from_secs(5);

impl Service {
    pub(super) async fn handle_list_events(
        &self,
        request: v1::ListEventsRequest,
    ) -> Result<v1::ListEventsResponse, RpcError> {
        if let Some(unknown) = request.kinds.iter().find(|kind| !Fact::KINDS.contains(&kind.as_str())) {
            return Err(invalid(format!(
                "there is no kind of event {unknown:?}; there are {}",
                Fact::KINDS.join(", ")
            )));
        }
        let mut newest = self.raft.newest_event();
        let mut leadership = self.raft.leadership();
        let deadline = tokio::time::Instant::now() + Duration::from_millis(request.wait_ms).min(WAIT_MAX);
        leadership.mark_unchanged();
        loop {
            newest.mark_unchanged();
            let page = self.raft.read(|state| page(state, &request)).await?;
            let is_over = request.wait_ms == 0 || !page.events.is_empty();
            if is_over {
                return Ok(page);
            }
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { return Ok(page) },
                // Read again: a node that does not lead any more says who does.
                _ = leadership.changed() => {}
                () = tokio::time::sleep_until(deadline) => return Ok(page),
            }
        }
    }
}

fn page(state: &State, request: &v1::ListEventsRequest) -> v1::ListEventsResponse {
    let limit = match request.limit as usize {
        0 => PAGE_MAX,
        limit => limit.min(PAGE_MAX),
    };
    // A number from another life of the cluster must not hide what happens now.
    let after = request.after.min(state.last_event());
    let is_wanted = |event: &&Event| {
        event.at_ns >= request.since_ns
            && (request.kinds.is_empty() || request.kinds.iter().any(|kind| kind == event.fact.kind()))
    };
    let wanted = state.events_after(after).filter(is_wanted);
    let events: Vec<v1::Event> = if request.newest {
        let mut all: Vec<&Event> = wanted.collect();
        all.drain(..all.len().saturating_sub(limit));
        all.into_iter().map(|event| to_wire(state, event)).collect()
    } else {
        wanted.take(limit).map(|event| to_wire(state, event)).collect()
    };
    let is_full = !request.newest && events.len() == limit;
    let next = events.last().filter(|_| is_full).map_or(state.last_event(), |event| event.number);
    v1::ListEventsResponse { events, next, oldest: state.first_event(), newest: state.last_event() }
}

fn to_wire(state: &State, event: &Event) -> v1::Event {
    let severity = match event.fact.severity() {
        Severity::Info => v1::Severity::Info,
        Severity::Warning => v1::Severity::Warning,
        Severity::Error => v1::Severity::Error,
    };
    let field = |(key, field): (&'static str, Field)| {
        let value = match field {
            Field::Number(number) => v1::event_field::Value::Number(number),
            Field::Text(text) => v1::event_field::Value::Text(text),
            Field::Node(id) => {
                let name = state.node(id).map_or_else(|| id.to_string(), |node| node.name.clone());
                v1::event_field::Value::Text(name)
            }
        };
        v1::EventField { key: key.to_owned(), value: Some(value) }
    };
    v1::Event {
        number: event.number,
        time_ns: event.at_ns,
        kind: event.fact.kind().to_owned(),
        severity: severity.into(),
        text: event.fact.text(state),
        fields: event.fact.fields().into_iter().map(field).collect(),
    }
}
