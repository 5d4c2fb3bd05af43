//! What operators look at and change: nodes, topics, configuration.

use std::collections::BTreeMap;

use axum::{
    Extension,
    extract::{RawQuery, Request, State},
    http::header,
    middleware::Next,
    response::{IntoResponse, Response},
};
use reqwest::Url;
use serde_json::{Value, json};
use tidings::{
    clock::{Clock as _, SystemClock},
    cluster::NodeInfo,
    error::{ErrorCode, Problem},
    http::Peer,
    journal::{Retention, TopicInfo, TopicQuery},
    model::{Tenant, Timestamp, Topic, TopicKey},
};

use super::{Admin, audit::Act};
use crate::config::{ByteSize, Period};

/// Entries of a listing, unless the operator wants fewer.
const LISTED_MAX: usize = 1000;

/// All nodes that share the journal.
pub(super) async fn nodes(State(admin): State<Admin>) -> Result<Response, Problem> {
    let node = |node: NodeInfo| {
        let started_at = Timestamp::from_millis(node.started_at_ms);
        let uptime = started_at.until(SystemClock.now());
        json!({
            "id": node.id,
            "name": node.name,
            "version": node.version,
            "started_at": started_at.to_string(),
            "uptime_ms": u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            "ready": node.reason.is_none(),
            "reason": node.reason,
            "connections": node.connections,
            "topics_active": node.topics_active,
        })
    };
    let nodes: Vec<Value> = admin.0.hub.nodes().await?.into_iter().map(node).collect();
    Ok(answer(&json!({ "nodes": nodes })))
}

/// Topics of all tenants or of one, or one topic.
pub(super) async fn topics(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = Parameters::read(query, &["tenant", "topic", "prefix", "after", "limit"])?;
    let hub = &admin.0.hub;
    if query.text("topic").is_some() {
        let info = hub.describe(&query.topic()?).await?;
        return Ok(answer(&json!({ "topics": [topic_json(&info)] })));
    }
    let limit = query.limit()?;
    let after = query.text("after").map(|after| {
        let parsed = after.split_once('/').map(|(tenant, topic)| {
            Ok::<_, Problem>(TopicKey::new(Tenant::parse(tenant)?, Topic::parse(topic)?))
        });
        let missing = || Err(malformed("must be tenant and topic, like acme/user/42"));
        parsed.unwrap_or_else(missing).map_err(|problem| problem.at("after"))
    });
    let found = hub
        .list(TopicQuery {
            tenant: query.tenant()?,
            prefix: query.text("prefix").unwrap_or_default().to_owned(),
            after: after.transpose()?,
            limit,
        })
        .await?;
    let last = found.last().filter(|_| found.len() == limit);
    let next = last.map(|info| format!("{}/{}", info.topic.tenant, info.topic.topic));
    let topics: Vec<Value> = found.iter().map(topic_json).collect();
    Ok(answer(&json!({ "topics": topics, "next": next })))
}

/// Trims a topic now, to less than it may keep.
pub(super) async fn trim(
    State(admin): State<Admin>,
    Extension(peer): Extension<Peer>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let names = ["tenant", "topic", "keep_events", "keep_bytes", "keep_age"];
    let query = Parameters::read(query, &names)?;
    let topic = query.topic()?;
    let retention = Retention {
        age: query.parsed("keep_age")?.map(|age: Period| age.0),
        events: query.number("keep_events")?,
        bytes: query.parsed("keep_bytes")?.map(|bytes: ByteSize| bytes.0),
    };
    if retention == Retention::UNLIMITED {
        return Err(malformed("say what to keep: keep_events, keep_bytes or keep_age"));
    }
    let act = Act {
        action: "topic.trim",
        tenant: topic.tenant.to_string(),
        on: topic.topic.to_string(),
        detail: query.among(&["keep_events", "keep_bytes", "keep_age"]),
        peer: Some(peer),
    };
    let hub = &admin.0.hub;
    let trimmed = async {
        if !hub.describe(&topic).await?.exists {
            return Err(Problem::new(ErrorCode::NotFound, "there is no such topic"));
        }
        Ok(hub.trim(&topic, &retention).await?)
    };
    let head = act.done(trimmed.await)?;
    Ok(answer(&json!({ "earliest": head.earliest.0, "tail": head.tail.0 })))
}

pub(super) async fn config(State(admin): State<Admin>) -> Response {
    answer(&json!({ "settings": admin.0.settings }))
}

pub(super) fn answer(body: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, body.to_string()).into_response()
}

fn topic_json(info: &TopicInfo) -> Value {
    let properties = &info.properties;
    json!({
        "tenant": info.topic.tenant.as_str(),
        "topic": info.topic.topic.as_str(),
        "exists": info.exists,
        "epoch": info.head.epoch.to_string(),
        "earliest": info.head.earliest.0,
        "tail": info.head.tail.0,
        "closed": info.head.closed,
        "events": info.events,
        "bytes": info.bytes,
        "states": info.states,
        "written_at": info.written_at.to_string(),
        "owner": properties.owner,
        "readers": properties.readers.len(),
        "ttl_ms": properties.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
    })
}

pub(super) fn malformed(rule: &str) -> Problem {
    Problem::new(ErrorCode::Malformed, rule)
}

/// Refuses every parameter, for resources that know none.
pub(super) async fn no_parameters(
    RawQuery(query): RawQuery,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    Parameters::read(query, &[])?;
    Ok(next.run(request).await)
}

/// A query's parameters, each once.
pub(super) struct Parameters(BTreeMap<String, String>);

impl Parameters {
    /// Reads them; one that is not among the names is refused.
    pub(super) fn read(query: Option<String>, names: &[&str]) -> Result<Self, Problem> {
        let url = Url::parse(&format!("http://x/?{}", query.unwrap_or_default()));
        let url = url.map_err(|_| malformed("the query cannot be read"))?;
        let mut read = BTreeMap::new();
        for (name, value) in url.query_pairs() {
            if !names.contains(&&*name) {
                let detail = match names {
                    [] => "there is no such parameter; none is known here".to_owned(),
                    _ => format!("there is no such parameter; known are {}", names.join(", ")),
                };
                return Err(malformed(&detail).at(name));
            }
            if read.insert(name.to_string(), value.into_owned()).is_some() {
                return Err(malformed("is there twice").at(name));
            }
        }
        Ok(Self(read))
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Those of these names as they were given: `keep_events=2 keep_age=1h`.
    fn among(&self, names: &[&str]) -> String {
        let given = names.iter().filter_map(|name| Some(format!("{name}={}", self.text(name)?)));
        given.collect::<Vec<_>>().join(" ")
    }

    fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
        &self,
        name: &str,
    ) -> Result<Option<T>, Problem> {
        let parsed = self.text(name).map(str::parse).transpose();
        parsed.map_err(|error: T::Err| malformed(&error.to_string()).at(name))
    }

    /// A number of something. What the library says of one that is none names no rule.
    fn number(&self, name: &str) -> Result<Option<u64>, Problem> {
        let number = self.text(name).map(str::parse).transpose();
        number.map_err(|_| malformed("must be a whole number, like 1000").at(name))
    }

    pub(super) fn limit(&self) -> Result<usize, Problem> {
        let limit = self.text("limit").map_or(Some(100), |text| text.parse().ok());
        let limit = limit.filter(|limit| (1..=LISTED_MAX).contains(limit));
        limit.ok_or_else(|| malformed(&format!("must be from 1 to {LISTED_MAX}")).at("limit"))
    }

    pub(super) fn tenant(&self) -> Result<Option<Tenant>, Problem> {
        let tenant = self.text("tenant").map(Tenant::parse).transpose();
        tenant.map_err(|error| Problem::from(error).at("tenant"))
    }

    fn topic(&self) -> Result<TopicKey, Problem> {
        let tenant = self.tenant()?.ok_or_else(|| malformed("is missing").at("tenant"))?;
        let topic = self.text("topic").ok_or_else(|| malformed("is missing").at("topic"))?;
        let topic = Topic::parse(topic).map_err(|error| Problem::from(error).at("topic"))?;
        Ok(TopicKey::new(tenant, topic))
    }
}
