//! The data directory: whose it is, of which version, and how far its commits had come.
//!
//! | file | holds |
//! |---|---|
//! | `TIDINGS` | the format's version; locked while the journal is open |
//! | `commits` | the high-water mark: how many commits were durable, and a checksum |
//! | `store/` | the store's own files |
//! | `store.new/` | a store that is being made, never one that was written to |
//! | `importing` | nothing: an import into this directory has begun, and not ended |
//! | `damaged/` | what a repair cut off |
//!
//! The mark is written after each commit, before anybody is told of it, and synced once a second:
//! a process that is killed leaves it exact, a power cut a second behind at most.
//!
//! Without the mark nobody can tell whether a store has lost its end, so it counts as if it had.
//!
//! The rule: nothing is ever deleted or overwritten that this program did not write, and what
//! cannot be used is refused with the file's name and what to do.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Seek as _, SeekFrom, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::journal::JournalError;

const FORMAT_FILE: &str = "TIDINGS";
/// What begins the line of the file, before the version.
const FORMAT: &str = "tidings journal";
const VERSION: u32 = 3;
const HIGH_WATER_FILE: &str = "commits";
const STORE: &str = "store";
const NEW_STORE: &str = "store.new";
const IMPORTING: &str = "importing";
const DAMAGED: &str = "damaged";
/// What is written to find out why nothing can be.
const PROBE: &str = "probe.new";
/// A memtable, which is what the store writes at once.
const PROBE_BYTES: usize = 16 * 1024 * 1024;
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// A directory that holds, or will hold, a journal of this version; locked.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    lock: File,
    /// The high-water mark's file; `None` once the directory is given up.
    mark: Mutex<Option<File>>,
    /// The high-water mark as it was written, and as it was synced.
    written: AtomicU64,
    synced: AtomicU64,
    /// Whether it was said that it cannot be written or synced.
    complained: AtomicBool,
    /// Whether there was a store without a mark: nobody knows how far its commits had come.
    is_mark_lost: bool,
}

impl Directory {
    /// Checks and locks the directory, creating it if it is not there.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        // It holds every tenant's events. One that was made by others keeps their mode.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| failed("created", path, &error))?;
        let format = path.join(FORMAT_FILE);
        if !check_format(&format)? {
            begin(path)?;
        }
        Self::locked(path, &format)
    }

    /// Checks and locks a directory that holds a journal.
    pub(super) fn existing(path: &Path) -> Result<Self, JournalError> {
        let format = path.join(FORMAT_FILE);
        if !check_format(&format)? || !path.join(STORE).exists() {
            return Err(JournalError::Unusable(format!(
                "{}: there is no journal here; name the data directory of a hub",
                path.display()
            )));
        }
        Self::locked(path, &format)
    }

    fn locked(path: &Path, format: &Path) -> Result<Self, JournalError> {
        let lock = File::open(format).map_err(|error| failed("opened", format, &error))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => locked(path),
            TryLockError::Error(error) => failed("locked", format, &error),
        })?;
        let file = path.join(HIGH_WATER_FILE);
        let found = read_high_water(&file)?;
        // One that is lost is not begun anew before its store has other epochs.
        let is_mark_lost = found.is_none() && path.join(STORE).exists();
        let commits = found.unwrap_or(0);
        let directory = Self {
            path: path.to_owned(),
            lock,
            mark: Mutex::new(None),
            written: AtomicU64::new(commits),
            synced: AtomicU64::new(commits),
            complained: AtomicBool::new(false),
            is_mark_lost,
        };
        match (found, is_mark_lost) {
            (Some(_), _) => directory.open_mark()?,
            (None, false) => directory.begin_mark(0)?,
            (None, true) => {}
        }
        Ok(directory)
    }

    /// Whether there was a store without a high-water mark, which [`Self::begin_mark`] makes anew.
    pub(super) fn is_mark_lost(&self) -> bool {
        self.is_mark_lost
    }

    /// Makes the high-water mark's file.
    pub(super) fn begin_mark(&self, commits: u64) -> Result<(), JournalError> {
        let begun = replace(&self.path, HIGH_WATER_FILE, mark_line(commits).as_bytes());
        begun.map_err(|error| failed("written", &self.path.join(HIGH_WATER_FILE), &error))?;
        self.written.store(commits, Ordering::SeqCst);
        self.synced.store(commits, Ordering::SeqCst);
        self.open_mark()
    }

    fn open_mark(&self) -> Result<(), JournalError> {
        let file = self.path.join(HIGH_WATER_FILE);
        let mark = OpenOptions::new().write(true).open(&file);
        let mark = mark.map_err(|error| failed("opened", &file, &error))?;
        *self.mark.lock().unwrap_or_else(PoisonError::into_inner) = Some(mark);
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the store's own files are. If there are none yet, they are made by `make` under
    /// another name, so that a crash meanwhile leaves no store that cannot be opened.
    ///
    /// Returns whether they were.
    pub(super) fn store(
        &self,
        make: impl FnOnce(&Path) -> Result<(), JournalError>,
    ) -> Result<(PathBuf, Made), JournalError> {
        let (store, new) = (self.path.join(STORE), self.path.join(NEW_STORE));
        if store.exists() {
            return Ok((store, Made::Before));
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
        Ok((store, Made::Now))
    }

    /// Notes that an import has begun: until it ends, nobody takes the directory for an empty one.
    pub(super) fn begin_import(&self) -> Result<(), JournalError> {
        let begun = replace(&self.path, IMPORTING, b"");
        begun.map_err(|error| failed("written", &self.path.join(IMPORTING), &error))
    }

    /// Notes that it has ended.
    pub(super) fn end_import(&self) -> Result<(), JournalError> {
        let file = self.path.join(IMPORTING);
        fs::remove_file(&file).map_err(|error| failed("removed", &file, &error))
    }

    /// Refuses a directory whose import has begun and made no store.
    pub(super) fn refuse_half_import(&self) -> Result<(), JournalError> {
        let file = self.path.join(IMPORTING);
        if self.has_store() || !file.exists() {
            return Ok(());
        }
        Err(JournalError::Broken(format!(
            "{}: an import into this directory was not finished; import again, or choose an empty \
             directory to begin with an empty journal",
            file.display()
        )))
    }

    /// Where the files of a store are that is there.
    pub(super) fn store_files(&self) -> PathBuf {
        self.path.join(STORE)
    }

    /// Whether there is a store.
    pub(super) fn has_store(&self) -> bool {
        self.store_files().exists()
    }

    /// Where what a repair cut off is kept.
    pub(super) fn damaged(&self) -> PathBuf {
        self.path.join(DAMAGED)
    }

    /// How many commits were durable when it was last written down.
    pub(super) fn high_water(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    /// Writes the number of durable commits down, unless that or more is written already. A killed
    /// process has written it; a power cut may lose what [`Self::sync`] did not follow.
    pub(super) fn reach(&self, commits: u64) {
        let mut mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = mark.as_mut().filter(|_| self.high_water() < commits) else { return };
        // In place and of one length: there is room for it on a disk that is full.
        let written = file.seek(SeekFrom::Start(0));
        let written = written.and_then(|_| file.write_all(mark_line(commits).as_bytes()));
        if self.succeeded(&written) {
            self.written.store(commits, Ordering::SeqCst);
        }
    }

    /// Makes what was written certain.
    pub(super) fn sync(&self) {
        let written = self.high_water();
        if self.synced.load(Ordering::SeqCst) == written {
            return;
        }
        // Not under the lock: a disk that is slow here must not hold up a commit.
        let file = match &*self.mark.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(file) => file.try_clone(),
            None => return,
        };
        if self.succeeded(&file.and_then(|file| file.sync_all())) {
            self.synced.fetch_max(written, Ordering::SeqCst);
        }
    }

    /// Says that the mark fails, once until it does not.
    fn succeeded(&self, result: &io::Result<()>) -> bool {
        let complained = self.complained.swap(result.is_err(), Ordering::SeqCst);
        if let Err(error) = result
            && !complained
        {
            let file = self.path.join(HIGH_WATER_FILE);
            tracing::error!(%error, file = %file.display(), "the high-water mark was not written");
        }
        result.is_ok()
    }

    /// Why so much cannot be written here as the store writes in the background, if it cannot.
    pub(super) fn write_failure(&self) -> Option<io::Error> {
        let file = self.path.join(PROBE);
        let write = || {
            let mut probe = File::create(&file)?;
            for _ in 0..PROBE_BYTES / ZEROS.len() {
                probe.write_all(&ZEROS)?;
            }
            probe.sync_all()
        };
        let failure = write().err();
        // It may not be there.
        drop(fs::remove_file(&file));
        failure
    }

    /// Gives the directory up: another may open it now, and nothing is written to it any more.
    pub(super) fn release(&self) {
        *self.mark.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "the data directory stays locked until the process ends");
        }
    }
}

/// When a store was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    Before,
    Now,
}

fn format_line() -> String {
    format!("{FORMAT} {VERSION}\n")
}

/// Whether the directory is marked as a journal of this version.
fn check_format(format: &Path) -> Result<bool, JournalError> {
    match fs::read(format) {
        Ok(text) if text == format_line().as_bytes() => Ok(true),
        Ok(text) => Err(unknown(format, &text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("read", format, &error)),
    }
}

/// Marks an empty directory as a journal.
fn begin(path: &Path) -> Result<(), JournalError> {
    for entry in fs::read_dir(path).map_err(|error| failed("read", path, &error))? {
        let name = entry.map_err(|error| failed("read", path, &error))?.file_name();
        // A crash may have left this program's own attempt.
        if *name != *new_name(FORMAT_FILE) {
            return Err(JournalError::Unusable(format!(
                "{}: is not a journal: it holds `{}` but no file `{FORMAT_FILE}`; choose an empty \
                 directory, or restore the file if this was a journal",
                path.display(),
                name.to_string_lossy(),
            )));
        }
    }
    let begun = replace(path, FORMAT_FILE, format_line().as_bytes());
    begun.map_err(|error| failed("written", &path.join(FORMAT_FILE), &error))
}

/// The high-water mark as it is written: always as long.
fn mark_line(commits: u64) -> String {
    let digits = format!("{commits:020}");
    format!("{digits} {:08x}\n", crc32c::crc32c(digits.as_bytes()))
}

fn read_high_water(file: &Path) -> Result<Option<u64>, JournalError> {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", file, &error)),
    };
    let number = std::str::from_utf8(&text).ok().and_then(|text| text.get(..20)?.parse().ok());
    number.filter(|number| mark_line(*number).as_bytes() == text).map(Some).ok_or_else(|| {
        JournalError::Broken(format!(
            "{}: is damaged: it must hold the number of commits and its checksum; restore it from \
             a backup, or delete it to accept the store as it is, with a new epoch in every topic",
            file.display()
        ))
    })
}

/// Another process has it.
pub(super) fn locked(path: &Path) -> JournalError {
    JournalError::Unavailable(format!(
        "{}: another process has this journal open; stop it, or choose another data directory",
        path.display()
    ))
}

pub(super) fn failed(what: &str, at: &Path, error: &io::Error) -> JournalError {
    let at = at.display();
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; give the hub's user read and write permission on it, or choose another data \
             directory"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "; choose a data directory that is a directory"
        }
        io::ErrorKind::StorageFull => "; make room on the disk",
        io::ErrorKind::ReadOnlyFilesystem => "; mount the file system so that it can be written",
        _ => "; see to the disk",
    };
    JournalError::Unusable(format!("{at}: cannot be {what}: {error}{remedy}"))
}

fn unknown(file: &Path, text: &[u8]) -> JournalError {
    let file = file.display();
    let version = std::str::from_utf8(text).ok().and_then(|text| {
        text.strip_prefix(FORMAT)?.strip_prefix(' ')?.strip_suffix('\n')?.parse::<u32>().ok()
    });
    match version {
        Some(version) => JournalError::Unusable(format!(
            "{file}: the journal has version {version}, this program knows version {VERSION}; run the \
             version of Tidings that wrote it, or a newer one"
        )),
        None => JournalError::Broken(format!(
            "{file}: is damaged: it must hold the line `{}`; restore it from a backup",
            format_line().trim_end()
        )),
    }
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
