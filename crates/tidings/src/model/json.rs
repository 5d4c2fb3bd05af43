//! JSON text that is known to be strict and to fit on one line.
//!
//! The rule: what a publisher wrote is kept byte for byte, numbers and escapes included; only white
//! space between tokens goes. Duplicate keys, NaN, lone surrogates and deep nesting are refused
//! with the JSON pointer (RFC 6901) of the place.

use std::{borrow::Cow, collections::HashSet, fmt, sync::Arc};

use super::limits::JSON_DEPTH_MAX;

/// Characters of a member's name that a pointer holds: enough to find it, whatever somebody sends.
const POINTER_NAME_CHARS: usize = 64;
/// Levels that a request puts around the data of an event: wrapper, array, event.
const ENVELOPE_DEPTH: usize = 3;

/// One JSON value (RFC 8259) without white space between tokens.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct JsonText(Arc<str>);

/// Text that is not strict JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at byte {at}")]
pub struct JsonError {
    /// JSON pointer of the value that is wrong, `""` for the whole: `/items/3/name`.
    pub pointer: String,
    /// Byte offset in the text.
    pub at: usize,
    /// What is wrong, lower case.
    pub reason: &'static str,
}

impl JsonText {
    /// `null`.
    #[must_use]
    pub fn null() -> Self {
        Self("null".into())
    }

    /// Checks the text and takes the white space out.
    ///
    /// # Errors
    /// [`JsonError`] says where the text is not strict JSON.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        Ok(Self((*Scan::of(text, JSON_DEPTH_MAX).whole()?).into()))
    }

    /// A JSON string that holds the text, U+0000 included.
    #[must_use]
    pub fn string(text: &str) -> Self {
        let mut out = String::with_capacity(text.len() + 2);
        escape_into(&mut out, text);
        Self(out.into())
    }

    /// Any value that serialises to JSON.
    ///
    /// # Errors
    /// The serialiser's, for example a map whose keys are not strings.
    pub fn of<T: serde::Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        Ok(Self(serde_json::to_string(value)?.into()))
    }

    /// Text that a `JsonText` wrote before: from the journal, under a checksum.
    pub(crate) fn trusted(text: &str) -> Self {
        Self(text.into())
    }

    /// The JSON on one line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for JsonText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a body that another reader refused stops to be JSON; `None` if it is JSON all the same.
pub(crate) fn mistake(body: &str) -> Option<JsonError> {
    Scan::of(body, JSON_DEPTH_MAX + ENVELOPE_DEPTH).whole().err()
}

/// A member's name as part of a JSON pointer (RFC 6901 §3), cut short if somebody plays with it.
pub(crate) fn pointer_part(name: &str) -> Cow<'_, str> {
    if name.len() <= POINTER_NAME_CHARS && !name.contains(['~', '/']) {
        return name.into();
    }
    let name: String = name.chars().take(POINTER_NAME_CHARS).collect();
    name.replace('~', "~0").replace('/', "~1").into()
}

/// Appends the text as a JSON string, quotes included, control characters escaped.
pub(crate) fn escape_into(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    while let Some((plain, escaped)) = rest.split_at_checked(plain(rest.as_bytes())) {
        out.push_str(plain);
        let Some(byte) = escaped.bytes().next() else { break };
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            byte => {
                use fmt::Write as _;
                let _ = write!(out, "\\u{byte:04x}");
            }
        }
        rest = escaped.get(1..).unwrap_or_default();
    }
    out.push('"');
}

/// How many bytes there are before the first that a JSON string escapes or ends with: a quote, a
/// backslash or a control character. Eight at a time (Mycroft's test for a zero byte): most of what
/// is published is in strings.
fn plain(text: &[u8]) -> usize {
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = EACH << 7;
    let below = |word: u64, least: u64| word.wrapping_sub(EACH * least) & !word & HIGH;
    let (words, rest) = text.as_chunks::<8>();
    for (place, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let quote = below(word ^ (EACH * u64::from(b'"')), 1);
        let backslash = below(word ^ (EACH * u64::from(b'\\')), 1);
        let found = below(word, 0x20) | quote | backslash;
        if found != 0 {
            return 8 * place + found.trailing_zeros() as usize / 8;
        }
    }
    let is_plain = |byte: &&u8| !matches!(**byte, b'"' | b'\\' | 0..0x20);
    8 * words.len() + rest.iter().take_while(is_plain).count()
}

/// Names of which none may come twice.
#[derive(Default)]
pub(crate) struct Names<'a> {
    few: Vec<Cow<'a, str>>,
    many: HashSet<Cow<'a, str>>,
}

impl<'a> Names<'a> {
    /// Names that are compared one by one: fewer than pay for a table.
    const FEW: usize = 16;

    /// Takes a name; false if it was there.
    pub(crate) fn insert(&mut self, name: Cow<'a, str>) -> bool {
        if self.few.len() < Self::FEW {
            let is_new = !self.few.contains(&name);
            self.few.push(name);
            return is_new;
        }
        if self.many.is_empty() {
            self.many.extend(self.few.iter().cloned());
        }
        self.many.insert(name)
    }
}

/// A member of an object.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    pub(crate) name: Cow<'a, str>,
    pub(crate) value: Value<'a>,
}

/// A value as text.
#[derive(Debug)]
pub(crate) enum Value<'a> {
    /// As [`JsonText`] holds it.
    Strict(Cow<'a, str>),
    /// JSON that may not be strict.
    Unread(&'a str),
}

impl Value<'_> {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Strict(text) => text,
            Self::Unread(text) => text,
        }
    }

    /// The value as strict JSON.
    pub(crate) fn strict(&self) -> Result<JsonText, JsonError> {
        match self {
            Self::Strict(text) => Ok(JsonText::trusted(text)),
            Self::Unread(text) => JsonText::parse(text),
        }
    }
}

/// Members that an object may have to be read at once; of others their names are to be compared in
/// another way.
const MEMBERS_FEW: usize = 32;

/// Members that an event mostly has no more of.
const MEMBERS_USUAL: usize = 8;

/// The members of an object, their values strict. `None` if anything is wrong: what, has to be found
/// out in another way.
pub(crate) fn object(text: &str) -> Option<Vec<Member<'_>>> {
    let mut scan = Scan::of(text, JSON_DEPTH_MAX);
    scan.space();
    let members = scan.members().ok()?;
    scan.space();
    scan.peek().is_none().then_some(members)
}

/// The same of an array of at most so many objects.
pub(crate) fn objects(text: &str, count_max: usize) -> Option<Vec<Vec<Member<'_>>>> {
    let mut scan = Scan::of(text, JSON_DEPTH_MAX);
    let mut objects = Vec::new();
    scan.space();
    scan.symbol(b'[', "is not an array").ok()?;
    loop {
        scan.space();
        objects.push(scan.members().ok()?);
        scan.space();
        if scan.peek() == Some(b']') {
            break;
        }
        scan.symbol(b',', "lacks a comma or a closing bracket").ok()?;
        if objects.len() == count_max {
            return None;
        }
    }
    scan.at += 1;
    scan.space();
    scan.peek().is_none().then_some(objects)
}

enum Step<'a> {
    Key(Cow<'a, str>),
    Index(usize),
}

struct Scan<'a> {
    text: &'a str,
    at: usize,
    /// What was read before `kept`, without white space.
    out: String,
    /// From here on nothing was left out.
    kept: usize,
    path: Vec<Step<'a>>,
    depth_max: usize,
}

impl<'a> Scan<'a> {
    const fn of(text: &'a str, depth_max: usize) -> Self {
        Self { text, at: 0, out: String::new(), kept: 0, path: Vec::new(), depth_max }
    }

    /// The one value of the text, without white space.
    fn whole(mut self) -> Result<Cow<'a, str>, JsonError> {
        self.space();
        self.value()?;
        self.space();
        if self.at < self.text.len() {
            return Err(self.error("has more after its value"));
        }
        Ok(self.read())
    }

    fn error(&self, reason: &'static str) -> JsonError {
        let mut pointer = String::new();
        for step in &self.path {
            pointer.push('/');
            match step {
                Step::Key(key) => pointer.push_str(&pointer_part(key)),
                Step::Index(index) => pointer.push_str(&index.to_string()),
            }
        }
        JsonError { pointer, at: self.at, reason }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The text from a place on. Places are before or behind ASCII.
    fn since(&self, from: usize) -> &'a str {
        self.text.get(from..self.at).unwrap_or_default()
    }

    fn space(&mut self) {
        let from = self.at;
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        if self.at > from {
            self.out.push_str(self.text.get(self.kept..from).unwrap_or_default());
            self.kept = self.at;
        }
    }

    fn symbol(&mut self, symbol: u8, reason: &'static str) -> Result<(), JsonError> {
        if self.peek() != Some(symbol) {
            return Err(self.error(reason));
        }
        self.at += 1;
        Ok(())
    }

    fn value(&mut self) -> Result<(), JsonError> {
        if self.path.len() >= self.depth_max && matches!(self.peek(), Some(b'{' | b'[')) {
            return Err(self.error("is nested deeper than 64 levels"));
        }
        match self.peek() {
            Some(b'{') => self.value_object(),
            Some(b'[') => self.array(),
            Some(b'"') => self.string().map(drop),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            Some(_) => Err(self.error("is not a JSON value")),
            None => Err(self.error("ends where a JSON value is expected")),
        }
    }

    /// Reads an object; `member` reads the colon and the value behind each key.
    fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        self.symbol(b'{', "is not an object")?;
        self.space();
        if self.peek() == Some(b'}') {
            return self.symbol(b'}', "is not an object");
        }
        loop {
            let key = self.string()?;
            member(self, key)?;
            self.space();
            if self.peek() == Some(b'}') {
                return self.symbol(b'}', "is not an object");
            }
            self.symbol(b',', "lacks a comma or a closing brace")?;
            self.space();
        }
    }

    fn colon(&mut self) -> Result<(), JsonError> {
        self.space();
        self.symbol(b':', "lacks a colon after its key")?;
        self.space();
        Ok(())
    }

    /// An object within a value: of any size, and no key of it twice.
    fn value_object(&mut self) -> Result<(), JsonError> {
        let mut keys = Names::default();
        self.object(|scan, key| {
            let is_new = keys.insert(key.clone());
            scan.path.push(Step::Key(key));
            if !is_new {
                return Err(scan.error("has this key twice"));
            }
            scan.colon()?;
            scan.value()?;
            scan.path.pop();
            Ok(())
        })
    }

    /// Reads members, few and none of them twice.
    fn members(&mut self) -> Result<Vec<Member<'a>>, JsonError> {
        let mut members: Vec<Member<'a>> = Vec::new();
        self.object(|scan, name| {
            if members.len() == MEMBERS_FEW || members.iter().any(|member| member.name == name) {
                return Err(scan.error("has a key twice, or too many of them"));
            }
            scan.colon()?;
            if members.is_empty() {
                members.reserve(MEMBERS_USUAL);
            }
            members.push(Member { name, value: scan.strict()? });
            Ok(())
        })?;
        Ok(members)
    }

    /// Reads a value by itself, whatever stands around it.
    fn strict(&mut self) -> Result<Value<'a>, JsonError> {
        self.out.clear();
        self.kept = self.at;
        self.value()?;
        Ok(Value::Strict(self.read()))
    }

    /// What was read, without white space.
    fn read(&mut self) -> Cow<'a, str> {
        let rest = self.since(self.kept);
        if self.out.is_empty() {
            return rest.into();
        }
        self.out.push_str(rest);
        std::mem::take(&mut self.out).into()
    }

    fn array(&mut self) -> Result<(), JsonError> {
        self.symbol(b'[', "is not an array")?;
        self.space();
        if self.peek() == Some(b']') {
            return self.symbol(b']', "is not an array");
        }
        for index in 0.. {
            self.path.push(Step::Index(index));
            self.value()?;
            self.path.pop();
            self.space();
            if self.peek() == Some(b']') {
                break;
            }
            self.symbol(b',', "lacks a comma or a closing bracket")?;
            self.space();
        }
        self.symbol(b']', "is not an array")
    }

    /// Passes over a string and returns what it means.
    fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        self.symbol(b'"', "lacks a key or string in double quotes")?;
        let mut meaning = String::new();
        loop {
            let from = self.at;
            self.at += plain(self.text.as_bytes().get(from..).unwrap_or_default());
            let part = self.since(from);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    // Whatever is escaped is a character.
                    if meaning.is_empty() {
                        return Ok(part.into());
                    }
                    meaning.push_str(part);
                    return Ok(meaning.into());
                }
                Some(b'\\') => {
                    meaning.push_str(part);
                    self.at += 1;
                    meaning.push(self.escape()?);
                }
                Some(_) => {
                    return Err(self.error("has a bare control character in a string; escape it"));
                }
                None => return Err(self.error("ends within a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let Some(byte) = self.peek() else {
            return Err(self.error("ends within a string"));
        };
        self.at += 1;
        Ok(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode(),
            _ => return Err(self.error("has an unknown escape in a string")),
        })
    }

    fn unicode(&mut self) -> Result<char, JsonError> {
        let first = self.hex4()?;
        let code = if (0xd800..0xdc00).contains(&first) {
            if self.text.as_bytes().get(self.at..self.at + 2) != Some(b"\\u") {
                return Err(self.error("has half of a surrogate pair in a string"));
            }
            self.at += 2;
            let second = self.hex4()?;
            if !(0xdc00..0xe000).contains(&second) {
                return Err(self.error("has half of a surrogate pair in a string"));
            }
            0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
        } else {
            first
        };
        char::from_u32(code).ok_or_else(|| self.error("has half of a surrogate pair in a string"))
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4).unwrap_or_default();
        let mut code = 0;
        for digit in digits {
            let Some(value) = char::from(*digit).to_digit(16) else {
                return Err(self.error("has an escape that is not four hex digits"));
            };
            code = code * 16 + value;
        }
        if digits.len() < 4 {
            return Err(self.error("has an escape that is not four hex digits"));
        }
        self.at += 4;
        Ok(code)
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let from = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if from == self.at { Err(self.error("has a number without digits")) } else { Ok(()) }
    }

    fn number(&mut self) -> Result<(), JsonError> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn literal(&mut self, literal: &'static str) -> Result<(), JsonError> {
        if !self.text.get(self.at..).unwrap_or_default().starts_with(literal) {
            return Err(self.error("is not a JSON value"));
        }
        self.at += literal.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_strings_and_escapes_are_kept_as_written() {
        let text = " { \"a\" : [ 1.50 , 1e400, -0, \"\\u0000\\/\u{2028}é\" ] , \"b\":{} } ";
        let json = JsonText::parse(text).unwrap();
        assert_eq!(json.as_str(), "{\"a\":[1.50,1e400,-0,\"\\u0000\\/\u{2028}é\"],\"b\":{}}");
    }

    #[test]
    fn what_is_not_strict_is_refused_at_its_place() {
        let cases = [
            ("", "", "ends where a JSON value is expected"),
            ("NaN", "", "is not a JSON value"),
            ("[1,]", "/1", "is not a JSON value"),
            ("{\"a\":1,\"\\u0061\":2}", "/a", "has this key twice"),
            ("{\"x\":{\"a\" 1}}", "/x/a", "lacks a colon after its key"),
            ("{\"x/y\":[0,{\"k\":01}]}", "/x~1y/1", "lacks a comma or a closing brace"),
            ("\"a\nb\"", "", "has a bare control character in a string; escape it"),
            ("\"\\ud800\"", "", "has half of a surrogate pair in a string"),
            ("\"\\udc00\"", "", "has half of a surrogate pair in a string"),
            ("1 2", "", "has more after its value"),
        ];
        for (text, pointer, reason) in cases {
            let error = JsonText::parse(text).unwrap_err();
            assert_eq!((error.pointer.as_str(), error.reason), (pointer, reason), "{text}");
        }
        let nested = |levels| "[".repeat(levels) + &"]".repeat(levels);
        assert!(JsonText::parse(&nested(JSON_DEPTH_MAX)).is_ok());
        assert!(JsonText::parse(&nested(JSON_DEPTH_MAX + 1)).is_err());
        assert!(JsonText::parse(&"[".repeat(1 << 20)).is_err());
    }

    #[test]
    fn a_body_may_be_as_deep_as_the_data_of_its_events_and_their_envelope() {
        let nested = |levels| "[".repeat(levels) + &"]".repeat(levels);
        assert_eq!(mistake(&nested(JSON_DEPTH_MAX + ENVELOPE_DEPTH)), None);
        let body = format!("{{\"events\":[{{\"data\":{}}},NaN]}}", nested(JSON_DEPTH_MAX));
        assert_eq!(mistake(&body).unwrap().pointer, "/events/1");
        let long = format!("{{\"{}\":NaN}}", "/".repeat(100));
        assert_eq!(mistake(&long).unwrap().pointer, format!("/{}", "~1".repeat(64)));
    }

    fn texts(members: &[Member<'_>]) -> String {
        let text = |member: &Member<'_>| format!("{}={}", member.name, member.value.as_str());
        members.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn objects_are_read_at_once_if_nothing_is_wrong_with_them() {
        let text = " { \"a\" : [ 1 , 2 ] , \"\\u0062\":\"c\"} ";
        assert_eq!(texts(&object(text).unwrap()), "a=[1,2] b=\"c\"");
        let list = objects("[ {\"a\" :{ } },{}] ", 2).unwrap();
        assert_eq!(list.iter().map(|object| texts(object)).collect::<Vec<_>>(), ["a={}", ""]);
        let many = |count| {
            let members: Vec<_> = (0..count).map(|number| format!("\"{number}\":1")).collect();
            format!("{{{}}}", members.join(","))
        };
        assert_eq!(object(&many(MEMBERS_FEW)).unwrap().len(), MEMBERS_FEW);
        for wrong in [
            &*many(MEMBERS_FEW + 1),
            "",
            "{",
            "[]",
            "{} x",
            "{\"a\":1,\"a\":1}",
            "{\"a\":1,}",
            "{\"a\":{\"b\":1,\"b\":1}}",
            "{\"a\":NaN}",
        ] {
            assert!(object(wrong).is_none(), "{wrong}");
            assert!(objects(&format!("[{{}},{wrong}]"), 9).is_none(), "{wrong}");
        }
        for wrong in ["", "[]", "[{}", "[{},]", "[{}] x", "[7]", "{}"] {
            assert!(objects(wrong, 9).is_none(), "{wrong}");
        }
        assert!(objects("[{},{}]", 1).is_none());
        let nested = |levels| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(object(&nested(JSON_DEPTH_MAX)).is_some());
        assert!(object(&nested(JSON_DEPTH_MAX + 1)).is_none());
    }

    #[test]
    fn names_are_told_apart_however_many_there_are() {
        let mut names = Names::default();
        for number in 0..100 {
            assert!(names.insert(number.to_string().into()));
            for before in 0..=number {
                assert!(!names.insert(before.to_string().into()), "{before} of {number}");
            }
        }
    }

    #[test]
    fn a_string_of_any_text_reads_back() {
        let text = "quote \" slash \\ nul \0 esc \x1b line \r\n tab \t é \u{2028}";
        let json = JsonText::string(text);
        assert_eq!(serde_json::from_str::<String>(json.as_str()).unwrap(), text);
        assert_eq!(JsonText::parse(json.as_str()).unwrap(), json);
    }

    proptest! {
        #[test]
        fn plain_bytes_are_counted(text in "[a\\\\\"\u{1}\u{1f} !\u{7f}é]{0,30}") {
            let is_plain = |byte: &u8| !matches!(*byte, b'"' | b'\\' | 0..0x20);
            prop_assert_eq!(plain(text.as_bytes()), text.bytes().take_while(is_plain).count());
            let quoted = JsonText::string(&text);
            prop_assert_eq!(serde_json::from_str::<String>(quoted.as_str()).unwrap(), text);
        }

        #[test]
        fn we_accept_nothing_that_serde_json_refuses(text in "[\\[\\]{}:,\"a0-9eE.+\\- \\\\u]{0,24}") {
            if let Ok(json) = JsonText::parse(&text) {
                let raw: Box<serde_json::value::RawValue> = serde_json::from_str(&text).unwrap();
                prop_assert!(!json.as_str().contains('\n'));
                drop(raw);
            }
        }
    }
}
