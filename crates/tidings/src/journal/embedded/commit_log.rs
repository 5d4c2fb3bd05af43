//! The store's commit log, read before the store replays it.
//!
//! The store replays its log up to the first entry that it cannot read, cuts the file there and goes
//! on with the next file. That is right for the entry that a crash cut short, and silent loss for
//! everything else (fjall issue 311).
//!
//! The rule: commits follow each other in the log without a hole, or the store is not opened. Only
//! the last commit may be cut short: nobody was told of it.
//!
//! A log file (fjall 3): batches, then zeros to the end of what was allocated. A batch: `1`, items
//! (u32), sequence number (u64); items; `3`, XXH3 of the items (u64), `FJL\x03`. An item: `2`, kind
//! and compression (u8 each), keyspace (u64), lengths of key (u16), of value (u32) and of its bytes
//! here (u32), key, value; or `4` and a keyspace. All little endian. Each commit has
//! [`Meta`](super::layout::Meta) as one of its items, and in that its number.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    ops::{Range, RangeInclusive},
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::Xxh3;

use super::layout::{META, Meta};

const BUFFER_BYTES: usize = 1024 * 1024;
const ZEROS: [u8; 4096] = [0; 4096];
const TRAILER: [u8; 4] = *b"FJL\x03";

/// What the log holds.
#[derive(Debug, Default)]
pub(super) struct CommitLog {
    /// What the last commit in it says of the store; `None` if it holds none.
    pub(super) last: Option<Meta>,
    /// Commits in it.
    pub(super) commits: u64,
    /// The file that the store goes on writing.
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    path: PathBuf,
    /// Where its last batch is.
    last: Range<u64>,
    /// Whether something follows that is no batch: a commit that was cut short.
    is_torn: bool,
}

/// Commits that cannot be read although later ones can.
#[derive(Debug)]
pub(super) struct LogDamage {
    /// In which file, the first of them.
    pub(super) file: PathBuf,
    /// From which byte on.
    pub(super) at: u64,
    /// The last commit before, if there is one.
    pub(super) before: Option<u64>,
    /// The newest commit that was found behind it.
    pub(super) newest: Option<u64>,
}

impl fmt::Display for LogDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: is damaged at byte {}", self.file.display(), self.at)?;
        match (self.before, self.newest) {
            (Some(before), Some(newest)) => {
                write!(f, ": the commits {} to {newest} cannot be replayed", before + 1)
            }
            _ => f.write_str(": what follows cannot be replayed"),
        }
    }
}

/// Why the log cannot be told to be whole.
#[derive(Debug)]
pub(super) enum LogError {
    Io(PathBuf, io::Error),
    Damaged(LogDamage),
}

impl CommitLog {
    /// Reads the log of a store. Changes nothing.
    pub(super) fn read(store: &Path) -> Result<Self, LogError> {
        let files = log_files(store).map_err(|error| LogError::Io(store.to_owned(), error))?;
        let mut log = Self::default();
        let newest = files.last().cloned();
        for path in files {
            let is_active = Some(&path) == newest.as_ref();
            log.read_file(&path, is_active)?;
        }
        Ok(log)
    }

    fn read_file(&mut self, path: &Path, is_active: bool) -> Result<(), LogError> {
        let failed = |error| LogError::Io(path.to_owned(), error);
        let mut batches = Batches::open(path).map_err(failed)?;
        let mut last = 0..0;
        while let Some((place, meta)) = batches.next().map_err(failed)? {
            if let Some(meta) = meta {
                let hole = self.last.filter(|last| !follows(last, &meta));
                if let Some(last) = hole {
                    return Err(LogError::Damaged(LogDamage {
                        file: path.to_owned(),
                        at: place.start,
                        before: Some(last.commits),
                        newest: Some(meta.commits.saturating_sub(1)),
                    }));
                }
                self.commits += 1;
                self.last = Some(meta);
            }
            last = place;
        }
        let rest = batches.rest(last.end, self.last).map_err(failed)?;
        let before = self.last.map(|last| last.commits);
        // One commit is under way at a time: behind one that was cut short there is no other.
        let readable = rest.newest.filter(|newest| *newest > before.unwrap_or(0) + 1);
        if !rest.is_empty && (!is_active || readable.is_some()) {
            let at = last.end;
            let (file, newest) = (path.to_owned(), rest.newest);
            return Err(LogError::Damaged(LogDamage { file, at, before, newest }));
        }
        if is_active {
            self.active = Some(Active { path: path.to_owned(), last, is_torn: !rest.is_empty });
        }
        Ok(())
    }

    /// Makes what the log holds certain, and cuts off the commit that was cut short.
    ///
    /// After an fsync that failed the kernel may hold the last commit in memory as if it were on
    /// disk: it is written once more.
    pub(super) fn settle(&self) -> Result<(), LogError> {
        let Some(Active { path, last, is_torn }) = &self.active else { return Ok(()) };
        let settle = || {
            let mut file = OpenOptions::new().read(true).write(true).open(path)?;
            if *is_torn {
                file.set_len(last.end)?;
            }
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(last.start))?;
            (&file).take(last.end - last.start).read_to_end(&mut bytes)?;
            file.seek(SeekFrom::Start(last.start))?;
            file.write_all(&bytes)?;
            file.sync_all()
        };
        settle().map_err(|error| LogError::Io(path.clone(), error))
    }

    /// Cuts the log off where it is damaged. What cannot be replayed is kept in another directory.
    pub(super) fn cut(store: &Path, damage: &LogDamage, kept: &Path) -> io::Result<()> {
        fs::create_dir_all(kept)?;
        for path in log_files(store)? {
            let Some(name) = path.file_name() else { continue };
            if path == damage.file {
                fs::copy(&path, kept.join(name))?;
                let file = OpenOptions::new().write(true).open(&path)?;
                file.set_len(damage.at)?;
                file.sync_all()?;
            } else if number(&path) > number(&damage.file) {
                fs::rename(&path, kept.join(name))?;
            }
        }
        File::open(kept)?.sync_all()?;
        File::open(store)?.sync_all()
    }
}

/// Whether a commit is the next one, or the first of a history that began anew.
fn follows(last: &Meta, next: &Meta) -> bool {
    next.commits == last.commits + 1
        || next.commits == last.commits
        || next.store_epoch != last.store_epoch
}

/// The log's files, oldest first.
fn log_files(store: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        if let Some(number) = number(&path) {
            files.push((number, path));
        }
    }
    files.sort_unstable();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// The file that the store writes.
pub(super) fn newest(store: &Path) -> io::Result<Option<PathBuf>> {
    Ok(log_files(store)?.pop())
}

/// The numbers of the log's files.
pub(super) fn numbers(store: &Path) -> io::Result<RangeInclusive<u64>> {
    let files = log_files(store)?;
    let number = |path: Option<&PathBuf>| path.and_then(|path| number(path)).unwrap_or(0);
    Ok(number(files.first())..=number(files.last()))
}

/// `12` of `12.jnl`.
fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(".jnl")?.parse().ok()
}

/// What follows the last batch of a file.
struct Rest {
    /// Nothing, or zeros.
    is_empty: bool,
    /// The newest commit of this store that is found in it.
    newest: Option<u64>,
}

/// Reads a log file batch by batch.
struct Batches {
    file: BufReader<File>,
    at: u64,
    items: Xxh3,
}

/// Why a batch ended.
enum Stop {
    /// It is none, or not a whole one.
    NoBatch,
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::NoBatch,
            _ => Self::Io(error),
        }
    }
}

impl Batches {
    fn open(path: &Path) -> io::Result<Self> {
        let file = BufReader::with_capacity(BUFFER_BYTES, File::open(path)?);
        Ok(Self { file, at: 0, items: Xxh3::new() })
    }

    /// The next whole batch: its place, and what it says of the store.
    fn next(&mut self) -> io::Result<Option<(Range<u64>, Option<Meta>)>> {
        let start = self.at;
        match self.batch() {
            Ok(meta) => Ok(Some((start..self.at, meta))),
            Err(Stop::NoBatch) => Ok(None),
            Err(Stop::Io(error)) => Err(error),
        }
    }

    fn batch(&mut self) -> Result<Option<Meta>, Stop> {
        let [1] = self.take()? else { return Err(Stop::NoBatch) };
        let items = u32::from_le_bytes(self.take()?);
        let _sequence: [u8; 8] = self.take()?;
        self.items.reset();
        let mut meta = None;
        for _ in 0..items {
            meta = self.item()?.or(meta);
        }
        let [3] = self.take()? else { return Err(Stop::NoBatch) };
        let sum = u64::from_le_bytes(self.take()?);
        let trailer: [u8; 4] = self.take()?;
        let is_whole = trailer == TRAILER && sum == self.items.digest();
        if is_whole { Ok(meta) } else { Err(Stop::NoBatch) }
    }

    fn item(&mut self) -> Result<Option<Meta>, Stop> {
        match self.taken()? {
            [2] => {}
            [4] => {
                let _keyspace: [u8; 8] = self.taken()?;
                return Ok(None);
            }
            _ => return Err(Stop::NoBatch),
        }
        let _kind_compression_keyspace: [u8; 10] = self.taken()?;
        let key_bytes = u64::from(u16::from_le_bytes(self.taken()?));
        let _value_bytes: [u8; 4] = self.taken()?;
        let stored_bytes = u64::from(u32::from_le_bytes(self.taken()?));
        let is_meta = key_bytes == META.len() as u64 && stored_bytes == Meta::BYTES as u64;
        if !is_meta {
            self.pass(key_bytes + stored_bytes)?;
            return Ok(None);
        }
        let key: [u8; META.len()] = self.taken()?;
        let value: [u8; Meta::BYTES] = self.taken()?;
        Ok(Meta::read(&value).filter(|_| key == META.as_bytes()))
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    /// Takes bytes that the batch's checksum is of.
    fn taken<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let bytes = self.take()?;
        self.items.update(&bytes);
        Ok(bytes)
    }

    /// Passes over bytes that the batch's checksum is of.
    fn pass(&mut self, mut bytes: u64) -> io::Result<()> {
        let mut part = [0; 4096];
        while bytes > 0 {
            let length = part.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
            let part = part.get_mut(..length).unwrap_or_default();
            self.file.read_exact(part)?;
            self.items.update(part);
            self.at += part.len() as u64;
            bytes -= part.len() as u64;
        }
        Ok(())
    }

    /// Looks into what follows a place, up to the end of the file.
    fn rest(&mut self, from: u64, last: Option<Meta>) -> io::Result<Rest> {
        self.file.seek(SeekFrom::Start(from))?;
        let mut rest = Rest { is_empty: true, newest: None };
        // A commit's record and its key may lie across two parts.
        let overlap = META.len() + Meta::BYTES;
        let mut part = Vec::with_capacity(BUFFER_BYTES + overlap);
        loop {
            let held = part.len();
            (&mut self.file).take(BUFFER_BYTES as u64).read_to_end(&mut part)?;
            if part.len() == held {
                return Ok(rest);
            }
            if part.chunks(ZEROS.len()).any(|piece| ZEROS.get(..piece.len()) != Some(piece)) {
                rest.is_empty = false;
                let found = part.windows(overlap).filter_map(|window| commit(window, last));
                rest.newest = found.max().max(rest.newest);
            }
            part.drain(..part.len().saturating_sub(overlap - 1));
        }
    }
}

/// The number of a commit of this store, if these bytes are the record of one.
fn commit(bytes: &[u8], last: Option<Meta>) -> Option<u64> {
    let meta = Meta::read(bytes.strip_prefix(META.as_bytes())?)?;
    last.is_none_or(|last| last.secret == meta.secret).then_some(meta.commits)
}
