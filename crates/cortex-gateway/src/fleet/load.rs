//! Requests open on a node, counted by guards, so that no path can forget to give a place back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of open requests.
#[derive(Debug, Default)]
pub(crate) struct Load(AtomicUsize);

impl Load {
    pub(crate) fn outstanding(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// One open request, on a node and on a model there; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct LoadGuard([Arc<Load>; 2]);

impl LoadGuard {
    pub(crate) fn take(node: &Arc<Load>, model: &Arc<Load>) -> Self {
        let loads = [Arc::clone(node), Arc::clone(model)];
        for load in &loads {
            load.0.fetch_add(1, Ordering::Relaxed);
        }
        Self(loads)
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        for load in &self.0 {
            load.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
