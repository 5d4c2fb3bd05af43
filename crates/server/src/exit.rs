//! How the program ends.
//!
//! The rule: a script can tell from the exit code what to do next; the codes are those of
//! `sysexits.h` where one fits.

use std::{fmt, process::ExitCode};

/// Declares the exit codes with their numbers and meanings.
macro_rules! exits {
    ($($name:ident = $code:literal, $meaning:literal;)*) => {
        /// Why the program ends.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Exit { $(#[doc = $meaning] $name,)* }

        impl Exit {
            /// All of them, for the reference.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The number that the shell sees.
            pub(crate) const fn code(self) -> u8 {
                match self { $(Self::$name => $code,)* }
            }

            /// What it means and what to do.
            pub(crate) const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)* }
            }
        }
    };
}

exits! {
    Ok = 0, "done, or the reader of the output went away; a hub that was told to end has ended, also if a second signal cut it short";
    Unhealthy = 1, "the hub is not healthy (`health`)";
    Usage = 64, "the command line is wrong";
    Data = 65, "events were refused, and all others published; or a journal or export is damaged; the messages say which";
    NoInput = 66, "an input file cannot be read";
    NotFound = 68, "what the command names is not there (`admin kick`, `admin trim`, `admin lift`)";
    Unavailable = 69, "the hub cannot be reached or did not answer in time: try again later";
    Software = 70, "an error inside tidings";
    DataDirectory = 72, "the data directory cannot be used: the message names the file and what to do";
    Output = 74, "a file or the output cannot be written";
    InUse = 75, "another process has the port or the data directory: end it, or choose others";
    Refused = 77, "the credential is missing, not valid or does not allow this";
    Config = 78, "the configuration has problems, all of which were listed";
}

/// A failure to report before the program ends.
#[derive(Debug)]
pub(crate) struct Failure {
    /// How it ends.
    pub(crate) exit: Exit,
    /// What went wrong and what to do, for people; empty if that was said before.
    pub(crate) message: String,
}

impl Failure {
    /// A failure with its message.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// A file that could not be written.
    pub(crate) fn output(what: impl fmt::Display, error: &std::io::Error) -> Self {
        Self::new(Exit::Output, format!("{what} cannot be written: {error}"))
    }

    /// A file that could not be read.
    pub(crate) fn input(what: impl fmt::Display, error: &std::io::Error) -> Self {
        Self::new(Exit::NoInput, format!("{what} cannot be read: {error}"))
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
