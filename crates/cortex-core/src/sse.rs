//! Server-sent events: writing them, and reading them from any chunking.
