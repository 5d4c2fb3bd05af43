//! How a connection is woken: by its topics, and by whoever wants something of itself.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;

/// Wakes one connection: a bit for each of its topics that advanced, and one flag for all that
/// others want of it.
///
/// This is all that a topic knows of a reader. Waking a reader twice costs nothing.
#[derive(Debug, Default)]
pub(crate) struct Waker {
    dirty: AtomicU32,
    is_called: AtomicBool,
    task: AtomicWaker,
}

impl Waker {
    /// Says that the connection's topic with this number advanced.
    pub(crate) fn wake(&self, number: u32) {
        let bit = 1_u32.checked_shl(number).unwrap_or(0);
        // A connection with a bit already set was woken and has not looked yet.
        if self.dirty.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.task.wake();
        }
    }

    /// Takes the bits there are.
    pub(crate) fn take(&self) -> u32 {
        self.dirty.swap(0, Ordering::AcqRel)
    }

    /// Takes the bits, or registers the task to be woken by the next one, or by a call.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<u32> {
        self.task.register(context.waker());
        match self.take() {
            0 => Poll::Pending,
            bits => Poll::Ready(bits),
        }
    }

    /// Waits for a call, without taking it.
    pub(crate) fn listen(&self, context: &Context<'_>) -> Poll<()> {
        self.task.register(context.waker());
        if self.is_called() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Says that somebody wants something of the connection itself.
    pub(crate) fn call(&self) {
        self.is_called.store(true, Ordering::Release);
        self.task.wake();
    }

    /// Whether somebody does, without taking it.
    pub(crate) fn is_called(&self) -> bool {
        self.is_called.load(Ordering::Acquire)
    }

    /// Takes the call, if there is one.
    pub(crate) fn answer(&self) -> bool {
        // Every delivery asks, and hardly ever is there one: reading leaves the line shared.
        self.is_called() && self.is_called.swap(false, Ordering::AcqRel)
    }
}
