//! Topics: their epochs, properties, counts and names.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "these are tests")]
#![allow(missing_docs, reason = "a case's name is the sentence that it proves")]

use std::time::Duration;

use super::{Store, sample::*};
use crate::{
    journal::{
        Append, Batch, Change, DeleteIf, Head, JournalSettings, Properties, Refusal, Retention,
        TopicInfo, TopicQuery,
    },
    model::{Offset, Tenant, TopicKey},
};

fn owned_by(owner: &str) -> Properties {
    Properties { owner: Some(owner.to_owned()), ..Properties::default() }
}

pub async fn a_topic_has_its_epoch_before_it_is_written_and_keeps_it(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let mut store = factory(settings()).await;
    let topic = topic("t");
    let before = store.describe(&topic).await.unwrap();
    assert_eq!(before, TopicInfo::absent(topic.clone(), before.head.epoch));
    let epoch = before.head.epoch;
    assert_eq!(read(&*store, &topic, 0).await.head, Head::empty(epoch));
    for n in 1..4 {
        let head = put(&*store, &topic, [log("a")]).await.head;
        assert_eq!((head.epoch, head.tail), (epoch, Offset(n + 1)));
        store.reopen().await;
        assert_eq!(store.describe(&topic).await.unwrap().head, head);
        assert_eq!(read(&*store, &topic, n).await.head, head);
    }
}

pub async fn a_deleted_topic_is_gone_and_has_another_epoch(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let mut store = factory(settings()).await;
    let (topic, other) = (topic("t"), topic("t2"));
    assert!(!delete(&*store, &topic).await);
    put(&*store, &other, [log("stays"), state("k", "stays")]).await;
    let mut epochs = vec![store.describe(&topic).await.unwrap().head.epoch];
    for _ in 0..3 {
        let events = [log("a"), state("k", "b"), state("k", "c"), tombstone("l")];
        let head = put(&*store, &topic, events).await.head;
        assert_eq!(head.epoch, epochs[epochs.len() - 1]);
        assert_eq!(head.tail, Offset(5));
        store.append(&topic, Batch { close: true, ..batch([]) }).await.unwrap();
        assert!(delete(&*store, &topic).await);
        assert!(!delete(&*store, &topic).await);
        store.reopen().await;
        let info = store.describe(&topic).await.unwrap();
        assert_eq!(info, TopicInfo::absent(topic.clone(), info.head.epoch));
        assert!(!epochs.contains(&info.head.epoch));
        epochs.push(info.head.epoch);
        for after in 0..5 {
            let page = read(&*store, &topic, after).await;
            assert_eq!((page.head, page.events), (info.head, vec![]));
        }
        assert_eq!(all_states(&*store, &topic).await.events, []);
    }
    let list = TopicQuery { tenant: None, prefix: String::new(), after: None, limit: 9 };
    let names: Vec<_> =
        store.topics(list).await.whole().unwrap().into_iter().map(|t| t.topic).collect();
    assert_eq!(names, std::slice::from_ref(&other));
    assert_eq!(read(&*store, &other, 0).await.events.len(), 2);
}

pub async fn properties_are_set_by_the_event_that_creates_the_topic_only(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let mut store = factory(settings()).await;
    let topic = topic("t");
    let full = Properties {
        owner: Some("user-1".to_owned()),
        readers: vec!["user-2".to_owned(), "ü\n\"3\"".to_owned()],
        ttl: Some(Duration::from_secs(3600)),
        retention: Some(Retention {
            age: Some(Duration::from_millis(1500)),
            events: Some(7),
            bytes: None,
        }),
    };
    let by = |properties: &Properties, event: Append| {
        batch([Append { properties: Some(Box::new(properties.clone())), ..event }])
    };
    // Refused, so it created nothing.
    let refused = by(&owned_by("mallory"), state("k", "a").if_offset(1));
    store.append(&topic, refused).await.unwrap();
    store.append(&topic, by(&full, log("a"))).await.unwrap();
    store.append(&topic, by(&owned_by("mallory"), log("b"))).await.unwrap();
    assert_eq!(store.describe(&topic).await.unwrap().properties, full);
    store.reopen().await;
    assert_eq!(store.describe(&topic).await.unwrap().properties, full);
    delete(&*store, &topic).await;
    put(&*store, &topic, [log("c")]).await;
    assert_eq!(store.describe(&topic).await.unwrap().properties, Properties::default());
}

pub async fn set_properties_replaces_them_and_creates_the_topic(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let epoch = store.describe(&topic).await.unwrap().head.epoch;
    let info = store.set_properties(&topic, Change::to(owned_by("a"))).await.unwrap().unwrap();
    assert!(info.exists);
    assert_eq!((info.head, info.properties.clone()), (Head::empty(epoch), owned_by("a")));
    assert_eq!(store.describe(&topic).await.unwrap(), info);
    let named = Append { properties: Some(Box::new(owned_by("b"))), ..log("x") };
    let appended = put(&*store, &topic, [named]).await;
    assert_eq!(appended.head.epoch, epoch);
    assert_eq!(appended.events[0].recorded_at, at(1000));
    assert_eq!(store.describe(&topic).await.unwrap().properties, owned_by("a"));
    let info = store.set_properties(&topic, Change::to(owned_by("c"))).await.unwrap().unwrap();
    assert_eq!((info.head, info.events), (appended.head, 1));
    assert_eq!(store.describe(&topic).await.unwrap(), info);
    assert_eq!(info.properties, owned_by("c"));
}

pub async fn properties_and_deletion_are_for_the_owner_where_that_is_asked(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let change = async |by: &str, owner: &str, close| {
        let change = Change { properties: owned_by(owner), close, owner: Some(by.into()) };
        store.set_properties(&topic, change).await.unwrap()
    };
    let delete_by =
        async |by: &str| store.delete(&topic, DeleteIf::OwnedBy(by.into())).await.unwrap();
    assert_eq!(delete_by("ann").await, Err(Refusal::NotOwner));
    // A topic that is not there belongs to whom the change says.
    assert_eq!(change("ann", "bob", false).await, Err(Refusal::NotOwner));
    assert!(!store.describe(&topic).await.unwrap().exists);
    assert!(change("ann", "ann", false).await.is_ok());
    assert_eq!(change("bob", "bob", true).await, Err(Refusal::NotOwner));
    assert!(!store.describe(&topic).await.unwrap().head.closed);
    // It may be given away, and then it is.
    let given = change("ann", "bob", true).await.unwrap();
    assert!(given.head.closed);
    assert_eq!(store.describe(&topic).await.unwrap(), given);
    assert_eq!(change("ann", "ann", false).await, Err(Refusal::NotOwner));
    assert_eq!(delete_by("ann").await, Err(Refusal::NotOwner));
    assert_eq!(delete_by("bob").await, Ok(true));
}

pub async fn a_topic_that_was_changed_meanwhile_is_not_deleted(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let topic = topic("t");
    put(&*store, &topic, [log("a")]).await;
    let seen = store.describe(&topic).await.unwrap();
    let unchanged = |seen: &TopicInfo| DeleteIf::Unchanged(Box::new(seen.clone()));
    put(&*store, &topic, [log("b")]).await;
    assert_eq!(store.delete(&topic, unchanged(&seen)).await.unwrap(), Err(Refusal::Changed));
    let seen = store.describe(&topic).await.unwrap();
    store.set_properties(&topic, Change::to(owned_by("a"))).await.unwrap().unwrap();
    assert_eq!(store.delete(&topic, unchanged(&seen)).await.unwrap(), Err(Refusal::Changed));
    let seen = store.describe(&topic).await.unwrap();
    assert_eq!(store.delete(&topic, unchanged(&seen)).await.unwrap(), Ok(true));
}

pub async fn describe_counts_what_is_held(factory: impl AsyncFn(JournalSettings) -> Store) {
    let store = factory(settings()).await;
    let topic = topic("t");
    let counts = async || {
        let info = store.describe(&topic).await.unwrap();
        (info.events, info.states)
    };
    put_at(&*store, 1_000, &topic, [log("a"), state("k", "b"), state("k", "c")]).await;
    assert_eq!(counts().await, (1, 1));
    let bytes = store.describe(&topic).await.unwrap().bytes;
    put_at(&*store, 2_000, &topic, [state("l", "d"), tombstone("k"), log("e")]).await;
    assert_eq!(counts().await, (3, 1));
    let info = store.describe(&topic).await.unwrap();
    assert!(info.bytes > bytes);
    assert_eq!(info.written_at, at(2_000));
    let two = Retention { events: Some(2), ..Retention::UNLIMITED };
    store.trim(&topic, &two, at(9_000)).await.unwrap();
    assert_eq!(counts().await, (2, 1));
    let trimmed = store.describe(&topic).await.unwrap();
    assert!(trimmed.bytes < info.bytes);
    assert_eq!(trimmed.written_at, at(2_000));
}

pub async fn topics_are_listed_by_tenant_prefix_and_page(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let names = ["a", "a-b", "a/1", "a/10", "a/2", "ab", "b", "$hub/x"];
    for tenant in ["acme", "acme-2", "acm", "b"] {
        for name in names {
            put(&*store, &topic_of(tenant, name), [log("x")]).await;
        }
    }
    let list = async |tenant: &str, prefix: &str, after: Option<TopicKey>, limit: usize| {
        let tenant = Some(Tenant::parse(tenant).unwrap());
        let query = TopicQuery { tenant, prefix: prefix.to_owned(), after, limit };
        let found = store.topics(query).await.whole().unwrap();
        let names = found.iter().map(|info| {
            assert_eq!((info.events, info.exists), (1, true));
            format!("{}:{}", info.topic.tenant, info.topic.topic)
        });
        names.collect::<Vec<_>>().join(" ")
    };
    let all = "acme:$hub/x acme:a acme:a-b acme:a/1 acme:a/10 acme:a/2 acme:ab acme:b";
    assert_eq!(list("acme", "", None, 99).await, all);
    assert_eq!(list("acme", "a", None, 3).await, "acme:a acme:a-b acme:a/1");
    assert_eq!(list("acme", "a/", None, 99).await, "acme:a/1 acme:a/10 acme:a/2");
    assert_eq!(list("acme", "a/1", None, 99).await, "acme:a/1 acme:a/10");
    assert_eq!(list("acme", "x", None, 99).await, "");
    assert_eq!(list("other", "", None, 99).await, "");
    assert_eq!(list("acme", "", None, 0).await, "");
    let after = |name| Some(topic_of("acme", name));
    assert_eq!(list("acme", "a/", after("a/1"), 99).await, "acme:a/10 acme:a/2");
    assert_eq!(list("acme", "", after("a/11"), 2).await, "acme:a/2 acme:ab");
    assert_eq!(list("acme", "a/", after("b"), 99).await, "");
    // Of all tenants, page by page, each once and in order.
    let (mut after, mut found) = (None, Vec::new());
    loop {
        let query = TopicQuery { tenant: None, prefix: String::new(), after, limit: 5 };
        let page = store.topics(query).await.whole().unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.topic.clone());
        found.extend(page.into_iter().map(|info| info.topic));
    }
    assert_eq!(found.len(), 32);
    assert!(found.is_sorted());
    let query = TopicQuery { tenant: None, prefix: "a/1".to_owned(), after: None, limit: 99 };
    assert_eq!(store.topics(query).await.whole().unwrap().len(), 8);
}

pub async fn tenants_do_not_touch_each_other_whatever_the_names(
    factory: impl AsyncFn(JournalSettings) -> Store,
) {
    let store = factory(settings()).await;
    let pairs = [
        ("a", "b-c"),
        ("a-b", "c"),
        ("a", "b.c"),
        ("a.b", "c"),
        ("a:b", "c"),
        ("a", "b:c"),
        ("a", "a/a"),
        ("a~", "a"),
        ("A", "a"),
        ("a", "A"),
        ("a", "a"),
        ("a", "~a"),
        ("a@", "a"),
        ("~", "~"),
        ("-", "-"),
        ("...", "..."),
    ];
    let each = |(tenant, name): (&str, &str)| (topic_of(tenant, name), format!("{tenant} {name}"));
    for (topic, text) in pairs.map(each) {
        put(&*store, &topic, [log(&text).id("1"), state("k", &text), state(&text, "")]).await;
    }
    for (topic, text) in pairs.map(each) {
        let page = read(&*store, &topic, 0).await;
        assert_eq!(offsets(&page.events), [1, 2, 3], "{text}");
        let expected = put(&*factory(settings()).await, &topic, [log(&text)]).await;
        assert_eq!(page.events[0].body.data, expected.events[0].body.data);
        assert_eq!(all_states(&*store, &topic).await.events.len(), 2);
    }
    let (gone, _) = each(pairs[0]);
    assert!(delete(&*store, &gone).await);
    for (topic, text) in pairs.map(each) {
        let left = read(&*store, &topic, 0).await.events.len();
        assert_eq!(left, if topic == gone { 0 } else { 3 }, "{text}");
        let query = TopicQuery {
            tenant: Some(topic.tenant.clone()),
            prefix: String::new(),
            after: None,
            limit: 99,
        };
        let own = store.topics(query).await.whole().unwrap();
        assert!(own.iter().all(|info| info.topic.tenant == topic.tenant));
    }
}
