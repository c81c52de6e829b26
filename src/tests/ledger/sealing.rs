//! Sealing as it goes on: its leader, its keys, its epochs.
