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
