//! What happened: `events`.
//!
//! JSON: an array of `{number, time, time_ns, kind, severity, text, fields}`, oldest first; with `--follow` one such object a
//! line. `fields` is an object whose keys depend on the kind, `severity` is `info`, `warning` or `error`.

use std::{
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use dfs_client::Dfs;
use dfs_common::units::Span;
use dfs_proto::v1::{Event, ListEventsRequest, Severity, event_field::Value as FieldValue};
use serde_json::{Value, json};

use crate::{
    context::Context,
    exit::Exit,
    failure::Failure,
    text::{escape, parse_utc, utc},
};

/// Longest wait of one question for the next event.
const WAIT: Duration = Duration::from_secs(5);
/// Pause before the next question when no leader answers.
const PAUSE: Duration = Duration::from_secs(1);
/// Events in one answer.
const PAGE: u32 = 1000;

/// `dfsctl events`.
#[derive(Args, Debug)]
#[command(long_about = "\
What happened to the cluster: nodes that came and went, bad copies, repairs, changes by administrators.

The newest events are kept by the metadata nodes (4096 at most), oldest first here. Times are UTC by the leader's clock.
Progress is gathered: one event tells how many chunks of the same danger were repaired in a span of some seconds.")]
pub struct Events {
    /// Go on with what happens, until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// Only what happened since then: a span like 10m, or a time like 2026-01-31T12:34 (UTC)
    #[arg(long, value_name = "TIME")]
    pub since: Option<Since>,
    /// Only these kinds, for example node-state,repair-progress
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub kind: Vec<String>,
    /// At most so many, the newest; 0 for all that are kept [default: 100, with --since all]
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub limit: Option<u32>,
}

/// A moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Since {
    /// So long ago.
    Ago(Duration),
    /// Nanoseconds since the Unix epoch.
    At(i64),
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(at) = parse_utc(text) {
            return Ok(Self::At(at));
        }
        let span = text.parse::<Span>();
        span.map(|span| Self::Ago(span.0))
            .map_err(|_| "neither a span like 10m nor a time like 2026-01-31T12:34".into())
    }
}

impl Since {
    fn since_ns(self) -> i64 {
        match self {
            Self::At(at) => at,
            Self::Ago(span) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                i64::try_from(now.saturating_sub(span).as_nanos()).unwrap_or(i64::MAX)
            }
        }
    }
}

/// # Errors
/// What the user is told.
pub(super) fn run(context: &Context, args: &Events) -> Result<(), Failure> {
    let limit = args.limit.unwrap_or(if args.since.is_some() { 0 } else { 100 });
    let since_ns = args.since.map_or(0, Since::since_ns);
    context.with_dfs(async |dfs| {
        let ask = |after, newest, limit| ListEventsRequest {
            after,
            limit,
            wait_ms: 0,
            kinds: args.kind.clone(),
            since_ns,
            newest,
        };
        let (mut events, mut next) = (Vec::new(), 0);
        if limit == 0 || limit > PAGE {
            loop {
                let page = dfs.list_events(ask(next, false, PAGE)).await?;
                let is_last = page.events.len() < PAGE as usize;
                events.extend(page.events);
                next = page.next;
                if is_last {
                    break;
                }
            }
            let excess = if limit == 0 { 0 } else { events.len().saturating_sub(limit as usize) };
            events.drain(..excess);
        } else {
            let page = dfs.list_events(ask(0, true, limit)).await?;
            (events, next) = (page.events, page.next);
        }
        print(context, args.follow, &events)?;
        if args.follow { follow(context, dfs, ask(next, false, PAGE)).await } else { Ok(()) }
    })
}

async fn follow(context: &Context, dfs: &Dfs, mut request: ListEventsRequest) -> Result<(), Failure> {
    // A question must be answered before the call times out.
    let wait = WAIT.min(dfs.options().rpc_timeout / 2);
    request.wait_ms = u64::try_from(wait.as_millis()).unwrap_or(1000);
    let mut is_cut_off = false;
    loop {
        match dfs.list_events(request.clone()).await.map_err(Failure::from) {
            Ok(page) => {
                if is_cut_off {
                    context.out.note("a metadata leader answers again");
                    is_cut_off = false;
                }
                if page.oldest > request.after + 1 && request.after > 0 {
                    context.out.warn(format!("events {} to {} are gone", request.after + 1, page.oldest - 1));
                }
                request.after = page.next;
                print(context, true, &page.events)?;
            }
            // Who follows wants to know what happens when the cluster is in trouble above all.
            Err(failure) if failure.exit == Exit::Unreachable => {
                if !is_cut_off {
                    context.out.warn(format!("{failure}; waiting for a leader"));
                    is_cut_off = true;
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(failure) => return Err(failure),
        }
    }
}

fn print(context: &Context, is_stream: bool, events: &[Event]) -> Result<(), Failure> {
    if !context.out.json {
        return context.out.lines(&events.iter().map(line).collect::<Vec<_>>());
    }
    if is_stream {
        return events.iter().try_for_each(|event| context.out.value(&event_json(event)));
    }
    context.out.value(&events.iter().map(event_json).collect::<Vec<_>>())
}

fn severity(event: &Event) -> &'static str {
    match event.severity() {
        Severity::Info | Severity::Unspecified => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

fn line(event: &Event) -> String {
    let mark = match event.severity() {
        Severity::Info | Severity::Unspecified => ' ',
        Severity::Warning => '-',
        Severity::Error => '!',
    };
    let millis = event.time_ns.rem_euclid(1_000_000_000) / 1_000_000;
    let words = escape(event.text.as_bytes());
    format!("{:>5}  {}.{millis:03}  {mark} {:<18}  {words}", event.number, utc(event.time_ns), event.kind)
}

/// One event as JSON.
fn event_json(event: &Event) -> Value {
    let field = |field: &dfs_proto::v1::EventField| {
        let value = match &field.value {
            Some(FieldValue::Text(text)) => json!(text),
            Some(FieldValue::Number(number)) => json!(number),
            None => Value::Null,
        };
        (field.key.clone(), value)
    };
    json!({
        "number": event.number,
        "time": format!("{}Z", utc(event.time_ns).replace(' ', "T")),
        "time_ns": event.time_ns,
        "kind": event.kind,
        "severity": severity(event),
        "text": event.text,
        "fields": event.fields.iter().map(field).collect::<serde_json::Map<_, _>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_span_or_a_time() {
        assert_eq!("10m".parse(), Ok(Since::Ago(Duration::from_secs(600))));
        assert_eq!("1970-01-01T00:01".parse(), Ok(Since::At(60_000_000_000)));
        assert!("yesterday".parse::<Since>().is_err());
    }
}
