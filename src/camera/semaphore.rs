//! The camera's semaphore on a legacy ring, used as a futex word. This module does not wait itself.
//!
//! On 64-bit machines, a `sem_t` of glibc 2.21 or newer begins with two numbers of four bytes each:
//! - The first is the count, which is also the futex word.
//! - The second is the number of waiters. `sem_post` wakes only if this number is not 0.
//!
//! A process that dies leaves its waiter registered, as if it had been killed in `sem_wait`. The only effect is that
//! each later post makes one more system call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::commit_detector::Posts;
use super::mapping::Mapping;

/// Value of one waiter in the first eight bytes of a `sem_t`, read as one number. The lower 32 bits are the count.
pub(super) const WAITER: u64 = 1 << 32;

#[cfg(not(all(target_pointer_width = "64", target_endian = "little", target_env = "gnu")))]
compile_error!("the camera's semaphore is that of glibc on a 64-bit, little-endian machine");

/// The semaphore, with this process registered as a waiter. Dropping this value ends the registration.
pub(super) struct Semaphore {
    mapping: Arc<Mapping>,
}

impl Semaphore {
    /// Registers this process as a waiter. Returns `None` if the mapping has no writable semaphore.
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

    /// Registers the waiter again if the semaphore has no waiter. This is needed after the camera has initialised the
    /// semaphore again.
    pub(super) fn renew(&self) {
        if let Some(state) = self.state().filter(|state| state.load(Ordering::Relaxed) < WAITER) {
            state.fetch_add(WAITER, Ordering::SeqCst);
        }
    }

    /// Takes all posts at once. The effect is that of one `sem_trywait` for each post.
    pub(super) fn take_all(&self) -> Posts {
        let index_before = self.mapping.write_index();
        let posts =
            self.state().map_or(0, |state| state.fetch_and(!(WAITER - 1), Ordering::Acquire) & (WAITER - 1));
        Posts { taken: u32::try_from(posts).unwrap_or(u32::MAX), index_before }
    }
}

impl AsRef<AtomicU32> for Semaphore {
    /// Returns the count of posts. It is 0 while there is no post to take.
    fn as_ref(&self) -> &AtomicU32 {
        static EMPTY: AtomicU32 = AtomicU32::new(0);
        self.mapping.semaphore_words().map_or(&EMPTY, |(count, _)| count)
    }
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        if let Some(state) = self.state() {
            let unregister = |state: u64| state.checked_sub(WAITER);
            // The update fails only if the camera has initialised the semaphore again. That has already removed the
            // registration, so the result is ignored.
            let _ = state.fetch_update(Ordering::SeqCst, Ordering::Relaxed, unregister);
        }
    }
}
