//! How an event is stored: one record, its checksum in front.
//!
//! Bytes: CRC-32C of the rest and the offset (4, big endian), a version byte `1`, flags (1),
//! `recorded_at` (8), then for each present field its length (4) and bytes in a fixed order.
//! The checksum is also the event's fingerprint, so a record that decodes is the record its cursor
//! means, and one bit wrong anywhere, or a record under another offset, does not decode.

use std::sync::Arc;

use bytes::Bytes;

use crate::model::{
    Class, Data, Event, EventId, EventType, Fingerprint, JsonText, NewEvent, Offset, StateKey,
    Timestamp, event::Attribute,
};

const VERSION: u8 = 1;
const STATE: u8 = 1;
const DELETE: u8 = 1 << 1;
const BINARY: u8 = 1 << 2;

/// Bytes that are no record of this version, or not of this offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A bit is wrong, or bytes are missing.
    #[error("stored event at offset {0} fails its checksum")]
    Checksum(Offset),
    /// A newer program wrote it.
    #[error("stored event at offset {0} has a format that this version does not know")]
    Format(Offset),
}

/// Writes the record of an event at its offset; the first four bytes are its fingerprint.
#[must_use]
pub fn encode(event: &NewEvent, offset: Offset, recorded_at: Timestamp) -> (Fingerprint, Vec<u8>) {
    let mut out = Vec::with_capacity(128 + event.data.len());
    out.extend([0; 4]);
    write_body(&mut out, event, recorded_at);
    let sum = checksum(out.get(4..).unwrap_or_default(), offset);
    if let Some(slot) = out.first_chunk_mut() {
        *slot = sum.to_be_bytes();
    }
    (Fingerprint(sum), out)
}

/// The record of an event whose offset is not known yet: a store that assigns it puts the
/// fingerprint in front.
#[cfg(feature = "redis")]
pub(crate) struct Unplaced {
    /// All of the record but its fingerprint.
    pub(crate) body: Vec<u8>,
}

#[cfg(feature = "redis")]
impl Unplaced {
    pub(crate) fn new(event: &NewEvent, recorded_at: Timestamp) -> Self {
        let mut body = Vec::with_capacity(128 + event.data.len());
        write_body(&mut body, event, recorded_at);
        Self { body }
    }

    /// The fingerprint that it has at an offset.
    pub(crate) fn at(&self, offset: Offset) -> Fingerprint {
        Fingerprint(checksum(&self.body, offset))
    }
}

/// Writes what a record has after its checksum.
fn write_body(out: &mut Vec<u8>, event: &NewEvent, recorded_at: Timestamp) {
    let mut flags = 0;
    flags |= if event.class == Class::State { STATE } else { 0 };
    flags |= if event.delete { DELETE } else { 0 };
    flags |= if matches!(event.data, Data::Binary { .. }) { BINARY } else { 0 };
    out.push(VERSION);
    out.push(flags);
    out.extend(recorded_at.as_millis().to_be_bytes());
    fn present(text: Option<&str>) -> Option<&[u8]> {
        text.map(str::as_bytes)
    }
    put(out, Some(event.id.as_str().as_bytes()));
    put(out, Some(event.event_type.as_str().as_bytes()));
    put(out, present(event.key.as_ref().map(StateKey::as_str)));
    put(out, present(event.source.as_ref().map(Attribute::as_str)));
    put(out, present(event.subject.as_ref().map(Attribute::as_str)));
    for time in [event.time, event.expires_at, event.due_at] {
        put(out, time.map(|time| time.as_millis().to_be_bytes()).as_ref().map(|b| &b[..]));
    }
    match &event.data {
        Data::None => put(out, None),
        Data::Json(text) => put(out, Some(text.as_str().as_bytes())),
        Data::Binary { content_type, bytes } => {
            put(out, Some(bytes));
            put(out, Some(content_type.as_str().as_bytes()));
        }
    }
    for (name, value) in &event.extensions {
        put(out, Some(name.as_bytes()));
        put(out, Some(value.as_str().as_bytes()));
    }
}

/// Reads a record, checking that it is whole and belongs to the offset.
///
/// # Errors
/// [`RecordError`] if it is not; nothing of it may be served then.
pub fn decode(record: &[u8], offset: Offset) -> Result<Event, RecordError> {
    let damaged = RecordError::Checksum(offset);
    let (sum, body) = record.split_first_chunk::<4>().ok_or(damaged)?;
    let fingerprint = Fingerprint(u32::from_be_bytes(*sum));
    if checksum(body, offset) != fingerprint.0 {
        return Err(damaged);
    }
    let unknown = RecordError::Format(offset);
    let (head, mut rest) = body.split_first_chunk::<10>().ok_or(unknown)?;
    let [version, flags, millis @ ..] = *head;
    if version != VERSION {
        return Err(unknown);
    }
    let rest = &mut rest;
    let mut text = || -> Option<Option<&str>> {
        match take(rest)? {
            Some(bytes) => std::str::from_utf8(bytes).ok().map(Some),
            None => Some(None),
        }
    };
    let id = EventId::parse(text().flatten().ok_or(unknown)?).map_err(|_| unknown)?;
    let event_type = EventType::parse(text().flatten().ok_or(unknown)?).map_err(|_| unknown)?;
    let key = text().ok_or(unknown)?.map(StateKey::parse).transpose().map_err(|_| unknown)?;
    let source = text().ok_or(unknown)?.map(Attribute::parse).transpose().map_err(|_| unknown)?;
    let subject = text().ok_or(unknown)?.map(Attribute::parse).transpose().map_err(|_| unknown)?;
    let mut times = [None; 3];
    for time in &mut times {
        if let Some(bytes) = take(rest).ok_or(unknown)? {
            let millis = u64::from_be_bytes(bytes.try_into().map_err(|_| unknown)?);
            *time = Some(Timestamp::from_millis(millis));
        }
    }
    let [time, expires_at, due_at] = times;
    let utf8 = |bytes| std::str::from_utf8(bytes).map_err(|_| unknown);
    let data = match take(rest).ok_or(unknown)? {
        None => Data::None,
        Some(bytes) if flags & BINARY == 0 => Data::Json(JsonText::trusted(utf8(bytes)?)),
        Some(bytes) => {
            let content_type = utf8(take(rest).flatten().ok_or(unknown)?)?;
            let content_type = Attribute::parse(content_type).map_err(|_| unknown)?;
            Data::Binary { content_type, bytes: Bytes::copy_from_slice(bytes) }
        }
    };
    let mut extensions = Vec::new();
    while !rest.is_empty() {
        let name = utf8(take(rest).flatten().ok_or(unknown)?)?;
        let value = utf8(take(rest).flatten().ok_or(unknown)?)?;
        extensions.push((name.into(), JsonText::trusted(value)));
    }
    let class = if flags & STATE == 0 { Class::Log } else { Class::State };
    let delete = flags & DELETE != 0;
    let body = NewEvent {
        id,
        event_type,
        class,
        key,
        source,
        subject,
        time,
        data,
        extensions,
        expires_at,
        due_at,
        delete,
    };
    let recorded_at = Timestamp::from_millis(u64::from_be_bytes(millis));
    Ok(Event { offset, fingerprint, recorded_at, body: Arc::new(body) })
}

fn checksum(body: &[u8], offset: Offset) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(body), &offset.0.to_be_bytes())
}

/// An absent field has a length that no field can have.
const ABSENT: u32 = u32::MAX;

fn put(out: &mut Vec<u8>, field: Option<&[u8]>) {
    let length = field.map_or(ABSENT, |bytes| u32::try_from(bytes.len()).unwrap_or(ABSENT));
    out.extend(length.to_be_bytes());
    out.extend(field.unwrap_or_default());
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length);
    if length == ABSENT {
        *rest = after;
        return Some(None);
    }
    let (field, after) = after.split_at_checked(length as usize)?;
    *rest = after;
    Some(Some(field))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> NewEvent {
        NewEvent {
            source: Some(Attribute::parse("/worker").unwrap()),
            time: Some(Timestamp::from_millis(5)),
            extensions: vec![("traceparent".into(), JsonText::string("00-1"))],
            expires_at: Some(Timestamp::from_millis(9)),
            ..NewEvent::new(EventType::parse("a.b").unwrap())
                .state(StateKey::parse("run/1").unwrap())
                .data(JsonText::string("x\0y"))
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let binary = Data::Binary {
            content_type: Attribute::parse("image/png").unwrap(),
            bytes: Bytes::from_static(b"\x89\0\xff"),
        };
        let tombstone = NewEvent { delete: true, data: Data::None, ..sample() };
        for event in [sample(), NewEvent { data: binary, ..sample() }, tombstone] {
            let (fingerprint, bytes) = encode(&event, Offset(3), Timestamp::from_millis(77));
            let back = decode(&bytes, Offset(3)).unwrap();
            assert_eq!((back.offset, back.fingerprint), (Offset(3), fingerprint));
            assert_eq!(back.recorded_at, Timestamp::from_millis(77));
            assert_eq!(*back.body, event);
        }
    }

    #[test]
    fn one_wrong_bit_or_another_offset_does_not_decode() {
        let (_, bytes) = encode(&sample(), Offset(3), Timestamp::from_millis(77));
        assert_eq!(decode(&bytes, Offset(4)), Err(RecordError::Checksum(Offset(4))));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged, Offset(3)).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length], Offset(3)).is_err(), "length {length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut record = checksum(&body, Offset(1)).to_be_bytes().to_vec();
            record.extend(&body);
            let _ = decode(&record, Offset(1));
        }
    }
}
