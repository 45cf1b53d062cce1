//! [`FutexWait`]: the wait for one word of shared memory. May not know what the word means.

use std::sync::atomic::AtomicU32;

use super::ring::{Cqe, Ring};
use super::{FutexWord, UdpCounters};

/// One word, waited for by one operation at a time.
#[derive(Default)]
pub(super) struct FutexWait {
    wanted: Option<(FutexWord, u32)>,
    /// The word the kernel waits for; held so that it stays what it is.
    armed: Option<FutexWord>,
    /// Its end is asked for.
    is_ending: bool,
}

impl FutexWait {
    /// Waits for `word` to be another than given, from the next [`FutexWait::arm`] on.
    pub(super) fn set(&mut self, word: Option<(&FutexWord, u32)>) {
        match (&mut self.wanted, word) {
            (Some((known, expected)), Some((word, now_expected))) if FutexWord::ptr_eq(known, word) => {
                *expected = now_expected;
            }
            (wanted, word) => *wanted = word.map(|(word, expected)| (FutexWord::clone(word), expected)),
        }
    }

    /// Queues what has to change: the wait, or the end of one for another word.
    pub(super) fn arm(&mut self, ring: &mut Ring, counters: &mut UdpCounters) {
        match (&self.armed, &self.wanted) {
            (None, Some((word, expected))) if ring.push_futex_wait(at(word), *expected, counters) => {
                self.armed = Some(FutexWord::clone(word));
            }
            (Some(armed), wanted)
                if !self.is_ending
                    && wanted.as_ref().is_none_or(|(word, _)| !FutexWord::ptr_eq(armed, word)) =>
            {
                self.is_ending = ring.push_futex_cancel(counters);
            }
            _ => {}
        }
    }

    /// The kernel waits no longer. Tells whether the word that is wanted changed, or cannot be waited for.
    pub(super) fn complete(&mut self, cqe: &Cqe) -> Option<Result<(), i32>> {
        let armed = self.armed.take()?;
        self.is_ending = false;
        let is_wanted = self.wanted.as_ref().is_some_and(|(word, _)| FutexWord::ptr_eq(word, &armed));
        let told = match cqe.result().saturating_neg() {
            // Woken; or changed before the kernel began to wait.
            ..=0 | libc::EAGAIN => Ok(()),
            libc::EINTR | libc::ECANCELED => return None,
            errno => Err(errno),
        };
        if !is_wanted {
            return None;
        }
        self.wanted = None;
        Some(told)
    }

    /// Whether the kernel waits.
    pub(super) fn is_armed(&self) -> bool {
        self.armed.is_some()
    }
}

fn at(word: &FutexWord) -> &AtomicU32 {
    (**word).as_ref()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
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

    /// A word of memory as a camera's.
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
            // As a camera does, which is another process.
            futex::wake(&self.0, futex::Flags::empty(), 1).unwrap();
        }
    }

    /// Turns until the driver told of its word `count` times.
    fn turn_until_told(driver: &mut UdpDriver, word: &FutexWord, count: usize) {
        let mut told = 0;
        while told < count {
            driver.set_futex_wait(Some((word, (**word).as_ref().load(Ordering::Acquire))));
            driver.submit_and_wait(PATIENCE).unwrap();
            while let Some(completion) = driver.next_completion() {
                assert!(matches!(completion, Completion::Futex(Ok(()))), "{completion:?}");
                told += 1;
            }
        }
    }

    #[test]
    fn a_word_that_changes_is_told_whether_before_the_wait_or_during_it() {
        let mut driver = driver(Features::ALL);
        if !driver.features().futex {
            return eprintln!("not tried: no futex wait before Linux 6.7");
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
            turn_until_told(&mut driver, &word, 1);
            changer.join().unwrap();
            // Expected as it is no longer.
            driver.set_futex_wait(Some((&word, u32::MAX)));
            driver.submit_and_wait(PATIENCE).unwrap();
            assert!(matches!(driver.next_completion(), Some(Completion::Futex(Ok(())))));
        }
    }

    #[test]
    fn another_word_takes_the_place_of_the_one_before_and_none_ends_the_wait() {
        let mut driver = driver(Features::ALL);
        if !driver.features().futex {
            return eprintln!("not tried: no futex wait before Linux 6.7");
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
        assert_eq!(Arc::strong_count(&old), 2, "the driver has let go of it");
        old.change();
        assert!(!turn(&mut driver, Some((&new_word, 0))), "nobody asked");
        new.change();
        assert!(turn(&mut driver, Some((&new_word, 1))));
        assert!(!turn(&mut driver, None));
        assert_eq!(Arc::strong_count(&new), 2);
        turn(&mut driver, Some((&new_word, 1)));
        drop(driver);
        assert_eq!(Arc::strong_count(&new), 2, "the end of the driver ends its wait");
    }

    #[test]
    fn without_futexes_a_word_is_never_told() {
        let mut driver = driver(Features { futex: false, ..Features::ALL });
        let word: FutexWord = Shared::new();
        driver.set_futex_wait(Some((&word, 7)));
        driver.submit_and_wait(Duration::from_millis(1)).unwrap();
        assert!(driver.next_completion().is_none());
    }
}
