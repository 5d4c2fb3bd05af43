//! The interface as a document: what it says of an answer is what is answered.

use std::collections::BTreeSet;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::support::{Options, Reader, Server, json_of};

/// Why a value is not of a schema: the part of JSON Schema 2020-12 that the document uses, and
/// nothing may be in the document that this does not know.
fn wrong(document: &Value, schema: &Value, value: &Value) -> Option<String> {
    let described = |why: &str| Some(format!("{why}: {value} against {schema}"));
    for (keyword, rule) in schema.as_object().unwrap() {
        let list = || rule.as_array().unwrap().iter();
        let fits = |schema: &Value| wrong(document, schema, value).is_none();
        let text = value.as_str();
        let length = text.map(|text| text.chars().count() as u64);
        let is_right = match keyword.as_str() {
            "$ref" => {
                let path = rule.as_str().unwrap().strip_prefix('#').unwrap();
                match wrong(document, document.pointer(path).unwrap(), value) {
                    None => true,
                    why => return why,
                }
            }
            "type" if rule.is_array() => list().any(|kind| is_of(kind, value)),
            "type" => is_of(rule, value),
            "const" => rule == value,
            "enum" => list().any(|one| one == value),
            "anyOf" => list().any(fits),
            "allOf" => list().all(fits),
            "minLength" => length.is_none_or(|length| length >= rule.as_u64().unwrap()),
            "maxLength" => length.is_none_or(|length| length <= rule.as_u64().unwrap()),
            "minimum" => value.as_f64().is_none_or(|value| value >= rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|value| value <= rule.as_f64().unwrap()),
            "maxProperties" => value
                .as_object()
                .is_none_or(|members| members.len() as u64 <= rule.as_u64().unwrap()),
            "required" => value.as_object().is_none_or(|members| {
                list().all(|name| members.contains_key(name.as_str().unwrap()))
            }),
            "properties" => {
                for (name, schema) in rule.as_object().unwrap() {
                    if let Some(why) =
                        value.get(name).and_then(|member| wrong(document, schema, member))
                    {
                        return Some(why);
                    }
                }
                true
            }
            "additionalProperties" => value.as_object().is_none_or(|members| {
                let known = schema.get("properties").and_then(Value::as_object);
                members
                    .iter()
                    .filter(|(name, _)| known.is_none_or(|known| !known.contains_key(*name)))
                    .all(|(_, member)| match rule {
                        Value::Bool(allowed) => *allowed,
                        schema => wrong(document, schema, member).is_none(),
                    })
            }),
            "items" => {
                let items = value.as_array().into_iter().flatten();
                match items.filter_map(|item| wrong(document, rule, item)).next() {
                    None => true,
                    why => return why,
                }
            }
            "minItems" | "maxItems" | "pattern" | "format" | "contentEncoding" | "default"
            | "description" | "examples" => true,
            other => panic!("the document uses {other}"),
        };
        if !is_right {
            return described(keyword);
        }
    }
    None
}

fn is_of(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        other => panic!("no type {other}"),
    }
}

/// Sends a request and holds its answer against the document; returns which answer it was.
async fn check(
    document: &Value,
    operation: (&str, &str),
    request: RequestBuilder,
) -> (String, Value) {
    let (method, path) = operation;
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16().to_string();
    let asked = format!("{method} {path} {status}");
    let described = &document["paths"][path][method]["responses"][&status];
    let described = match described.get("$ref").and_then(Value::as_str) {
        Some(reference) => document.pointer(&reference[1..]).unwrap(),
        None => described,
    };
    assert!(described.is_object(), "{asked} is not in the document");
    for name in described["headers"].as_object().unwrap().keys() {
        assert!(answer.headers().contains_key(name), "{asked} has no {name}");
    }
    let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
    let text = answer.text().await.unwrap();
    let Some(kind) = kind else {
        assert!(described.get("content").is_none() || text.is_empty(), "{asked} has no type");
        return (asked, Value::Null);
    };
    let essence = kind.split(';').next().unwrap();
    let schema = &described["content"][essence]["schema"];
    assert!(schema.is_object(), "{asked} is {essence}, which is not in the document");
    let bodies: Vec<Value> = match essence {
        "application/x-ndjson" => {
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
        "application/openmetrics-text" => vec![text.into()],
        _ => vec![serde_json::from_str(&text).unwrap()],
    };
    for body in &bodies {
        assert_eq!(wrong(document, schema, body), None, "{asked}");
    }
    (asked, bodies.into_iter().next().unwrap_or_default())
}

async fn document(server: &Server) -> Value {
    json_of(server.anonymous(Method::GET, "/openapi.json").send().await.unwrap()).await
}

#[tokio::test]
async fn every_operation_answers_in_the_shape_that_the_document_says() {
    let server = Server::with(Options { metrics: true, ..Options::default() }).await;
    let document = document(&server).await;
    let json = |request: RequestBuilder, body: Value| {
        request.header("content-type", "application/json").body(body.to_string())
    };
    let publish = |body: Value| json(server.post("/v1/events"), body);
    let page = |path: &str| server.get(path).header("accept", "application/json");
    let state = json!({ "topic": "t", "type": "x", "class": "state", "key": "k", "data": [1],
        "expires_at": "2100-01-01T00:00:00Z", "subject": "s" });
    let conflict = json!({ "topic": "t", "type": "x", "class": "state", "key": "k",
        "if_offset": 9 });
    let binary = || {
        let path = "/v1/events?topic=t&type=x";
        server.post(path).header("content-type", "image/png").body(vec![0xff])
    };
    let (post, get) = (("post", "/v1/events"), ("get", "/v1/events"));
    let topic = "/v1/topics/{topic}";
    let anonymous = |method: Method, path: &str| server.anonymous(method, path);
    let put = |body: Value| json(server.request(Method::PUT, "/v1/topics/t"), body);
    let requests = vec![
        (post, publish(state.clone())),
        (
            post,
            publish(json!([state, { "topic": "t" }, { "topic": "t", "type": "x",
            "class": "ephemeral" }])),
        ),
        (post, binary()),
        (
            post,
            server.post("/v1/events").header("content-type", "application/x-ndjson").body("{}\n"),
        ),
        (post, publish(json!([{ "topic": "t" }]))),
        (post, anonymous(Method::POST, "/v1/events")),
        (post, publish(json!({ "topic": "$hub/x", "type": "x" }))),
        (post, publish(conflict)),
        (post, publish(json!({ "topic": "t", "type": "x", "data": "x".repeat(70_000) }))),
        (post, publish(state.clone()).header("content-encoding", "gzip")),
        (post, publish(state.clone()).header("idempotency-key", "k")),
        (post, publish(json!({ "topic": "u", "type": "x" })).header("idempotency-key", "k")),
        (get, page("/v1/events?topic=t&since=earliest&wait=0")),
        (get, page("/v1/events?topic=t&last_event_id=x&wait=0")),
        (get, page("/v1/events?topic=t&topc=t")),
        (get, anonymous(Method::GET, "/v1/events?topic=t")),
        (
            get,
            anonymous(Method::GET, "/v1/events?topic=t").bearer_auth(super::support::token(
                "7",
                600,
                json!({}),
            )),
        ),
        (get, server.get("/v1/events?topic=t").header("accept", "text/html")),
        (("get", "/v1/state"), server.get("/v1/state?topic=t")),
        (("get", "/v1/state"), server.get("/v1/state")),
        (
            ("get", "/v1/state"),
            anonymous(Method::GET, "/v1/state?topic=t").bearer_auth(super::support::token(
                "7",
                600,
                json!({}),
            )),
        ),
        (
            ("put", topic),
            put(json!({ "owner": "7", "readers": ["8"], "ttl": "1h", "retention": { "age": 60 } })),
        ),
        (("put", topic), json(server.request(Method::PUT, "/v1/topics/new"), json!({}))),
        (("put", topic), put(json!({ "ownr": "7" }))),
        (("get", topic), server.get("/v1/topics/t")),
        (("get", topic), server.get("/v1/topics/absent")),
        (("get", "/v1/topics"), server.get("/v1/topics?limit=1")),
        (("get", "/v1/topics"), server.get("/v1/topics?limit=x")),
        (("put", topic), put(json!({ "closed": true }))),
        (post, publish(json!({ "topic": "t", "type": "x" }))),
        (("delete", topic), server.request(Method::DELETE, "/v1/topics/t")),
        (("delete", topic), server.request(Method::DELETE, "/v1/topics/t")),
        (("delete", topic), server.request(Method::DELETE, "/v1/topics/t?force=1")),
        (("get", topic), server.get("/v1/topics/t?limit=1")),
        (("post", "/v1/tickets"), server.post("/v1/tickets")),
        (("post", "/v1/tickets"), anonymous(Method::POST, "/v1/tickets")),
        (("post", "/v1/tickets"), server.post("/v1/tickets?ttl=1h")),
        (("post", "/v1/revocations"), json(server.post("/v1/revocations"), json!({"sub": "9"}))),
        (("post", "/v1/revocations"), json(server.post("/v1/revocations"), json!({}))),
        (("post", "/v1/connections/{id}/auth"), server.post("/v1/connections/none/auth")),
        (("post", "/v1/connections/{id}/auth"), server.post("/v1/connections/none/auth?x=1")),
        (("get", "/health/live"), anonymous(Method::GET, "/health/live")),
        (("get", "/health/ready"), anonymous(Method::GET, "/health/ready")),
        (("get", "/metrics"), anonymous(Method::GET, "/metrics")),
        (("get", "/openapi.json"), anonymous(Method::GET, "/openapi.json")),
    ];
    let mut answers = BTreeSet::new();
    for (operation, request) in requests {
        answers.insert(check(&document, operation, request).await.0);
    }
    server.hub.draining().cancel();
    for (operation, request) in [
        (get, server.get("/v1/events?topic=t")),
        (("get", "/health/ready"), anonymous(Method::GET, "/health/ready")),
    ] {
        answers.insert(check(&document, operation, request).await.0);
    }
    // What is in the document was seen, but for what needs a fault or a limit.
    let mut unseen = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let responses = operation.get("responses").and_then(Value::as_object);
            for status in responses.into_iter().flat_map(|responses| responses.keys()) {
                let answer = format!("{method} {path} {status}");
                if !answers.contains(&answer) && !matches!(&**status, "401" | "429" | "500" | "503")
                {
                    unseen.insert(answer);
                }
            }
        }
    }
    let elsewhere = [
        "delete /v1/topics/{topic} 403",
        "get /metrics 404",
        "get /v1/events 204",
        "get /v1/events 413",
        "post /v1/connections/{id}/auth 200",
        "post /v1/connections/{id}/auth 403",
        "post /v1/revocations 403",
        "post /v1/revocations 413",
        "put /v1/topics/{topic} 403",
        "put /v1/topics/{topic} 409",
        "put /v1/topics/{topic} 413",
    ];
    assert_eq!(unseen.iter().map(String::as_str).collect::<Vec<_>>(), elsewhere);
}

#[tokio::test]
async fn every_frame_of_a_stream_is_in_the_document() {
    let server = Server::start().await;
    let document = document(&server).await;
    server
        .publish(&json!([
            { "topic": "t", "type": "x", "data": "a\r\n" },
            { "topic": "t", "type": "x", "class": "state", "key": "k", "delete": true },
            { "topic": "t", "type": "end", "close": true },
        ]))
        .await;
    let schemas = &document["components"]["schemas"];
    let path = "/v1/events?topic=t&since=earliest&last_event_id=x";
    let mut reader = Reader::of(server.get(path).send().await.unwrap());
    let mut names = BTreeSet::new();
    while let Some(message) = reader.next().await {
        names.insert(message.event.clone());
        let (schema, value) = if message.event.is_empty() {
            (&schemas["Event"], message.json())
        } else {
            (&schemas["Control"], json!({ "type": message.event, "data": message.json() }))
        };
        assert_eq!(wrong(&document, schema, &value), None);
    }
    let want = [
        "",
        "tidings.caught_up",
        "tidings.closed",
        "tidings.gap",
        "tidings.goaway",
        "tidings.hello",
    ];
    assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), want);
    let lines = server.get(path).header("accept", "application/x-ndjson");
    check(&document, ("get", "/v1/events"), lines).await;
}
