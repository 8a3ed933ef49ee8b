//! Devices: the thread that owns one, what it can be told, and how several meet.

pub mod collective;
