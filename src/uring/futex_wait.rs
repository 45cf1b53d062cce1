//! [`FutexWait`]: waits through io_uring until one word of shared memory changes.

use super::FutexWord;
use super::ring::{Cqe, Ring};

/// The futex wait that the caller wants, and the one that the kernel runs. The kernel runs at most one at a time.
#[derive(Default)]
pub(super) struct FutexWait {
    wanted: Option<(FutexWord, u32)>,
    /// The word that the kernel waits for. This reference keeps the word's memory mapped.
    armed: Option<FutexWord>,
    /// True after the cancellation of the kernel's wait has been queued.
    is_ending: bool,
}

impl FutexWait {
    /// Sets the word to wait for and its expected value. `None` means no wait. Takes effect with the next
    /// [`FutexWait::arm`].
    pub(super) fn set(&mut self, word: Option<(&FutexWord, u32)>) {
        match (&mut self.wanted, word) {
            (Some((known, expected)), Some((word, now_expected))) if FutexWord::ptr_eq(known, word) => {
                *expected = now_expected;
            }
            (wanted, word) => *wanted = word.map(|(word, expected)| (FutexWord::clone(word), expected)),
        }
    }

    /// Queues the wanted wait if the kernel runs none. If the kernel waits for another word, queues the cancellation of
    /// that wait.
    pub(super) fn arm(&mut self, ring: &mut Ring) {
        match (&self.armed, &self.wanted) {
            (None, Some((word, expected))) if ring.push_futex_wait((**word).as_ref(), *expected) => {
                self.armed = Some(FutexWord::clone(word));
            }
            (Some(armed), wanted)
                if !self.is_ending
                    && wanted.as_ref().is_none_or(|(word, _)| !FutexWord::ptr_eq(armed, word)) =>
            {
                self.is_ending = ring.push_futex_cancel();
            }
            _ => {}
        }
    }

    /// Handles the completion of the kernel's wait. Returns `Ok` if the wanted word changed, or the error number if the
    /// kernel cannot wait for that word. Returns `None` if the wait was interrupted, cancelled or no longer wanted.
    pub(super) fn complete(&mut self, cqe: &Cqe) -> Option<Result<(), i32>> {
        let armed = self.armed.take()?;
        self.is_ending = false;
        let is_wanted = self.wanted.as_ref().is_some_and(|(word, _)| FutexWord::ptr_eq(word, &armed));
        let outcome = match cqe.result().saturating_neg() {
            // The word changed during the wait, or had already changed before the wait began (EAGAIN).
            ..=0 | libc::EAGAIN => Ok(()),
            libc::EINTR | libc::ECANCELED => return None,
            errno => Err(errno),
        };
        if !is_wanted {
            return None;
        }
        self.wanted = None;
        Some(outcome)
    }

    /// Returns true while the kernel waits for a word.
    pub(super) fn is_armed(&self) -> bool {
        self.armed.is_some()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use rustix::thread::futex;

    use super::*;
    use crate::uring::{Completion, Driver, Features, UdpDriver, UdpDriverConfig, open_socket};

    const PATIENCE: Duration = Duration::from_secs(20);

    fn driver(features: Features) -> UdpDriver {
        let (socket, _) = open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
        let config =
            UdpDriverConfig { socket: Arc::new(socket), receives: false, eventfds: Vec::new(), sends_max: 4 };
        UdpDriver::with_features(config, features).unwrap()
    }

    /// A futex word for tests, in place of the camera's word in shared memory.
    struct Shared(AtomicU32);

    impl AsRef<AtomicU32> for Shared {
        fn as_ref(&self) -> &AtomicU32 {
            &self.0
        }
    }

    impl Shared {
        fn new() -> Arc<Shared> {
            Arc::new(Shared(AtomicU32::new(0)))
        }

        fn change(&self) {
            self.0.fetch_add(1, Ordering::Release);
            // FUTEX_PRIVATE_FLAG is not set, because in production the camera process, not this one, wakes the waiter.
            futex::wake(&self.0, futex::Flags::empty(), 1).unwrap();
        }
    }

    /// Runs turns until the driver has reported `count` changes of `word`.
    fn turn_until_changed(driver: &mut UdpDriver, word: &FutexWord, count: usize) {
        let mut changes = 0;
        while changes < count {
            driver.set_futex_wait(Some((word, (**word).as_ref().load(Ordering::Acquire))));
            driver.submit_and_wait(PATIENCE).unwrap();
            while let Some(completion) = driver.next_completion() {
                assert!(matches!(completion, Completion::Futex(Ok(()))), "{completion:?}");
                changes += 1;
            }
        }
    }

    #[test]
    fn change_before_or_during_the_wait_is_reported() {
        let mut driver = driver(Features::all());
        if !driver.features().contains(Features::FUTEX) {
            return eprintln!("not tested: this kernel has no futex wait (Linux 6.7)");
        }
        let shared = Shared::new();
        let word: FutexWord = Arc::clone(&shared) as FutexWord;
        for _ in 0..20 {
            let changer = std::thread::spawn({
                let shared = Arc::clone(&shared);
                move || {
                    std::thread::sleep(Duration::from_millis(5));
                    shared.change();
                }
            });
            turn_until_changed(&mut driver, &word, 1);
            changer.join().unwrap();
            // The word does not have the expected value, so the wait completes at once.
            driver.set_futex_wait(Some((&word, u32::MAX)));
            driver.submit_and_wait(PATIENCE).unwrap();
            assert!(matches!(driver.next_completion(), Some(Completion::Futex(Ok(())))));
        }
    }

    #[test]
    fn another_word_or_none_ends_the_wait() {
        let mut driver = driver(Features::all());
        if !driver.features().contains(Features::FUTEX) {
            return eprintln!("not tested: this kernel has no futex wait (Linux 6.7)");
        }
        let (old, new) = (Shared::new(), Shared::new());
        let (old_word, new_word): (FutexWord, FutexWord) =
            (Arc::clone(&old) as FutexWord, Arc::clone(&new) as FutexWord);
        let turn = |driver: &mut UdpDriver, word: Option<(&FutexWord, u32)>| {
            for _ in 0..3 {
                driver.set_futex_wait(word);
                driver.submit_and_wait(Duration::from_millis(1)).unwrap();
            }
            driver.next_completion().is_some()
        };
        assert!(!turn(&mut driver, Some((&old_word, 0))));
        assert!(!turn(&mut driver, Some((&new_word, 0))));
        assert_eq!(Arc::strong_count(&old), 2, "the driver has dropped the old word");
        old.change();
        assert!(!turn(&mut driver, Some((&new_word, 0))), "the old word is no longer waited for");
        new.change();
        assert!(turn(&mut driver, Some((&new_word, 1))));
        assert!(!turn(&mut driver, None));
        assert_eq!(Arc::strong_count(&new), 2);
        turn(&mut driver, Some((&new_word, 1)));
        drop(driver);
        assert_eq!(Arc::strong_count(&new), 2, "dropping the driver ends its wait");
    }

    #[test]
    fn without_the_futex_feature_no_change_is_reported() {
        let mut driver = driver(Features::all() - Features::FUTEX);
        let word: FutexWord = Shared::new();
        driver.set_futex_wait(Some((&word, 7)));
        driver.submit_and_wait(Duration::from_millis(1)).unwrap();
        assert!(driver.next_completion().is_none());
    }
}
