//! cortex-gateway
