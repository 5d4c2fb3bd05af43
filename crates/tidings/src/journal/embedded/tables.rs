//! Which files a keyspace's tables are in, and whether they are what was written.
//!
//! The rule: damage is told by the file's name. The store writes checksums of its lists and tables,
//! but compares those of the blocks it reads alone, and names no file then.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

/// The file that names the list of a keyspace's tables.
pub(super) const CURRENT: &str = "current";

/// A table as its keyspace's list has it.
struct Table {
    file: PathBuf,
    /// XXH3 of the whole file.
    sum: u128,
}

/// The files of a store's tables that are missing or not what was written, each with what is wrong.
/// Reads all of them.
///
/// # Errors
/// If a list cannot be read. One that is damaged or missing is passed over: the store is not opened
/// with it.
pub(super) fn damaged(files: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for keyspace in keyspaces(files)? {
        if keyspace.join(CURRENT).exists() {
            found.extend(damaged_of(&keyspace)?);
        }
    }
    Ok(found)
}

/// The directories of a store's keyspaces, in order; none if what they are in is missing.
pub(super) fn keyspaces(files: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(files.join("keyspaces")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The same of one keyspace.
pub(super) fn damaged_of(keyspace: &Path) -> io::Result<Vec<String>> {
    let Ok(list) = newest_list(keyspace)? else { return Ok(Vec::new()) };
    let wrong = |table: Table| {
        let file = table.file.display();
        match sum(&table.file) {
            Ok(sum) if sum == table.sum => None,
            Ok(_) => Some(does_not_match(&table.file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Some(format!("{file}: is missing"))
            }
            Err(error) => Some(format!("{file}: cannot be read: {error}")),
        }
    };
    Ok(tables(keyspace, &list)?.into_iter().filter_map(wrong).collect())
}

/// The file that lists a keyspace's tables, or the one that names it, if it is not what was written.
pub(super) fn damaged_list(keyspace: &Path) -> io::Result<Option<PathBuf>> {
    Ok(newest_list(keyspace)?.err())
}

/// What is wrong with a file that has a checksum elsewhere.
pub(super) fn does_not_match(file: &Path) -> String {
    format!("{}: is damaged: it does not have its checksum", file.display())
}

/// The file that lists a keyspace's tables; or that which is damaged.
///
/// `current` holds the number of the list `v…` (u64), its XXH3 (u128, both little endian) and the
/// kind of that. The store writes the checksum, but does not compare it: one wrong bit makes it
/// forget tables.
fn newest_list(keyspace: &Path) -> io::Result<Result<PathBuf, PathBuf>> {
    let current = keyspace.join(CURRENT);
    let bytes = fs::read(&current)?;
    let parts = bytes.split_first_chunk::<8>().and_then(|(number, rest)| {
        let (sum, kind) = rest.split_first_chunk::<16>()?;
        Some((u64::from_le_bytes(*number), u128::from_le_bytes(*sum), kind))
    });
    let Some((number, sum, [0])) = parts else { return Ok(Err(current)) };
    let list = keyspace.join(format!("v{number}"));
    match fs::read(&list) {
        Ok(bytes) if xxh3_128(&bytes) == sum => Ok(Ok(list)),
        Ok(_) => Ok(Err(list)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Err(current)),
        Err(error) => Err(error),
    }
}

/// Reads a list: its section `tables` has a count of levels (u8), each with a count of runs (u8),
/// each with a count of tables (u32), each with its number (u64), the kind of its checksum (u8), the
/// checksum (u128) and a sequence number (u64), all little endian.
fn tables(keyspace: &Path, list: &Path) -> io::Result<Vec<Table>> {
    let unknown = || io::Error::new(io::ErrorKind::InvalidData, "its tables cannot be listed");
    let archive = sfa::Reader::new(list).map_err(|_| unknown())?;
    let section = archive.toc().section(b"tables").ok_or_else(unknown)?;
    let mut section = section.buf_reader(list)?;
    let mut found = Vec::new();
    for _level in 0..u8::from_le_bytes(next(&mut section)?) {
        for _run in 0..u8::from_le_bytes(next(&mut section)?) {
            for _table in 0..u32::from_le_bytes(next(&mut section)?) {
                let number = u64::from_le_bytes(next(&mut section)?);
                let [0] = next(&mut section)? else { return Err(unknown()) };
                let sum = u128::from_le_bytes(next(&mut section)?);
                let _sequence: [u8; 8] = next(&mut section)?;
                let file = keyspace.join("tables").join(number.to_string());
                found.push(Table { file, sum });
            }
        }
    }
    Ok(found)
}

fn next<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn sum(file: &Path) -> io::Result<u128> {
    let mut reader = BufReader::with_capacity(READ_BYTES, File::open(file)?);
    let mut hasher = Xxh3Default::new();
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(hasher.digest128());
        }
        hasher.update(bytes);
        let length = bytes.len();
        reader.consume(length);
    }
}

/// Of a table at once: tables are some MiB long.
const READ_BYTES: usize = 256 * 1024;
