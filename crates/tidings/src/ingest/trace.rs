//! W3C trace context of a publish request or a message, carried on with its events (CloudEvents distributed
//! tracing extension).
//!
//! The rule: it is the publisher's word. The hub checks its form, and neither believes nor changes it.

use http::HeaderMap;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

use crate::{
    model::{JsonText, limits::EXTENSIONS_MAX},
    publish::Publish,
};

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// What every vendor must be able to pass on (Trace Context §3.3.1.5).
const TRACESTATE_BYTES_MAX: usize = 512;

/// Where a request belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TraceContext {
    parent: JsonText,
    state: Option<JsonText>,
}

impl TraceContext {
    /// Reads it; one that is malformed counts as none (Trace Context §3.2.2.5), as it is no reason
    /// to refuse an event.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let parent = parents.next()?.to_str().ok()?;
        if parents.next().is_some() {
            return None;
        }
        let states: Option<Vec<&str>> =
            headers.get_all(TRACESTATE).iter().map(|value| value.to_str().ok()).collect();
        Self::parse(parent, states.map(|states| states.join(",")).as_deref())
    }

    /// The same of two texts.
    pub(crate) fn parse(parent: &str, state: Option<&str>) -> Option<Self> {
        let state = state.filter(|state| is_state(state));
        is_parent(parent)
            .then(|| Self { parent: JsonText::string(parent), state: state.map(JsonText::string) })
    }

    /// The caller's span, for the hub's own to continue.
    pub(crate) fn span(&self) -> Option<SpanContext> {
        let mut parts = self.parent.as_str().trim_matches('"').split('-').skip(1);
        let trace = TraceId::from_hex(parts.next()?).ok()?;
        let span = SpanId::from_hex(parts.next()?).ok()?;
        let flags = TraceFlags::new(u8::from_str_radix(parts.next()?, 16).ok()?);
        let state = self.state.as_ref().and_then(|state| serde_json::from_str(state.as_str()).ok());
        // One that the library does not understand counts as none; the events carry it on.
        let state = state.and_then(|state: String| state.parse::<TraceState>().ok());
        Some(SpanContext::new(trace, span, flags, true, state.unwrap_or_default()))
    }

    /// Gives it to an event that has none of its own and room for it.
    pub(crate) fn give_to(&self, publish: &mut Publish) {
        let extensions = &mut publish.event.extensions;
        let has_own =
            extensions.iter().any(|(name, _)| matches!(&**name, TRACEPARENT | TRACESTATE));
        let needed = 1 + usize::from(self.state.is_some());
        if has_own || extensions.len() + needed > EXTENSIONS_MAX {
            return;
        }
        extensions.push((TRACEPARENT.into(), self.parent.clone()));
        extensions.extend(self.state.iter().map(|state| (TRACESTATE.into(), state.clone())));
    }
}

/// `00-<32 hex digits>-<16>-<2>`, ids not all zero; later versions may have more behind it.
fn is_parent(text: &str) -> bool {
    let Some((head, rest)) = text.split_at_checked(55) else { return false };
    let parts: Vec<&str> = head.split('-').collect();
    let is_hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
    let [version, trace, span, flags] = parts.as_slice() else { return false };
    let lengths = [version, trace, span, flags].map(|part| part.len());
    let is_set = |part: &str| part.bytes().any(|byte| byte != b'0');
    lengths == [2, 32, 16, 2]
        && parts.iter().all(|part| is_hex(part))
        && is_set(trace)
        && is_set(span)
        && *version != "ff"
        && (rest.is_empty() || (*version != "00" && rest.starts_with('-') && rest.len() <= 200))
}

fn is_state(text: &str) -> bool {
    let is_visible = |byte: u8| matches!(byte, b' '..=b'~');
    !text.is_empty() && text.len() <= TRACESTATE_BYTES_MAX && text.bytes().all(is_visible)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_a_well_formed_parent_is_taken() {
        assert!(is_parent(GOOD));
        assert!(is_parent(&format!("cc{}-what-comes-later", &GOOD[2..])));
        for bad in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-more"),
            &GOOD.to_uppercase(),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &GOOD.replace('-', "_"),
            &format!("{}é", &GOOD[..54]),
        ] {
            assert!(!is_parent(bad), "{bad}");
        }
    }
}
