//! `/openapi.json`: the interface described for machines (OpenAPI 3.1).

use axum::{
    http::header,
    response::{IntoResponse, Response},
};

/// The document, as it stands in the repository.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");

pub(super) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::{
        error::ErrorCode,
        http::{follow, revocations, state, topics},
        ingest,
    };

    const METHODS: [&str; 5] = ["get", "post", "put", "delete", "patch"];

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    /// `GET /v1/state` and so on, as the document has them.
    fn documented(document: &Value) -> BTreeSet<String> {
        let mut operations = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in METHODS.iter().filter(|method| item.get(**method).is_some()) {
                operations.insert(format!("{method} {path}"));
            }
        }
        operations
    }

    /// The same, as the router's source has them.
    fn routed() -> BTreeSet<String> {
        let mut operations = BTreeSet::new();
        for route in include_str!("router.rs").split(".route(").skip(1) {
            let (path, handlers) = route.trim_start()[1..].split_once('"').unwrap();
            let handlers = handlers.split(".fallback(").next().unwrap();
            for method in METHODS.iter().filter(|method| handlers.contains(&format!("{method}("))) {
                operations.insert(format!("{method} {}", path.replace("{*", "{")));
            }
        }
        operations
    }

    #[test]
    fn the_document_has_the_routers_operations_and_no_others() {
        assert_eq!(documented(&document()), routed());
        assert!(routed().len() >= 11, "{:?}", routed());
    }

    #[test]
    fn the_document_has_the_parameters_that_are_read_and_no_others() {
        let document = document();
        for (path, method, known) in [
            ("/v1/events", "post", ingest::PARAMETERS),
            ("/v1/events", "get", follow::PARAMETERS),
            ("/v1/state", "get", state::PARAMETERS),
            ("/v1/topics", "get", topics::PARAMETERS),
        ] {
            let parameters = document["paths"][path][method]["parameters"].as_array().unwrap();
            let named: BTreeSet<&str> = parameters
                .iter()
                .filter(|parameter| parameter["in"] == "query")
                .map(|parameter| parameter["name"].as_str().unwrap())
                .collect();
            assert_eq!(named, known.iter().copied().collect(), "{method} {path}");
        }
        let members = document["components"]["schemas"]["NewEvent"]["properties"].as_object();
        let members: BTreeSet<&str> = members.unwrap().keys().map(String::as_str).collect();
        assert_eq!(members, ingest::MEMBERS.iter().copied().collect());
        let body = &document["paths"]["/v1/revocations"]["post"]["requestBody"]["content"];
        let members = body["application/json"]["schema"]["properties"].as_object();
        let members: BTreeSet<&str> = members.unwrap().keys().map(String::as_str).collect();
        assert_eq!(members, revocations::MEMBERS.iter().copied().collect());
    }

    #[test]
    fn the_document_has_every_problem_code_and_this_version() {
        let document = document();
        let codes = &document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"];
        let codes: BTreeSet<&str> =
            codes.as_array().unwrap().iter().map(|code| code.as_str().unwrap()).collect();
        assert_eq!(codes, ErrorCode::ALL.iter().map(|code| code.as_str()).collect());
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_component_is_used() {
        fn references<'a>(value: &'a Value, all: &mut BTreeSet<&'a str>) {
            match value {
                Value::Object(members) => {
                    all.extend(members.get("$ref").and_then(Value::as_str));
                    members.values().for_each(|member| references(member, all));
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, all)),
                _ => {}
            }
        }
        let document = document();
        let mut used = BTreeSet::new();
        references(&document, &mut used);
        let mut there = BTreeSet::new();
        for kind in ["schemas", "responses", "headers"] {
            let components = document["components"][kind].as_object().unwrap();
            there.extend(components.keys().map(|name| format!("#/components/{kind}/{name}")));
        }
        assert_eq!(used, there.iter().map(String::as_str).collect());
    }
}
