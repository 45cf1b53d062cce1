//! Keeps sent packets by sequence number for retransmission, and limits how many of them a viewer may request. This
//! module only decides what is retransmitted; the sender builds the packets.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::base::limits;
use crate::h264::Payloads;

/// Consecutive packets of one unit, with their payloads in one buffer. All `_ms` times count from the creation of the
/// cache.
#[derive(Clone, Debug)]
pub(super) struct SentPackets {
    pub(super) payloads: Arc<Payloads>,
    pub(super) rtp_time: u32,
    /// Capture time that was sent with the unit, as an NTP timestamp; 0 if none was sent.
    pub(super) captured_ntp: u64,
    /// True if the last packet of the buffer is also the last packet of the unit.
    is_end: bool,
    /// Place of the first packet in `payloads`, and the number of packets. A paced viewer's packets are added one by
    /// one.
    from: u16,
    count: u16,
    /// Transport-wide sequence number of the unit's last packet, if it has one. Only kept without RTX, because the same
    /// packet is then sent again.
    has_mark: bool,
    mark: u16,
    /// Extended sequence number of the first packet.
    first: u64,
    sent_ms: u32,
}

/// What the packets of a unit have in common.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SentUnit {
    pub(super) rtp_time: u32,
    /// As in [`SentPackets`].
    pub(super) captured_ntp: u64,
    /// Transport-wide sequence number of the last packet, if the same packet may be sent again.
    pub(super) mark: Option<u16>,
}

impl SentPackets {
    /// Returns true if the packet at `place` is the last of its unit.
    pub(super) fn is_last(&self, place: usize) -> bool {
        self.is_end && place + 1 == self.payloads.len()
    }

    /// Returns the transport-wide sequence number that the unit's header has.
    pub(super) fn mark(&self) -> Option<u16> {
        self.has_mark.then_some(self.mark)
    }
}

/// When packets were last retransmitted. A packet has one fixed place, so each look-up costs the same however many
/// packets a viewer requests. Two packets may share a place; the newer retransmission then replaces the older one.
/// Each place has a sequence number ([`FREE`] if it was never used) and the time in milliseconds.
#[derive(Debug, Default)]
struct RecentRetransmissions(Vec<(u64, u32)>);

/// No packet has this sequence number.
const FREE: u64 = u64::MAX;

impl RecentRetransmissions {
    /// Number of places: more than a viewer gets retransmissions in a second.
    const PLACES: usize = (limits::RETRANSMITS_PER_SECOND_MAX as usize).next_power_of_two();

    fn place(sequence: u64) -> usize {
        usize::try_from(sequence).unwrap_or_default() % Self::PLACES
    }

    /// Returns true if the packet was retransmitted within [`limits::RESEND_GUARD`] before `now_ms`.
    fn is_in_transit(&self, sequence: u64, now_ms: u32) -> bool {
        let found = self.0.get(Self::place(sequence));
        found.is_some_and(|&(known, at_ms)| known == sequence && !is_past_guard(now_ms, at_ms))
    }

    /// Records a retransmission. The first call allocates the list.
    fn note(&mut self, sequence: u64, now_ms: u32) {
        self.0.resize(Self::PLACES, (FREE, 0));
        if let Some(place) = self.0.get_mut(Self::place(sequence)) {
            *place = (sequence, now_ms);
        }
    }
}

/// Counts of the current second, and the number of packets that were sent in the second before.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    began_ms: u32,
    packets: u32,
    packets_before: u32,
    retransmissions: u32,
}

impl Second {
    fn advance(&mut self, now_ms: u32) {
        let seconds = now_ms.wrapping_sub(self.began_ms) / 1_000;
        if seconds > 0 {
            let packets_before = if seconds == 1 { self.packets } else { 0 };
            *self = Second { began_ms: now_ms, packets: 0, packets_before, retransmissions: 0 };
        }
    }

    /// Returns true if the packet rate is so high that the 16-bit sequence number may wrap before a NACK arrives. The
    /// number in the NACK could then mean a newer packet, and the viewer would get a part of another picture.
    fn is_ambiguous(&self) -> bool {
        self.packets + self.packets_before >= 1 << 15
    }
}

/// Sent packets, oldest first, with consecutive sequence numbers. Packets of one buffer are added and evicted together.
#[derive(Debug)]
pub(in crate::session) struct RtxCache {
    entries: VecDeque<SentPackets>,
    /// Number of packets in all entries.
    packets: usize,
    /// Extended sequence number of the next packet.
    next: u64,
    packets_max: usize,
    created_at: Instant,
    /// Send time of the unit being pushed.
    unit_ms: u32,
    /// Send time of the unit before. If its last packet is lost, the viewer notices that only when the next unit
    /// arrives.
    unit_before_ms: u32,
    second: Second,
    /// Extended sequence numbers of the packets that will be retransmitted.
    pending: VecDeque<u64>,
    /// Recent retransmissions. The same packet is not sent again within [`limits::RESEND_GUARD`].
    recent: RecentRetransmissions,
    /// Number of requests refused by the resend guard, by the budget of a second, or because of an ambiguous number.
    pub(in crate::session) refused: u64,
}

impl RtxCache {
    /// Creates an empty cache of at most [`limits::RTX_CACHE_PACKETS`] packets. `next` is the extended sequence number
    /// of the stream's first packet. Allocates nothing before that packet.
    pub(super) fn new(next: u64, now: Instant) -> RtxCache {
        RtxCache {
            entries: VecDeque::new(),
            packets: 0,
            next,
            packets_max: limits::RTX_CACHE_PACKETS,
            created_at: now,
            unit_ms: 0,
            unit_before_ms: 0,
            second: Second::default(),
            pending: VecDeque::new(),
            recent: RecentRetransmissions::default(),
            refused: 0,
        }
    }

    /// Returns the extended sequence number of the next packet.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Sets how many packets the cache may hold. If it holds more, the oldest are evicted.
    pub(super) fn set_packets_max(&mut self, packets_max: usize) {
        self.packets_max = packets_max;
        while self.packets > packets_max {
            self.evict_oldest();
        }
        self.entries.shrink_to(packets_max);
    }

    /// Begins a unit; the following pushes add its packets. Evicts packets older than [`limits::RTX_CACHE_AGE`], except
    /// those of the unit before.
    pub(super) fn begin_unit(&mut self, now: Instant) {
        let now_ms = self.milliseconds(now);
        self.unit_before_ms = std::mem::replace(&mut self.unit_ms, now_ms);
        self.second.advance(now_ms);
        while self.entries.front().is_some_and(|entry| self.is_expired(now_ms, entry.sent_ms)) {
            self.evict_oldest();
        }
    }

    /// Returns true if a packet that was sent at `sent_ms` is too old. The age of the unit before the newest one counts
    /// from the newest one.
    fn is_expired(&self, now_ms: u32, sent_ms: u32) -> bool {
        let from_ms = if sent_ms == self.unit_before_ms { self.unit_ms } else { sent_ms };
        u128::from(now_ms.wrapping_sub(from_ms)) > limits::RTX_CACHE_AGE.as_millis()
    }

    /// Adds packets that were sent with the sequence numbers from [`RtxCache::next`] on.
    #[inline(always)] // runs for each buffer of a unit and each viewer
    pub(super) fn push(&mut self, payloads: Arc<Payloads>, unit: &SentUnit, is_end: bool) {
        let all = 0..payloads.len();
        self.push_part(payloads, all, unit, is_end);
    }

    /// Adds the packets at `places` of a buffer. They were sent with the sequence numbers from [`RtxCache::next`] on.
    #[inline(always)] // much shorter for a whole buffer
    pub(super) fn push_part(
        &mut self,
        payloads: Arc<Payloads>,
        places: Range<usize>,
        unit: &SentUnit,
        is_end: bool,
    ) {
        let packets = places.len();
        while self.packets > 0 && self.packets + packets > self.packets_max {
            self.evict_oldest();
        }
        self.second.packets += u32::try_from(packets).unwrap_or_default();
        let (first, sent_ms) = (self.next, self.unit_ms);
        let short = |value: usize| u16::try_from(value).unwrap_or_default();
        let SentUnit { rtp_time, captured_ntp, mark } = *unit;
        self.entries.push_back(SentPackets {
            payloads,
            rtp_time,
            captured_ntp,
            is_end,
            from: short(places.start),
            count: short(packets),
            has_mark: mark.is_some(),
            mark: mark.unwrap_or_default(),
            first,
            sent_ms,
        });
        self.packets += packets;
        self.next += u64::try_from(packets).unwrap_or_default();
    }

    fn evict_oldest(&mut self) {
        match self.entries.pop_front() {
            Some(entry) => self.packets -= usize::from(entry.count),
            None => self.packets = 0,
        }
    }

    /// Handles a NACK of one packet. Queues the packet for retransmission unless it was retransmitted within
    /// [`limits::RESEND_GUARD`], the budget of this second is used up, or its sequence number is ambiguous.
    pub(super) fn on_nack(&mut self, now: Instant, sequence: u16) {
        let now_ms = self.milliseconds(now);
        let Some(sequence) = self.extend(sequence) else { return };
        if self.find(sequence).is_none_or(|(entry, _)| self.is_expired(now_ms, entry.sent_ms)) {
            return;
        }
        let is_in_transit = self.recent.is_in_transit(sequence, now_ms);
        self.second.advance(now_ms);
        let is_over_budget = self.second.retransmissions >= limits::RETRANSMITS_PER_SECOND_MAX;
        if is_in_transit || is_over_budget || self.second.is_ambiguous() {
            self.refused += 1;
            return;
        }
        self.second.retransmissions += 1;
        self.recent.note(sequence, now_ms);
        self.pending.push_back(sequence);
    }

    /// Returns true if a retransmission is queued.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Forgets all sent packets. The queued retransmissions count as refused.
    pub(super) fn forget(&mut self) {
        self.refused += u64::try_from(self.pending.len()).unwrap_or_default();
        self.pending.clear();
        self.entries.clear();
        self.packets = 0;
    }

    /// Returns the next packet to retransmit: its extended sequence number, the entry that holds it, and its place in
    /// that entry. Packets that were evicted after their NACK are skipped.
    pub(super) fn poll_retransmission(&mut self) -> Option<(u64, SentPackets, usize)> {
        loop {
            let sequence = self.pending.pop_front()?;
            if let Some((entry, place)) = self.find(sequence) {
                return Some((sequence, entry.clone(), place));
            }
        }
    }

    /// Returns the newest sent extended sequence number whose low 16 bits are `sequence`.
    fn extend(&self, sequence: u16) -> Option<u64> {
        let newest = self.next.checked_sub(1)?;
        #[expect(clippy::cast_possible_truncation, reason = "a sequence number is the low 16 bits")]
        let behind = (newest as u16).wrapping_sub(sequence);
        newest.checked_sub(u64::from(behind))
    }

    /// Returns the entry that holds the packet, and the packet's place in it.
    fn find(&self, sequence: u64) -> Option<(&SentPackets, usize)> {
        let after = self.entries.partition_point(|entry| entry.first <= sequence);
        let entry = self.entries.get(after.checked_sub(1)?)?;
        let place = usize::try_from(sequence - entry.first).ok()?;
        (place < usize::from(entry.count)).then_some((entry, usize::from(entry.from) + place))
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "only differences are used, and none reaches 49 days"
    )]
    fn milliseconds(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.created_at).as_millis() as u32
    }
}

fn is_past_guard(now_ms: u32, at_ms: u32) -> bool {
    u128::from(now_ms.wrapping_sub(at_ms)) >= limits::RESEND_GUARD.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn now() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "the origin of a fake clock")]
        Instant::now()
    }

    fn push(cache: &mut RtxCache, numbers: std::ops::Range<u64>) {
        cache.push(Arc::new(numbers.map(u64::to_be_bytes).collect()), &SentUnit::default(), true);
    }

    fn push_one(cache: &mut RtxCache, number: u64) {
        push(cache, number..number + 1);
    }

    fn filled(first: u64, count: u64, at: Instant) -> RtxCache {
        let mut cache = RtxCache::new(first, at);
        cache.begin_unit(at);
        (first..first + count).for_each(|number| push_one(&mut cache, number));
        cache
    }

    fn retransmitted(cache: &mut RtxCache) -> Vec<u64> {
        std::iter::from_fn(|| cache.poll_retransmission())
            .map(|(sequence, sent, place)| {
                assert_eq!(
                    sent.payloads.get(place).unwrap(),
                    sequence.to_be_bytes(),
                    "the payload of that sequence number"
                );
                sequence
            })
            .collect()
    }

    #[test]
    fn only_cached_packets_are_retransmitted() {
        let at = now();
        let mut cache = filled(65_500, 100, at);
        for sequence in [65_499, 65_500, 65_535, 0, 63, 64, 30_000] {
            cache.on_nack(at, sequence);
        }
        assert_eq!(retransmitted(&mut cache), [65_500, 65_535, 65_536, 65_599]);
        assert_eq!(cache.refused, 0);
    }

    #[test]
    fn packets_of_one_buffer_are_found_singly_and_evicted_together() {
        let at = now();
        let mut cache = RtxCache::new(0, at);
        cache.set_packets_max(20);
        cache.begin_unit(at);
        for first in [0, 8, 16] {
            push(&mut cache, first..first + 8);
        }
        (0..24).for_each(|sequence| cache.on_nack(at, sequence));
        assert_eq!(retransmitted(&mut cache), (8..24).collect::<Vec<_>>(), "24 exceed the limit of 20");
        let (entry, place) = cache.find(15).unwrap();
        assert!(entry.is_last(place) && !entry.is_last(place - 1));
        push(&mut cache, 24..64);
        assert_eq!(
            (cache.entries.len(), cache.packets),
            (1, 40),
            "the newest buffer stays even if it exceeds the limit"
        );
    }

    #[test]
    fn last_packet_of_a_slow_cameras_unit_is_retransmitted_after_the_next_unit() {
        let at = now();
        let mut cache = filled(0, 3, at);
        for unit in 1..4_u64 {
            let sent_at = at + Duration::from_secs(2 * unit);
            cache.begin_unit(sent_at);
            (3 * unit..3 * unit + 3).for_each(|number| push_one(&mut cache, number));
            let noticed_at = sent_at + Duration::from_millis(50);
            (0..u16::MAX >> 8).for_each(|sequence| cache.on_nack(noticed_at, sequence));
            assert_eq!(retransmitted(&mut cache), (3 * unit - 3..3 * unit + 3).collect::<Vec<_>>());
        }
    }

    #[test]
    fn cache_is_bounded_in_packets_and_age() {
        let at = now();
        let mut cache = filled(0, limits::RTX_CACHE_PACKETS as u64 + 10, at);
        assert_eq!(cache.entries.len(), limits::RTX_CACHE_PACKETS);
        cache.on_nack(at, 9);
        cache.on_nack(at, 10);
        assert_eq!(retransmitted(&mut cache), [10]);
        let late = at + limits::RTX_CACHE_AGE + Duration::from_millis(1);
        cache.on_nack(late, 100);
        assert_eq!(retransmitted(&mut cache), [0_u64; 0]);
        cache.begin_unit(late);
        let late = late + Duration::from_millis(33);
        cache.begin_unit(late);
        assert!(cache.entries.is_empty());
        let next = cache.next();
        push_one(&mut cache, next);
        cache.on_nack(late, 394);
        assert_eq!(retransmitted(&mut cache), [394]);
    }

    #[test]
    fn packet_requested_twice_at_once_is_retransmitted_once() {
        let at = now();
        let mut cache = filled(0, 10, at);
        cache.on_nack(at, 3);
        cache.on_nack(at + limits::RESEND_GUARD - Duration::from_millis(1), 3);
        assert_eq!((retransmitted(&mut cache), cache.refused), (vec![3], 1));
        cache.on_nack(at + limits::RESEND_GUARD, 3);
        assert_eq!(retransmitted(&mut cache), [3]);
    }

    #[test]
    fn nack_flood_is_answered_within_the_budget_of_a_second() {
        let at = now();
        let mut cache = filled(0, 300, at);
        for round in 0..20_u64 {
            let at = at + limits::RESEND_GUARD * u32::try_from(round).unwrap();
            (0..300).for_each(|sequence| cache.on_nack(at, sequence));
        }
        let budget = limits::RETRANSMITS_PER_SECOND_MAX as usize;
        assert_eq!(retransmitted(&mut cache).len(), budget);
        assert_eq!(cache.refused, 6_000 - budget as u64);
        let later = at + Duration::from_secs(1);
        cache.on_nack(later, 299);
        assert_eq!(retransmitted(&mut cache), [299]);
    }

    #[test]
    fn smaller_cache_keeps_the_newest() {
        let at = now();
        let mut cache = RtxCache::new(0, at);
        cache.set_packets_max(1_000);
        (0..1_000).for_each(|number| push_one(&mut cache, number));
        cache.set_packets_max(10);
        (989..1_000).for_each(|sequence| cache.on_nack(at, sequence));
        assert_eq!(retransmitted(&mut cache), (990..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn nothing_is_retransmitted_while_sequence_numbers_are_ambiguous() {
        let at = now();
        let mut cache = filled(1, 32_767, at);
        cache.on_nack(at, 32_767);
        assert_eq!(retransmitted(&mut cache), [32_767]);
        push_one(&mut cache, 32_768);
        cache.on_nack(at, 32_768);
        let later = at + Duration::from_millis(1_500);
        cache.begin_unit(later);
        push_one(&mut cache, 32_769);
        cache.on_nack(later, 32_769);
        assert_eq!(
            (retransmitted(&mut cache), cache.refused),
            (vec![], 2),
            "the second after it is ambiguous too"
        );
        let calm = later + Duration::from_millis(1_500);
        cache.begin_unit(calm);
        push_one(&mut cache, 32_770);
        cache.on_nack(calm, 32_770);
        assert_eq!(retransmitted(&mut cache), [32_770]);
    }
}
