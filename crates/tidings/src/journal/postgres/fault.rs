//! What went wrong on a connection, and what that means for who asked.
//!
//! The rule: whatever may have been committed is never taken for something that was not.

use std::io;

use tokio_postgres::error::{Error, SqlState};
use tokio_rustls::rustls;

use super::tls;
use crate::journal::JournalError;

/// Why the server did not do what it was asked.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// No answer came: what was asked may be done or not.
    Lost(String),
    /// The server refused, and undid the transaction.
    Refused {
        /// Its code.
        state: SqlState,
        /// Its message, with what it says to do.
        message: String,
    },
    /// No answer came, and none can be found any more: it may be done or not.
    Uncertain(String),
    /// A person must act first; the message says how.
    Broken(String),
}

impl Fault {
    /// Whether the same may work at once, or in a moment, nothing of it having been done.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Lost(_) => true,
            Self::Refused { state, .. } => {
                let passing = [
                    SqlState::T_R_SERIALIZATION_FAILURE,
                    SqlState::T_R_DEADLOCK_DETECTED,
                    SqlState::LOCK_NOT_AVAILABLE,
                    SqlState::QUERY_CANCELED,
                    // Another node created the topic meanwhile.
                    SqlState::UNIQUE_VIOLATION,
                    SqlState::TOO_MANY_CONNECTIONS,
                    SqlState::CANNOT_CONNECT_NOW,
                    SqlState::READ_ONLY_SQL_TRANSACTION,
                    SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                ];
                passing.contains(state)
            }
            Self::Uncertain(_) | Self::Broken(_) => false,
        }
    }

    /// Whether somebody else held a lock for too long.
    pub(super) fn is_lock(&self) -> bool {
        matches!(self, Self::Refused { state, .. } if *state == SqlState::LOCK_NOT_AVAILABLE
            || *state == SqlState::QUERY_CANCELED)
    }

    /// Whether the connection is of no more use.
    pub(super) const fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    /// Whether what was asked may still be under way.
    pub(super) const fn is_unanswered(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Uncertain(_))
    }

    fn unknown(what: impl Into<String>) -> Self {
        Self::Lost(what.into())
    }

    /// What came of asking several servers for the one that takes events. What may pass at one of
    /// them, may pass.
    pub(super) fn of_all(mut faults: Vec<(&str, Self)>) -> Self {
        if faults.len() <= 1 {
            return faults.pop().map_or_else(Self::timeout, |(_, fault)| fault);
        }
        let is_broken = faults.iter().all(|(_, fault)| matches!(fault, Self::Broken(_)));
        let each = faults.into_iter().map(|(server, fault)| {
            let what = fault.to_string();
            format!("{server}: {}", what.strip_prefix("PostgreSQL: ").unwrap_or(&what))
        });
        let what = each.collect::<Vec<_>>().join("; ");
        if is_broken { Self::Broken(format!("PostgreSQL: {what}")) } else { Self::Lost(what) }
    }

    /// No answer within the time that answers take.
    pub(super) fn timeout() -> Self {
        Self::unknown("the server did not answer in time")
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lost(why) => write!(f, "PostgreSQL: {why}"),
            Self::Uncertain(why) => write!(f, "{why}; what was asked may have been done"),
            Self::Refused { state, message } => {
                write!(f, "PostgreSQL: {message} ({})", state.code())
            }
            Self::Broken(what) => f.write_str(what),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let Some(server) = error.as_db_error() else {
            if let Some(refused) = refused_certificate(&error) {
                let advice = tls::advice(refused);
                return Self::Broken(format!(
                    "PostgreSQL: the server's certificate is refused: {refused}; {advice}"
                ));
            }
            let mut message = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                message = format!("{message}: {cause}");
                source = cause.source();
            }
            return Self::Lost(message);
        };
        // The server ends the connection after these: its answer to a COMMIT may be lost with it.
        if matches!(server.severity(), "FATAL" | "PANIC") {
            let refused_logins = [
                SqlState::INVALID_PASSWORD,
                SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                SqlState::INVALID_CATALOG_NAME,
            ];
            if refused_logins.contains(server.code()) {
                let advice = "see to the user, password and database of the URL";
                return Self::Broken(format!("PostgreSQL: {}; {advice}", server.message()));
            }
            return Self::Lost(server.message().to_owned());
        }
        let hint = server.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
        let message = format!("{}{hint}", server.message());
        Self::Refused { state: server.code().clone(), message }
    }
}

/// Why the server's certificate was refused, if that is what happened.
fn refused_certificate(error: &Error) -> Option<&rustls::CertificateError> {
    let cause = std::error::Error::source(error)?.downcast_ref::<io::Error>()?;
    match cause.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(refused) => Some(refused),
        _ => None,
    }
}

impl From<Fault> for JournalError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Lost(_) | Fault::Uncertain(_) => Self::Unavailable(fault.to_string()),
            Fault::Refused { ref state, .. } => {
                let what = fault.to_string();
                let for_a_person = [
                    SqlState::INSUFFICIENT_PRIVILEGE,
                    SqlState::UNDEFINED_TABLE,
                    SqlState::UNDEFINED_COLUMN,
                    SqlState::INVALID_SCHEMA_NAME,
                    SqlState::DATA_CORRUPTED,
                    SqlState::INDEX_CORRUPTED,
                ];
                if for_a_person.contains(state) {
                    Self::Broken(what)
                } else {
                    Self::Unavailable(what)
                }
            }
            Fault::Broken(what) => Self::Broken(what),
        }
    }
}
