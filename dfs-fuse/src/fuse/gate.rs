//! What every operation passes, so that a process can leave its mount to another one with nothing under way.
//!
//! While the gate is shut, operations wait before they have done anything. The kernel asks the next process for them again; should
//! this one stay after all, they go on here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

/// The gate.
#[derive(Debug)]
pub(crate) struct Gate {
    inside: AtomicUsize,
    left: Notify,
    is_shut: watch::Sender<bool>,
}

/// An operation that has passed the gate, until this is dropped.
#[derive(Debug)]
pub(super) struct Inside(Arc<Gate>);

impl Drop for Inside {
    fn drop(&mut self) {
        if self.0.inside.fetch_sub(1, Ordering::SeqCst) == 1 && *self.0.is_shut.borrow() {
            self.0.left.notify_one();
        }
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self { inside: AtomicUsize::new(0), left: Notify::new(), is_shut: watch::Sender::new(false) }
    }
}

impl Gate {
    /// In, if the gate is open.
    pub(super) fn try_enter(self: &Arc<Self>) -> Option<Inside> {
        // Counted first: whoever shuts the gate afterwards waits for it.
        self.inside.fetch_add(1, Ordering::SeqCst);
        let inside = Inside(Arc::clone(self));
        (!*self.is_shut.borrow()).then_some(inside)
    }

    /// In, once the gate is open.
    pub(super) async fn enter(self: &Arc<Self>) -> Inside {
        loop {
            if let Some(inside) = self.try_enter() {
                return inside;
            }
            // The sender is here, so this ends only with the gate's opening.
            let _ = self.is_shut.subscribe().wait_for(|is_shut| !is_shut).await;
        }
    }

    /// Shuts it and waits until nobody is inside; whether that came to pass within `patience`. Else it is open again.
    pub(crate) async fn shut(&self, patience: Duration) -> bool {
        self.is_shut.send_replace(true);
        let empty = async {
            while self.inside.load(Ordering::SeqCst) > 0 {
                self.left.notified().await;
            }
        };
        let is_empty = timeout(patience, empty).await.is_ok();
        if !is_empty {
            self.open();
        }
        is_empty
    }

    /// Opens it again.
    pub(crate) fn open(&self) {
        self.is_shut.send_replace(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_shut_gate_waits_for_those_inside_and_keeps_others_out() {
        let gate = Arc::new(Gate::default());
        let inside = gate.enter().await;
        assert!(!gate.shut(Duration::from_millis(10)).await, "somebody is inside");
        let other = gate.try_enter().expect("open again");
        let shutting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.shut(Duration::from_secs(60)).await }
        });
        while gate.try_enter().is_some() {
            tokio::task::yield_now().await;
        }
        drop((inside, other));
        assert!(shutting.await.expect("no panic"));
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { drop(gate.enter().await) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        gate.open();
        waiting.await.expect("it came in");
    }
}
