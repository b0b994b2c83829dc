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

    /// A number for a thing that is inserted under it afterwards.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Numbers from here on are not given out yet. Those below are of processes before this one.
    pub(crate) fn continue_at(&self, first: u64) {
        self.next.store(first, Ordering::Relaxed);
    }

    /// Puts `thing` in under its number.
    pub(crate) fn insert(&self, number: u64, thing: T) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(thing));
    }

    /// The thing with this number, which is made if it is not there.
    pub(crate) fn get_or_insert(&self, number: u64, make: impl FnOnce() -> T) -> Arc<T> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(table.entry(number).or_insert_with(|| Arc::new(make())))
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

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
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
