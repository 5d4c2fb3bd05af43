//! Public keys whose private halves everybody has.
//!
//! The rule: whoever can sign must be somebody that the operator knows, and these can be signed
//! with by all who read what they stand in.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};

use super::key::JwtKeySettings;

/// How many bytes tell one key from all others: 192 random bits.
const START_BYTES: usize = 24;

/// Keys of examples: the first bytes of their modulus, or of their point behind its type, base64.
const EXAMPLES: [&str; 3] = [
    // jwt.io, ES256.
    "EVs/o5+uQbTjL3chynL4wXgUg2R9q9UU",
    // jwt.io, RS256 and PS256.
    "u1SU1LfVLPHCozMxH2Mo4lgOEePzNm0t",
    // RFC 7515 §A.3, ES256.
    "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8T",
];

/// Keys of this crate's tests, `testdata/`.
const OF_TESTS: [&str; 4] = [
    "YeZ+h5SwltvybPFjzhTRc8jAnekf5r+O",
    "thAEPkVGWttFWkoyDtXTvt+ZiGynaNy0",
    "vExBjxlHackZk9R1PSyIuLDa08qZINP2",
    "x99UF8WJfU+qTtJNiTnzIfnyImPoOZGV",
];

impl JwtKeySettings {
    /// Whether everybody can sign with the key: the private half of its `public_key` stands in
    /// public examples.
    #[must_use]
    pub fn is_public_example(&self) -> bool {
        let Some(pem) = &self.public_key else { return false };
        let text: String = pem
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with('-'))
            .flat_map(str::split_whitespace)
            .collect();
        let Ok(der) = STANDARD.decode(text) else { return false };
        let known = EXAMPLES.iter().chain(&OF_TESTS);
        // Found wherever it is: a key has several encodings, and they differ in front of it.
        known
            .flat_map(|start| STANDARD.decode(start))
            .any(|start| der.windows(START_BYTES).any(|window| window == start))
    }
}

/// Whether it is the modulus or the first coordinate of an example's key, base64url as in a key set.
pub(super) fn is_example(part: &str) -> bool {
    let starts = |bytes: &[u8]| {
        EXAMPLES
            .iter()
            .flat_map(|start| STANDARD.decode(start))
            .any(|start| bytes.starts_with(&start))
    };
    URL_SAFE_NO_PAD.decode(part).is_ok_and(|bytes| starts(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Algorithm;

    fn key(public_key: &str) -> JwtKeySettings {
        JwtKeySettings {
            algorithm: Algorithm::Es256,
            kid: None,
            secret: None,
            public_key: Some(public_key.to_owned()),
        }
    }

    #[test]
    fn keys_of_examples_and_of_tests_are_known_and_others_are_not() {
        let of_jwt_io = "-----BEGIN PUBLIC KEY-----
            MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9
            q9UU8I5mEovUf86QZ7kOBIjJwqnzD1omageEHWwHdBO6B+dFabmdT9POxg==
            -----END PUBLIC KEY-----";
        let of_tests = [
            include_str!("testdata/ec256.pub"),
            include_str!("testdata/ec384.pub"),
            include_str!("testdata/ed.pub"),
            include_str!("testdata/rsa.pub"),
        ];
        for known in of_tests.into_iter().chain([of_jwt_io]) {
            assert!(key(known).is_public_example(), "{known}");
        }
        let another = include_str!("testdata/rsa1024.pub");
        assert!(!key(another).is_public_example());
        assert!(!key("no key").is_public_example());
        assert!(is_example("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"));
        assert!(!is_example("x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"));
    }
}
