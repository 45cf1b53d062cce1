//! Messages that wait for their delivery. The oldest is dropped when there are too many, because the newest matter most.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::base::limits;

/// A bounded queue with many producers and one consumer.
#[derive(Debug, Default)]
pub(super) struct Queue {
    messages: Mutex<Messages>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Messages {
    /// Each message with its number.
    waiting: VecDeque<(u64, Bytes)>,
    added: u64,
}

impl Queue {
    /// Adds a message. Returns false if the oldest one was dropped for it.
    pub(super) fn push(&self, message: Bytes) -> bool {
        let mut messages = self.lock();
        let has_room = messages.waiting.len() < limits::NOTIFICATIONS_MAX;
        if !has_room {
            messages.waiting.pop_front();
        }
        messages.added += 1;
        let number = messages.added;
        messages.waiting.push_back((number, message));
        self.added.notify_one();
        has_room
    }

    /// Returns the oldest message and its number. Waits until there is one.
    pub(super) async fn oldest(&self) -> (u64, Bytes) {
        loop {
            if let Some(oldest) = self.try_oldest() {
                return oldest;
            }
            self.added.notified().await;
        }
    }

    /// Returns the oldest message and its number, or `None` if there is none.
    pub(super) fn try_oldest(&self) -> Option<(u64, Bytes)> {
        self.lock().waiting.front().cloned()
    }

    /// Removes the message with this number after its delivery. Does nothing if it was dropped meanwhile.
    pub(super) fn remove(&self, number: u64) {
        self.lock().waiting.retain(|(waiting, _)| *waiting != number);
    }

    fn lock(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_is_dropped_when_the_queue_is_full() {
        let queue = Queue::default();
        for number in 0..limits::NOTIFICATIONS_MAX {
            assert!(queue.push(Bytes::from(number.to_string())));
        }
        let (first, _) = queue.try_oldest().unwrap();
        assert!(!queue.push(Bytes::from_static(b"newest")));
        // The message that was being delivered when it was dropped removes no other one.
        queue.remove(first);
        let mut taken = Vec::new();
        while let Some((number, message)) = queue.try_oldest() {
            queue.remove(number);
            taken.push(message);
        }
        assert_eq!(taken.len(), limits::NOTIFICATIONS_MAX);
        assert_eq!((&taken[0][..], &taken.last().unwrap()[..]), (&b"1"[..], &b"newest"[..]));
    }
}
