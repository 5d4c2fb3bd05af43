//! The suite that every journal adapter passes, all of it: the port's documentation as tests.
//!
//! The rule: an adapter is instantiated by one line, `journal_contract!(name, factory)`, and what
//! it cannot do is said by its [`Store`], never by leaving out a case.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "these are tests")]

use std::{any::Any, fmt, sync::Arc};

use futures_util::future::BoxFuture;

use super::Journal;

mod appending;
mod dedup;
mod listing;
mod reading;
mod retaining;
mod sample;
mod states;

pub use appending::*;
pub use dedup::*;
pub use listing::*;
pub use reading::*;
pub use retaining::*;
pub use states::*;

/// Opens the same stored content again.
type Reopen = Box<dyn Fn() -> BoxFuture<'static, Arc<dyn Journal>> + Send + Sync>;

/// A journal under test. Each must be empty, and share nothing with another one's.
pub struct Store {
    journal: Arc<dyn Journal>,
    reopen: Option<Reopen>,
    _kept: Option<Box<dyn Any + Send>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("journal", &self.journal).finish_non_exhaustive()
    }
}

impl Store {
    /// A journal whose content ends with it.
    pub fn new(journal: Arc<dyn Journal>) -> Self {
        Self { journal, reopen: None, _kept: None }
    }

    /// Says how the same content is opened again after the journal was closed and dropped.
    #[must_use]
    pub fn reopened_by<F>(mut self, open: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Arc<dyn Journal>> + Send + 'static,
    {
        self.reopen = Some(Box::new(move || Box::pin(open())));
        self
    }

    /// Keeps something alive as long as the journal, such as its directory.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send) -> Self {
        self._kept = Some(Box::new(kept));
        self
    }

    /// Closes the journal and opens it again, if it keeps its content.
    async fn reopen(&mut self) -> bool {
        let Some(reopen) = &self.reopen else { return false };
        self.journal.close().await;
        self.journal =
            Arc::new(super::memory::MemoryJournal::new(super::JournalSettings::default()));
        self.journal = reopen().await;
        true
    }
}

impl std::ops::Deref for Store {
    type Target = dyn Journal;

    fn deref(&self) -> &Self::Target {
        &*self.journal
    }
}

/// Instantiates every case of the contract for one adapter.
///
/// `journal_contract!(memory, store)`, where `store` is an
/// `async fn(JournalSettings) -> contract::Store`, makes a module `memory` of tests.
#[macro_export]
macro_rules! journal_contract {
    ($adapter:ident, $factory:expr) => {
        $crate::journal_contract! { @each $adapter, $factory,
            offsets_are_dense_from_1_in_the_order_of_the_batch,
            concurrent_appenders_get_dense_offsets_and_no_two_the_same,
            a_batch_of_concurrent_appenders_is_never_interleaved,
            refused_events_take_no_offset_and_fail_no_others,
            an_empty_batch_changes_nothing_and_creates_nothing,
            a_batch_of_refused_events_creates_nothing,
            every_field_of_an_event_comes_back,
            the_largest_events_come_back,
            recorded_at_never_goes_back_although_the_clock_does,
            a_closed_topic_refuses_events_and_closing_twice_is_no_error,
            a_batch_that_closes_stores_its_events_first,
            an_event_that_closes_its_topic_is_its_last,
            a_refused_event_closes_nothing_and_a_repeated_one_does,
            a_closed_topic_takes_the_end_of_an_expired_state,
            an_event_of_a_subject_enters_its_own_topics_only,
            a_batch_without_events_can_close_and_creates_the_topic,
            a_closed_journal_refuses_appends_and_says_so,
            what_was_appended_is_there_after_reopening,
            a_repeated_id_is_stored_once_and_returns_the_first_position,
            a_repeated_id_within_a_batch_is_stored_once,
            minted_ids_are_neither_looked_up_nor_entered,
            ids_of_one_topic_mean_nothing_in_another,
            a_refused_id_is_not_entered,
            an_id_is_recognised_within_the_window_by_time,
            an_id_is_recognised_within_the_window_by_count,
            a_forgotten_id_can_be_used_and_is_recognised_again,
            an_id_is_recognised_after_its_event_was_superseded_trimmed_or_its_topic_closed,
            an_id_is_recognised_after_reopening_and_forgotten_by_deleting,
            only_the_newest_state_of_a_key_is_held,
            if_offset_compares_with_the_current_state,
            if_offset_sees_earlier_events_of_the_batch,
            one_of_many_concurrent_conditional_appends_wins,
            a_tombstone_ends_the_state_and_stays_in_the_log,
            a_superseded_state_leaves_its_fingerprint_until_it_is_trimmed,
            a_topic_holds_so_many_states_and_no_more,
            the_hubs_own_topics_hold_any_number_of_states,
            states_are_read_by_prefix_and_bounds_in_pages,
            a_states_page_says_how_far_it_is_complete,
            due_states_come_earliest_first_of_all_tenants,
            a_state_that_is_replaced_or_ended_is_no_longer_due,
            due_states_survive_trimming_and_reopening_and_end_with_their_topic,
            replay_is_log_states_and_tombstones_in_offset_order,
            replay_goes_on_after_any_offset,
            pages_are_bounded_by_events_and_bytes_and_hold_one_event_at_least,
            next_covers_what_was_superseded,
            reading_past_the_tail_is_empty_and_goes_nowhere,
            a_page_agrees_with_its_head_while_appends_run,
            latest_finds_the_last_so_many_events,
            since_finds_the_first_event_of_a_time,
            trimming_by_count_removes_the_oldest_and_never_more,
            trimming_by_age_removes_what_is_older_and_never_more,
            trimming_by_bytes_removes_the_oldest_and_never_more,
            who_says_when_the_oldest_was_recorded_is_right,
            trimming_spares_states_and_takes_tombstones,
            a_flood_of_states_evicts_no_log_event,
            earliest_never_goes_back,
            the_floor_keeps_the_fingerprint_of_the_last_event_trimmed,
            old_superseded_states_are_trimmed_without_a_log,
            reading_from_below_the_floor_yields_what_is_held,
            offsets_go_on_after_everything_was_trimmed,
            trimming_holds_after_reopening,
            trimming_a_topic_that_is_not_there_creates_nothing,
            a_topic_has_its_epoch_before_it_is_written_and_keeps_it,
            a_deleted_topic_is_gone_and_has_another_epoch,
            properties_are_set_by_the_event_that_creates_the_topic_only,
            set_properties_replaces_them_and_creates_the_topic,
            properties_and_deletion_are_for_the_owner_where_that_is_asked,
            a_topic_that_was_changed_meanwhile_is_not_deleted,
            describe_counts_what_is_held,
            topics_are_listed_by_tenant_prefix_and_page,
            tenants_do_not_touch_each_other_whatever_the_names,
        }
    };
    (@each $adapter:ident, $factory:expr, $($case:ident,)*) => {
        mod $adapter {
            use super::*;

            $(
                #[tokio::test]
                async fn $case() {
                    $crate::journal::contract::$case($factory).await;
                }
            )*
        }
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_macro_names_every_case() {
        let list = include_str!("contract.rs");
        let files = [
            include_str!("contract/appending.rs"),
            include_str!("contract/dedup.rs"),
            include_str!("contract/listing.rs"),
            include_str!("contract/reading.rs"),
            include_str!("contract/retaining.rs"),
            include_str!("contract/states.rs"),
        ];
        for line in files.iter().flat_map(|file| file.lines()) {
            if let Some(case) = line.strip_prefix("pub async fn ") {
                let name = case.split('(').next().unwrap();
                assert!(
                    list.contains(&format!("            {name},")),
                    "{name} is not in the list"
                );
            }
        }
    }
}
