//! The operators' token, where the configuration has none.
//!
//! The rule: it is made once for a data directory, and nobody but its owner can read it.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path};

use tidings::auth::Secret;

use crate::{
    config::ADMIN_TOKEN_CHARACTERS_MIN,
    exit::{Exit, Failure},
    files::write_private,
};

/// Its name in the data directory.
pub(crate) const TOKEN_FILE: &str = "admin-token";

/// Reads the token of a data directory, making it the first time.
pub(super) fn load_or_create(data: &Path) -> Result<Secret, Failure> {
    let file = data.join(TOKEN_FILE);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Twice 122 random bits.
            let [one, two] = [(); 2].map(|()| uuid::Uuid::new_v4().simple());
            let token = format!("tda_{one}{two}");
            fs::create_dir_all(data)
                .and_then(|()| write_private(&file, &token))
                .map_err(|error| Failure::output(file.display(), &error))?;
            return Ok(Secret::new(token));
        }
        Err(error) => return Err(Failure::input(file.display(), &error)),
    };
    let refused = |reason: &str| {
        let message = format!("{}: {reason}", file.display());
        Err(Failure::new(Exit::Config, message))
    };
    let mode = fs::metadata(&file).map_err(|error| Failure::input(file.display(), &error))?;
    if mode.permissions().mode() & 0o077 != 0 {
        return refused(
            "others can read the operators' token: chmod 600 it, or remove it and a \
                        new one is made",
        );
    }
    let token = text.trim();
    if token.len() < ADMIN_TOKEN_CHARACTERS_MIN {
        return refused("this is no token: remove it, and a new one is made");
    }
    Ok(Secret::new(token))
}
