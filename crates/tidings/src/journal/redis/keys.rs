//! What is where in Redis.
//!
//! Topics are in [`GROUPS`] groups by a hash of tenant and name, and the group's number is the hash
//! tag of all keys: whatever a script touches is in one slot of a cluster. So are the indexes that
//! span topics, of which each group has its own: they change in the same script as the topic.
//!
//! | key | type | is |
//! |---|---|---|
//! | `<prefix>{<group>}:g` | hash | epoch, count of changes, and which run of which server was looked at |
//! | `<prefix>{<group>}:t` | sorted set | names of topics, as they sort |
//! | `<prefix>{<group>}:e`, `:d` | sorted sets | states that expire, and that are due, by their time |
//! | `<prefix>{<group>}:x` | hash | how often topics of a slot were deleted |
//! | `<prefix>{<group>}:<tenant>/<topic>:h` | hash | the topic's bounds, counts and properties |
//! | `…:l` | stream | log events and tombstones: `<offset>-0`, the record |
//! | `…:s` | hash | the current states: offset, whether it has times, the record |
//! | `…:p`, `…:k` | sorted sets | keys of the current states by offset, and as they sort |
//! | `…:m` | sorted set | what superseded states leave behind, by offset |
//! | `…:i`, `…:o` | hash, list | the dedup window: ids, and the order in which they leave it |
//! | `…:a` | channel | where a change of the topic is announced |
//!
//! The rule: nothing of ours expires, so an eviction policy that takes only what does spares it. And
//! no key is called what a script is given as its key, `<prefix>{<group>}` or that and a topic: while
//! a slot moves to another master of a cluster, the old one runs no script whose key it does not
//! have, so none sees, or changes, a group of which it has a part.

use crate::model::{Tenant, Topic, TopicKey};

/// Groups of topics: so many slots of a cluster. Every read of an index that spans topics asks each,
/// in one round trip; and with so many, 16 masters have work. The number is part of the layout.
pub(super) const GROUPS: u32 = 64;

/// Slots of each tenant that deletions are counted in, as the embedded journal does.
const DELETION_SLOTS: u32 = 1 << 20;

/// What the names of the keys begin with.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    pub(crate) const fn new(prefix: String) -> Self {
        Self { prefix }
    }

    /// What the keys of a group begin with.
    pub(super) fn group(&self, group: u32) -> String {
        format!("{}{{{group}}}", self.prefix)
    }

    /// What the keys of a topic begin with.
    pub(super) fn topic(&self, topic: &TopicKey) -> String {
        let group = group_of(topic);
        format!("{}{{{group}}}:{}/{}", self.prefix, topic.tenant, topic.topic)
    }

    /// The channel in which something is said of a topic.
    pub(crate) fn channel(&self, topic: &TopicKey) -> String {
        format!("{}:a", self.topic(topic))
    }

    /// The channel in which a node says something to itself.
    pub(crate) fn own_channel(&self, node: u64) -> String {
        format!("{}probe:{node:016x}", self.prefix)
    }
}

fn hash(topic: &TopicKey) -> u32 {
    crc32c::crc32c(&name(topic))
}

/// The group that a topic is in.
pub(super) fn group_of(topic: &TopicKey) -> u32 {
    hash(topic) % GROUPS
}

/// The field of the count that the topic's deletions are in: one of its tenant, so that no tenant
/// can tell what another deletes.
pub(super) fn deletions_field(topic: &TopicKey) -> String {
    format!("{}/{}", topic.tenant, hash(topic) % DELETION_SLOTS)
}

/// A topic as listings name it; neither tenants nor topics have a NUL in them.
pub(super) fn name(topic: &TopicKey) -> Vec<u8> {
    name_prefix(&topic.tenant, topic.topic.as_str())
}

/// What the names of a tenant's topics begin with that start with a text.
pub(super) fn name_prefix(tenant: &Tenant, prefix: &str) -> Vec<u8> {
    [tenant.as_str().as_bytes(), &[0], prefix.as_bytes()].concat()
}

/// Reads a name, and what follows it in the due indexes: the key of the state.
pub(super) fn read_name(bytes: &[u8]) -> Option<(TopicKey, &str)> {
    let (tenant, rest) = std::str::from_utf8(bytes).ok()?.split_once('\0')?;
    let (topic, key) = rest.split_once('\0').unwrap_or((rest, ""));
    Some((TopicKey::new(Tenant::parse(tenant).ok()?, Topic::parse(topic).ok()?), key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_topic_has_a_key_of_another_or_of_a_group() {
        let keys = Keys::new("p:".to_owned());
        let key = |tenant, topic| {
            let topic = TopicKey::new(Tenant::parse(tenant).unwrap(), Topic::parse(topic).unwrap());
            assert_eq!(read_name(&name(&topic)), Some((topic.clone(), "")));
            keys.topic(&topic)
        };
        assert!(key("a", "b").ends_with("}:a/b"));
        // `…:h` of one is never `…` of another with something behind it but what it is of.
        assert_ne!(format!("{}:h", key("a", "b")), key("a", "b"));
        assert!(key("a", "b:h").ends_with(":a/b:h"));
        assert!(
            keys.group(7).starts_with("p:{7}") && !format!("{}:g", keys.group(7)).contains('/')
        );
    }
}
