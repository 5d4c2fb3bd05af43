//! Which master of a Redis Cluster has which slot, as its nodes tell it.
//!
//! The rule: what a master has, it says itself. What others say of it counts only as long as it
//! does not answer; of two that claim a slot, the one whose configuration is newer has it.

use std::{collections::BTreeSet, fmt};

use redis::Value;

/// Slots of a cluster.
pub(super) const SLOTS: u16 = 16_384;

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// The slot of a key's hash tag: its CRC-16 (XMODEM), of which 14 bits count.
pub(super) fn slot_of(tag: &str) -> u16 {
    let crc = tag.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % SLOTS
}

/// What one node says of its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    id: String,
    /// Of its own configuration, and the newest that it knows of.
    epoch: u64,
    newest: u64,
    /// Whether it serves, in its words too.
    is_well: bool,
    state: String,
    ranges: Vec<Range>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    id: String,
    master: Address,
}

impl View {
    /// Reads what a node answered to `CLUSTER INFO`, `CLUSTER MYID` and `CLUSTER SLOTS`; `None` if
    /// that has another shape.
    pub(super) fn read(at: &Address, info: &str, id: String, slots: Value) -> Option<Self> {
        let field = |name: &str| {
            let mut fields = info.lines().filter_map(|line| line.trim_end().split_once(':'));
            fields.find_map(|(key, value)| (key == name).then_some(value))
        };
        let Value::Array(entries) = slots else { return None };
        let ranges = entries.into_iter().map(|entry| Range::read(at, entry));
        let state = field("cluster_state")?.to_owned();
        Some(Self {
            id,
            epoch: field("cluster_my_epoch")?.parse().ok()?,
            newest: field("cluster_current_epoch")?.parse().ok()?,
            is_well: state == "ok",
            state,
            ranges: ranges.collect::<Option<_>>()?,
        })
    }

    /// What it has itself.
    fn own(&self) -> impl Iterator<Item = &Range> {
        self.ranges.iter().filter(|range| range.id == self.id)
    }
}

impl Range {
    /// `[first, last, [host, port, id, …], replicas …]`
    fn read(at: &Address, entry: Value) -> Option<Self> {
        let Value::Array(entry) = entry else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = entry.as_slice()
        else {
            return None;
        };
        let [host, Value::Int(port), Value::BulkString(id), ..] = master.as_slice() else {
            return None;
        };
        // A node that is not told its own address says none: it is where it was asked.
        let host = match host {
            Value::BulkString(host) if !host.is_empty() && host != b"?" => {
                String::from_utf8(host.clone()).ok()?
            }
            _ => at.host.clone(),
        };
        let slot = |number: i64| u16::try_from(number).ok().filter(|slot| *slot < SLOTS);
        Some(Self {
            first: slot(*first)?,
            last: slot(*last)?,
            id: String::from_utf8(id.clone()).ok()?,
            master: Address { host, port: u16::try_from(*port).ok()? },
        })
    }

    fn slots(&self) -> std::ops::RangeInclusive<usize> {
        usize::from(self.first)..=usize::from(self.last)
    }
}

/// Who has which slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    owners: Vec<Option<Address>>,
    /// Every node that is said to be a master of slots.
    pub(super) masters: BTreeSet<Address>,
    /// Masters that answered and serve.
    pub(super) well: BTreeSet<Address>,
    /// What the cluster says of itself if it does not serve.
    pub(super) down: Option<String>,
}

impl Layout {
    /// What nodes say, put together; `None` if nobody says anything.
    pub(super) fn of(views: &[View]) -> Option<Self> {
        let best = views.iter().max_by_key(|view| (view.is_well, view.newest))?;
        let mut owners: Vec<Option<Address>> = vec![None; usize::from(SLOTS)];
        let mut give = |range: &Range, to: Option<&Address>| {
            if let Some(slots) = owners.get_mut(range.slots()) {
                slots.fill(to.cloned());
            }
        };
        // Of masters that answer, only what they say of themselves counts.
        for range in &best.ranges {
            let answers = views.iter().any(|view| view.id == range.id);
            give(range, (!answers).then_some(&range.master));
        }
        let mut by_age: Vec<&View> = views.iter().collect();
        by_age.sort_by_key(|view| view.epoch);
        for view in by_age {
            for range in view.own() {
                give(range, Some(&range.master));
            }
        }
        let ranges = views.iter().flat_map(|view| &view.ranges);
        let well = views.iter().filter(|view| view.is_well);
        let well = well.filter_map(|view| view.own().next().map(|range| range.master.clone()));
        Some(Self {
            masters: ranges.map(|range| range.master.clone()).collect(),
            well: well.collect(),
            down: (!best.is_well).then(|| format!("cluster_state is {}", best.state)),
            owners,
        })
    }

    /// The master of a slot.
    pub(super) fn owner(&self, slot: u16) -> Option<&Address> {
        self.owners.get(usize::from(slot))?.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> Address {
        Address { host: "h".to_owned(), port }
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    /// A node by its port, with its epoch and what it says of others.
    fn view(port: u16, epoch: u64, newest: u64, ranges: &[(i64, i64, u16)]) -> View {
        let info = format!(
            "cluster_state:ok\r\ncluster_current_epoch:{newest}\r\ncluster_my_epoch:{epoch}\r\n"
        );
        let entry = |&(first, last, port): &(i64, i64, u16)| {
            let master = [bulk("h"), Value::Int(port.into()), bulk(&port.to_string())];
            let master = Value::Array(master.to_vec());
            Value::Array(vec![Value::Int(first), Value::Int(last), master.clone(), master])
        };
        let slots = Value::Array(ranges.iter().map(entry).collect());
        View::read(&address(port), &info, port.to_string(), slots).unwrap()
    }

    fn owners(views: &[View], slots: [u16; 3]) -> [Option<u16>; 3] {
        let layout = Layout::of(views).unwrap();
        slots.map(|slot| layout.owner(slot).map(|address| address.port))
    }

    #[test]
    fn hash_tags_have_the_slots_that_redis_gives_them() {
        // The second is the check value of the CRC.
        assert_eq!([slot_of("foo"), slot_of("123456789")], [12_182, 0x31c3]);
    }

    #[test]
    fn a_master_that_is_silent_has_what_the_others_say() {
        let all = [(0, 99, 1), (100, 199, 2), (200, 16_383, 3)];
        let views = [view(1, 1, 3, &all), view(2, 2, 3, &all)];
        assert_eq!(owners(&views, [0, 150, 16_383]), [Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn a_slot_that_moves_belongs_to_whose_configuration_is_newer() {
        // 1 gave slot 50 to 2, and does not know it yet; nobody's epoch is above 4.
        let before = [(0, 99, 1), (100, 199, 2)];
        let after = [(0, 49, 1), (50, 50, 2), (51, 99, 1), (100, 199, 2)];
        let views = [view(1, 1, 4, &before), view(2, 4, 4, &after), view(3, 3, 4, &before)];
        assert_eq!(owners(&views, [49, 50, 51]), [Some(1), Some(2), Some(1)]);
    }

    #[test]
    fn a_master_that_was_replaced_has_nothing_though_it_claims_everything() {
        let (old, new) = ([(0, 99, 1)], [(0, 99, 9)]);
        let views = [view(1, 1, 1, &old), view(2, 2, 7, &new), view(9, 7, 7, &new)];
        assert_eq!(owners(&views, [0, 99, 100]), [Some(9), Some(9), None]);
    }

    #[test]
    fn what_a_master_gave_up_nobody_has() {
        let views = [view(1, 1, 3, &[(0, 49, 1)]), view(2, 2, 3, &[(0, 99, 1)])];
        assert_eq!(owners(&views, [49, 50, 99]), [Some(1), None, None]);
    }

    #[test]
    fn a_node_that_does_not_know_its_address_is_where_it_was_asked() {
        for host in [Value::Nil, bulk(""), bulk("?")] {
            let master = Value::Array(vec![host, Value::Int(7), bulk("id")]);
            let entry = Value::Array(vec![Value::Int(0), Value::Int(1), master]);
            assert_eq!(Range::read(&address(9), entry).unwrap().master, address(7));
        }
        let nonsense = Value::Array(vec![Value::Int(0), Value::Int(16_384)]);
        assert_eq!(Range::read(&address(9), nonsense), None);
    }
}
