//! Several journals side by side: which one keeps a topic is decided by its name.
//!
//! The rule: a topic is in one journal, always the same. Change the rules and its history stays where
//! it was; readers are told that the topic they knew is gone.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures_util::future::join_all;

use super::{
    Appended, Batch, Change, DeleteIf, Due, DueKind, Durability, Found, Head, Journal,
    JournalError, Judged, Locate, Page, PageLimit, Retention, StateQuery, TopicInfo, TopicQuery,
};
use crate::model::{Offset, Pattern, Timestamp, TopicKey};

/// Topics of these names are in this journal.
#[derive(Debug, Clone)]
pub struct Route {
    /// The names; of all tenants.
    pub topics: Pattern,
    /// The journal.
    pub journal: Arc<dyn Journal>,
}

/// Journals by topic.
#[derive(Debug)]
pub struct RoutedJournal {
    routes: Vec<Route>,
    /// Where all other topics are, and the hub's own.
    rest: Arc<dyn Journal>,
}

impl RoutedJournal {
    /// The first route that fits decides; `rest` has what none does.
    #[must_use]
    pub fn new(routes: Vec<Route>, rest: Arc<dyn Journal>) -> Self {
        Self { routes, rest }
    }

    fn of(&self, topic: &TopicKey) -> &dyn Journal {
        let place = self.place(topic);
        place.and_then(|place| self.routes.get(place)).map_or(&*self.rest, |route| &*route.journal)
    }

    fn place(&self, topic: &TopicKey) -> Option<usize> {
        if topic.tenant.is_reserved() {
            return None;
        }
        self.routes.iter().position(|route| route.topics.matches(&topic.topic))
    }

    /// Each journal once.
    fn all(&self) -> Vec<&dyn Journal> {
        let mut all: Vec<&Arc<dyn Journal>> = vec![&self.rest];
        for Route { journal, .. } in &self.routes {
            if !all.iter().any(|known| Arc::ptr_eq(known, journal)) {
                all.push(journal);
            }
        }
        all.into_iter().map(|journal| &**journal).collect()
    }
}

#[async_trait]
impl Journal for RoutedJournal {
    async fn append(&self, topic: &TopicKey, batch: Batch) -> Result<Appended, JournalError> {
        self.of(topic).append(topic, batch).await
    }

    async fn read(
        &self,
        topic: &TopicKey,
        after: Offset,
        limit: PageLimit,
    ) -> Result<Page, JournalError> {
        self.of(topic).read(topic, after, limit).await
    }

    async fn states(&self, topic: &TopicKey, query: StateQuery) -> Result<Page, JournalError> {
        self.of(topic).states(topic, query).await
    }

    async fn describe(&self, topic: &TopicKey) -> Result<TopicInfo, JournalError> {
        self.of(topic).describe(topic).await
    }

    async fn describe_all(&self, topics: &[TopicKey]) -> Vec<Result<TopicInfo, JournalError>> {
        let mut asked: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
        for (number, topic) in topics.iter().enumerate() {
            asked.entry(self.place(topic)).or_default().push(number);
        }
        let answers = asked.into_values().map(async |numbers| {
            let keys: Vec<TopicKey> =
                numbers.iter().filter_map(|number| topics.get(*number).cloned()).collect();
            let Some(first) = keys.first() else { return Vec::new() };
            let infos = self.of(first).describe_all(&keys).await;
            numbers.into_iter().zip(infos).collect::<Vec<_>>()
        });
        let mut infos: Vec<_> = join_all(answers).await.into_iter().flatten().collect();
        infos.sort_by_key(|(number, _)| *number);
        infos.into_iter().map(|(_, info)| info).collect()
    }

    async fn locate(&self, topic: &TopicKey, from: Locate) -> Result<Offset, JournalError> {
        self.of(topic).locate(topic, from).await
    }

    async fn set_properties(
        &self,
        topic: &TopicKey,
        change: Change,
    ) -> Result<Judged<TopicInfo>, JournalError> {
        self.of(topic).set_properties(topic, change).await
    }

    async fn delete(
        &self,
        topic: &TopicKey,
        condition: DeleteIf,
    ) -> Result<Judged<bool>, JournalError> {
        self.of(topic).delete(topic, condition).await
    }

    async fn trim(
        &self,
        topic: &TopicKey,
        retention: &Retention,
        now: Timestamp,
    ) -> Result<Head, JournalError> {
        self.of(topic).trim(topic, retention, now).await
    }

    async fn due(&self, kind: DueKind, now: Timestamp, limit: usize) -> Found<Due> {
        let journals = self.all();
        let asked = journals.into_iter().map(|journal| journal.due(kind, now, limit));
        let mut due = Found::nothing();
        for found in join_all(asked).await {
            due.items.extend(found.items);
            due.missing = due.missing.or(found.missing);
        }
        due.items.sort_by_key(|due| match due.why {
            DueKind::Expired => due.event.body.expires_at,
            DueKind::Due => due.event.body.due_at,
        });
        // Not cut: what is due in a journal that takes no changes would keep out all others.
        due
    }

    async fn topics(&self, mut query: TopicQuery) -> Found<TopicInfo> {
        let limit = query.limit;
        let mut topics = Found::nothing();
        loop {
            let journals = self.all();
            let asked = journals.iter().map(|journal| journal.topics(query.clone()));
            let answers = join_all(asked).await;
            // A journal whose page is full may hold more behind it: the others' are for the next.
            let full = answers.iter().filter(|found| found.items.len() >= limit);
            let until = full.filter_map(|found| Some(found.items.last()?.topic.clone())).min();
            for (journal, found) in journals.into_iter().zip(answers) {
                // What a journal kept before the rules were changed cannot be read any more.
                topics.items.extend(found.items.into_iter().filter(|info| {
                    let is_of = std::ptr::from_ref(self.of(&info.topic));
                    std::ptr::addr_eq(is_of, journal)
                        && until.as_ref().is_none_or(|until| info.topic <= *until)
                }));
                topics.missing = topics.missing.or(found.missing);
            }
            topics.items.sort_by(|one, other| one.topic.cmp(&other.topic));
            topics.items.truncate(limit);
            if until.is_none() || topics.items.len() == limit {
                return topics;
            }
            query.after = until;
        }
    }

    fn failure(&self) -> Option<String> {
        self.all().into_iter().find_map(Journal::failure)
    }

    fn failure_of(&self, topic: &TopicKey) -> Option<String> {
        self.of(topic).failure_of(topic)
    }

    fn durability(&self, topic: &TopicKey) -> Durability {
        self.of(topic).durability(topic)
    }

    fn durabilities(&self) -> Vec<Durability> {
        self.all().into_iter().flat_map(Journal::durabilities).collect()
    }

    fn damaged_places(&self) -> usize {
        self.all().into_iter().map(Journal::damaged_places).sum()
    }

    async fn close(&self) {
        for journal in self.all() {
            journal.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        journal::{Append, JournalSettings, contract::Store, memory::MemoryJournal},
        journal_contract,
        model::{Class, EventType, NewEvent, StateKey, Tenant, Topic},
    };

    /// Topics of one segment here, the rest there.
    async fn store(settings: JournalSettings) -> Store {
        let topics = Pattern::parse("*").unwrap();
        let journal = Arc::new(MemoryJournal::new(settings));
        let rest = Arc::new(MemoryJournal::new(settings));
        Store::new(Arc::new(RoutedJournal::new(vec![Route { topics, journal }], rest)))
    }

    journal_contract!(routed, store);

    fn key(tenant: &str, name: &str) -> TopicKey {
        TopicKey::new(Tenant::parse(tenant).unwrap(), Topic::parse(name).unwrap())
    }

    fn memory() -> Arc<MemoryJournal> {
        Arc::new(MemoryJournal::new(JournalSettings::default()))
    }

    async fn append(journal: &dyn Journal, topic: &TopicKey) {
        let event = NewEvent::new(EventType::parse("x").unwrap());
        let batch = Batch { events: vec![Append::new(Arc::new(event))], ..Batch::default() };
        journal.append(topic, batch).await.unwrap();
    }

    #[tokio::test]
    async fn each_topic_is_in_the_journal_of_the_first_rule_that_names_it() {
        let (messages, users, rest) = (memory(), memory(), memory());
        let route = |topics: &str, journal: &Arc<MemoryJournal>| Route {
            topics: Pattern::parse(topics).unwrap(),
            journal: Arc::clone(journal) as Arc<dyn Journal>,
        };
        let routes =
            vec![route("message/*", &messages), route("user/**", &users), route("**", &messages)];
        let routed = RoutedJournal::new(routes, Arc::clone(&rest) as Arc<dyn Journal>);
        let topics =
            [key("~hub", "a"), key("t", "message/1"), key("t", "other"), key("t", "user/1/x")];
        for topic in &topics {
            append(&routed, topic).await;
        }
        let all = || TopicQuery { tenant: None, prefix: String::new(), after: None, limit: 10 };
        let mut places: Vec<Vec<String>> = Vec::new();
        for journal in [&messages, &users, &rest] {
            let found = journal.topics(all()).await.whole().unwrap();
            places.push(found.into_iter().map(|info| info.topic.topic.to_string()).collect());
        }
        let expected: Vec<Vec<String>> = [vec!["message/1", "other"], vec!["user/1/x"], vec!["a"]]
            .map(|names| names.into_iter().map(str::to_owned).collect())
            .into();
        assert_eq!(places, expected);
        let listed = routed.topics(all()).await.whole().unwrap();
        let mut sorted = topics.to_vec();
        sorted.sort();
        assert_eq!(
            listed.iter().map(|info| &info.topic).collect::<Vec<_>>(),
            sorted.iter().collect::<Vec<_>>()
        );
        let described = routed.describe_all(&topics).await;
        assert!(
            described
                .iter()
                .flatten()
                .map(|info| (info.exists, &info.topic))
                .eq(topics.iter().map(|topic| (true, topic)))
        );
    }

    /// Two journals: of topics `message/*`, and of the rest.
    fn two(messages: &Arc<MemoryJournal>, rest: &Arc<MemoryJournal>) -> RoutedJournal {
        let topics = Pattern::parse("message/*").unwrap();
        let journal = Arc::clone(messages) as Arc<dyn Journal>;
        RoutedJournal::new(vec![Route { topics, journal }], Arc::clone(rest) as Arc<dyn Journal>)
    }

    fn names(infos: Vec<TopicInfo>) -> Vec<String> {
        infos.into_iter().map(|info| info.topic.topic.to_string()).collect()
    }

    /// Broken on purpose: when one journal's failure is that of all, the other topic has failed, too.
    #[tokio::test]
    async fn a_journal_that_is_down_takes_only_its_own_topics_with_it() {
        let (broken, rest) = (memory(), memory());
        let routed = two(&broken, &rest);
        let (message, user) = (key("t", "message/1"), key("t", "user/1"));
        append(&routed, &message).await;
        broken.close().await;
        assert!(routed.failure().is_some());
        assert!(routed.failure_of(&message).is_some());
        assert_eq!(routed.failure_of(&user), None);
        append(&routed, &user).await;
        let all = TopicQuery { tenant: None, prefix: String::new(), after: None, limit: 10 };
        let listed = routed.topics(all).await;
        assert!(listed.missing.is_some());
        assert_eq!(names(listed.items), ["user/1"]);
        assert!(routed.due(DueKind::Expired, Timestamp::default(), 10).await.missing.is_some());
        let described = routed.describe_all(&[message, user]).await;
        assert!(matches!(described.as_slice(), [Err(_), Ok(info)] if info.exists));
    }

    /// When a page goes as far as any journal's, the topics between are passed over.
    #[tokio::test]
    async fn a_journal_full_of_topics_that_are_not_its_own_any_more_hides_none_of_the_others() {
        let (messages, rest) = (memory(), memory());
        for name in ["a/1", "a/2", "message/1", "message/2"] {
            append(&*messages, &key("t", name)).await;
        }
        append(&*rest, &key("t", "z")).await;
        let routed = two(&messages, &rest);
        let (mut after, mut found) = (None, Vec::new());
        loop {
            let query = TopicQuery { tenant: None, prefix: String::new(), after, limit: 2 };
            let page = routed.topics(query).await.whole().unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.topic.clone());
            found.extend(names(page));
        }
        assert_eq!(found, ["message/1", "message/2", "z"]);
    }

    /// Broken on purpose: when what is due is cut, it is the first journal's alone, which may take none
    /// of it.
    #[tokio::test]
    async fn what_is_due_in_one_journal_does_not_hide_what_is_due_in_another() {
        let (messages, rest) = (memory(), memory());
        let routed = two(&messages, &rest);
        for (topic, time) in [("message/1", 1), ("message/2", 2), ("user/1", 3)] {
            let state = NewEvent {
                class: Class::State,
                key: Some(StateKey::parse("k").unwrap()),
                expires_at: Some(Timestamp::from_millis(time)),
                ..NewEvent::new(EventType::parse("x").unwrap())
            };
            let events = vec![Append::new(Arc::new(state))];
            let batch = Batch { events, ..Batch::default() };
            routed.append(&key("t", topic), batch).await.unwrap();
        }
        let due = routed.due(DueKind::Expired, Timestamp::from_millis(9), 1).await.whole().unwrap();
        let names: Vec<_> = due.iter().map(|due| due.topic.topic.as_str()).collect();
        assert_eq!(names, ["message/1", "user/1"]);
    }
}
