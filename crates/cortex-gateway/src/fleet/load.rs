//! Work open on a node, counted by guards, so that no path can forget to give a place back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Open requests, and a guess of their tokens.
#[derive(Debug, Default)]
pub(crate) struct Load {
    requests: AtomicUsize,
    tokens: AtomicU64,
    /// Requests that had a place on the node and have ended.
    ended: AtomicU64,
    freed: Notify,
}

impl Load {
    pub(crate) fn outstanding(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Grows whenever a request ends: a place may be free.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    /// Resolves once [`Load::ended`] is no longer `seen`.
    pub(crate) async fn ended_since(&self, seen: u64) {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable(); // what ends from here on is noticed
            if self.ended() != seen {
                return;
            }
            freed.await;
        }
    }
}

/// One open request, on a node and on a model there; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct LoadGuard {
    loads: [Arc<Load>; 2],
    tokens: u64,
    admitted: bool,
}

impl LoadGuard {
    pub(crate) fn take(node: &Arc<Load>, model: &Arc<Load>, tokens: u64) -> Self {
        let loads = [Arc::clone(node), Arc::clone(model)];
        for load in &loads {
            load.requests.fetch_add(1, Ordering::Relaxed);
            load.tokens.fetch_add(tokens, Ordering::Relaxed);
        }
        Self { loads, tokens, admitted: false }
    }

    /// The node took the request: a place will be free when it ends.
    pub(crate) fn is_admitted(&mut self) {
        self.admitted = true;
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        for load in &self.loads {
            load.requests.fetch_sub(1, Ordering::Relaxed);
            load.tokens.fetch_sub(self.tokens, Ordering::Relaxed);
            if self.admitted {
                load.ended.fetch_add(1, Ordering::Release);
                load.freed.notify_waiters();
            }
        }
    }
}
