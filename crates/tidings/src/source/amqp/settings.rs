//! What a RabbitMQ source is told: which queues, and what becomes of their messages.
//!
//! The rule: what cannot work is refused before anything is connected, with the path of the setting.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::template::{Route, Routes};
use crate::{
    amqp::Broker,
    auth::{Secret, SettingsError},
    model::time::duration,
};

/// Messages on their way to one hub and not acknowledged: two batches, so that one arrives while the
/// other is stored. Quorum queues allow 2000.
const PREFETCH: u16 = 1000;
/// Routes of one queue: each is compared with every routing key.
const ROUTES_MAX: usize = 64;
/// Queues of one source: each has a connection.
const QUEUES_MAX: usize = 32;

/// A RabbitMQ broker whose messages become events.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AmqpSettings {
    /// Where the broker is: `amqp://user:password@host:5672/vhost`, or `amqps://` for TLS.
    /// `?heartbeat=` changes the 4 s after twice which a silent connection is given up.
    pub url: Secret,
    /// The queues to consume.
    pub queues: Vec<QueueSettings>,
}

/// A queue and what becomes of its messages.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueSettings {
    /// The queue's name. It is declared durable if it is not there, and taken as it is if it is.
    pub queue: String,
    /// The topic exchange that it is bound to, declared durable if it is not there.
    pub exchange: String,
    /// What it is bound by, such as `team.*.job.*.status`. Default: the routing keys of the routes.
    #[serde(default)]
    pub bindings: Vec<String>,
    /// The kind of queue, if it is declared.
    #[serde(default)]
    pub queue_type: QueueType,
    /// Whether one hub consumes at a time while the others stand by, if the queue is declared. That
    /// keeps the order of messages; without it several hubs take turns, and two states of one key
    /// may be stored the wrong way round.
    #[serde(default = "single_active_consumer")]
    pub single_active_consumer: bool,
    /// Messages that the broker may send before the first of them is acknowledged, 1 to 2000.
    #[serde(default = "prefetch")]
    pub prefetch: u16,
    /// The exchange and the queue of messages that cannot become events. Default: the queue's name
    /// with `.dead` behind it.
    #[serde(default)]
    pub dead_letters: Option<String>,
    /// What messages become; the first route counts whose routing key fits.
    pub routes: Vec<RouteSettings>,
}

/// A kind of queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QueueType {
    /// Replicated, and counts how often a message was delivered.
    #[default]
    Quorum,
    /// On one node of the broker.
    Classic,
}

/// What a message becomes. Templates take `{name}` from the routing key, `{header.NAME}` from the
/// headers, and `{property.type}`, `{property.app_id}`, `{property.user_id}` and
/// `{property.correlation_id}` from the properties.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteSettings {
    /// Which messages: words joined by dots, `{name}` and `*` for any one word, `#` at the end for
    /// any words: `team.{team}.job.{job}.status`.
    pub routing_key: String,
    /// The tenant, a template. Default: `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The topic, a template: `team/{team}/jobs`. Each value is one segment. Default: messages are
    /// CloudEvents that name their topics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// How events are kept. Default: `state` if there is a key, else `log`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<RouteClass>,
    /// The key of a state, a template: `job/{job}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The event's type, a template. Default: the message's `type`, else the words of the routing
    /// key that are not placeholders: `team.job.status`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// When a state ends by itself after its message was taken, such as `7d`; a topic holds 10 000
    /// states. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_after: Option<String>,
}

/// How events are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RouteClass {
    /// Until retention trims them.
    Log,
    /// The newest of each key.
    State,
    /// Not at all: they are handed to the readers there are.
    Ephemeral,
}

const fn single_active_consumer() -> bool {
    true
}

const fn prefetch() -> u16 {
    PREFETCH
}

impl AmqpSettings {
    /// The source that the variables `RABBITMQ_URL`, `RABBITMQ_EVENTS_EXCHANGE`,
    /// `RABBITMQ_EVENTS_QUEUE`, `RABBITMQ_EVENTS_BINDING_KEY` and `RABBITMQ_PREFETCH_COUNT` ask for:
    /// the status of jobs, `team.{team}.job.{job}.status`, as states `job/{job}` of the topics
    /// `team/{team}/jobs`. `None` without `RABBITMQ_URL`.
    ///
    /// # Errors
    /// [`SettingsError`] names the variable.
    pub fn from_env(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, SettingsError> {
        let of = |name: &str, default: &str| variable(name).unwrap_or_else(|| default.to_owned());
        let Some(url) = variable("RABBITMQ_URL") else { return Ok(None) };
        let route = RouteSettings {
            routing_key: "team.{team}.job.{job}.status".to_owned(),
            topic: Some("team/{team}/jobs".to_owned()),
            key: Some("job/{job}".to_owned()),
            // A team has more jobs than a topic has room for states.
            expires_after: Some("7d".to_owned()),
            ..RouteSettings::default()
        };
        let binding = of("RABBITMQ_EVENTS_BINDING_KEY", "team.*.job.*.status");
        if !Route::new(&route)?.may_match(&binding) {
            let reason = "must be of the form team.*.job.*.status; for other routing keys, write a \
                          source with routes into the configuration";
            return Err(SettingsError::new("RABBITMQ_EVENTS_BINDING_KEY", reason));
        }
        let prefetch = of("RABBITMQ_PREFETCH_COUNT", &PREFETCH.to_string()).parse();
        let prefetch = prefetch.map_err(|_| {
            SettingsError::new("RABBITMQ_PREFETCH_COUNT", "must be a number from 1 to 2000")
        })?;
        let queue = QueueSettings {
            queue: of("RABBITMQ_EVENTS_QUEUE", "events.sse"),
            exchange: of("RABBITMQ_EVENTS_EXCHANGE", "events.topic"),
            bindings: vec![binding],
            queue_type: QueueType::default(),
            single_active_consumer: single_active_consumer(),
            prefetch,
            dead_letters: None,
            routes: vec![route],
        };
        let settings = Self { url: Secret::new(url), queues: vec![queue] };
        settings.check().map(|_| Some(settings)).map_err(|error| {
            let variable = match error.path.as_str() {
                "url" => "RABBITMQ_URL",
                "queues[0].queue" => "RABBITMQ_EVENTS_QUEUE",
                "queues[0].exchange" => "RABBITMQ_EVENTS_EXCHANGE",
                "queues[0].prefetch" => "RABBITMQ_PREFETCH_COUNT",
                _ => "RABBITMQ_EVENTS_BINDING_KEY",
            };
            SettingsError::new(variable, error.reason)
        })
    }

    /// Reads the settings for good.
    pub(super) fn check(&self) -> Result<(Broker, Vec<Queue>), SettingsError> {
        let broker = Broker::parse(&self.url)
            .map_err(|error| SettingsError::new("url", error.to_string()))?;
        if self.queues.is_empty() || self.queues.len() > QUEUES_MAX {
            return Err(SettingsError::new("queues", format!("must be 1 to {QUEUES_MAX}")));
        }
        let queue = |(n, queue): (usize, &QueueSettings)| {
            queue.check().map_err(|error| {
                SettingsError::new(format!("queues[{n}].{}", error.path), error.reason)
            })
        };
        let queues = self.queues.iter().enumerate().map(queue).collect::<Result<Vec<_>, _>>()?;
        for (n, queue) in queues.iter().enumerate() {
            if queues.iter().take(n).any(|other| other.name == queue.name) {
                return Err(SettingsError::new(format!("queues[{n}].queue"), "is there twice"));
            }
        }
        Ok((broker, queues))
    }
}

/// A queue's settings, checked.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    pub(super) name: String,
    pub(super) exchange: String,
    pub(super) bindings: Vec<String>,
    pub(super) queue_type: QueueType,
    pub(super) single_active_consumer: bool,
    pub(super) prefetch: u16,
    pub(super) dead_letters: String,
    pub(super) routes: Routes,
}

impl QueueSettings {
    fn check(&self) -> Result<Queue, SettingsError> {
        let name = |path: &str, text: &str| {
            if text.is_empty() || text.len() > 250 {
                return Err(SettingsError::new(path, "must be 1 to 250 bytes"));
            }
            if text.starts_with("amq.") {
                return Err(SettingsError::new(
                    path,
                    "must not start with `amq.`: it is the broker's",
                ));
            }
            Ok(text.to_owned())
        };
        if self.routes.is_empty() || self.routes.len() > ROUTES_MAX {
            return Err(SettingsError::new("routes", format!("must be 1 to {ROUTES_MAX}")));
        }
        let route = |(n, settings): (usize, &RouteSettings)| {
            Route::new(settings).map_err(|error| {
                SettingsError::new(format!("routes[{n}].{}", error.path), error.reason)
            })
        };
        let routes = self.routes.iter().enumerate().map(route).collect::<Result<Vec<_>, _>>()?;
        for (n, binding) in self.bindings.iter().enumerate() {
            let path = format!("bindings[{n}]");
            name(&path, binding)?;
            if !routes.iter().any(|route| route.may_match(binding)) {
                let reason = "brings messages that no route takes";
                return Err(SettingsError::new(path, reason));
            }
        }
        if !(1..=2000).contains(&self.prefetch) {
            return Err(SettingsError::new("prefetch", "must be a number from 1 to 2000"));
        }
        let bindings = if self.bindings.is_empty() {
            routes.iter().map(Route::binding).collect()
        } else {
            self.bindings.clone()
        };
        let queue = name("queue", &self.queue)?;
        let dead_letters = self.dead_letters.clone().unwrap_or_else(|| format!("{queue}.dead"));
        let dead_letters = name("dead_letters", &dead_letters)?;
        if dead_letters == queue {
            return Err(SettingsError::new("dead_letters", "must not be the queue itself"));
        }
        Ok(Queue {
            exchange: name("exchange", &self.exchange)?,
            name: queue,
            bindings,
            queue_type: self.queue_type,
            single_active_consumer: self.single_active_consumer,
            prefetch: self.prefetch,
            dead_letters,
            routes: Routes(routes.into()),
        })
    }
}

impl RouteSettings {
    /// After how many milliseconds a state ends.
    pub(super) fn expires_after_ms(&self) -> Result<Option<u64>, SettingsError> {
        let Some(text) = &self.expires_after else { return Ok(None) };
        let time = duration(text).filter(|time| !time.is_zero());
        let ms = time.and_then(|time| u64::try_from(time.as_millis()).ok());
        let rule = "must be a duration above zero, like 36h or 7d";
        ms.map(Some).ok_or_else(|| SettingsError::new("expires_after", rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(set: &[(&str, &str)]) -> Result<Option<AmqpSettings>, SettingsError> {
        AmqpSettings::from_env(|name| {
            set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_five_variables_make_a_source() {
        assert!(env(&[("RABBITMQ_EVENTS_QUEUE", "q")]).unwrap().is_none());
        let settings = env(&[
            ("RABBITMQ_URL", "amqp://guest:guest@rabbitmq:5672/"),
            ("RABBITMQ_EVENTS_EXCHANGE", "x"),
            ("RABBITMQ_EVENTS_QUEUE", "q"),
            ("RABBITMQ_EVENTS_BINDING_KEY", "team.7.job.*.status"),
            ("RABBITMQ_PREFETCH_COUNT", "10"),
        ]);
        let (_, queues) = settings.unwrap().unwrap().check().unwrap();
        let queue = &queues[0];
        assert_eq!((&*queue.name, &*queue.exchange, queue.prefetch), ("q", "x", 10));
        assert_eq!(queue.bindings, ["team.7.job.*.status"]);
        assert_eq!(queue.dead_letters, "q.dead");
        let settings = env(&[("RABBITMQ_URL", "amqp://host")]).unwrap().unwrap();
        let (_, queues) = settings.check().unwrap();
        assert_eq!((&*queues[0].name, &*queues[0].exchange), ("events.sse", "events.topic"));
    }

    #[test]
    fn a_variable_that_cannot_be_is_named() {
        let url = ("RABBITMQ_URL", "amqp://host");
        for wrong in [
            ("RABBITMQ_URL", "host"),
            ("RABBITMQ_EVENTS_QUEUE", ""),
            ("RABBITMQ_EVENTS_EXCHANGE", "amq.topic"),
            ("RABBITMQ_EVENTS_BINDING_KEY", "user.*"),
            ("RABBITMQ_PREFETCH_COUNT", "0"),
            ("RABBITMQ_PREFETCH_COUNT", "many"),
        ] {
            assert_eq!(env(&[wrong, url]).unwrap_err().path, wrong.0);
        }
    }

    #[test]
    fn the_path_of_a_wrong_setting_is_told() {
        let read = |queue: serde_json::Value| {
            let settings = serde_json::json!({"url": "amqp://host", "queues": [queue]});
            serde_json::from_value::<AmqpSettings>(settings).unwrap().check()
        };
        let queue = serde_json::json!({
            "queue": "q", "exchange": "x", "routes": [{"routing_key": "a.{b}", "topic": "a/{b}"}]
        });
        let (_, queues) = read(queue.clone()).unwrap();
        assert_eq!(
            (queues[0].bindings.clone(), queues[0].prefetch),
            (vec!["a.*".to_owned()], 1000)
        );
        for (member, value, path) in [
            ("queue", "".into(), "queues[0].queue"),
            ("exchange", "".into(), "queues[0].exchange"),
            ("prefetch", 0.into(), "queues[0].prefetch"),
            ("dead_letters", "q".into(), "queues[0].dead_letters"),
            ("bindings", serde_json::json!(["b.*"]), "queues[0].bindings[0]"),
            ("routes", serde_json::json!([]), "queues[0].routes"),
            (
                "routes",
                serde_json::json!([{"routing_key": "a.{b}", "topic": "a/{c}"}]),
                "queues[0].routes[0].topic",
            ),
            (
                "routes",
                serde_json::json!([{"routing_key": "a", "topic": "a", "expires_after": "soon"}]),
                "queues[0].routes[0].expires_after",
            ),
        ] {
            let mut queue = queue.clone();
            queue[member] = value;
            assert_eq!(read(queue).unwrap_err().path, path);
        }
    }
}
