//! Exports: they stand by themselves.
