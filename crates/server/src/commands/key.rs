//! `tidings key create`: an API key and its entry for the configuration.
//!
//! The rule: the key is printed this once; what the hub keeps is its digest.

use serde_json::{Value, json};
use tidings::{
    auth::{ApiKey, ApiKeySettings, AuthSettings, Authenticator},
    model::Pattern,
};

use super::print;
use crate::{
    cli::KeyArgs,
    exit::{Exit, Failure},
};

/// Runs the command.
pub(crate) fn create(args: &KeyArgs) -> Result<Exit, Failure> {
    if args.read.is_empty() && args.write.is_empty() && !args.revoke {
        let message = "the key could do nothing: give --write PATTERN, --read PATTERN or --revoke";
        return Err(Failure::new(Exit::Usage, message));
    }
    for pattern in args.read.iter().chain(&args.write) {
        Pattern::parse(pattern)
            .map_err(|error| Failure::new(Exit::Usage, format!("`{pattern}`: {error}")))?;
    }
    let (key, generated) = ApiKey::generate();
    let entry = ApiKeySettings {
        tenant: args.tenant.clone(),
        subject: args.subject.clone(),
        read: args.read.clone(),
        write: args.write.clone(),
        revoke: args.revoke,
        expires_at: args.expires_at.clone(),
        ..generated
    };
    let settings = AuthSettings { api_keys: vec![entry.clone()], ..AuthSettings::default() };
    Authenticator::new(&settings).map_err(|error| Failure::new(Exit::Usage, error.reason))?;
    if args.json {
        return print(&format!("{}\n", json!({ "key": key.expose(), "entry": entry })));
    }
    let toml = entry_toml(&entry);
    print(&format!(
        "# The key, shown this once. Give it to the publisher, for instance as TIDINGS_KEY:\n\
         # {}\n\n# Its entry for the hub's configuration:\n{toml}",
        key.expose()
    ))
}

/// The entry as `[[auth.api_keys]]`, without what is empty.
fn entry_toml(entry: &ApiKeySettings) -> String {
    let mut text = "[[auth.api_keys]]\n".to_owned();
    let entry = serde_json::to_value(entry).unwrap_or_default();
    for name in ["id", "sha256", "tenant", "subject", "read", "write", "revoke", "expires_at"] {
        let value = entry.get(name).filter(|value| **value != Value::Null && **value != json!([]));
        if let Some(value) = value.and_then(|value| toml::Value::try_from(value).ok()) {
            text.push_str(&format!("{name} = {value}\n"));
        }
    }
    text
}
