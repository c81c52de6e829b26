//! What the private Postgres is told: `milepost.conf`, included by its `postgresql.conf`.
//!
//! An operator's `ALTER SYSTEM` is read after it and wins.

use std::path::Path;

/// Names the socket file; no TCP port is opened.
pub(super) const PORT: u16 = 5432;

/// The name of the file that [`text`] goes into, beside the cluster.
pub(super) const FILE: &str = "milepost.conf";

/// The line that makes `cluster/postgresql.conf` read it; relative, so that the home can move.
pub(super) const INCLUDE: &str = "\n# Milepost's settings; yours go into ALTER SYSTEM, which wins.\n\
     include '../milepost.conf'\n";

/// Where the server writes its log, relative to the cluster.
pub(super) const LOG_DIR: &str = "log";

/// The settings for an event log on a small machine, with the socket in `socket_dir`.
pub(super) fn text(socket_dir: &Path) -> String {
    format!(
        "# Written by Milepost at every start; changes go into ALTER SYSTEM.

# Private: a socket in a directory of mode 0700, no TCP.
listen_addresses = ''
port = {PORT}
unix_socket_directories = {socket_dir}
unix_socket_permissions = 0700
max_connections = 200

# Durable: an acknowledged event survives the machine.
fsync = on
full_page_writes = on
synchronous_commit = on

# An event log: many small appends, few checkpoints, short queries.
shared_buffers = 256MB
effective_cache_size = 1GB
wal_compression = on
min_wal_size = 256MB
max_wal_size = 2GB
checkpoint_timeout = 15min
jit = off

# Text that is the same on every machine.
timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'

# Files of 16 MB, the oldest removed by Milepost. Terse: details quote the rows.
logging_collector = on
log_directory = '../{LOG_DIR}'
log_filename = 'postgres-%Y%m%d-%H%M%S.log'
log_file_mode = 0600
log_rotation_age = 0
log_rotation_size = 16MB
log_error_verbosity = terse
log_lock_waits = on
",
        socket_dir = quoted_directory(socket_dir),
    )
}

/// A path as one entry of a list of directories, within a string.
fn quoted_directory(path: &Path) -> String {
    let entry = path.to_string_lossy().replace('"', "\"\"");
    format!("'\"{}\"'", entry.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_quotes_and_commas_stays_one_entry() {
        assert_eq!(quoted_directory(Path::new("/a, 'b' \"c\"\\d")), r#"'"/a, ''b'' ""c""\\d"'"#);
    }
}
