//! Proofs, as implementations that know nothing of ours take them.
