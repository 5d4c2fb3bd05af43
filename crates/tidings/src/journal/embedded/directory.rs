//! The data directory: whose it is, of which version, and how far its commits had come.
//!
//! The rule: nothing in it is ever deleted or overwritten that this program did not write, and what
//! cannot be used is refused with the file's name and what to do.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use crate::journal::JournalError;

/// The file that says that a directory is a journal, and of which version.
const FORMAT_FILE: &str = "TIDINGS";
const FORMAT: &str = "tidings journal 1\n";
/// The file that holds the number of commits, on its own so that a lost end of the store shows.
const HIGH_WATER_FILE: &str = "commits";

/// A directory that holds, or will hold, a journal of this version.
#[derive(Debug, Clone)]
pub(super) struct Directory(PathBuf);

impl Directory {
    /// Checks the directory, creating it if it is not there.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        let failed = |what: &str, at: &Path, error: &io::Error| {
            let at = at.display();
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "; give the hub's user read and write permission on it, or choose another \
                     data directory"
                }
                _ => "",
            };
            JournalError::Broken(format!("{at}: cannot be {what}: {error}{remedy}"))
        };
        fs::create_dir_all(path).map_err(|error| failed("created", path, &error))?;
        let format = path.join(FORMAT_FILE);
        match fs::read(&format) {
            Ok(text) if text == FORMAT.as_bytes() => {}
            Ok(text) => return Err(unknown(&format, &text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut entries =
                    fs::read_dir(path).map_err(|error| failed("read", path, &error))?;
                if let Some(entry) = entries.next() {
                    let entry = entry.map_err(|error| failed("read", path, &error))?;
                    return Err(JournalError::Broken(format!(
                        "{}: is not a journal: it holds `{}` but no file `{FORMAT_FILE}`; choose \
                         an empty directory, or restore the file if this was a journal",
                        path.display(),
                        entry.file_name().to_string_lossy(),
                    )));
                }
                replace(path, FORMAT_FILE, FORMAT.as_bytes())
                    .map_err(|error| failed("written", &format, &error))?;
            }
            Err(error) => return Err(failed("read", &format, &error)),
        }
        Ok(Self(path.to_owned()))
    }

    /// Where the store's own files are.
    pub(super) fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// How many commits were durable when it was last written down.
    pub(super) fn high_water(&self) -> Result<u64, JournalError> {
        let file = self.0.join(HIGH_WATER_FILE);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => {
                let file = file.display();
                return Err(JournalError::Broken(format!("{file}: cannot be read: {error}")));
            }
        };
        text.trim().parse().map_err(|_| {
            JournalError::Broken(format!(
                "{}: is damaged: it must hold one number; delete it to accept the store as it is",
                file.display()
            ))
        })
    }

    /// Writes the number of durable commits down.
    pub(super) fn set_high_water(&self, commits: u64) -> io::Result<()> {
        replace(&self.0, HIGH_WATER_FILE, format!("{commits}\n").as_bytes())
    }
}

fn unknown(file: &Path, text: &[u8]) -> JournalError {
    let file = file.display();
    let version = std::str::from_utf8(text).ok().and_then(|text| {
        text.strip_prefix("tidings journal ")?.strip_suffix('\n')?.parse::<u32>().ok()
    });
    JournalError::Broken(match version {
        Some(version) => format!(
            "{file}: the journal has version {version}, this program knows version 1; run the \
             version of Tidings that wrote it, or a newer one"
        ),
        None => format!(
            "{file}: is damaged: it must hold the line `{}`; restore it from a backup",
            FORMAT.trim_end()
        ),
    })
}

/// Replaces a file so that a crash leaves the old one or the new one, whole.
fn replace(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = directory.join(format!("{name}.new"));
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, directory.join(name))?;
    File::open(directory)?.sync_all()
}
