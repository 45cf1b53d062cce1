//! [`Watch`]: the wait for one word of shared memory. May not know what the word means.

use std::sync::atomic::AtomicU32;

use super::ring::{Cqe, Ring};
use super::{EdgeCounters, Word};

/// One word, waited for by one operation at a time.
#[derive(Default)]
pub(super) struct Watch {
    wanted: Option<(Word, u32)>,
    /// The word the kernel waits for; held so that it stays what it is.
    armed: Option<Word>,
    /// Its end is asked for.
    is_ending: bool,
}

impl Watch {
    /// Waits for `word` to be another than given, from the next [`Watch::arm`] on.
    pub(super) fn want(&mut self, word: Option<(&Word, u32)>) {
        match (&mut self.wanted, word) {
            (Some((known, expected)), Some((word, now_expected))) if Word::ptr_eq(known, word) => {
                *expected = now_expected;
            }
            (wanted, word) => *wanted = word.map(|(word, expected)| (Word::clone(word), expected)),
        }
    }

    /// Queues what has to change: the wait, or the end of one for another word.
    pub(super) fn arm(&mut self, ring: &mut Ring, counters: &mut EdgeCounters) {
        match (&self.armed, &self.wanted) {
            (None, Some((word, expected))) if ring.push_word(at(word), *expected, counters) => {
                self.armed = Some(Word::clone(word));
            }
            (Some(armed), wanted)
                if !self.is_ending && wanted.as_ref().is_none_or(|(word, _)| !Word::ptr_eq(armed, word)) =>
            {
                self.is_ending = ring.push_word_end(counters);
            }
            _ => {}
        }
    }

    /// The kernel waits no longer. Tells whether the word that is wanted changed, or cannot be waited for.
    pub(super) fn complete(&mut self, cqe: &Cqe) -> Option<Result<(), i32>> {
        let armed = self.armed.take()?;
        self.is_ending = false;
        let is_wanted = self.wanted.as_ref().is_some_and(|(word, _)| Word::ptr_eq(word, &armed));
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

fn at(word: &Word) -> &AtomicU32 {
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
    use crate::uring::{Completion, Edge, EdgeConfig, Features, open_socket};

    const PATIENCE: Duration = Duration::from_secs(20);

    fn edge(features: Features) -> Edge {
        let (socket, _) = open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
        let config =
            EdgeConfig { socket: Arc::new(socket), receives: false, bells: Vec::new(), sends_max: 4 };
        Edge::with_features(config, features).unwrap()
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

    /// Turns until the edge told of its word `count` times.
    fn turn_until_told(edge: &mut Edge, word: &Word, count: usize) {
        let mut told = 0;
        while told < count {
            edge.watch(Some((word, (**word).as_ref().load(Ordering::Acquire))));
            edge.submit_and_wait(PATIENCE).unwrap();
            while let Some(completion) = edge.next_completion() {
                assert!(matches!(completion, Completion::Word(Ok(()))), "{completion:?}");
                told += 1;
            }
        }
    }

    #[test]
    fn a_word_that_changes_is_told_whether_before_the_wait_or_during_it() {
        let mut edge = edge(Features::ALL);
        if !edge.features().futex {
            return eprintln!("not tried: no futex wait before Linux 6.7");
        }
        let shared = Shared::new();
        let word: Word = Arc::clone(&shared) as Word;
        for _ in 0..20 {
            let changer = std::thread::spawn({
                let shared = Arc::clone(&shared);
                move || {
                    std::thread::sleep(Duration::from_millis(5));
                    shared.change();
                }
            });
            turn_until_told(&mut edge, &word, 1);
            changer.join().unwrap();
            // Expected as it is no longer.
            edge.watch(Some((&word, u32::MAX)));
            edge.submit_and_wait(PATIENCE).unwrap();
            assert!(matches!(edge.next_completion(), Some(Completion::Word(Ok(())))));
        }
    }

    #[test]
    fn another_word_takes_the_place_of_the_one_before_and_none_ends_the_wait() {
        let mut edge = edge(Features::ALL);
        if !edge.features().futex {
            return eprintln!("not tried: no futex wait before Linux 6.7");
        }
        let (old, new) = (Shared::new(), Shared::new());
        let (old_word, new_word): (Word, Word) = (Arc::clone(&old) as Word, Arc::clone(&new) as Word);
        let turn = |edge: &mut Edge, word: Option<(&Word, u32)>| {
            for _ in 0..3 {
                edge.watch(word);
                edge.submit_and_wait(Duration::from_millis(1)).unwrap();
            }
            edge.next_completion().is_some()
        };
        assert!(!turn(&mut edge, Some((&old_word, 0))));
        assert!(!turn(&mut edge, Some((&new_word, 0))));
        assert_eq!(Arc::strong_count(&old), 2, "the edge has let go of it");
        old.change();
        assert!(!turn(&mut edge, Some((&new_word, 0))), "nobody asked");
        new.change();
        assert!(turn(&mut edge, Some((&new_word, 1))));
        assert!(!turn(&mut edge, None));
        assert_eq!(Arc::strong_count(&new), 2);
        turn(&mut edge, Some((&new_word, 1)));
        drop(edge);
        assert_eq!(Arc::strong_count(&new), 2, "the end of the edge ends its wait");
    }

    #[test]
    fn without_futexes_a_word_is_never_told() {
        let mut edge = edge(Features { futex: false, ..Features::ALL });
        let word: Word = Shared::new();
        edge.watch(Some((&word, 7)));
        edge.submit_and_wait(Duration::from_millis(1)).unwrap();
        assert!(edge.next_completion().is_none());
    }
}
