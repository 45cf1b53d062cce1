//! Packets that can be sent again: the last ones of a stream, by sequence number, and how many of them a viewer may
//! ask for. Decides what is sent again, builds nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::limits;
use crate::h264::Payloads;

/// Packets that were sent one after the other, their payloads in one buffer.
#[derive(Clone, Debug)]
pub(in crate::session) struct Sent {
    pub(in crate::session) payloads: Arc<Payloads>,
    /// Capture time they were sent with, NTP; 0 for none.
    pub(in crate::session) captured_ntp: u64,
    pub(in crate::session) rtp_time: u32,
    /// With the last of them the unit ends.
    pub(in crate::session) is_end: bool,
}

impl Sent {
    /// Whether the packet at `place` is the last of its unit.
    pub(in crate::session) fn is_last(&self, place: usize) -> bool {
        self.is_end && place + 1 == self.payloads.len()
    }
}

/// Packets and when they were sent, in milliseconds since the cache was made.
#[derive(Debug)]
struct Kept {
    sent: Sent,
    /// Sequence number, extended, of the first.
    first: u64,
    sent_ms: u32,
}

impl Kept {
    fn packets(&self) -> usize {
        self.sent.payloads.len()
    }
}

/// A packet that was sent again.
#[derive(Clone, Copy, Debug)]
struct Again {
    sequence: u64,
    at_ms: u32,
}

/// Retransmissions in the current second.
#[derive(Clone, Copy, Debug)]
struct Budget {
    since: Instant,
    used: u32,
}

/// Packets in this second and the one before.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    since_ms: u32,
    packets: u32,
    packets_before: u32,
}

impl Rate {
    fn move_to(&mut self, now_ms: u32) {
        let seconds = now_ms.wrapping_sub(self.since_ms) / 1_000;
        if seconds > 0 {
            self.packets_before = if seconds == 1 { self.packets } else { 0 };
            self.packets = 0;
            self.since_ms = now_ms;
        }
    }

    /// So many that the 16 bits of a sequence number may mean another packet by the time a viewer's request is here:
    /// it would get a piece of another picture.
    fn is_ambiguous(&self) -> bool {
        self.packets + self.packets_before >= 1 << 15
    }
}

/// Sent packets, the oldest first; their sequence numbers are consecutive. What lies in one buffer comes and goes
/// together.
#[derive(Debug)]
pub(in crate::session) struct RtxCache {
    kept: VecDeque<Kept>,
    /// How many packets that is.
    packets: usize,
    /// Sequence number, extended, of the next packet.
    next: u64,
    packets_max: usize,
    made_at: Instant,
    /// When the unit that is being pushed is sent.
    unit_ms: u32,
    budget: Budget,
    rate: Rate,
    /// Asked for, to be sent again.
    wanted: VecDeque<u64>,
    /// Sent again lately: not once more within [`limits::RESEND_GUARD`].
    again: VecDeque<Again>,
    /// Not sent again: asked for too often.
    pub(in crate::session) refused: u64,
}

impl RtxCache {
    /// An empty cache of at most [`limits::RTX_CACHE_PACKETS`], for a stream that begins with `next`. Takes no memory
    /// before its first packet.
    pub(in crate::session) fn new(next: u64, now: Instant) -> RtxCache {
        RtxCache {
            kept: VecDeque::new(),
            packets: 0,
            next,
            packets_max: limits::RTX_CACHE_PACKETS,
            made_at: now,
            unit_ms: 0,
            budget: Budget { since: now, used: 0 },
            rate: Rate::default(),
            wanted: VecDeque::new(),
            again: VecDeque::new(),
            refused: 0,
        }
    }

    /// Sequence number, extended, of the next packet.
    pub(in crate::session) fn next(&self) -> u64 {
        self.next
    }

    /// From now on at most so many packets.
    pub(in crate::session) fn set_packets_max(&mut self, packets_max: usize) {
        self.packets_max = packets_max;
        while self.packets > packets_max {
            self.let_go();
        }
        self.kept.shrink_to(packets_max);
    }

    /// The packets of a unit follow. Lets go of what is too old to be asked for.
    pub(in crate::session) fn begin_unit(&mut self, now: Instant) {
        let now_ms = self.milliseconds(now);
        self.unit_ms = now_ms;
        self.rate.move_to(now_ms);
        while self.kept.front().is_some_and(|kept| is_out_of_date(now_ms, kept.sent_ms)) {
            self.let_go();
        }
    }

    /// Keeps the packets that were sent with the sequence numbers from [`RtxCache::next`] on.
    pub(in crate::session) fn push(&mut self, sent: Sent) {
        let packets = sent.payloads.len();
        while self.packets > 0 && self.packets + packets > self.packets_max {
            self.let_go();
        }
        let counted = u64::try_from(packets).unwrap_or_default();
        self.rate.packets += u32::try_from(packets).unwrap_or_default();
        self.kept.push_back(Kept { sent, first: self.next, sent_ms: self.unit_ms });
        self.packets += packets;
        self.next += counted;
    }

    fn let_go(&mut self) {
        match self.kept.pop_front() {
            Some(kept) => self.packets -= kept.packets(),
            None => self.packets = 0,
        }
    }

    /// A viewer asks for the packet of this sequence number. It gets it once in [`limits::RESEND_GUARD`],
    /// while the budget of the second lasts and as long as the number means one packet only.
    pub(in crate::session) fn ask(&mut self, now: Instant, sequence: u16) {
        let now_ms = self.milliseconds(now);
        let Some(sequence) = self.extend(sequence) else { return };
        if self.find(sequence).is_none_or(|(kept, _)| is_out_of_date(now_ms, kept.sent_ms)) {
            return;
        }
        while self.again.front().is_some_and(|again| is_past_guard(now_ms, again.at_ms)) {
            self.again.pop_front();
        }
        let is_on_its_way = self.again.iter().any(|again| again.sequence == sequence);
        if now.saturating_duration_since(self.budget.since) >= Duration::from_secs(1) {
            self.budget = Budget { since: now, used: 0 };
        }
        if is_on_its_way || self.rate.is_ambiguous() || self.budget.used >= limits::RETRANSMITS_PER_SECOND_MAX
        {
            self.refused += 1;
            return;
        }
        self.budget.used += 1;
        self.again.push_back(Again { sequence, at_ms: now_ms });
        self.wanted.push_back(sequence);
    }

    /// The next packet to be sent again: its sequence number, those it was sent with and its place among them. What the
    /// cache lost meanwhile is left out.
    pub(in crate::session) fn take_wanted(&mut self) -> Option<(u64, Sent, usize)> {
        loop {
            let sequence = self.wanted.pop_front()?;
            if let Some((kept, place)) = self.find(sequence) {
                return Some((sequence, kept.sent.clone(), place));
            }
        }
    }

    /// The newest sent sequence number that ends in these 16 bits.
    fn extend(&self, sequence: u16) -> Option<u64> {
        let newest = self.next.checked_sub(1)?;
        #[expect(clippy::cast_possible_truncation, reason = "a sequence number is the low 16 bits")]
        let behind = (newest as u16).wrapping_sub(sequence);
        newest.checked_sub(u64::from(behind))
    }

    /// The buffer with that packet, and the packet's place in it.
    fn find(&self, sequence: u64) -> Option<(&Kept, usize)> {
        let after = self.kept.partition_point(|kept| kept.first <= sequence);
        let kept = self.kept.get(after.checked_sub(1)?)?;
        let place = usize::try_from(sequence - kept.first).ok()?;
        (place < kept.packets()).then_some((kept, place))
    }

    #[expect(clippy::cast_possible_truncation, reason = "ages are compared, and none is 49 days")]
    fn milliseconds(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.made_at).as_millis() as u32
    }
}

fn is_out_of_date(now_ms: u32, sent_ms: u32) -> bool {
    u128::from(now_ms.wrapping_sub(sent_ms)) > limits::RTX_CACHE_AGE.as_millis()
}

fn is_past_guard(now_ms: u32, at_ms: u32) -> bool {
    u128::from(now_ms.wrapping_sub(at_ms)) >= limits::RESEND_GUARD.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "the origin of a fake clock")]
        Instant::now()
    }

    fn packet(number: u64) -> Sent {
        packets(number..number + 1)
    }

    fn packets(numbers: std::ops::Range<u64>) -> Sent {
        let payloads = Arc::new(numbers.map(u64::to_be_bytes).collect());
        Sent { payloads, captured_ntp: 0, rtp_time: 0, is_end: true }
    }

    fn filled(first: u64, count: u64, at: Instant) -> RtxCache {
        let mut cache = RtxCache::new(first, at);
        cache.begin_unit(at);
        (first..first + count).for_each(|number| cache.push(packet(number)));
        cache
    }

    fn wanted(cache: &mut RtxCache) -> Vec<u64> {
        std::iter::from_fn(|| cache.take_wanted())
            .map(|(sequence, sent, place)| {
                assert_eq!(
                    sent.payloads.get(place).unwrap(),
                    sequence.to_be_bytes(),
                    "the packet of that number"
                );
                sequence
            })
            .collect()
    }

    #[test]
    fn what_is_kept_is_sent_again_and_nothing_else() {
        let at = now();
        let mut cache = filled(65_500, 100, at);
        for sequence in [65_499, 65_500, 65_535, 0, 63, 64, 30_000] {
            cache.ask(at, sequence);
        }
        assert_eq!(wanted(&mut cache), [65_500, 65_535, 65_536, 65_599]);
        assert_eq!(cache.refused, 0);
    }

    #[test]
    fn packets_of_one_buffer_are_found_each_and_go_together() {
        let at = now();
        let mut cache = RtxCache::new(0, at);
        cache.set_packets_max(20);
        cache.begin_unit(at);
        for first in [0, 8, 16] {
            cache.push(packets(first..first + 8));
        }
        (0..24).for_each(|sequence| cache.ask(at, sequence));
        assert_eq!(wanted(&mut cache), (8..24).collect::<Vec<_>>(), "24 are more than may be kept");
        let (kept, place) = cache.find(15).unwrap();
        assert!(kept.sent.is_last(place) && !kept.sent.is_last(place - 1));
        cache.push(packets(24..64));
        assert_eq!((cache.kept.len(), cache.packets), (1, 40), "the newest stay, however many they are");
    }

    #[test]
    fn the_cache_holds_so_many_and_only_so_long() {
        let at = now();
        let mut cache = filled(0, limits::RTX_CACHE_PACKETS as u64 + 10, at);
        assert_eq!(cache.kept.len(), limits::RTX_CACHE_PACKETS);
        cache.ask(at, 9);
        cache.ask(at, 10);
        assert_eq!(wanted(&mut cache), [10]);
        let late = at + limits::RTX_CACHE_AGE + Duration::from_millis(1);
        cache.ask(late, 100);
        assert_eq!(wanted(&mut cache), [0_u64; 0]);
        cache.begin_unit(late);
        assert!(cache.kept.is_empty());
        cache.push(packet(cache.next()));
        cache.ask(late, 394);
        assert_eq!(wanted(&mut cache), [394]);
    }

    #[test]
    fn a_packet_asked_for_twice_at_once_is_sent_again_once() {
        let at = now();
        let mut cache = filled(0, 10, at);
        cache.ask(at, 3);
        cache.ask(at + limits::RESEND_GUARD - Duration::from_millis(1), 3);
        assert_eq!((wanted(&mut cache), cache.refused), (vec![3], 1));
        cache.ask(at + limits::RESEND_GUARD, 3);
        assert_eq!(wanted(&mut cache), [3]);
    }

    #[test]
    fn a_flood_is_answered_within_the_budget_of_a_second() {
        let at = now();
        let mut cache = filled(0, 300, at);
        for round in 0..20_u64 {
            let at = at + limits::RESEND_GUARD * u32::try_from(round).unwrap();
            (0..300).for_each(|sequence| cache.ask(at, sequence));
        }
        let budget = limits::RETRANSMITS_PER_SECOND_MAX as usize;
        assert_eq!(wanted(&mut cache).len(), budget);
        assert_eq!(cache.refused, 6_000 - budget as u64);
        let later = at + Duration::from_secs(1);
        cache.ask(later, 299);
        assert_eq!(wanted(&mut cache), [299]);
    }

    #[test]
    fn a_smaller_cache_keeps_the_newest() {
        let at = now();
        let mut cache = RtxCache::new(0, at);
        cache.set_packets_max(1_000);
        (0..1_000).for_each(|number| cache.push(packet(number)));
        cache.set_packets_max(10);
        (989..1_000).for_each(|sequence| cache.ask(at, sequence));
        assert_eq!(wanted(&mut cache), (990..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn where_numbers_come_round_too_soon_nothing_is_sent_again() {
        let at = now();
        let mut cache = filled(1, 32_767, at);
        cache.ask(at, 32_767);
        assert_eq!(wanted(&mut cache), [32_767]);
        cache.push(packet(32_768));
        cache.ask(at, 32_768);
        let later = at + Duration::from_millis(1_500);
        cache.begin_unit(later);
        cache.push(packet(32_769));
        cache.ask(later, 32_769);
        assert_eq!((wanted(&mut cache), cache.refused), (vec![], 2), "and not in the second after it");
        let calm = later + Duration::from_millis(1_500);
        cache.begin_unit(calm);
        cache.push(packet(32_770));
        cache.ask(calm, 32_770);
        assert_eq!(wanted(&mut cache), [32_770]);
    }
}
