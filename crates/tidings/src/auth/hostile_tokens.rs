//! Tokens that attackers, careless issuers and broken libraries make, and what becomes of them.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;

use super::*;
use crate::model::{
    Topic,
    limits::{GRANT_ELEMENTS_MAX, TOKEN_BYTES_MAX, TOKEN_LEEWAY},
};

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const SECRET: &str = "an HS256 secret of the tests, 0123456789abcdef";
const OTHER_SECRET: &str = "another secret of the tests, 0123456789abcdef";
const RSA_PUBLIC: &str = include_str!("testdata/rsa.pub");
const EC_PUBLIC: &str = include_str!("testdata/ec256.pub");
const ED_PUBLIC: &str = include_str!("testdata/ed.pub");

// What a refused token is refused for, by a part of the detail.
const SHAPE: &str = "neither an API key nor a signed token";
const HEADER: &str = "header part";
const HEADER_FIELDS: &str = "header must have `alg`";
const UNSIGNED: &str = "not signed with a key of this hub";
const CLAIMS: &str = "claims part";

fn signer(algorithm: Algorithm, key: &str) -> SigningKey {
    SigningKey::new(algorithm, None, &Secret::new(key)).unwrap()
}

fn hs256() -> SigningKey {
    signer(Algorithm::Hs256, SECRET)
}

fn encode(text: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

/// Signs any text as header and claims.
fn forge(key: &SigningKey, header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", encode(header), encode(claims));
    format!("{signed}.{}", key.sign(&signed).unwrap())
}

fn with_header(header: &str) -> String {
    forge(&hs256(), header, GOOD_CLAIMS)
}

fn with_claims(claims: &str) -> String {
    forge(&hs256(), GOOD_HEADER, claims)
}

const GOOD_HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
const GOOD_CLAIMS: &str =
    r#"{"sub":"42","exp":1800000600,"iss":"https://id.example","aud":"tidings"}"#;

/// The good claims and one more, which comes first.
fn plus(claim: &str) -> String {
    with_claims(&GOOD_CLAIMS.replacen('{', &format!("{{{claim},"), 1))
}

/// The good claims with another end.
fn ends(exp: &str) -> String {
    with_claims(&GOOD_CLAIMS.replace("1800000600", exp))
}

fn key(algorithm: Algorithm, kid: Option<&str>, text: &str) -> JwtKeySettings {
    let shared = algorithm.is_shared_secret();
    JwtKeySettings {
        algorithm,
        kid: kid.map(str::to_owned),
        secret: shared.then(|| Secret::new(text)),
        public_key: (!shared).then(|| text.to_owned()),
    }
}

/// A hub with an HS256 key without name and an RS256, an ES256, an EdDSA and an HS256 key with one.
fn hub() -> Authenticator {
    let settings = AuthSettings {
        jwt: JwtSettings {
            keys: vec![
                key(Algorithm::Hs256, None, SECRET),
                key(Algorithm::Rs256, Some("rsa"), RSA_PUBLIC),
                key(Algorithm::Es256, Some("ec"), EC_PUBLIC),
                key(Algorithm::EdDsa, Some("ed"), ED_PUBLIC),
                key(Algorithm::Hs256, Some("old"), OTHER_SECRET),
            ],
            issuer: Some("https://id.example".to_owned()),
            audience: vec!["tidings".to_owned(), "events".to_owned()],
            issuers: Vec::new(),
        },
        access: serde_json::from_value(json!([
            {"topic": "user/{sub}", "read": true, "feed": true},
            {"topic": "team/{teams}/jobs", "read": true},
        ]))
        .unwrap(),
        ..AuthSettings::default()
    };
    Authenticator::new(&settings).unwrap()
}

/// Broken on purpose: not comparing the header's `alg` with the key's, ignoring `crit`, parsing JSON
/// that is not strict, or letting any `kid` choose any key each makes it fail.
#[test]
fn every_hostile_token_is_refused_for_its_reason() {
    let hub = hub();
    let good = with_claims(GOOD_CLAIMS);
    let parts: Vec<&str> = good.split('.').collect();
    let [header, claims, signature] = parts.as_slice() else { panic!("three parts") };
    let rsa_as_secret = signer(Algorithm::Hs256, &RSA_PUBLIC.replace("-----BEGIN", "_____BEGIN"));
    let list = |count: usize, element: &str| vec![element; count].join(",");
    let many_patterns = list(GRANT_ELEMENTS_MAX + 1, "\"a\"");
    let flipped = format!(
        "{header}.{claims}.{}{}",
        if signature.starts_with('A') { 'B' } else { 'A' },
        &signature[1..]
    );

    #[rustfmt::skip]
    let cases: Vec<(&str, String, &str)> = vec![
        // The shape.
        ("one part", "abc".into(), SHAPE),
        ("two parts", format!("{header}.{claims}"), SHAPE),
        ("no signature", format!("{header}.{claims}."), SHAPE),
        ("no claims", format!("{header}..{signature}"), SHAPE),
        ("no header", format!(".{claims}.{signature}"), SHAPE),
        ("only dots", "..".into(), SHAPE),
        ("a fourth part", format!("{good}.x"), SHAPE),
        ("a trailing dot", format!("{good}."), SHAPE),
        ("a leading dot", format!(".{good}"), SHAPE),
        ("five parts, as of an encrypted token", format!("{good}.{claims}.{signature}"), SHAPE),
        ("white space around", format!(" {good}"), HEADER),
        ("a line feed at the end", format!("{good}\n"), "no base64url"),
        ("too long", format!("{header}.{}.{signature}", "A".repeat(TOKEN_BYTES_MAX)), "longer than 8192 bytes"),
        ("padding", format!("{header}=.{claims}.{signature}"), HEADER),
        ("standard base64 in the signature", format!("{header}.{claims}.+/{}", &signature[2..]), "no base64url"),
        ("stray bits in the signature", format!("{header}.{claims}.{}B", &signature[..42]), "no base64url"),
        ("a scheme in front", format!("Bearer {good}"), HEADER),

        // The signature.
        ("another signature", flipped, UNSIGNED),
        ("half a signature", format!("{header}.{claims}.{}", &signature[..40]), UNSIGNED),
        ("other claims under it", format!("{header}.{}.{signature}", encode(r#"{"sub":"43","exp":1800000600}"#)), UNSIGNED),
        ("a header of the same meaning under it", format!("{}.{claims}.{signature}", encode(r#"{"typ":"JWT","alg":"HS256"}"#)), UNSIGNED),
        ("a secret that is not ours", forge(&signer(Algorithm::Hs256, &"x".repeat(32)), GOOD_HEADER, GOOD_CLAIMS), UNSIGNED),

        // The algorithm is the key's, whatever the header says.
        ("alg none with a signature", with_header(r#"{"alg":"none"}"#), UNSIGNED),
        ("alg none without", format!("{}.{claims}.", encode(r#"{"alg":"none"}"#)), SHAPE),
        ("alg NONE", with_header(r#"{"alg":"NONE"}"#), UNSIGNED),
        ("alg in lower case", with_header(r#"{"alg":"hs256"}"#), UNSIGNED),
        ("alg empty", with_header(r#"{"alg":""}"#), UNSIGNED),
        ("alg missing", with_header(r#"{"typ":"JWT"}"#), HEADER_FIELDS),
        ("alg a list", with_header(r#"{"alg":["HS256"]}"#), HEADER_FIELDS),
        ("alg null", with_header(r#"{"alg":null}"#), HEADER_FIELDS),
        ("alg HS512 with the HS256 secret", forge(&signer(Algorithm::Hs512, SECRET), r#"{"alg":"HS512"}"#, GOOD_CLAIMS), UNSIGNED),
        ("alg HS256 over an HS512 signature", forge(&signer(Algorithm::Hs512, SECRET), GOOD_HEADER, GOOD_CLAIMS), UNSIGNED),
        ("the RSA public key as HS256 secret", {
            // `SigningKey` refuses such a secret, so the MAC is made by hand.
            let signed = format!("{}.{}", encode(r#"{"alg":"HS256","kid":"rsa"}"#), encode(GOOD_CLAIMS));
            let encoding = jsonwebtoken::EncodingKey::from_secret(RSA_PUBLIC.as_bytes());
            let mac = jsonwebtoken::crypto::sign(signed.as_bytes(), &encoding, jsonwebtoken::Algorithm::HS256);
            format!("{signed}.{}", mac.unwrap())
        }, UNSIGNED),
        ("the RSA public key as HS256 secret, other spelling", forge(&rsa_as_secret, r#"{"alg":"RS256","kid":"rsa"}"#, GOOD_CLAIMS), UNSIGNED),
        ("RSA as PS256 with the RS256 key", forge(&signer(Algorithm::Ps256, include_str!("testdata/rsa.pem")), r#"{"alg":"PS256","kid":"rsa"}"#, GOOD_CLAIMS), UNSIGNED),
        ("a PS256 signature that says RS256", forge(&signer(Algorithm::Ps256, include_str!("testdata/rsa.pem")), r#"{"alg":"RS256","kid":"rsa"}"#, GOOD_CLAIMS), UNSIGNED),
        ("an ES256 signature of zeros", format!("{}.{claims}.{}", encode(r#"{"alg":"ES256","kid":"ec"}"#), encode([0; 64])), UNSIGNED),
        ("an EdDSA signature of zeros", format!("{}.{claims}.{}", encode(r#"{"alg":"EdDSA","kid":"ed"}"#), encode([0; 64])), UNSIGNED),

        // The key's name.
        ("an unknown kid of a key with a name", forge(&signer(Algorithm::Hs256, OTHER_SECRET), r#"{"alg":"HS256","kid":"new"}"#, GOOD_CLAIMS), UNSIGNED),
        ("another key's kid", forge(&signer(Algorithm::Hs256, OTHER_SECRET), r#"{"alg":"HS256","kid":"ec"}"#, GOOD_CLAIMS), UNSIGNED),
        ("swapped kid, RSA and EC", forge(&signer(Algorithm::Rs256, include_str!("testdata/rsa.pem")), r#"{"alg":"RS256","kid":"ec"}"#, GOOD_CLAIMS), UNSIGNED),
        ("kid a number", with_header(r#"{"alg":"HS256","kid":7}"#), HEADER_FIELDS),
        ("kid null", with_header(r#"{"alg":"HS256","kid":null}"#), HEADER_FIELDS),
        ("kid empty", with_header(r#"{"alg":"HS256","kid":""}"#), HEADER_FIELDS),
        ("kid with a line feed", with_header(r#"{"alg":"HS256","kid":"a\nb"}"#), HEADER_FIELDS),
        ("kid too long", with_header(&format!(r#"{{"alg":"HS256","kid":"{}"}}"#, "k".repeat(257))), HEADER_FIELDS),
        ("kid that injects", forge(&signer(Algorithm::Hs256, OTHER_SECRET), r#"{"alg":"HS256","kid":"old' or '1'='1"}"#, GOOD_CLAIMS), UNSIGNED),

        // The header.
        ("crit that nobody knows", with_header(r#"{"alg":"HS256","crit":["x"],"x":1}"#), "`crit`"),
        ("crit b64", with_header(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#), "`crit`"),
        ("crit empty", with_header(r#"{"alg":"HS256","crit":[]}"#), "`crit`"),
        ("crit null", with_header(r#"{"alg":"HS256","crit":null}"#), "`crit`"),
        ("a header twice", with_header(r#"{"alg":"none","alg":"HS256"}"#), HEADER),
        ("a header twice, escaped", with_header(r#"{"alg":"HS256","\u0061lg":"none"}"#), HEADER),
        ("a header that is a list", with_header(r#"[{"alg":"HS256"}]"#), HEADER),
        ("a header that is no JSON", with_header("alg: HS256"), HEADER),
        ("a header with more after it", with_header(r#"{"alg":"HS256"}{}"#), HEADER),
        ("a header with a byte order mark", with_header("\u{feff}{\"alg\":\"HS256\"}"), HEADER),
        ("a header with its key in it", forge(&signer(Algorithm::Hs256, &"x".repeat(32)),
            r#"{"alg":"HS256","jwk":{"kty":"oct","k":"eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg"}}"#, GOOD_CLAIMS), UNSIGNED),

        // The claims as JSON.
        ("claims that are a list", with_claims("[1]"), CLAIMS),
        ("claims that are null", with_claims("null"), CLAIMS),
        ("claims that are no JSON", with_claims("sub=42"), CLAIMS),
        ("claims that are a token again", with_claims(&good), CLAIMS),
        ("claims that are no UTF-8", {
            let signed = format!("{}.{}", encode(GOOD_HEADER), encode(b"{\"sub\":\"\xff\",\"exp\":1800000600}"));
            format!("{signed}.{}", hs256().sign(&signed).unwrap())
        }, CLAIMS),
        ("exp twice", plus(r#""exp":1900000000"#), CLAIMS),
        ("sub twice", plus(r#""sub":"1""#), CLAIMS),
        ("sub twice, escaped", plus(r#""\u0073ub":"1""#), CLAIMS),
        ("a key twice deep inside", plus(r#""x":{"y":[{"a":1,"a":2}]}"#), CLAIMS),
        ("claims nested deeply", plus(&format!(r#""x":{}{}"#, "[".repeat(2000), "]".repeat(2000))), CLAIMS),
        ("half a surrogate pair", plus(r#""x":"\ud800""#), CLAIMS),

        // Time.
        ("exp missing", with_claims(r#"{"sub":"42"}"#), "no claim `exp`"),
        ("exp null", ends("null"), "`exp` is not a number"),
        ("exp a string", ends("\"1800000600\""), "`exp` is not a number"),
        ("exp a short string", ends("\"999\""), "`exp` is not a number"),
        ("exp a list", ends("[1800000600]"), "`exp` is not a number"),
        ("exp an object", ends("{\"exp\":1800000600}"), "`exp` is not a number"),
        ("exp true", ends("true"), "`exp` is not a number"),
        ("exp 1e99", ends("1e99"), "`exp` is not a number"),
        ("exp 1e400", ends("1e400"), CLAIMS),
        ("exp of 30 digits", ends(&"9".repeat(30)), "`exp` is not a number"),
        ("exp in milliseconds", ends("1800000600000"), "`exp` is not a number"),
        ("exp negative", ends("-1"), "`exp` is not a number"),
        ("exp negative without bound", ends("-1e99"), "`exp` is not a number"),
        ("exp NaN", ends("NaN"), CLAIMS),
        ("exp Infinity", ends("Infinity"), CLAIMS),
        ("exp hexadecimal", ends("0x6b49d200"), CLAIMS),
        ("nbf later", plus(r#""nbf":1800000061"#), "not valid yet"),
        ("nbf a string", plus(r#""nbf":"0""#), "`nbf` is not a number"),
        ("nbf 1e99", plus(r#""nbf":1e99"#), "`nbf` is not a number"),
        ("iat a string", plus(r#""iat":"yesterday""#), "`iat` is not a number"),

        // Whose, from whom and for whom.
        ("sub a number", with_claims(r#"{"sub":42,"exp":1800000600,"iss":"https://id.example","aud":"tidings"}"#), "`sub` must be a string"),
        ("sub null", with_claims(r#"{"sub":null,"exp":1800000600,"iss":"https://id.example","aud":"tidings"}"#), "`sub` must be a string"),
        ("sub empty", with_claims(r#"{"sub":"","exp":1800000600,"iss":"https://id.example","aud":"tidings"}"#), "`sub` must be 1 to 256"),
        ("sub that forges a log line", with_claims(r#"{"sub":"a\n{\"level\":\"info\"}","exp":1800000600,"iss":"https://id.example","aud":"tidings"}"#), "control characters"),
        ("jti with an escape sequence", plus(r#""jti":"\u001b[2J""#), "control characters"),
        ("neither sub nor jti", with_claims(r#"{"exp":1800000600,"iss":"https://id.example","aud":"tidings"}"#), "neither a claim `sub`"),
        ("iss missing", with_claims(r#"{"sub":"42","exp":1800000600,"aud":"tidings"}"#), "`iss` is not the configured"),
        ("iss another", with_claims(&GOOD_CLAIMS.replace("id.example", "id.example.evil")), "`iss` is not the configured"),
        ("iss a list", with_claims(r#"{"sub":"42","exp":1800000600,"iss":["https://id.example"],"aud":"tidings"}"#), "`iss` must be a string"),
        ("aud missing", with_claims(r#"{"sub":"42","exp":1800000600,"iss":"https://id.example"}"#), "`aud` has none"),
        ("aud another", with_claims(&GOOD_CLAIMS.replace("tidings", "tidings2")), "`aud` has none"),
        ("aud an empty list", with_claims(&GOOD_CLAIMS.replace("\"tidings\"", "[]")), "`aud` has none"),
        ("aud a list with a number", with_claims(&GOOD_CLAIMS.replace("\"tidings\"", "[\"tidings\",1]")), "`aud` must be a list"),
        ("aud nested", with_claims(&GOOD_CLAIMS.replace("\"tidings\"", "[[\"tidings\"]]")), "`aud` must be a list"),
        ("aud an object", with_claims(&GOOD_CLAIMS.replace("\"tidings\"", "{\"tidings\":true}")), "`aud` must be a list"),
        ("tenant a number", plus(r#""tenant":1"#), "`tenant` must be a string"),
        ("tenant null", plus(r#""tenant":null"#), "`tenant` must be a string"),
        ("tenant empty", plus(r#""tenant":"""#), "`tenant` is not one segment"),
        ("tenant of two segments", plus(r#""tenant":"acme/other""#), "`tenant` is not one segment"),
        ("tenant that climbs", plus(r#""tenant":"..""#), "`tenant` is not one segment"),
        ("tenant a wildcard", plus(r#""tenant":"*""#), "`tenant` is not one segment"),
        ("tenant with U+0000", plus(r#""tenant":"acme\u0000""#), "`tenant` is not one segment"),

        // What it asks for.
        ("roles a string", plus(r#""roles":"admin""#), "`roles` must be a list"),
        ("roles nested", plus(r#""roles":[["admin"]]"#), "`roles` must be a list"),
        ("permissions an object", plus(r#""permissions":{"admin":true}"#), "`permissions` must be a list"),
        ("teams a number", plus(r#""teams":7"#), "`teams` must be a string or a list"),
        ("teams with a number", plus(r#""teams":["a",7]"#), "`teams` must be a string or a list"),
        ("teams nested", plus(r#""teams":[["a"]]"#), "`teams` must be a string or a list"),
        ("teams without bound", plus(&format!(r#""teams":[{}]"#, list(GRANT_ELEMENTS_MAX + 1, "\"a\""))), "`teams` has more than 200"),
        ("tidings a list", plus(r#""tidings":["**"]"#), "`tidings` must have"),
        ("tidings null", plus(r#""tidings":null"#), "`tidings` must have"),
        ("tidings misspelled", plus(r#""tidings":{"reads":["a"]}"#), "`tidings` must have"),
        ("tidings with a string", plus(r#""tidings":{"read":"**"}"#), "`tidings` must have"),
        ("tidings with a number", plus(r#""tidings":{"read":[1]}"#), "`tidings` must have"),
        ("tidings with a bad pattern", plus(r#""tidings":{"read":["**/a"]}"#), "`tidings` must have"),
        ("tidings with a placeholder", plus(r#""tidings":{"write":["user/{sub}"]}"#), "`tidings` must have"),
        ("tidings with too many patterns", plus(&format!(r#""tidings":{{"read":[{many_patterns}]}}"#)), "`tidings` must have"),
        ("tidings with a long pattern", plus(&format!(r#""tidings":{{"read":["{}"]}}"#, "a/bbbbbbb".repeat(29))), "`tidings` must have"),
    ];
    let mut names = std::collections::HashSet::new();
    for (name, token, reason) in &cases {
        assert!(names.insert(name), "{name} is there twice");
        let problem = hub.authenticate(token, NOW).expect_err(name);
        assert_eq!(problem.code, ErrorCode::CredentialInvalid, "{name}: {problem}");
        assert!(problem.detail.contains(reason), "{name}: {problem}");
        // No part of the token comes back, not even a short one.
        for part in token.split('.').filter(|part| part.len() > 8) {
            assert!(!problem.detail.contains(part), "{name}: {problem}");
        }
    }
    assert!(cases.len() >= 100, "{}", cases.len());
    // The cases differ from this one, which is accepted, in nothing but what they are named for.
    assert!(hub.authenticate(&good, NOW).is_ok());
    for header in [
        r#"{"alg":"HS256","jku":"http://169.254.169.254/","x5u":"file:///etc/passwd","x5c":[1]}"#,
        r#"{"alg":"HS256","kid":"unknown, so the key without a name is tried"}"#,
    ] {
        assert!(hub.authenticate(&with_header(header), NOW).is_ok(), "{header}");
    }
}

#[test]
fn a_token_ends_a_leeway_after_exp_and_begins_a_leeway_before_nbf() {
    let hub = hub();
    let token = plus(r#""nbf":1800000000"#);
    let at = |seconds: u64, ms: u64| {
        hub.authenticate(&token, Timestamp::from_millis(seconds * 1000 + ms))
    };
    let leeway = TOKEN_LEEWAY.as_secs();
    assert_eq!(at(1_800_000_000 - leeway - 1, 999).unwrap_err(), invalid("token is not valid yet"));
    let grant = at(1_800_000_000 - leeway, 0).unwrap();
    assert_eq!(grant.expires_at(), Some(Timestamp::from_millis((1_800_000_600 + leeway) * 1000)));
    assert!(at(1_800_000_600 + leeway - 1, 999).is_ok());
    let expired = at(1_800_000_600 + leeway, 0).unwrap_err();
    assert_eq!(expired, Problem::new(ErrorCode::CredentialExpired, "token has expired"));
    let fraction = hub.authenticate(&ends("1800000600.25"), NOW).unwrap();
    assert_eq!(
        fraction.expires_at(),
        Some(Timestamp::from_millis((1_800_000_600 + leeway) * 1000 + 250))
    );
}

#[test]
fn nobody_learns_of_a_forged_token_whether_it_would_have_expired() {
    let old = GOOD_CLAIMS.replace("1800000600", "1");
    let forged = forge(&signer(Algorithm::Hs256, &"x".repeat(32)), GOOD_HEADER, &old);
    let problem = hub().authenticate(&forged, NOW).unwrap_err();
    assert_eq!(problem.code, ErrorCode::CredentialInvalid);
}

#[test]
fn a_missing_credential_is_not_an_invalid_one() {
    let problem = hub().authenticate("", NOW).unwrap_err();
    assert_eq!(problem.code, ErrorCode::CredentialMissing);
}

#[test]
fn a_hub_without_keys_accepts_no_token() {
    let hub = Authenticator::new(&AuthSettings::default()).unwrap();
    let problem = hub.authenticate(&with_claims(GOOD_CLAIMS), NOW).unwrap_err();
    assert_eq!(problem, invalid("token is not signed with a key of this hub"));
}

#[test]
fn every_algorithm_verifies_what_it_minted_and_no_other_does() {
    let rsa = (RSA_PUBLIC, include_str!("testdata/rsa.pem"));
    let keys = Algorithm::ALL.iter().map(|algorithm| match algorithm {
        Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => (*algorithm, SECRET, SECRET),
        Algorithm::Es256 => (*algorithm, EC_PUBLIC, include_str!("testdata/ec256.pem")),
        Algorithm::Es384 => {
            (*algorithm, include_str!("testdata/ec384.pub"), include_str!("testdata/ec384.pem"))
        }
        Algorithm::EdDsa => (*algorithm, ED_PUBLIC, include_str!("testdata/ed.pem")),
        _ => (*algorithm, rsa.0, rsa.1),
    });
    let claims = json!({"sub": "42", "exp": 1_800_000_600, "tenant": "acme"});
    let mut hubs = Vec::new();
    let mut tokens = Vec::new();
    for (algorithm, public, private) in keys {
        let jwt =
            JwtSettings { keys: vec![key(algorithm, None, public)], ..JwtSettings::default() };
        hubs.push(Authenticator::new(&AuthSettings { jwt, ..AuthSettings::default() }).unwrap());
        let token = jwt::mint(&signer(algorithm, private), claims.as_object().unwrap()).unwrap();
        let seen = jwt::inspect(&token).unwrap();
        assert_eq!(seen.header["alg"], algorithm.as_str());
        assert_eq!(&seen.claims, claims.as_object().unwrap());
        tokens.push(token);
    }
    for (minted, token) in tokens.iter().enumerate() {
        for (verified, hub) in hubs.iter().enumerate() {
            let grant = hub.authenticate(token, NOW);
            assert_eq!(grant.is_ok(), minted == verified, "{minted} {verified}");
        }
    }
}

#[test]
fn two_keys_overlap_while_one_replaces_the_other() {
    let claims = json!({"sub": "42", "exp": 1_800_000_600});
    let mint = |kid: Option<&str>, secret: &str| {
        let key = SigningKey::new(Algorithm::Hs256, kid, &Secret::new(secret)).unwrap();
        jwt::mint(&key, claims.as_object().unwrap()).unwrap()
    };
    let hub = |keys: Vec<JwtKeySettings>| {
        let jwt = JwtSettings { keys, ..JwtSettings::default() };
        Authenticator::new(&AuthSettings { jwt, ..AuthSettings::default() }).unwrap()
    };
    let old = key(Algorithm::Hs256, Some("2026"), SECRET);
    let new = key(Algorithm::Hs256, Some("2027"), OTHER_SECRET);
    let overlap = hub(vec![old, new.clone()]);
    let after = hub(vec![new]);
    for kid in [Some("2026"), None] {
        let token = mint(kid, SECRET);
        assert!(overlap.authenticate(&token, NOW).is_ok(), "{kid:?}");
        assert!(after.authenticate(&token, NOW).is_err(), "{kid:?}");
    }
    assert!(overlap.authenticate(&mint(Some("2027"), OTHER_SECRET), NOW).is_ok());
    assert!(overlap.authenticate(&mint(Some("2026"), OTHER_SECRET), NOW).is_err());
}

#[test]
fn keys_that_cannot_be_name_their_field() {
    let refusal = |key: JwtKeySettings| {
        let jwt = JwtSettings { keys: vec![key], ..JwtSettings::default() };
        Authenticator::new(&AuthSettings { jwt, ..AuthSettings::default() })
            .unwrap_err()
            .to_string()
    };
    let rsa = include_str!("testdata/rsa.pem");
    // An Ed25519 key whose bit string holds 16 bytes; the library would cut 32 out and panic.
    let short_ed = "-----BEGIN PUBLIC KEY-----\nMBowBQYDK2VwAxEAAAAAAAAAAAAAAAAAAAAAAA==\n-----END PUBLIC KEY-----";
    let cases = [
        (key(Algorithm::Hs256, None, &"x".repeat(31)), "secret: must be at least 32"),
        (key(Algorithm::Hs512, None, RSA_PUBLIC), "secret: must be a shared secret; this is a PEM"),
        (key(Algorithm::Rs256, None, rsa), "public_key: must be the public key"),
        (
            key(Algorithm::Rs256, None, include_str!("testdata/rsa1024.pub")),
            "public_key: must have at least 2048 bits",
        ),
        (key(Algorithm::Rs256, None, EC_PUBLIC), "public_key: is not a public key for RS256"),
        (key(Algorithm::Es256, None, RSA_PUBLIC), "public_key: is not a public key for ES256"),
        (
            key(Algorithm::Es256, None, include_str!("testdata/ec384.pub")),
            "public_key: is not a public key for ES256",
        ),
        (key(Algorithm::Es384, None, EC_PUBLIC), "public_key: is not a public key for ES384"),
        (key(Algorithm::EdDsa, None, EC_PUBLIC), "public_key: is not a public key for EdDSA"),
        (key(Algorithm::EdDsa, None, short_ed), "public_key: is not a public key for EdDSA"),
        (key(Algorithm::Ps256, None, "not PEM"), "public_key: is not a public key for PS256"),
        (key(Algorithm::Hs256, Some("a\nb"), SECRET), "kid: must be 1 to 256 bytes"),
        (
            JwtKeySettings { secret: None, ..key(Algorithm::Hs256, None, SECRET) },
            "secret: is needed for HS256",
        ),
        (
            JwtKeySettings { public_key: None, ..key(Algorithm::Es256, None, EC_PUBLIC) },
            "public_key: is needed for ES256",
        ),
        (
            JwtKeySettings {
                public_key: Some(EC_PUBLIC.into()),
                ..key(Algorithm::Hs256, None, SECRET)
            },
            "public_key: is not used by HS256",
        ),
        (
            JwtKeySettings {
                secret: Some(Secret::new(SECRET)),
                ..key(Algorithm::Es256, None, EC_PUBLIC)
            },
            "secret: is not used by ES256",
        ),
    ];
    for (key, reason) in cases {
        let error = refusal(key);
        assert_eq!(
            error.split_once(reason).map(|(before, _)| before),
            Some("jwt.keys[0]."),
            "{error}"
        );
        assert!(!error.contains(&"x".repeat(31)) && !error.contains("MII"), "{error}");
    }
    let jwt = JwtSettings {
        keys: vec![key(Algorithm::Hs256, None, SECRET); 17],
        ..JwtSettings::default()
    };
    let error = Authenticator::new(&AuthSettings { jwt, ..AuthSettings::default() }).unwrap_err();
    assert_eq!(error.path, "jwt.keys");
    let settings = AuthSettings { default_tenant: "a/b".to_owned(), ..AuthSettings::default() };
    assert_eq!(Authenticator::new(&settings).unwrap_err().path, "default_tenant");
}

#[test]
fn signing_with_a_wrong_key_is_an_error_and_not_a_panic() {
    let refusal =
        |algorithm, key: &str| SigningKey::new(algorithm, None, &Secret::new(key)).unwrap_err();
    for (algorithm, key) in [
        (Algorithm::Hs256, "short"),
        (Algorithm::Rs256, RSA_PUBLIC),
        (Algorithm::Ps256, EC_PUBLIC),
        (Algorithm::Es256, include_str!("testdata/ec384.pem")),
        (Algorithm::EdDsa, ED_PUBLIC),
        (Algorithm::EdDsa, include_str!("testdata/rsa.pem")),
    ] {
        assert!(matches!(refusal(algorithm, key), jwt::MintError::Key(_)), "{algorithm}");
    }
    let claims = json!({"sub": "x".repeat(TOKEN_BYTES_MAX)});
    let error = jwt::mint(&hs256(), claims.as_object().unwrap()).unwrap_err();
    assert!(matches!(error, jwt::MintError::TooLarge(_)), "{error}");
}

#[test]
fn nothing_that_holds_secrets_shows_them() {
    let settings =
        JwtSettings { keys: vec![key(Algorithm::Hs256, None, SECRET)], ..JwtSettings::default() };
    let shown = format!(
        "{settings:?} {} {:?} {:?}",
        serde_json::to_string(&settings).unwrap(),
        hub(),
        hs256(),
    );
    let bytes = format!("{:?}", SECRET.as_bytes());
    for secret in [SECRET, OTHER_SECRET, &bytes[1..bytes.len() - 1]] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn the_claims_decide_tenant_subject_name_and_feed() {
    let hub = hub();
    let topic = |text: &str| Topic::parse(text).unwrap();
    let token = plus(
        r#""tenant":"acme","jti":"t-1","teams":["7","8"],"tidings":{"read":["log/**"],"write":["log/*"]}"#,
    );
    let grant = hub.authenticate(&token, NOW).unwrap();
    assert_eq!(grant.tenant().as_str(), "acme");
    assert_eq!(grant.subject(), Some("42"));
    assert_eq!((grant.credential(), grant.token_id()), ("jwt:t-1", Some("t-1")));
    assert_eq!(grant.feed(), [topic("user/42")]);
    for (text, read, write) in [
        ("user/42", Access::Allowed, Access::Denied),
        ("user/43", Access::Denied, Access::Denied),
        ("team/8/jobs", Access::Allowed, Access::Denied),
        ("team/9/jobs", Access::Denied, Access::Denied),
        ("log/a/b", Access::Allowed, Access::Denied),
        ("log/a", Access::Allowed, Access::Allowed),
    ] {
        assert_eq!((grant.read(&topic(text)), grant.write(&topic(text))), (read, write), "{text}");
    }
    let plain = hub.authenticate(&with_claims(GOOD_CLAIMS), NOW).unwrap();
    assert_eq!((plain.tenant().as_str(), plain.credential()), ("default", "jwt:42"));
}

#[test]
fn settings_are_read_from_toml_and_unknown_ones_are_refused() {
    let text = format!(
        r#"
        default_tenant = "acme"
        [jwt]
        issuer = "https://id.example"
        audience = ["tidings"]
        [[jwt.keys]]
        algorithm = "HS256"
        kid = "2026"
        secret = "{SECRET}"
        [[jwt.keys]]
        algorithm = "EdDSA"
        public_key = """
{ED_PUBLIC}"""
        [[api_keys]]
        id = "abcdefgh12"
        sha256 = "71d84b1859bad11abcb3dfd9353c8d1873aafd883ffaf6f2c9df7cbcfc3e1850"
        write = ["**"]
        [[access]]
        topic = "user/{{sub}}"
        read = true
        "#
    );
    let settings: AuthSettings = toml::from_str(&text).unwrap();
    let hub = Authenticator::new(&settings).unwrap();
    assert_eq!(hub.authenticate(&with_claims(GOOD_CLAIMS), NOW).unwrap().tenant().as_str(), "acme");
    let api_key = "tdk_abcdefgh12_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg3To7I2";
    assert_eq!(hub.authenticate(api_key, NOW).unwrap().credential(), "key:abcdefgh12");
    for (known, unknown) in [
        ("default_tenant", "tenant"),
        ("issuer", "isuer"),
        ("kid", "key_id"),
        ("write", "wirte"),
        ("EdDSA", "ES999"),
    ] {
        let error = toml::from_str::<AuthSettings>(&text.replacen(known, unknown, 1)).unwrap_err();
        assert!(error.to_string().contains(&format!("`{unknown}`")), "{error}");
        assert!(!error.message().contains(SECRET), "{error}");
    }
}

#[test]
fn every_setting_is_described() {
    let schema = schemars::schema_for!(AuthSettings).to_value();
    let described = |of: &serde_json::Value, name: &str| {
        let properties = of["properties"].as_object().unwrap_or_else(|| panic!("{name}: {schema}"));
        for (field, of) in properties {
            assert!(of["description"].is_string(), "{name}.{field}");
        }
        assert_eq!(of["additionalProperties"], false, "{name}");
    };
    described(&schema, "AuthSettings");
    for name in ["JwtSettings", "JwtKeySettings", "ApiKeySettings", "Rule"] {
        described(&schema["$defs"][name], name);
    }
}
