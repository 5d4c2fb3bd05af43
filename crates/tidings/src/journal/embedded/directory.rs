//! The data directory: whose it is, of which version, and how far its commits had come.
//!
//! | file | holds |
//! |---|---|
//! | `TIDINGS` | the format's version; locked while the journal is open |
//! | `commits` | the high-water mark: how many commits were durable |
//! | `store/` | the store's own files |
//! | `store.new/` | a store that is being made, never one that was written to |
//!
//! The rule: nothing is ever deleted or overwritten that this program did not write, and what
//! cannot be used is refused with the file's name and what to do.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crate::journal::JournalError;

const FORMAT_FILE: &str = "TIDINGS";
const FORMAT: &str = "tidings journal 1\n";
const HIGH_WATER_FILE: &str = "commits";
const STORE: &str = "store";
const NEW_STORE: &str = "store.new";

/// A directory that holds, or will hold, a journal of this version; locked.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    lock: File,
    /// The high-water mark as it is on disk; `None` once the directory is given up.
    high_water: Mutex<Option<u64>>,
}

impl Directory {
    /// Checks and locks the directory, creating it if it is not there.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        fs::create_dir_all(path).map_err(|error| failed("created", path, &error))?;
        let format = path.join(FORMAT_FILE);
        match fs::read(&format) {
            Ok(text) if text == FORMAT.as_bytes() => {}
            Ok(text) => return Err(unknown(&format, &text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => begin(path)?,
            Err(error) => return Err(failed("read", &format, &error)),
        }
        let lock = File::open(&format).map_err(|error| failed("opened", &format, &error))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => locked(path),
            TryLockError::Error(error) => failed("locked", &format, &error),
        })?;
        let high_water = read_high_water(&path.join(HIGH_WATER_FILE))?;
        Ok(Self { path: path.to_owned(), lock, high_water: Mutex::new(Some(high_water)) })
    }

    /// Where the store's own files are. If there are none yet, they are made by `make` under
    /// another name, so that a crash meanwhile leaves no store that cannot be opened.
    pub(super) fn store(
        &self,
        make: impl FnOnce(&Path) -> Result<(), JournalError>,
    ) -> Result<PathBuf, JournalError> {
        let (store, new) = (self.path.join(STORE), self.path.join(NEW_STORE));
        if store.exists() {
            return Ok(store);
        }
        if self.high_water() > 0 {
            return Err(JournalError::Broken(format!(
                "{}: is missing, but the journal had commits; restore it from a backup, or choose \
                 an empty directory",
                store.display()
            )));
        }
        if new.exists() {
            // Its making was cut short: nothing was ever stored in it.
            fs::remove_dir_all(&new).map_err(|error| failed("made anew", &new, &error))?;
        }
        make(&new)?;
        let moved = fs::rename(&new, &store).and_then(|()| File::open(&self.path)?.sync_all());
        moved.map_err(|error| failed("created", &store, &error))?;
        Ok(store)
    }

    /// How many commits were durable when it was last written down.
    pub(super) fn high_water(&self) -> u64 {
        self.high_water.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(0)
    }

    /// Writes the number of durable commits down, unless that or more is written already.
    pub(super) fn set_high_water(&self, commits: u64) -> io::Result<()> {
        let mut high_water = self.high_water.lock().unwrap_or_else(PoisonError::into_inner);
        if high_water.is_some_and(|written| written < commits) {
            replace(&self.path, HIGH_WATER_FILE, format!("{commits}\n").as_bytes())?;
            *high_water = Some(commits);
        }
        Ok(())
    }

    /// Gives the directory up: another may open it now, and nothing is written to it any more.
    pub(super) fn release(&self) {
        *self.high_water.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "the data directory stays locked until the process ends");
        }
    }
}

/// Marks an empty directory as a journal.
fn begin(path: &Path) -> Result<(), JournalError> {
    for entry in fs::read_dir(path).map_err(|error| failed("read", path, &error))? {
        let name = entry.map_err(|error| failed("read", path, &error))?.file_name();
        // A crash may have left this program's own attempt.
        if *name != *new_name(FORMAT_FILE) {
            return Err(JournalError::Broken(format!(
                "{}: is not a journal: it holds `{}` but no file `{FORMAT_FILE}`; choose an empty \
                 directory, or restore the file if this was a journal",
                path.display(),
                name.to_string_lossy(),
            )));
        }
    }
    let begun = replace(path, FORMAT_FILE, FORMAT.as_bytes());
    begun.map_err(|error| failed("written", &path.join(FORMAT_FILE), &error))
}

fn read_high_water(file: &Path) -> Result<u64, JournalError> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(failed("read", file, &error)),
    };
    let number = text.strip_suffix('\n').and_then(|number| number.parse().ok());
    number.ok_or_else(|| {
        JournalError::Broken(format!(
            "{}: is damaged: it must hold one number; delete it to accept the store as it is",
            file.display()
        ))
    })
}

/// Another process has it.
pub(super) fn locked(path: &Path) -> JournalError {
    JournalError::Broken(format!(
        "{}: another process has this journal open; stop it, or choose another data directory",
        path.display()
    ))
}

fn failed(what: &str, at: &Path, error: &io::Error) -> JournalError {
    let at = at.display();
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; give the hub's user read and write permission on it, or choose another data \
             directory"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "; choose a data directory that is a directory"
        }
        _ => "",
    };
    JournalError::Broken(format!("{at}: cannot be {what}: {error}{remedy}"))
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

fn new_name(name: &str) -> String {
    format!("{name}.new")
}

/// Replaces a file so that a crash leaves the old one or the new one, whole.
fn replace(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = directory.join(new_name(name));
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, directory.join(name))?;
    File::open(directory)?.sync_all()
}
