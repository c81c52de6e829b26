//! Files that are there whole and on the disk, or not at all.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Result, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// For its owner only.
const PRIVATE: u32 = 0o600;

/// For whomever the machine lets.
const SHARED: u32 = 0o666;

/// A file that is being written, under another name.
pub struct Durable {
    path: PathBuf,
    new: PathBuf,
    file: BufWriter<File>,
}

impl Durable {
    /// Begins a file that is to be at a path.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        Self::with_mode(path, SHARED)
    }

    fn with_mode(path: &Path, mode: u32) -> Result<Self> {
        let new = path.with_added_extension("new");
        // What a write left behind that did not come to its end may have another mode.
        drop(std::fs::remove_file(&new));
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(mode).open(&new)?;
        Ok(Self { path: path.to_owned(), new, file: BufWriter::new(file) })
    }

    /// Puts it at its path; it is on the disk then.
    ///
    /// # Errors
    /// Where it cannot be written; what was at the path may be there still.
    pub fn finish(self) -> Result<()> {
        let Self { path, new, file } = self;
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        // The name is durable when its directory is.
        let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Write for Durable {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.file.flush()
    }
}

/// Writes a file that only its owner reads.
///
/// # Errors
/// Where it cannot be written; what was at the path may be there still.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = Durable::with_mode(path, PRIVATE)?;
    file.write_all(bytes)?;
    file.finish()
}
