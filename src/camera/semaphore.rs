//! The camera's semaphore on a legacy ring, waited for by futex. This module does not wait itself.
//!
//! A glibc `sem_t` (64 bits, since 2.21, the same for all programs that share one) holds:
//! - in its first four bytes the count, which is also the futex word,
//! - in the next four the number of waiters. `sem_post` wakes only if there are some.
//!
//! A process that dies with a registered waiter is like one killed in `sem_wait`: later posts make one more system
//! call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::commit_detector::Posts;
use super::mapping::Mapping;

/// One waiter, in the first eight bytes of a `sem_t`. The bits below are the count.
pub(super) const WAITER: u64 = 1 << 32;

#[cfg(not(all(target_pointer_width = "64", target_endian = "little", target_env = "gnu")))]
compile_error!("the camera's semaphore is that of glibc on a 64-bit, little-endian machine");

/// The semaphore, with this process registered as a waiter until the drop.
pub(super) struct Semaphore {
    mapping: Arc<Mapping>,
}

impl Semaphore {
    /// Registers a waiter. Returns `None` if the mapping has no writable semaphore.
    pub(super) fn register(mapping: Arc<Mapping>) -> Option<Semaphore> {
        let (_, state) = mapping.semaphore_words()?;
        state.fetch_add(WAITER, Ordering::SeqCst);
        Some(Semaphore { mapping })
    }

    fn state(&self) -> Option<&AtomicU64> {
        self.mapping.semaphore_words().map(|(_, state)| state)
    }

    /// Returns true if this is the semaphore of `mapping`.
    pub(super) fn belongs_to(&self, mapping: &Arc<Mapping>) -> bool {
        Arc::ptr_eq(&self.mapping, mapping)
    }

    /// Registers the waiter again if no waiter is registered: the camera has initialised the semaphore again.
    pub(super) fn renew(&self) {
        if let Some(state) = self.state().filter(|state| state.load(Ordering::Relaxed) < WAITER) {
            state.fetch_add(WAITER, Ordering::SeqCst);
        }
    }

    /// Takes all posts, like as many calls of `sem_trywait`.
    pub(super) fn take_all(&self) -> Posts {
        let index_before = self.mapping.write_index();
        let posts =
            self.state().map_or(0, |state| state.fetch_and(!(WAITER - 1), Ordering::Acquire) & (WAITER - 1));
        Posts { taken: u32::try_from(posts).unwrap_or(u32::MAX), index_before }
    }
}

impl AsRef<AtomicU32> for Semaphore {
    /// The count: 0 while there is no post to take.
    fn as_ref(&self) -> &AtomicU32 {
        static EMPTY: AtomicU32 = AtomicU32::new(0);
        self.mapping.semaphore_words().map_or(&EMPTY, |(count, _)| count)
    }
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        if let Some(state) = self.state() {
            let unregister = |state: u64| state.checked_sub(WAITER);
            // Fails if the camera has initialised the semaphore again, which removed the registration.
            let _ = state.fetch_update(Ordering::SeqCst, Ordering::Relaxed, unregister);
        }
    }
}
