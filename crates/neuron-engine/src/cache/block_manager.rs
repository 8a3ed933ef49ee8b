//! Block tables, reference counts, the free list.
