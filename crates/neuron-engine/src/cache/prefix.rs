//! Keys of the prefix cache.
