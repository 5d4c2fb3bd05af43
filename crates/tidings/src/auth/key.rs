//! Keys that tokens are verified with, each bound to one algorithm.
//!
//! The rule: what a key is used for is decided when it is read, by the operator or by the issuer's
//! key set, and never by a token.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{DecodingKey, crypto::rust_crypto::DEFAULT_PROVIDER as CRYPTO};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Secret, is_audit_name, known};
use crate::model::limits::TOKEN_NAME_BYTES_MAX;

/// Bytes of a shared secret: what HS256 needs (RFC 7518 §3.2), and more than can be guessed.
const SECRET_BYTES_MIN: usize = 32;
/// Bits of an RSA key (RFC 7518 §3.3).
const RSA_BITS_MIN: usize = 2048;
/// The most that the library verifies with; each doubling makes a signature four times as dear.
const RSA_BITS_MAX: usize = 4096;

/// Bits of an RSA key's exponent: the library verifies with no longer one.
const RSA_EXPONENT_BITS_MAX: usize = 33;
/// Primes that divide no RSA modulus. What is made up instead, as `2^2048 - 1`, mostly has one of
/// them (NIST SP 800-89 §5.3.3).
const RSA_NO_FACTORS: [u32; 12] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37];

/// A key that tokens may be signed with.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtKeySettings {
    /// The one algorithm that this key is used with.
    pub algorithm: Algorithm,
    /// The name of the key in tokens (`kid`). A key without one is tried for every token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// For HS256, HS384 and HS512: the shared secret, at least 32 bytes, used as it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// For the other algorithms: the public key as PEM (`-----BEGIN PUBLIC KEY-----`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
}

/// Declares the algorithms once.
macro_rules! algorithms {
    ($($name:ident = $text:literal, $theirs:ident;)*) => {
        /// How tokens are signed (RFC 7518 §3.1).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[non_exhaustive]
        pub enum Algorithm { $(#[doc = concat!("`", $text, "`")] #[serde(rename = $text)] $name,)* }

        impl Algorithm {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name in a token's header: `ES256`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            pub(super) const fn theirs(self) -> jsonwebtoken::Algorithm {
                match self { $(Self::$name => jsonwebtoken::Algorithm::$theirs,)* }
            }
        }
    };
}

algorithms! {
    Hs256 = "HS256", HS256; Hs384 = "HS384", HS384; Hs512 = "HS512", HS512;
    Rs256 = "RS256", RS256; Rs384 = "RS384", RS384; Rs512 = "RS512", RS512;
    Ps256 = "PS256", PS256; Ps384 = "PS384", PS384; Ps512 = "PS512", PS512;
    Es256 = "ES256", ES256; Es384 = "ES384", ES384;
    EdDsa = "EdDSA", EdDSA;
}

impl Algorithm {
    /// The algorithm of that name, in exactly that spelling.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|algorithm| algorithm.as_str() == name)
    }

    /// Whether signer and verifier share one secret.
    #[must_use]
    pub const fn is_shared_secret(self) -> bool {
        matches!(self, Self::Hs256 | Self::Hs384 | Self::Hs512)
    }
}

/// A key that verifies signatures.
#[derive(Debug, Clone)]
pub(super) struct Key {
    algorithm: Algorithm,
    kid: Option<String>,
    fingerprint: Box<str>,
    /// Its `Debug` shows no secret.
    decoding: DecodingKey,
}

impl Key {
    /// Checks the key; an error says which field and why.
    pub(super) fn new(settings: &JwtKeySettings) -> Result<Self, (&'static str, String)> {
        let JwtKeySettings { algorithm, kid, secret, public_key } = settings;
        if kid.as_deref().is_some_and(|kid| !is_audit_name(kid)) {
            let reason =
                format!("must be 1 to {TOKEN_NAME_BYTES_MAX} bytes, no control characters");
            return Err(("kid", reason));
        }
        let decoding = match (algorithm.is_shared_secret(), secret, public_key) {
            (true, Some(secret), None) => DecodingKey::from_secret(check_secret(secret.expose())?),
            (false, None, Some(pem)) => public_key_of(*algorithm, pem)?,
            (true, None, _) => return Err(("secret", format!("is needed for {algorithm}"))),
            (false, _, None) => return Err(("public_key", format!("is needed for {algorithm}"))),
            (true, _, Some(_)) => {
                return Err(("public_key", format!("is not used by {algorithm}")));
            }
            (false, Some(_), _) => return Err(("secret", format!("is not used by {algorithm}"))),
        };
        let content = [secret.as_ref().map(Secret::expose), public_key.as_deref()];
        let fingerprint = fingerprint(*algorithm, kid.as_deref(), &content);
        Ok(Self { algorithm: *algorithm, kid: kid.clone(), fingerprint, decoding })
    }

    /// Reads a key of a key set (RFC 7517); an error says why it is not used.
    ///
    /// `allowed` are the algorithms that the set's keys may be used with. A key that names none is
    /// used with the first of them that it can have.
    pub(super) fn of_jwk(jwk: &Jwk, allowed: &[Algorithm]) -> Result<Self, &'static str> {
        if jwk.d.is_some() {
            // Whoever can read the set can sign with it.
            return Err("it is a private key");
        }
        if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return Err("it is not for signatures");
        }
        if jwk.key_ops.as_ref().is_some_and(|ops| !ops.iter().any(|op| op == "verify")) {
            return Err("it is not for verifying");
        }
        if jwk.kid.as_deref().is_some_and(|kid| !is_audit_name(kid)) {
            return Err("its `kid` is empty, too long or has control characters");
        }
        if [&jwk.n, &jwk.x].into_iter().flatten().any(|part| known::is_example(part)) {
            return Err("it is an example's: everybody has its private half");
        }
        let algorithm = jwk.algorithm(allowed)?;
        let part = |part: &Option<String>| part.clone().ok_or("a part of it is missing");
        let read = match algorithm {
            Algorithm::Es256 | Algorithm::Es384 => {
                DecodingKey::from_ec_components(&part(&jwk.x)?, &part(&jwk.y)?)
            }
            Algorithm::EdDsa => DecodingKey::from_ed_components(&part(&jwk.x)?),
            _ => {
                let decoded = |part| URL_SAFE_NO_PAD.decode(part).map_err(|_| UNREADABLE);
                let (modulus, exponent) = (decoded(part(&jwk.n)?)?, decoded(part(&jwk.e)?)?);
                if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits(&modulus)) {
                    return Err("it does not have 2048 to 4096 bits");
                }
                if !is_rsa(&modulus, &exponent) {
                    return Err("its numbers are not those of an RSA key");
                }
                DecodingKey::from_rsa_components(&part(&jwk.n)?, &part(&jwk.e)?)
            }
        };
        let decoding = read.map_err(|_| UNREADABLE)?;
        usable(algorithm, &decoding).ok_or(UNREADABLE)?;
        let content = [&jwk.n, &jwk.e, &jwk.x, &jwk.y].map(Option::as_deref);
        let fingerprint = fingerprint(algorithm, jwk.kid.as_deref(), &content);
        Ok(Self { algorithm, kid: jwk.kid.clone(), fingerprint, decoding })
    }

    pub(super) fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// What tells it from every other key.
    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether a token with this header may be signed with the key.
    pub(super) fn suits(&self, algorithm: &str, kid: Option<&str>) -> bool {
        let named = match (self.kid.as_deref(), kid) {
            (Some(ours), Some(theirs)) => ours == theirs,
            (None, _) | (_, None) => true,
        };
        named && self.algorithm.as_str() == algorithm
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &Vec<u8>) -> bool {
        (CRYPTO.verifier_factory)(&self.algorithm.theirs(), &self.decoding)
            .is_ok_and(|verifier| verifier.verify(message, signature).is_ok())
    }
}

/// 128 bits of a hash, in hex digits. Of a shared secret it tells as much as a token that is signed
/// with it: nothing, as that has 256 random bits.
fn fingerprint(algorithm: Algorithm, kid: Option<&str>, content: &[Option<&str>]) -> Box<str> {
    let mut hash = Sha256::new();
    for part in [Some(algorithm.as_str()), kid].iter().chain(content) {
        let part = part.unwrap_or_default();
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

const UNREADABLE: &str = "it cannot be read";

/// A key of a key set, as far as it matters here (RFC 7517 §4, RFC 7518 §6, RFC 8037 §2).
#[derive(Debug, Deserialize)]
pub(super) struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    /// The private part, which does not belong there.
    d: Option<serde::de::IgnoredAny>,
}

impl Jwk {
    fn algorithm(&self, allowed: &[Algorithm]) -> Result<Algorithm, &'static str> {
        let fits = |algorithm: Algorithm| match algorithm {
            Algorithm::Es256 => self.kty == "EC" && self.crv.as_deref() == Some("P-256"),
            Algorithm::Es384 => self.kty == "EC" && self.crv.as_deref() == Some("P-384"),
            Algorithm::EdDsa => self.kty == "OKP" && self.crv.as_deref() == Some("Ed25519"),
            algorithm => self.kty == "RSA" && !algorithm.is_shared_secret(),
        };
        let named = |algorithm: Algorithm| {
            self.alg.as_deref().is_none_or(|name| name == algorithm.as_str())
        };
        let found = allowed.iter().copied().find(|one| named(*one) && fits(*one));
        found.ok_or("its type and algorithm are not allowed here")
    }
}

impl std::fmt::Display for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the library verifies with the key; it looks no closer before it does.
fn usable(algorithm: Algorithm, key: &DecodingKey) -> Option<()> {
    // The library cuts 32 bytes out without looking.
    if algorithm == Algorithm::EdDsa && key.try_get_as_bytes().ok()?.len() != 32 {
        return None;
    }
    (CRYPTO.verifier_factory)(&algorithm.theirs(), key).ok().map(drop)
}

fn bits(number: &[u8]) -> usize {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let top = number.get(zeros).map_or(0, |byte| byte.leading_zeros() as usize);
    ((number.len() - zeros) * 8).saturating_sub(top)
}

/// Whether a key with these numbers, big endian, could have been made (RFC 8017 §3.1): the modulus is
/// a product of large primes, the exponent odd and at least 3. Such a key is one of an issuer that is
/// broken, and no signature verifies with it, or anybody's does.
fn is_rsa(modulus: &[u8], exponent: &[u8]) -> bool {
    let remainder =
        |by: u32| modulus.iter().fold(0, |rest, byte| (rest * 256 + u32::from(*byte)) % by);
    let is_odd = exponent.last().is_some_and(|byte| byte % 2 == 1);
    RSA_NO_FACTORS.iter().all(|prime| remainder(*prime) != 0)
        && is_odd
        && (2..=RSA_EXPONENT_BITS_MAX).contains(&bits(exponent))
}

pub(super) fn check_secret(secret: &str) -> Result<&[u8], (&'static str, String)> {
    if secret.len() < SECRET_BYTES_MIN {
        return Err(("secret", format!("must be at least {SECRET_BYTES_MIN} random bytes")));
    }
    if secret.trim_start().starts_with("-----BEGIN") {
        // With a public key as shared secret everybody could sign.
        return Err(("secret", "must be a shared secret; this is a PEM file".to_owned()));
    }
    Ok(secret.as_bytes())
}

fn public_key_of(algorithm: Algorithm, pem: &str) -> Result<DecodingKey, (&'static str, String)> {
    let refuse = |reason: String| ("public_key", reason);
    if pem.contains("PRIVATE KEY") {
        return Err(refuse("must be the public key; this is a private one".to_owned()));
    }
    let unusable = || refuse(format!("is not a public key for {algorithm} in PEM"));
    let bytes = pem.as_bytes();
    let read = match algorithm {
        Algorithm::Es256 | Algorithm::Es384 => DecodingKey::from_ec_pem(bytes),
        Algorithm::EdDsa => DecodingKey::from_ed_pem(bytes),
        _ => DecodingKey::from_rsa_pem(bytes),
    };
    let key = read.map_err(|_| unusable())?;
    if !matches!(algorithm, Algorithm::Es256 | Algorithm::Es384 | Algorithm::EdDsa) {
        let content = key.try_get_as_bytes().map_err(|_| unusable())?;
        let components = (CRYPTO.key_utils.rsa_pub_components_from_public_key)(content);
        let (modulus, exponent) = components.map_err(|_| unusable())?;
        if bits(&modulus) < RSA_BITS_MIN {
            return Err(refuse(format!("must have at least {RSA_BITS_MIN} bits")));
        }
        if !is_rsa(&modulus, &exponent) {
            return Err(unusable());
        }
    }
    usable(algorithm, &key).ok_or_else(unusable)?;
    Ok(key)
}
