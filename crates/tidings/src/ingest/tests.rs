//! Bodies read, and mistakes told at their places.

use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds { event_bytes_max: 1000, events_max: 3 };

fn refusal(body: &str) -> (u16, String) {
    let problem = match json(body.as_bytes(), BOUNDS) {
        Ok(drafts) => drafts.events.into_iter().find_map(Result::err).unwrap(),
        Err(problem) => problem,
    };
    (problem.code.status(), problem.pointer.unwrap_or_default())
}

#[test]
fn one_event_an_array_and_a_wrapped_array_are_read() {
    let event = r#"{"topic":"a","type":"x"}"#;
    for (body, count, is_single) in [
        (event.to_owned(), 1, true),
        (format!(" [{event}, {event}]"), 2, false),
        (format!("{{\"events\": [{event}]}}"), 1, false),
    ] {
        let drafts = json(body.as_bytes(), BOUNDS).unwrap();
        assert_eq!((drafts.events.len(), drafts.is_single), (count, is_single));
        assert!(drafts.events.iter().all(Result::is_ok));
    }
}

#[test]
fn every_member_is_kept() {
    let body = r#"{"topic":"user/42","type":"a.b","class":"state","key":"run/1","id":"8f1c:3",
        "data":{"s":"\u0000", "n":1.50},"subject":"run/1","source":"/w","if_offset":17,
        "time":"2026-11-21T08:00:00+01:00","expires_at":"2026-11-22T00:00:00Z",
        "properties":{"owner":"u"}, "close":true}"#;
    let drafts = json(body.as_bytes(), BOUNDS).unwrap();
    let draft = drafts.events.into_iter().next().unwrap().unwrap().publish;
    let Data::Json(data) = &draft.event.data else { panic!("not JSON") };
    assert_eq!(data.as_str(), r#"{"s":"\u0000","n":1.50}"#);
    assert_eq!(draft.if_offset, Some(Offset(17)));
    assert_eq!(draft.event.time, Timestamp::parse("2026-11-21T07:00:00Z"));
    assert_eq!(draft.properties.unwrap().owner.as_deref(), Some("u"));
    assert!(draft.close && draft.dedup == Dedup::ById);
}

#[test]
fn every_mistake_is_pointed_at() {
    let big = format!(r#"{{"topic":"a","type":"x","data":"{}"}}"#, "x".repeat(1001));
    let deep = format!(r#"{{"topic":"a","type":"x","data":{}{}}}"#, "[".repeat(70), "]".repeat(70));
    let event = r#"{"topic":"a","type":"x"}"#;
    let many = format!("[{event},{event},{event},{event}]");
    let cases: &[(&str, u16, &str)] = &[
        ("", 400, ""),
        ("7", 400, ""),
        ("nope", 400, ""),
        ("{", 400, ""),
        ("[]", 400, ""),
        (r#"{"events":{}}"#, 400, "/events"),
        (r#"{"events":[{"topic":"a","type":"x"}],"topic":"a"}"#, 400, "/topic"),
        (r#"{"type":"x"}"#, 400, "/topic"),
        (r#"{"topic":"a"}"#, 400, "/type"),
        (r#"{"topic":"a b","type":"x"}"#, 400, "/topic"),
        (r#"{"topic":"a","type":"X"}"#, 400, "/type"),
        (r#"{"topic":"a","type":"tidings.x"}"#, 400, "/type"),
        (r#"{"topic":7,"type":"x"}"#, 400, "/topic"),
        (r#"{"topic":"a","type":"x","class":"other"}"#, 400, "/class"),
        (r#"{"topic":"a","type":"x","class":"state"}"#, 400, "/key"),
        (r#"{"topic":"a","type":"x","key":"k"}"#, 400, "/key"),
        (r#"{"topic":"a","type":"x","if_offset":1}"#, 400, "/if_offset"),
        (r#"{"topic":"a","type":"x","class":"state","key":"k","if_offset":-1}"#, 400, "/if_offset"),
        (r#"{"topic":"a","type":"x","delete":true}"#, 400, "/delete"),
        (
            r#"{"topic":"a","type":"x","class":"state","key":"k","delete":true,"data":1}"#,
            400,
            "/data",
        ),
        (r#"{"topic":"a","type":"x","id":"a\nb"}"#, 400, "/id"),
        (r#"{"topic":"a","type":"x","class":"state","key":"a\rb"}"#, 400, "/key"),
        (r#"{"topic":"a","type":"x","time":"yesterday"}"#, 400, "/time"),
        (r#"{"topic":"a","type":"x","topc":1}"#, 400, "/topc"),
        (r#"{"topic":"a","type":"x","type":"y"}"#, 400, "/type"),
        (r#"{"topic":"a","type":"x","data":{"k":1,"k":2}}"#, 400, "/data/k"),
        (r#"{"topic":"a","type":"x","data":NaN}"#, 400, "/data"),
        (r#"{"topic":"a","type":"x","data":{"x":[1,-Infinity]}}"#, 400, "/data/x/1"),
        ("{\"topic\":\"a\",\"type\":\"x\",\"data\":{\"x\":\"\n\"}}", 400, "/data/x"),
        (
            r#"[{"topic":"a","type":"x"},{"topic":"a","type":"x","data":{"k":NaN}}]"#,
            400,
            "/1/data/k",
        ),
        (r#"{"events":[{"topic":"a","type":"x","data":[01]}]}"#, 400, "/events/0/data"),
        (r#"[{"topic":"a","type":"x"},{"topic":"a","type":"x","data":"\udc00"}]"#, 400, "/1/data"),
        (r#"{"topic":"\ud800","type":"x"}"#, 400, "/topic"),
        (r#"[{"topic":"a","type":"x"},7]"#, 400, "/1"),
        (r#"[{"topic":"a","type":"x"},]"#, 400, "/1"),
        (r#"{"topic":"a","type":"x","time":"1969-12-31T23:59:59Z"}"#, 400, "/time"),
        (r#"{"topic":"a","type":"x","properties":{"ownr":1}}"#, 400, "/properties/ownr"),
        (r#"[{"topic":"a","type":"x"},{"topic":"a"}]"#, 400, "/1/type"),
        (r#"{"events":[{"topic":"a","type":7}]}"#, 400, "/events/0/type"),
        (r#"{"topic":"a","type":"x"} x"#, 400, ""),
        (&big, 413, "/data"),
        (&deep, 400, "/data/0"),
        (&many, 413, ""),
    ];
    for (body, status, pointer) in cases {
        let (got, at) = refusal(body);
        assert_eq!(got, *status, "{body}");
        assert!(
            at.starts_with(pointer) && (at == *pointer || pointer.ends_with("/0")),
            "{body}: {at}"
        );
    }
}

fn problem(body: &[u8]) -> Problem {
    match json(body, BOUNDS) {
        Ok(drafts) => drafts.events.into_iter().find_map(Result::err).unwrap(),
        Err(problem) => problem,
    }
}

#[test]
fn what_is_not_json_is_told_with_its_byte_and_line() {
    for (body, detail) in [
        ("nope", "is not a JSON value at byte 0"),
        ("{\"topic\":\"a\"", "lacks a comma or a closing brace at byte 12"),
        (
            "[\n  {\"topic\": \"a\",\n   \"data\": NaN}\n]",
            "is not a JSON value at byte 30, in line 3",
        ),
        ("{\"topic\":\"a\",\"type\":\"x\"} x", "has more after its value at byte 25"),
        ("7", "must be a JSON object"),
        ("{\"events\":7}", "must be an array of events"),
    ] {
        assert_eq!(problem(body.as_bytes()).detail, detail, "{body}");
    }
}

#[test]
fn bytes_that_are_no_utf_8_are_told_with_their_place() {
    for (body, detail, pointer) in [
        (&b"\xff"[..], "is not UTF-8 at byte 0", ""),
        (b"{\"topic\":\"a\xff\"}", "is not UTF-8 at byte 11", "/topic"),
        (b"[{},{\"data\":{\"x\":[1,\"\xc3\xa9\xc3\"]}}]", "is not UTF-8 at byte 23", "/1/data/x/1"),
        (b"[NaN,\"\xff\"]", "is not UTF-8 at byte 6", ""),
    ] {
        let problem = problem(body);
        assert_eq!(problem.detail, detail, "{body:?}");
        assert_eq!(problem.pointer.as_deref(), Some(pointer), "{body:?}");
    }
    let text = data(Some("text/plain"), Bytes::from_static(b"[1,\xff"), BOUNDS).unwrap_err();
    assert_eq!(text.pointer.as_deref(), Some("/data"));
    let json = data(Some("application/json"), Bytes::from_static(b"[1,\"\xff"), BOUNDS);
    assert_eq!(json.unwrap_err().pointer.as_deref(), Some("/data/1"));
}

#[test]
fn a_field_is_found_by_the_name_that_its_form_of_body_gives_it() {
    let mut fields = Fields::new(Place::Item { list: "", number: 3 }, "/", |name| name);
    assert_eq!(fields.at("if_offset"), "/3/if_offset");
    assert_eq!(fields.at("data"), "/3/data");
    fields = fields.topic_in_query(true);
    assert_eq!((&*fields.at("topic"), &*fields.at("data")), ("topic", "/3/data"));
    let headers = Fields::new(Place::Whole, "ce-", |_| "deleted");
    assert_eq!((&*headers.at("delete"), &*headers.at("data")), ("ce-deleted", "/data"));
    assert_eq!(Fields::new(Place::Whole, "", |name| name).at("key"), "key");
}

#[test]
fn a_bodys_media_type_decides_what_its_data_is() {
    let read =
        |kind: Option<&str>, body: &'static [u8]| data(kind, Bytes::from_static(body), BOUNDS);
    assert_eq!(
        read(Some("text/plain; charset=utf-8"), b"a\n").unwrap(),
        Data::Json(JsonText::string("a\n"))
    );
    assert_eq!(read(None, b"").unwrap(), Data::None);
    assert!(matches!(read(Some("application/vnd.x+json"), b"{}").unwrap(), Data::Json(_)));
    assert!(matches!(read(Some("image/png"), b"\xff").unwrap(), Data::Binary { .. }));
    assert!(read(Some("text/plain"), b"\xff").is_err());
    assert!(read(Some("application/json"), b"{").is_err());
    for bad in ["", "/", "image", "image/", "image/p ng", "a/b/c", "image/png,"] {
        let problem = read(Some(bad), b"x").unwrap_err();
        assert_eq!(problem.pointer.as_deref(), Some("Content-Type"), "{bad}");
    }
}

/// The text of one event; every part of it may be there in any form, or wrong.
fn event_text() -> impl Strategy<Value = String> {
    let names =
        ["topic", "type", "class", "key", "id", "data", "time", "close", "x", "to\\u0070ic"];
    let values = [
        "\"a\"",
        "\"a.b\"",
        "\"log\"",
        "\"state\"",
        "null",
        "true",
        "7",
        "{\"k\":[1, 2.50]}",
        "{\"k\":1,\"k\":2}",
        "\"\\ud800\"",
        "\"\\u0061\"",
        "\"\\n\"",
        "NaN",
        "[",
        "\"2026-11-21T07:00:00Z\"",
    ];
    let spaces = ["", "", " ", "\n"];
    let pick = proptest::sample::select::<&str>;
    let member = (pick(names.to_vec()), pick(values.to_vec()), pick(spaces.to_vec()));
    let usual = "\"topic\":\"a\",\"type\":\"x\"";
    proptest::collection::vec(member, 0..4).prop_map(move |members| {
        let members =
            members.iter().map(|(name, value, s)| format!(",{s}\"{name}\"{s}:{s}{value}{s}"));
        format!("{{{usual}{}}}", members.collect::<String>())
    })
}

proptest! {
    /// What is read at once is what is read member by member.
    #[test]
    fn an_event_is_the_same_however_it_is_read(text in event_text()) {
        let told = |members| {
            let draft = event_of(members, Place::Whole, BOUNDS).map(|mut draft| {
                if draft.publish.dedup == Dedup::Minted {
                    draft.publish.event.id = EventId::parse("minted").unwrap();
                }
                format!("{:?}", draft.publish)
            });
            draft.map_err(|problem| (problem.detail, problem.pointer))
        };
        if let Some(members) = object(&text) {
            prop_assert_eq!(told(members), told(unread_members(&text, "").unwrap()));
        }
        let list = format!("[{text}, {text} ]");
        let listed = objects(&list, 2).map(|objects| objects.into_iter().map(told).collect());
        let alone = object(&text).map(|_| vec![told(object(&text).unwrap()); 2]);
        prop_assert_eq!(listed, alone);
        prop_assert!(objects(&list, 1).is_none());
    }

    #[test]
    fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = json(&body, BOUNDS);
        let _ = line(&body, BOUNDS);
        let _ = cloudevents_batch(&body, BOUNDS, None);
    }

    #[test]
    fn no_json_panics(body in r#"[\[\]{}:,"a-z0-9\\ ]{0,60}"#) {
        let _ = json(body.as_bytes(), BOUNDS);
    }
}
