//! Numbers for open things.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::error::Error;

/// Open things by number. Numbers are never used twice.
pub(crate) struct Handles<T> {
    next: AtomicU64,
    table: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Handles<T> {
    pub(crate) fn new() -> Self {
        Self { next: AtomicU64::new(1), table: RwLock::new(HashMap::new()) }
    }

    /// Gives `thing` a number.
    pub(crate) fn insert(&self, thing: T) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.table.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(thing));
        number
    }

    /// The thing with this number; EBADF if there is none.
    pub(crate) fn get(&self, number: u64) -> Result<Arc<T>, Error> {
        self.table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&number)
            .cloned()
            .ok_or_else(|| Error::refused(libc::EBADF, "no such handle"))
    }

    /// What `f` makes of each of them.
    pub(crate) fn map<R>(&self, f: impl Fn(&T) -> R) -> Vec<R> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).values().map(|thing| f(thing)).collect()
    }

    /// Takes the thing out.
    pub(crate) fn remove(&self, number: u64) -> Option<Arc<T>> {
        self.table.write().unwrap_or_else(PoisonError::into_inner).remove(&number)
    }
}
