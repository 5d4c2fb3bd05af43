//! The hub under faults, simulated: every run is a seed, and a run repeated is the same run.
//!
//! The hub, its router and its connections are the real ones, on one thread under virtual time.
//! Around them: a network of pipes in memory, a clock that is set forward and back, and a journal
//! that is slow, fails, dies with its process and comes back without its last writes. Publishers
//! send until they are answered; readers follow by SSE, NDJSON and long-poll, and come back with
//! their last cursor. `history.rs` knows what was really stored, and what anybody is told is
//! compared with it at once.
//!
//! The faults: crashes of the process; appends that fail before they are stored, and after; slow and
//! failing reads, in pages of any length; a store that comes back from a backup, knowing so or not;
//! topics trimmed behind the hub's back, deleted and closed; the clock set forward and back;
//! connections cut at any byte, in either direction, slow ones, and ones that are dead without
//! saying so; a hub that cannot be reached, or drains; readers that stall, leave, or bring a foreign
//! cursor; tokens that end. What the machine decides (ids, jitter) is kept out of what happens: the
//! times that are jittered lie beyond a run.
//!
//! The code was broken on purpose to see that it is noticed. By the first seed: events shown before
//! they are stored (`Pending::commit` fills the ring before it appends), gaps not told
//! (`Encoder::items`), each event sent with the cursor of its batch's end (`Encoder::event`), ids
//! not looked up (`Group::add`), every tenth event waking nobody (`Live::advance`), a topic's bit
//! cleared before it is looked at (`Subscription::step`), bits of the start forgotten
//! (`Subscription::start`), hello with an id though gaps follow (`Connection::next`), tombstones
//! held back (`Found::event`), `if_offset` not compared. By the second: states still to be sent left
//! out of the cursor. By the third: pages not judged (`Reader::replay`). By the fourth: fingerprints
//! not compared (`resume`). What it cannot notice: a
//! ring that is not restarted for another epoch, which the ring notices itself.
//!
//! A run that fails says its seed. `TIDINGS_SIMULATION_SEED=n` runs that one alone and tells what
//! happens in it, line by line; so does `cargo xtask simulate --seed n`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    clippy::print_stdout,
    reason = "a test fails by panicking, reads better short, and tells what happens in a run"
)]

mod chance;
mod client;
mod followed;
mod history;
mod network;
mod publisher;
mod reader;
mod store;
mod trace;
mod world;

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
};

/// Seeds of each of the four tests, so that they can run side by side.
const SEEDS: u64 = 75;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Runs seeds, or the one that the environment names.
fn run(first: u64) {
    if let Some(seed) = number("TIDINGS_SIMULATION_SEED") {
        if first == 0 {
            check(seed, true);
        }
        return;
    }
    let count = number("TIDINGS_SIMULATION_SEEDS").map_or(SEEDS, |all| all.div_ceil(4));
    let lines: u64 = (first * count..(first + 1) * count).map(|seed| check(seed, false)).sum();
    println!("{count} seeds, {lines} lines");
}

thread_local! {
    /// Panics of this thread, in whichever task: the runtime would swallow those of the hub's.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Takes the panics of the run, if there were any.
pub(crate) fn panics() -> Option<String> {
    let panics = PANICS.with(RefCell::take);
    (!panics.is_empty()).then(|| panics.join("\n"))
}

fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
            tell(panic);
        }));
    });
}

/// Runs a seed and returns how much happened in it.
fn check(seed: u64, is_loud: bool) -> u64 {
    note_panics();
    let outcome = catch_unwind(AssertUnwindSafe(|| world::run(seed, is_loud)));
    let replay = format!("cargo xtask simulate --seed {seed}");
    match outcome {
        Ok(world::Outcome { failure: None, trace: (lines, _) }) => lines,
        Ok(world::Outcome { failure: Some(why), .. }) => {
            panic!("{why}\n\nseed {seed} failed; it runs again by: {replay}")
        }
        Err(_) => panic!("seed {seed} panicked; it runs again by: {replay}"),
    }
}

#[test]
fn what_is_promised_holds_under_faults_first_quarter() {
    run(0);
}

#[test]
fn what_is_promised_holds_under_faults_second_quarter() {
    run(1);
}

#[test]
fn what_is_promised_holds_under_faults_third_quarter() {
    run(2);
}

#[test]
fn what_is_promised_holds_under_faults_last_quarter() {
    run(3);
}

#[test]
fn a_run_repeated_is_identical() {
    let hashes = || -> Vec<_> { (1..=10).map(|seed| world::run(seed, false).trace).collect() };
    let once = hashes();
    assert_eq!(once, hashes());
    assert!(once.windows(2).all(|two| two[0] != two[1]), "two seeds are one run: {once:?}");
    assert!(once.iter().all(|(lines, _)| *lines > 300), "hardly anything happens: {once:?}");
}
