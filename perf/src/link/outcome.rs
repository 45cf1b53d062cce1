//! Computes the figures of a run from what the camera published, what the browser showed, and what the link carried.
//! This module is pure: all times are CLOCK_MONOTONIC ns, and come with the inputs.

use std::collections::HashSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::camera::Published;
use super::model::Cause;
use super::packet::Kind;
use super::relay::{Direction, Entry, Fate};

pub(crate) const NS_PER_S: i64 = 1_000_000_000;

/// Longest time for which a unit that is followed by no shown picture does not count as lost.
const IN_TRANSIT_NS: i64 = 5 * NS_PER_S;

/// One picture that the browser presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) at_ns: i64,
    /// The browser's count of presented pictures. It is higher by more than one than that of the picture before if the
    /// page was too busy to be called for a picture.
    pub(crate) presented: u64,
    /// False if the browser did not return the picture to the page. The other fields are then `None`.
    pub(crate) is_read: bool,
    /// Number that the picture shows; `None` if it is not readable.
    pub(crate) index: Option<u32>,
    /// Checksum of the luma.
    pub(crate) hash: Option<u32>,
}

/// A shown picture, matched with the unit that it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) at_ns: i64,
    pub(crate) presented: u64,
    pub(crate) is_read: bool,
    /// The camera's unit number; `None` if the picture is unreadable or was never published.
    pub(crate) number: Option<u64>,
    /// Time from the publication of the unit to the presentation.
    pub(crate) age_ns: i64,
    /// True if the number is unreadable or the checksum differs from that of the encoded picture.
    pub(crate) is_broken: bool,
}

/// Matches shown pictures with published units. The numbers in the pictures repeat after `period` pictures; a picture
/// belongs to the newest unit with its number. `hashes` has the checksum of each number, or is empty.
pub(crate) fn identify(shown: &[Shown], published: &[Published], period: u64, hashes: &[u32]) -> Vec<Seen> {
    let one = |picture: &Shown| {
        let newest = published.partition_point(|unit| unit.at_ns <= picture.at_ns).checked_sub(1);
        let newest = newest.and_then(|place| published.get(place));
        let unit = newest.zip(picture.index).and_then(|(newest, index)| {
            let back = (newest.number % period + period - u64::from(index) % period) % period;
            let number = newest.number.checked_sub(back)?;
            let place = published.binary_search_by_key(&number, |unit| unit.number).ok()?;
            published.get(place)
        });
        let expected = picture.index.and_then(|index| hashes.get(index as usize));
        let differs = expected.is_some() && picture.hash != expected.copied();
        Seen {
            at_ns: picture.at_ns,
            presented: picture.presented,
            is_read: picture.is_read,
            number: unit.map(|unit| unit.number),
            age_ns: unit.map_or(0, |unit| picture.at_ns - unit.at_ns),
            is_broken: picture.is_read && (unit.is_none() || differs),
        }
    };
    shown.iter().map(one).collect()
}

/// Ages of pictures in ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ages {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) max: f64,
}

impl Ages {
    fn of<'a>(seen: impl Iterator<Item = &'a Seen>) -> Ages {
        let known = seen.filter(|picture| picture.number.is_some());
        let mut ages: Vec<i64> = known.map(|picture| picture.age_ns).collect();
        ages.sort_unstable();
        let at = |fraction: f64| {
            let rank = (ages.len() as f64 * fraction).ceil() as usize;
            ages.get(rank.saturating_sub(1)).map_or(0.0, |ns| ms(*ns))
        };
        Ages { p50: at(0.5), p95: at(0.95), max: at(1.0) }
    }
}

/// Returns a time in ms with one decimal.
fn ms(ns: i64) -> f64 {
    (ns as f64 / 1e5).round() / 10.0
}

/// Packets in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Traffic {
    /// All packets given to the link, and their bytes with IP headers.
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) rtp: u64,
    /// RTP packets that were sent again, in their own stream (RFC 4588) or with a sequence number seen before.
    pub(crate) resent: u64,
    pub(crate) rtcp: u64,
    pub(crate) tcp: u64,
    /// Packets that the full queue dropped.
    pub(crate) dropped: u64,
    /// Packets lost at random, and lost in an outage.
    pub(crate) lost: u64,
    pub(crate) lost_in_outage: u64,
    /// Packets of a protocol that the link blocks.
    pub(crate) blocked: u64,
    pub(crate) queue_bytes_max: usize,
}

/// Figures of a part of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) seconds: f64,
    /// Units that the camera published in this time, and those of them that were never shown. Pictures that the browser
    /// presented but the page could not inspect are not in `not_shown`.
    pub(crate) published: u64,
    pub(crate) not_shown: u64,
    /// Pictures shown in this time, and those of them that the page could not inspect.
    pub(crate) shown: u64,
    pub(crate) uninspected: u64,
    pub(crate) broken: u64,
    /// Pictures shown after a newer one.
    pub(crate) backwards: u64,
    /// Times between two pictures above 200, 400 and 500 ms, and the longest.
    pub(crate) freezes_200: u64,
    pub(crate) freezes_400: u64,
    pub(crate) freezes_500: u64,
    pub(crate) longest_gap_ms: f64,
    pub(crate) age_ms: Ages,
    /// Fewest and most pictures in one second.
    pub(crate) per_second_min: u64,
    pub(crate) per_second_max: u64,
    pub(crate) down: Traffic,
    pub(crate) up: Traffic,
}

/// All inputs of the figures.
pub(crate) struct Evidence<'a> {
    pub(crate) seen: &'a [Seen],
    pub(crate) published: &'a [Published],
    pub(crate) entries: &'a [Entry],
    /// RTP payload types of retransmissions.
    pub(crate) rtx_types: &'a [u8],
}

impl Evidence<'_> {
    /// Returns the figures of the time `from_ns..to_ns`.
    pub(crate) fn figures(&self, from_ns: i64, to_ns: i64) -> Figures {
        let time = from_ns..to_ns;
        let seen: Vec<&Seen> = self.seen.iter().filter(|picture| time.contains(&picture.at_ns)).collect();
        let ever: HashSet<u64> = self.seen.iter().filter_map(|picture| picture.number).collect();
        let newest = ever.iter().max().copied();
        // Units after the newest shown one may still be on their way, but not for ever.
        let is_past = |unit: &Published| {
            newest.is_none_or(|newest| unit.number <= newest) || unit.at_ns < to_ns - IN_TRANSIT_NS
        };
        let published = self.published.iter().filter(|unit| time.contains(&unit.at_ns));
        let missing = |unit: &&Published| is_past(unit) && !ever.contains(&unit.number);
        let skipped = self.skipped(&time);
        let uncalled: u64 = skipped.iter().map(|(_, count)| count).sum();
        let uninspected = uncalled + seen.iter().filter(|picture| !picture.is_read).count() as u64;
        let not_shown = published.clone().filter(missing).count() as u64;
        let gaps = self.gaps(&time);
        let longer = |limit_ms: i64| gaps.iter().filter(|gap| **gap > limit_ms * 1_000_000).count() as u64;
        let numbers: Vec<u64> = seen.iter().filter_map(|picture| picture.number).collect();
        let per_second = per_second(&skipped, &time);
        Figures {
            seconds: ms(to_ns - from_ns) / 1e3,
            published: published.count() as u64,
            not_shown: not_shown.saturating_sub(uninspected),
            shown: seen.len() as u64 + uncalled,
            uninspected,
            broken: seen.iter().filter(|picture| picture.is_broken).count() as u64,
            backwards: numbers.windows(2).filter(|pair| pair[1] < pair[0]).count() as u64,
            freezes_200: longer(200),
            freezes_400: longer(400),
            freezes_500: longer(500),
            longest_gap_ms: ms(gaps.iter().max().copied().unwrap_or(0)),
            age_ms: Ages::of(seen.into_iter()),
            per_second_min: per_second.iter().min().copied().unwrap_or(0),
            per_second_max: per_second.iter().max().copied().unwrap_or(0),
            down: self.traffic(Direction::Down, &time),
            up: self.traffic(Direction::Up, &time),
        }
    }

    /// Returns for each picture of `time` its time, and the number of pictures that the browser presented just before
    /// it without calling the page.
    fn skipped(&self, time: &Range<i64>) -> Vec<(i64, u64)> {
        let before = [None].into_iter().chain(self.seen.iter().map(Some));
        let pairs = before.zip(self.seen).filter(|(_, picture)| time.contains(&picture.at_ns));
        // A new connection starts a new count, which is lower.
        let skipped = |before: Option<&Seen>, picture: &Seen| {
            before.map_or(0, |before| picture.presented.saturating_sub(before.presented + 1))
        };
        pairs.map(|(before, picture)| (picture.at_ns, skipped(before, picture))).collect()
    }

    /// Returns the times between pictures. A gap belongs to the part of the run in which it ends. The time from the
    /// last picture to the end is a gap too.
    fn gaps(&self, time: &Range<i64>) -> Vec<i64> {
        let mut gaps = Vec::new();
        let mut before = None;
        for at_ns in self.seen.iter().map(|picture| picture.at_ns).take_while(|at_ns| *at_ns < time.end) {
            if let Some(before) = before.filter(|_| time.contains(&at_ns)) {
                gaps.push(at_ns - before);
            }
            before = Some(at_ns);
        }
        gaps.push(time.end - before.unwrap_or(time.start));
        gaps
    }

    fn traffic(&self, direction: Direction, time: &Range<i64>) -> Traffic {
        let mut traffic = Traffic::default();
        let mut known = HashSet::new();
        for entry in self.entries.iter().filter(|entry| entry.direction == direction) {
            let is_again = match entry.kind {
                Kind::Rtp(rtp) => {
                    let is_rtx = self.rtx_types.contains(&rtp.payload_type) && !rtp.is_padded;
                    !known.insert((rtp.ssrc, rtp.sequence, rtp.time)) || is_rtx
                }
                _ => false,
            };
            if time.contains(&entry.at_ns.cast_signed()) {
                traffic.add(entry, is_again);
            }
        }
        traffic
    }
}

/// Returns the number of pictures in each whole second.
fn per_second(skipped: &[(i64, u64)], time: &Range<i64>) -> Vec<u64> {
    let count = usize::try_from((time.end - time.start) / NS_PER_S).unwrap_or(0);
    let mut seconds = vec![0; count];
    for (at_ns, before) in skipped {
        let index = usize::try_from((at_ns - time.start) / NS_PER_S).unwrap_or(usize::MAX);
        if let Some(second) = seconds.get_mut(index) {
            *second += 1 + before;
        }
    }
    seconds
}

impl Traffic {
    fn add(&mut self, entry: &Entry, is_again: bool) {
        self.packets += 1;
        self.bytes += entry.bytes as u64;
        self.resent += u64::from(is_again);
        match entry.kind {
            Kind::Rtp(_) => self.rtp += 1,
            Kind::Rtcp(_) => self.rtcp += 1,
            Kind::Tcp(_) => self.tcp += 1,
            _ => {}
        }
        match entry.fate {
            Fate::Discarded(Cause::QueueFull) => self.dropped += 1,
            Fate::Discarded(Cause::Loss) => self.lost += 1,
            Fate::Discarded(Cause::Outage) => self.lost_in_outage += 1,
            Fate::Discarded(Cause::Blocked) => self.blocked += 1,
            Fate::Travelling | Fate::Delivered => {}
        }
        self.queue_bytes_max = self.queue_bytes_max.max(entry.queued_bytes);
    }
}

/// Returns the 99th percentile and the maximum of the time by which the relay was late, in ms.
pub(crate) fn lateness(entries: &[Entry]) -> (f64, f64) {
    let mut late: Vec<u64> = entries.iter().map(|entry| entry.late_ns).collect();
    late.sort_unstable();
    let at = |fraction: f64| {
        let rank = (late.len() as f64 * fraction).ceil() as usize;
        late.get(rank.saturating_sub(1)).map_or(0.0, |ns| ms(ns.cast_signed()))
    };
    (at(0.99), at(1.0))
}

/// Returns the payload types of retransmissions in an SDP answer.
pub(crate) fn rtx_types(sdp: &str) -> Vec<u8> {
    let maps = sdp.lines().filter_map(|line| line.strip_prefix("a=rtpmap:"));
    let rtx = maps.filter_map(|map| map.split_once(' ')).filter(|(_, codec)| codec.starts_with("rtx/"));
    rtx.filter_map(|(kind, _)| kind.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::packet::Rtp;
    use super::*;

    const MS: i64 = 1_000_000;

    fn published(count: u64) -> Vec<Published> {
        (0..count)
            .map(|number| Published { number, at_ns: number.cast_signed() * 33 * MS, bytes: 9 })
            .collect()
    }

    fn shown(number: u64, age_ms: i64, period: u64) -> Shown {
        let index = u32::try_from(number % period).ok();
        let at_ns = (number.cast_signed() * 33 + age_ms) * MS;
        Shown { at_ns, presented: 0, is_read: true, index, hash: index.map(|index| index + 7) }
    }

    #[test]
    fn a_picture_belongs_to_the_newest_unit_with_its_number() {
        let hashes: Vec<u32> = (7..17).collect();
        let pictures = [shown(3, 20, 10), shown(13, 200, 10), shown(19, 5, 10)];
        let seen = identify(&pictures, &published(40), 10, &hashes);
        let found: Vec<_> = seen.iter().map(|picture| (picture.number, picture.age_ns / MS)).collect();
        assert_eq!(found, [(Some(3), 20), (Some(13), 200), (Some(19), 5)]);
        assert!(seen.iter().all(|picture| !picture.is_broken));
    }

    #[test]
    fn unreadable_different_and_unpublished_pictures_are_broken() {
        let hashes: Vec<u32> = (7..17).collect();
        let intact = shown(3, 20, 10);
        let bad = [
            Shown { index: None, ..intact },
            Shown { hash: Some(1), ..intact },
            Shown { hash: None, ..intact },
            Shown { index: Some(9), ..intact },
        ];
        let seen = identify(&bad, &published(40), 10, &hashes);
        assert!(seen.iter().all(|picture| picture.is_broken), "{seen:?}");
        let seen = identify(&[Shown { hash: Some(1), ..intact }], &published(40), 10, &[]);
        assert!(!seen[0].is_broken, "without known checksums only the number is checked");
        let unread = Shown { is_read: false, index: None, hash: None, ..intact };
        assert!(!identify(&[unread], &published(40), 10, &hashes)[0].is_broken);
    }

    fn figures(seen: &[Seen], entries: &[Entry], from_ns: i64, to_ns: i64) -> Figures {
        Evidence { seen, published: &published(100), entries, rtx_types: &[97] }.figures(from_ns, to_ns)
    }

    #[test]
    fn freezes_ages_and_missing_pictures_are_counted() {
        let numbers = [0, 1, 2, 3, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29];
        let pictures: Vec<Shown> = numbers.iter().map(|number| shown(*number, 40, 1 << 32)).collect();
        let seen = identify(&pictures, &published(100), 1 << 32, &[]);
        let all = figures(&seen, &[], 0, 1_000 * MS);
        assert_eq!((all.published, all.not_shown, all.shown, all.broken), (31, 16, 14, 0));
        assert_eq!((all.freezes_200, all.freezes_400, all.freezes_500), (1, 1, 1));
        assert_eq!((all.longest_gap_ms, all.age_ms.p50, all.age_ms.max), (561.0, 40.0, 40.0));
        assert_eq!((all.per_second_min, all.per_second_max), (14, 14));
        let part = figures(&seen, &[], 0, 400 * MS);
        assert_eq!((part.freezes_200, part.longest_gap_ms), (1, 261.0), "the time to the end is a gap");
        let late = figures(&seen, &[], 0, 3_000 * MS + IN_TRANSIT_NS);
        assert_eq!(
            (late.published, late.not_shown),
            (100, 77),
            "units after the last picture are lost after a while"
        );
        let nothing = figures(&[], &[], 0, 1_000 * MS);
        assert_eq!((nothing.shown, nothing.longest_gap_ms, nothing.not_shown), (0, 1_000.0, 31));
    }

    #[test]
    fn pictures_for_which_the_page_was_not_called_are_not_lost() {
        let numbered = |(presented, number)| Shown { presented, ..shown(number, 40, 1 << 32) };
        let pictures = [(1, 0), (2, 1), (5, 4), (6, 8), (1, 9), (2, 10)].map(numbered);
        let seen = identify(&pictures, &published(100), 1 << 32, &[]);
        let all = figures(&seen, &[], 0, 1_000 * MS);
        assert_eq!((all.shown, all.uninspected, all.not_shown), (8, 2, 3));
    }

    #[test]
    fn traffic_counts_drops_and_resends_of_both_kinds() {
        let entry = |payload_type, sequence, fate| Entry {
            at_ns: 5,
            direction: Direction::Down,
            kind: Kind::Rtp(Rtp {
                payload_type,
                marker: false,
                is_padded: sequence == 1_001,
                sequence,
                time: 1,
                ssrc: 1,
            }),
            bytes: 100,
            queued_bytes: 300,
            fate,
            out_ns: 6,
            late_ns: 0,
        };
        let entries = [
            entry(96, 1, Fate::Delivered),
            entry(96, 2, Fate::Discarded(Cause::QueueFull)),
            entry(96, 2, Fate::Delivered),
            entry(97, 1_000, Fate::Discarded(Cause::Loss)),
            entry(97, 1_001, Fate::Delivered),
        ];
        let traffic = figures(&[], &entries, 0, 10).down;
        assert_eq!((traffic.packets, traffic.bytes, traffic.rtp, traffic.resent), (5, 500, 5, 2));
        assert_eq!((traffic.dropped, traffic.lost, traffic.queue_bytes_max), (1, 1, 300));
    }

    #[test]
    fn payload_types_of_retransmissions_come_from_the_answer() {
        let sdp = "a=rtpmap:96 H264/90000\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\na=rtpmap:99 rtx/90000\r\n";
        assert_eq!(rtx_types(sdp), [97, 99]);
    }
}
