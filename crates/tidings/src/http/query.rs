//! Query strings: decoded strictly, unknown names refused with the nearest known one.

use std::ops::RangeInclusive;

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use crate::{
    error::{ErrorCode, Problem},
    ingest::{
        Parameter,
        text::{decode, unknown},
    },
};

/// Parameters of one query: far more than any resource has.
const PARAMETERS_MAX: usize = 128;

/// Reads a query of `application/x-www-form-urlencoded` (WHATWG URL §5.1), names as known and each
/// at most once.
pub(super) fn parameters(query: Option<&str>, known: &[&str]) -> Result<Vec<Parameter>, Problem> {
    repeatable(query, known, &[])
}

/// The same for a query in which the parameters `many` may be repeated.
pub(super) fn repeatable(
    query: Option<&str>,
    known: &[&str],
    many: &[&str],
) -> Result<Vec<Parameter>, Problem> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let mut parameters: Vec<Parameter> = Vec::new();
    for pair in pairs {
        if parameters.len() == PARAMETERS_MAX {
            return Err(malformed("the query has more than 128 parameters"));
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name =
            decode(name).ok_or_else(|| malformed("the query is not percent-encoded UTF-8"))?;
        if !known.contains(&&*name) {
            return Err(malformed(&unknown("parameter", &name, known)).at(name));
        }
        if !many.contains(&&*name) && parameters.iter().any(|other| other.name == name) {
            return Err(malformed("this parameter is there twice").at(name));
        }
        let value = decode(value)
            .ok_or_else(|| malformed("the value is not percent-encoded UTF-8").at(name.clone()))?;
        parameters.push(Parameter { name, value });
    }
    Ok(parameters)
}

/// A parameter that must be there is not.
pub(super) fn missing(name: &str) -> Problem {
    malformed(&format!("the parameter `{name}` is missing")).at(name)
}

/// Reads a number within a range.
pub(super) fn number(
    name: &str,
    value: &str,
    range: RangeInclusive<usize>,
) -> Result<usize, Problem> {
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        let detail = format!("must be a number from {} to {}", range.start(), range.end());
        malformed(&detail).at(name)
    })
}

/// Refuses every parameter, for resources that have none.
pub(super) async fn refuse_all(request: Request, next: Next) -> Response {
    match parameters(request.uri().query(), &[]) {
        Ok(_) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn malformed(detail: &str) -> Problem {
    Problem::new(ErrorCode::Malformed, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_strictly() {
        let read =
            repeatable(Some("topic=a%2Fb&topic=c+d&x="), &["topic", "x"], &["topic"]).unwrap();
        let pairs: Vec<_> = read.iter().map(|p| (&*p.name, &*p.value)).collect();
        assert_eq!(pairs, [("topic", "a/b"), ("topic", "c d"), ("x", "")]);
        for bad in ["topic=%", "topic=%2", "topic=%zz", "topic=%ff", "%ff=1"] {
            assert!(parameters(Some(bad), &["topic"]).is_err(), "{bad}");
        }
        let problem = parameters(Some("topic=a&topic=b"), &["topic"]).unwrap_err();
        assert_eq!(problem.pointer.as_deref(), Some("topic"));
        let problem = parameters(Some("topc=a"), &["since", "topic"]).unwrap_err();
        assert_eq!(problem.pointer.as_deref(), Some("topc"));
        assert_eq!(problem.detail, "there is no such parameter; did you mean `topic`?");
    }
}
