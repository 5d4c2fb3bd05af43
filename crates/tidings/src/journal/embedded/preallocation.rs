//! Room in the commit log ahead of the writer.
//!
//! The store makes each file of its log as a hole of 64 MiB. A commit that is written into a hole
//! takes new blocks, and the file system has to make those durable as well: an fsync is then two
//! writes that wait for each other. Where zeros were written before, it is one.
//!
//! The rule: only zeros are overwritten, with zeros, and only by the thread that commits, between two
//! commits. So the file reads the same before and after, whatever happens meanwhile.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{SeekFrom, seek};

use super::commit_log;

/// Bytes that are made ready at once, about 100 commits of 25 events: 64 KiB did as well, 4 MiB took
/// more of the processor (docs/adr/0018).
const STEP: u64 = 1024 * 1024;
/// A commit of so many bytes brings its own room: what it writes takes longer than its blocks.
const LARGE: u64 = STEP / 8;

static ZEROS: [u8; 65_536] = [0; 65_536];

/// What the writer knows of the room in its log.
pub(super) struct Preallocation {
    /// Where the store's log is.
    store: PathBuf,
    /// Bytes that may still be written before it is looked at again. It is an estimate: too low, and
    /// room is made early, too high, and some commits have none.
    left: u64,
}

impl Preallocation {
    pub(super) fn of(store: PathBuf) -> Self {
        Self { store, left: 0 }
    }

    /// Makes room for a commit of about so many bytes, and for those after it. It may fail, or the
    /// file system may not say where its holes are: then commits take as long as they do.
    pub(super) fn make_room(&mut self, bytes: u64) {
        if bytes > self.left && bytes < LARGE {
            if let Err(error) = extend(&self.store) {
                tracing::debug!(%error, "no room was made in the commit log");
            }
            self.left = STEP;
        }
        self.left = self.left.saturating_sub(bytes);
    }
}

/// Writes zeros where the first hole of the newest log file is.
fn extend(store: &Path) -> io::Result<()> {
    let Some(path) = commit_log::newest(store)? else { return Ok(()) };
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    // Behind the last hole, files are said to have one that begins at their end.
    let hole = seek(&file, SeekFrom::Hole(0))?;
    fill(&file, hole, length.min(hole.saturating_add(STEP)))
}

/// Fills a part of a file with zeros, as far as there is nothing in it.
fn fill(file: &File, from: u64, to: u64) -> io::Result<()> {
    let mut found = vec![0; ZEROS.len()];
    let mut at = from;
    while at < to {
        let length = (to - at).min(ZEROS.len() as u64);
        let length = usize::try_from(length).unwrap_or(ZEROS.len());
        let (Some(found), Some(zeros)) = (found.get_mut(..length), ZEROS.get(..length)) else {
            return Ok(());
        };
        // File systems were known to call holes what was just written (openzfs 15526).
        file.read_exact_at(found, at)?;
        if found != zeros {
            return Ok(());
        }
        file.write_all_at(zeros, at)?;
        at += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// A log of one file, as the store makes it: written up to here, then a hole.
    fn log(written: &[u8], length: u64) -> (tempfile::TempDir, File) {
        let store = tempfile::tempdir().unwrap();
        let path = store.path().join("7.jnl");
        let file = File::options().create_new(true).read(true).write(true).open(path).unwrap();
        file.set_len(length).unwrap();
        file.write_all_at(written, 0).unwrap();
        (store, file)
    }

    fn bytes(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn allocated(file: &File) -> u64 {
        file.sync_all().unwrap();
        file.metadata().unwrap().blocks() * 512
    }

    #[test]
    fn there_is_room_behind_what_is_written_and_the_file_reads_the_same() {
        let (store, file) = log(b"written", 4 * STEP);
        let before = bytes(&file);
        let mut room = Preallocation::of(store.path().to_owned());
        room.make_room(100);
        assert!((STEP..2 * STEP).contains(&allocated(&file)), "{}", allocated(&file));
        assert!(bytes(&file) == before);
        assert_eq!(file.metadata().unwrap().len(), 4 * STEP);
    }

    #[test]
    fn more_is_made_once_it_is_used_up_and_never_beyond_the_end() {
        let (store, file) = log(b"written", 2 * STEP + 10);
        let mut room = Preallocation::of(store.path().to_owned());
        for _ in 0..6 * STEP / 100_000 {
            room.make_room(100_000);
        }
        assert!((2 * STEP..3 * STEP).contains(&allocated(&file)), "{}", allocated(&file));
        assert_eq!(file.metadata().unwrap().len(), 2 * STEP + 10);
    }

    #[test]
    fn a_file_without_holes_stays_as_it_is() {
        let (store, file) = log(b"written", 7);
        Preallocation::of(store.path().to_owned()).make_room(100);
        assert_eq!(bytes(&file), b"written");
    }

    #[test]
    fn a_large_commit_makes_none() {
        let (store, file) = log(b"written", 4 * STEP);
        Preallocation::of(store.path().to_owned()).make_room(LARGE);
        assert!(allocated(&file) < STEP, "{}", allocated(&file));
    }

    #[test]
    fn a_log_that_went_away_fails_nobody() {
        let (store, _) = log(b"written", 10);
        let mut room = Preallocation::of(store.path().join("away"));
        room.make_room(100);
        assert_eq!(room.left, STEP - 100);
    }

    /// Broken on purpose: without a look at what is there, it is gone.
    #[test]
    fn what_is_said_to_be_a_hole_and_is_none_is_kept() {
        let (_store, file) = log(b"", STEP);
        file.write_all_at(b"an event", 100_000).unwrap();
        let before = bytes(&file);
        fill(&file, 0, STEP).unwrap();
        assert!(bytes(&file) == before);
        fill(&file, 100_000, STEP).unwrap();
        assert!(bytes(&file) == before);
    }
}
