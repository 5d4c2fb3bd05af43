//! Tickets: credentials for the browser's own `EventSource`, which cannot send a header.
//!
//! The rule: a ticket is a keyed state in the hub's own topic. Using it is one conditional append,
//! so it is used once, by whichever node, across restarts. From then on it only serves the
//! reconnects of that use: they prove themselves by a tag that was sent in their cursors alone.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::{
    auth::{Grant, GrantClaims},
    error::{ErrorCode, Problem},
    hub::Hub,
    journal::StateQuery,
    model::{
        Cursor, Event, EventType, JsonText, NewEvent, Offset, StateKey, Tenant, Timestamp, Topic,
        TopicKey, cursor::TicketTag, limits::TICKET_LIFE,
    },
    publish::Publish,
};

/// How long a used ticket serves reconnects if its credential has no end of its own.
const RECONNECTS_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const PREFIX: &str = "tdt_";

/// A ticket as it is handed out. Its text is a secret until it is used.
#[derive(Clone)]
pub struct Ticket {
    /// What goes into the query: `tdt_` and 43 characters of base64url.
    pub text: String,
    /// How long it can be used for the first time.
    pub expires_in: Duration,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket(…)")
    }
}

/// What a ticket's state holds.
#[derive(Serialize, Deserialize)]
struct Stored {
    grant: GrantClaims,
    issued_at_ms: u64,
    tag: Option<TicketTag>,
}

/// A ticket that may be used.
#[derive(Debug)]
pub struct FoundTicket {
    /// What it stands for.
    pub grant: Grant,
    /// What the cursors of its connections must carry.
    pub tag: TicketTag,
    place: Place,
    unused: Option<Unused>,
}

/// A ticket that a connection was opened with, which stays good as long as the connection's grant.
#[derive(Debug, Clone)]
pub struct UsedTicket(Place);

impl FoundTicket {
    /// What a connection keeps of it.
    #[must_use]
    pub fn into_used(self) -> UsedTicket {
        UsedTicket(self.place)
    }
}

/// What is stored with its first use.
struct Unused {
    stored: Stored,
    offset: Offset,
}

impl std::fmt::Debug for Unused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unused")
    }
}

/// The cursor that a reader with a ticket is told before anything else, so that it can come back
/// with its ticket however soon it is cut off: the one that it came with, and the tag. `None`: it
/// has the tag, or brought what is no cursor, and must be told so first.
#[must_use]
pub fn first_cursor(brought: Option<&str>, tag: TicketTag) -> Option<Cursor> {
    let cursor = brought.map_or(Ok(Cursor::default()), Cursor::decode).ok()?;
    (cursor.tag() != Some(tag)).then(|| cursor.tagged(Some(tag)))
}

impl Hub {
    /// Hands out a ticket that stands for the grant.
    ///
    /// # Errors
    /// The journal's, as a problem.
    pub async fn issue_ticket(&self, grant: &Grant) -> Result<Ticket, Problem> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|_| internal())?;
        let text = format!("{PREFIX}{}", base64url(&secret));
        let now = self.clock().now();
        let stored = Stored { grant: grant.to_claims(), issued_at_ms: now.as_millis(), tag: None };
        let place = Place::of(&text)?;
        self.put_ticket(&place, &stored, now.plus(TICKET_LIFE), Offset::ZERO).await?;
        Ok(Ticket { text, expires_in: TICKET_LIFE })
    }

    /// Finds a ticket that may be used: for the first time within 30 s, later together with a cursor
    /// from one of its own connections. It is used up by [`Self::use_ticket`], once it is clear that
    /// what it is used for will be given.
    ///
    /// # Errors
    /// [`ErrorCode::CredentialInvalid`] or [`ErrorCode::CredentialExpired`]: ask for a new ticket.
    pub async fn find_ticket(
        &self,
        text: &str,
        cursor: Option<&str>,
    ) -> Result<FoundTicket, Problem> {
        let unknown =
            || Problem::new(ErrorCode::CredentialInvalid, "ticket is unknown or has ended");
        let place = Place::of(text)?;
        let event = self.ticket_at(&place).await?.ok_or_else(unknown)?;
        let mut stored = read(&event)?;
        let grant = Grant::from_claims(&stored.grant)?;
        // First: the key may be newer than what this node knows.
        self.check_key(&grant).await?;
        self.check_revoked(&grant).await?;
        let now = self.clock().now();
        if grant.expires_at().is_some_and(|end| end <= now) {
            return Err(Problem::new(ErrorCode::CredentialExpired, "ticket's credential expired"));
        }
        if let Some(tag) = stored.tag {
            let shown = cursor.and_then(|text| Cursor::decode(text).ok()).and_then(|c| c.tag());
            let own = shown.is_some_and(|shown| bool::from(shown.ct_eq(&tag)));
            return if own {
                Ok(FoundTicket { grant, tag, place, unused: None })
            } else {
                Err(used())
            };
        }
        if Timestamp::from_millis(stored.issued_at_ms).plus(TICKET_LIFE) < now {
            return Err(Problem::new(ErrorCode::CredentialExpired, "ticket was not used in time"));
        }
        let mut tag = TicketTag::default();
        getrandom::fill(&mut tag).map_err(|_| internal())?;
        stored.tag = Some(tag);
        let unused = Some(Unused { stored, offset: event.offset });
        Ok(FoundTicket { grant, tag, place, unused })
    }

    /// Uses a ticket up, unless this is a reconnect of the use that did. Of several at once, one
    /// wins.
    ///
    /// # Errors
    /// [`ErrorCode::CredentialInvalid`]: another was faster. After [`ErrorCode::Unavailable`] it may
    /// be used up or not; the tag serves either way.
    pub async fn use_ticket(&self, ticket: &FoundTicket) -> Result<(), Problem> {
        let Some(Unused { stored, offset }) = &ticket.unused else { return Ok(()) };
        let end = self.reconnects_end(&ticket.grant);
        match self.put_ticket(&ticket.place, stored, end, *offset).await {
            Err(problem) if problem.code == ErrorCode::Conflict => Err(used()),
            other => other,
        }
    }

    /// Has a ticket stand for another grant from now on: its connection was renewed, and is to come
    /// back as that.
    pub(crate) async fn renew_ticket(
        &self,
        UsedTicket(place): &UsedTicket,
        grant: &Grant,
    ) -> Result<(), Problem> {
        // One that has ended meanwhile stays so; its connection goes on.
        let Some(event) = self.ticket_at(place).await? else { return Ok(()) };
        let stored = Stored { grant: grant.to_claims(), ..read(&event)? };
        let end = self.reconnects_end(grant);
        match self.put_ticket(place, &stored, end, event.offset).await {
            // Renewed twice at once: the other's grant is as good.
            Err(problem) if problem.code == ErrorCode::Conflict => Ok(()),
            other => other,
        }
    }

    fn reconnects_end(&self, grant: &Grant) -> Timestamp {
        let end = grant.expires_at().unwrap_or(Timestamp::from_millis(u64::MAX));
        end.min(self.clock().now().plus(RECONNECTS_MAX))
    }

    async fn ticket_at(&self, place: &Place) -> Result<Option<Event>, Problem> {
        let page = self.journal().states(&place.topic, StateQuery::of(&place.key)).await?;
        Ok(page.events.into_iter().find(|event| event.body.key.as_ref() == Some(&place.key)))
    }

    async fn put_ticket(
        &self,
        place: &Place,
        stored: &Stored,
        end: Timestamp,
        if_offset: Offset,
    ) -> Result<(), Problem> {
        let event = NewEvent {
            expires_at: Some(end),
            ..NewEvent::new(EventType::parse("ticket")?)
                .state(place.key.clone())
                .data(JsonText::of(stored).map_err(|_| internal())?)
        };
        let publish = Publish {
            if_offset: Some(if_offset),
            ..Publish::new(place.topic.topic.clone(), event)
        };
        self.publish_one(&place.topic.tenant, publish).await.map(drop)
    }
}

/// Where a ticket's state is: found by the ticket's hash, so that the journal holds no secret.
#[derive(Debug, Clone)]
struct Place {
    topic: TopicKey,
    key: StateKey,
}

impl Place {
    fn of(text: &str) -> Result<Self, Problem> {
        let hash = base64url(&Sha256::digest(text.as_bytes()));
        // Spread over topics, so that no topic's task or listing sees them all.
        let shard = hash.bytes().next().map_or(0, |byte| byte % 16);
        let topic = Topic::parse(&format!("$hub/tickets/{shard}"))?;
        Ok(Self { topic: TopicKey::new(Tenant::hub(), topic), key: StateKey::parse(&hash)? })
    }
}

fn read(event: &Event) -> Result<Stored, Problem> {
    match &event.body.data {
        crate::model::Data::Json(text) => {
            serde_json::from_str(text.as_str()).map_err(|_| internal())
        }
        _ => Err(internal()),
    }
}

fn used() -> Problem {
    Problem::new(ErrorCode::CredentialInvalid, "ticket was used; ask for a new one")
}

fn internal() -> Problem {
    Problem::new(ErrorCode::Internal, "ticket could not be handled")
}

fn base64url(bytes: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.encode(bytes)
}
