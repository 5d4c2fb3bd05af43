//! `tidings token`: minting tokens and looking into them.

use std::io::Read as _;

use serde_json::{Map, Value, json};
use tidings::{
    auth::{
        Algorithm, Secret, SigningKey,
        jwt::{inspect, mint},
    },
    clock::{Clock as _, SystemClock},
    model::Timestamp,
};

use super::{load_config, print};
use crate::{
    cli::{MintArgs, TokenCommand},
    config::read_secret_file,
    exit::{Exit, Failure},
};

/// Longest text that is read as a token.
const INPUT_BYTES_MAX: u64 = 64 * 1024;

/// Runs the command.
pub(crate) fn run(command: &TokenCommand) -> Result<Exit, Failure> {
    match command {
        TokenCommand::Mint(args) => print(&format!("{}\n", minted(args)?)),
        TokenCommand::Inspect { token } => {
            let token = match token {
                Some(token) => token.clone(),
                None => {
                    let mut text = String::new();
                    let mut input = std::io::stdin().take(INPUT_BYTES_MAX);
                    input
                        .read_to_string(&mut text)
                        .map_err(|error| Failure::input("stdin", &error))?;
                    text
                }
            };
            print(&described(token.trim(), SystemClock.now())?)
        }
    }
}

fn minted(args: &MintArgs) -> Result<String, Failure> {
    let usage = |message: String| Failure::new(Exit::Usage, message);
    let now = SystemClock.now();
    let mut claims = Map::new();
    for claim in &args.claim {
        let (name, text) = claim
            .split_once('=')
            .ok_or_else(|| usage(format!("--claim {claim}: must be NAME=VALUE")))?;
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
        claims.insert(name.to_owned(), value);
    }
    let mut put = |name: &str, value: Value| claims.insert(name.to_owned(), value);
    put("sub", args.sub.as_str().into());
    put("iat", now.as_secs().into());
    put("exp", now.plus(args.ttl.0).as_secs().into());
    if let Some(tenant) = &args.tenant {
        put("tenant", tenant.as_str().into());
    }
    for (name, list) in [("roles", &args.role), ("permissions", &args.permission)] {
        if !list.is_empty() {
            put(name, json!(list));
        }
    }
    if !args.read.is_empty() || !args.write.is_empty() {
        put("tidings", json!({ "read": args.read, "write": args.write }));
    }
    let key = signing_key(args, &mut put)?;
    mint(&key, &claims).map_err(|error| usage(error.to_string()))
}

/// The key that was given, else the configuration's first shared secret, with the claims that the
/// configuration asks for.
fn signing_key(
    args: &MintArgs,
    put: &mut impl FnMut(&str, Value) -> Option<Value>,
) -> Result<SigningKey, Failure> {
    if let Some(file) = &args.key_file {
        let algorithm = Algorithm::parse(&args.algorithm).ok_or_else(|| {
            let known: Vec<&str> = Algorithm::ALL.iter().map(|each| each.as_str()).collect();
            Failure::new(Exit::Usage, format!("--algorithm: must be one of {}", known.join(", ")))
        })?;
        let text =
            read_secret_file(file).map_err(|error| Failure::input(file.display(), &error))?;
        return SigningKey::new(algorithm, args.kid.as_deref(), &Secret::new(text))
            .map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", file.display())));
    }
    let config = load_config(&args.layers)?.config;
    let jwt = &config.auth.jwt;
    let shared = jwt.keys.iter().find_map(|key| Some((key, key.secret.as_ref()?)));
    let (key, secret) = shared.ok_or_else(|| {
        let message = "the configuration has no shared secret to sign with: give --key-file, with \
                       --algorithm and --kid as the hub knows the key";
        Failure::new(Exit::Config, message)
    })?;
    if let Some(issuer) = &jwt.issuer {
        put("iss", issuer.as_str().into());
    }
    if let Some(audience) = jwt.audience.first() {
        put("aud", audience.as_str().into());
    }
    SigningKey::new(key.algorithm, key.kid.as_deref(), secret)
        .map_err(|error| Failure::new(Exit::Config, error.to_string()))
}

/// Header, claims and times of a token. Its signature, which is what makes it a credential, is not
/// printed.
fn described(token: &str, now: Timestamp) -> Result<String, Failure> {
    let token = inspect(token).map_err(|problem| Failure::new(Exit::Data, problem.detail))?;
    let mut notes = vec!["# not verified: anybody may have written this".to_owned()];
    let seconds = token.claims.get("exp").and_then(Value::as_u64);
    if let Some(expires_at) = seconds.map(|seconds| Timestamp::from_millis(seconds * 1000)) {
        let state = if expires_at <= now { "expired" } else { "expires" };
        notes.push(format!("# {state} at {expires_at}"));
    }
    let pretty = |part: &Map<String, Value>| serde_json::to_string_pretty(part).unwrap_or_default();
    Ok(format!("{}\n{}\n{}\n", notes.join("\n"), pretty(&token.header), pretty(&token.claims)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inspected_token_shows_its_claims_but_not_its_signature() {
        let secret = Secret::new("0123456789abcdef0123456789abcdef");
        let key = SigningKey::new(Algorithm::Hs256, None, &secret).unwrap();
        let claims = json!({"sub": "42", "exp": 1_000});
        let token = mint(&key, claims.as_object().unwrap()).unwrap();
        let text = described(&token, Timestamp::from_millis(2_000_000)).unwrap();
        assert!(
            text.contains("\"sub\": \"42\"") && text.contains("expired at 1970-01-01T00:16:40")
        );
        assert!(!text.contains(token.rsplit('.').next().unwrap()));
    }
}
