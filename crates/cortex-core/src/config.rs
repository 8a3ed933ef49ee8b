//! The gateway's configuration file.
