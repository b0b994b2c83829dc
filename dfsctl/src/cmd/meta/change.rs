//! Who is a metadata node, and who leads.

use std::{cell::RefCell, time::Duration};

use dfs_proto::v1::MetaChange;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::{context::Context, failure::Failure};

/// # Errors
/// What the user is told.
pub(super) fn add(context: &Context, name: &str, address: &str, replaces: Option<&String>) -> Result<(), Failure> {
    let out = context.out;
    let bar = bar(context);
    let last = RefCell::new(String::new());
    let step = |change: &MetaChange| {
        bar.set_message(change.step.clone());
        bar.set_length(change.want_index.max(1));
        bar.set_position(change.have_index);
        if last.replace(change.step.clone()) == change.step {
            return;
        }
        if out.json {
            let line = json!({ "step": change.step, "have_index": change.have_index, "want_index": change.want_index });
            // The outcome decides; that nobody reads the steps does not.
            drop(out.value(&line));
        } else if !out.shows_progress() {
            out.note(&change.step);
        }
    };
    let replaced = replaces.map(String::as_str);
    let done = context.with_dfs(async |dfs| Ok(dfs.add_meta_node(name, address, replaced, step).await?));
    bar.finish_and_clear();
    done.map_err(|failure| match failure.hint {
        Some(_) => {
            failure.hint("see with `dfsctl meta status` how far it is; the same command again goes on from there")
        }
        None => failure,
    })?;
    if out.json {
        return out.value(&json!({ "added": name, "address": address, "replaced": replaced }));
    }
    match replaced {
        Some(old) => out.line(format!("{name} at {address} is a metadata node now, {old} is none any more"))?,
        None => out.line(format!("{name} at {address} is a metadata node now"))?,
    }
    out.note("name it in --meta of new clients and storage nodes; those that run have heard of it");
    Ok(())
}

/// # Errors
/// What the user is told.
pub(super) fn remove(context: &Context, name: &str) -> Result<(), Failure> {
    let voters = context.with_dfs(async |dfs| Ok(dfs.remove_meta_node(name).await?))?;
    if context.out.json {
        return context.out.value(&json!({ "removed": name, "voters": voters }));
    }
    context.out.line(format!("{name} is no metadata node any more; left are {}", voters.join(", ")))?;
    if voters.len().is_multiple_of(2) {
        context.out.warn(format!("{} metadata nodes survive no more failures than {}", voters.len(), voters.len() - 1));
    }
    Ok(())
}

/// # Errors
/// What the user is told.
pub(super) fn transfer_leader(context: &Context, to: Option<&str>) -> Result<(), Failure> {
    let (leader, pause) = context.with_dfs(async |dfs| Ok(dfs.transfer_leader(to).await?))?;
    if context.out.json {
        let pause_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        return context.out.value(&json!({ "leader": leader, "pause_us": pause_us }));
    }
    context.out.line(format!("{leader} leads now, after a pause of {:.1} ms", pause.as_secs_f64() * 1000.0))
}

fn bar(context: &Context) -> ProgressBar {
    if !context.out.shows_progress() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}").expect("the template is right");
    let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr()).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
