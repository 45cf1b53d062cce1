//! What was observed in one run, and the record that is made of it: one line of JSON per run.

use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::beside::Beside;
use super::camera::Published;
use super::case::{Case, START_SECONDS};
use super::outcome::{Ages, Evidence, Figures, NS_PER_S, Seen, Shown, identify, lateness, rtx_types};
use super::packet::Kind;
use super::relay::{Direction, Entry};
use super::stream::Prepared;
use crate::Fallible;
use crate::clock::realtime_offset_ns;

/// Pictures per second that count as the full rate. The camera sends 30.
const FULL_RATE: usize = 29;

/// State of the page and of the server at one time.
pub(crate) struct Snapshot {
    /// CLOCK_MONOTONIC ns.
    pub(crate) at_ns: i64,
    /// The browser's `inbound-rtp` statistics.
    pub(crate) stats: Value,
    /// The server's answer to /api/viewers, or null.
    pub(crate) viewers: Value,
    /// State that the server's own page shows.
    pub(crate) state: String,
}

/// Everything observed in one run. Times are CLOCK_MONOTONIC ns.
#[derive(Default)]
pub(crate) struct Observed {
    /// Time at which the plain player began to connect, or at which the server's own page was opened.
    pub(crate) joined_ns: i64,
    pub(crate) shown: Vec<Shown>,
    pub(crate) snapshots: Vec<Snapshot>,
    /// What the server reported about its viewers last, and when it was asked.
    pub(crate) viewers: Value,
    pub(crate) asked_ns: Option<i64>,
    pub(crate) published: Vec<Published>,
    pub(crate) entries: Vec<Entry>,
    /// The newest SDP answer.
    pub(crate) answer: String,
    /// Connections that the page has made.
    pub(crate) connections: u64,
    /// Time at which the schedule of the link started.
    pub(crate) started_ns: Option<u64>,
    /// Time at which the viewer got another address.
    pub(crate) moved_ns: Option<i64>,
    pub(crate) errors: Vec<String>,
    /// Longest time for which the page's main thread did not run.
    pub(crate) page_stalled_ms: f64,
    pub(crate) machine_idle: f64,
    /// Figures of the load viewers beside the browser.
    pub(crate) beside: Option<Beside>,
}

/// Figures of one second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Second {
    /// Second since the first picture, from 0.
    pub(crate) second: u64,
    pub(crate) shown: u64,
    pub(crate) broken: u64,
    pub(crate) longest_gap_ms: f64,
    pub(crate) age_ms: Ages,
    /// Kilobits given to the link for the viewer, packets of which kind, and packets that the link dropped or lost.
    pub(crate) kbits: u64,
    pub(crate) rtp: u64,
    pub(crate) resent: u64,
    pub(crate) dropped: u64,
    pub(crate) lost: u64,
    pub(crate) queue_bytes_max: usize,
    /// Pictures decoded, and requests of the browser for packets (NACK) and for an IDR (PLI).
    pub(crate) decoded: u64,
    pub(crate) nacks: u64,
    pub(crate) plis: u64,
    /// State that the server's own page shows at the end of the second, and what the server reports about its viewers.
    pub(crate) state: String,
    pub(crate) viewers: Value,
}

/// Recovery after the last change of the link, in ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recovery {
    /// Time until the next picture; `None` if there was none.
    pub(crate) picture_ms: Option<f64>,
    /// Time until the start of the first second with the full picture rate.
    pub(crate) full_rate_ms: Option<f64>,
}

/// What the browser's decoder did in the counted time. The browser skips decoded pictures if two are due in one refresh of
/// the display, so `decoded` can be higher than the number of shown pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Decoding {
    /// Units published between two readings of the browser's statistics, and pictures that it decoded between them.
    pub(crate) published: u64,
    pub(crate) decoded: u64,
    /// Requests for packets (NACK) and for an IDR (PLI).
    pub(crate) nacks: u64,
    pub(crate) plis: u64,
}

/// Sources of disturbance that are not the link. A run with high values measured the machine instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Disturbance {
    /// Longest time for which the page's main thread did not run.
    pub(crate) page_stalled_ms: f64,
    /// Time by which the link delivered packets too late: the 99th percentile and the maximum.
    pub(crate) link_late_p99_ms: f64,
    pub(crate) link_late_max_ms: f64,
    /// Share of the machine's time that was idle.
    pub(crate) machine_idle: f64,
}

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// CLOCK_REALTIME in seconds.
    pub(crate) at: i64,
    pub(crate) server: String,
    pub(crate) stream: String,
    pub(crate) link: String,
    pub(crate) own_page: bool,
    pub(crate) seed: u64,
    /// Size of the largest unit that the camera published.
    pub(crate) unit_bytes_max: usize,
    /// Time from joining to the first picture; `None` if no picture was shown.
    pub(crate) first_picture_ms: Option<f64>,
    pub(crate) connections: u64,
    /// The first seconds, and the counted time after them.
    pub(crate) start: Figures,
    pub(crate) counted: Figures,
    pub(crate) decoding: Decoding,
    pub(crate) recovery: Option<Recovery>,
    pub(crate) disturbance: Disturbance,
    #[serde(default)]
    pub(crate) beside: Option<Beside>,
    pub(crate) per_second: Vec<Second>,
    pub(crate) errors: Vec<String>,
}

impl Record {
    pub(crate) fn of(case: &Case, stream: &Prepared, observed: &Observed) -> Record {
        let seen = identify(&observed.shown, &observed.published, stream.period(), &stream.hashes);
        let rtx = rtx_types(&observed.answer);
        let evidence = Evidence {
            seen: &seen,
            published: &observed.published,
            entries: &observed.entries,
            rtx_types: &rtx,
        };
        let first_ns = seen.first().map(|picture| picture.at_ns);
        let begin_ns = first_ns.unwrap_or(observed.joined_ns);
        let counted_ns = begin_ns + START_SECONDS.cast_signed() * NS_PER_S;
        let last_ns = observed.snapshots.last().map_or(begin_ns, |snapshot| snapshot.at_ns);
        let end_ns = (counted_ns + case.seconds.cast_signed() * NS_PER_S).min(last_ns.max(counted_ns));
        let (link_late_p99_ms, link_late_max_ms) = lateness(&observed.entries);
        Record {
            at: (begin_ns + realtime_offset_ns()) / NS_PER_S,
            server: case.server.name().to_owned(),
            stream: case.stream.name.to_owned(),
            link: case.link.text(),
            own_page: case.own_page,
            seed: case.seed,
            unit_bytes_max: observed.published.iter().map(|unit| unit.bytes).max().unwrap_or(0),
            first_picture_ms: first_ns.map(|ns| rounded_ms(ns - observed.joined_ns)),
            connections: observed.connections,
            start: evidence.figures(begin_ns, counted_ns),
            counted: evidence.figures(counted_ns, end_ns),
            decoding: observed.decoding(counted_ns, end_ns),
            recovery: observed.recovery(case, &seen),
            disturbance: Disturbance {
                page_stalled_ms: observed.page_stalled_ms.round(),
                link_late_p99_ms,
                link_late_max_ms,
                machine_idle: (observed.machine_idle * 100.0).round() / 100.0,
            },
            beside: observed.beside,
            per_second: observed.per_second(&evidence, begin_ns, end_ns),
            errors: observed.errors.clone(),
        }
    }
}

/// Returns by how much a counter of the browser's statistics has grown between two snapshots.
fn change(before: Option<&Snapshot>, after: Option<&Snapshot>, name: &str) -> u64 {
    let value = |at: Option<&Snapshot>| at.and_then(|at| at.stats[name].as_u64()).unwrap_or(0);
    value(after).saturating_sub(value(before))
}

fn rounded_ms(ns: i64) -> f64 {
    (ns as f64 / 1e5).round() / 10.0
}

impl Observed {
    fn per_second(&self, evidence: &Evidence<'_>, begin_ns: i64, end_ns: i64) -> Vec<Second> {
        let count = (end_ns - begin_ns) / NS_PER_S;
        let one = |second: i64| {
            let (from_ns, to_ns) = (begin_ns + second * NS_PER_S, begin_ns + (second + 1) * NS_PER_S);
            let figures = evidence.figures(from_ns, to_ns);
            let (before, after) = (self.snapshot_at(from_ns), self.snapshot_at(to_ns));
            let change = |name| change(before, after, name);
            Second {
                second: second.cast_unsigned(),
                shown: figures.shown,
                broken: figures.broken,
                longest_gap_ms: figures.longest_gap_ms,
                age_ms: figures.age_ms,
                kbits: figures.down.bytes * 8 / 1_000,
                rtp: figures.down.rtp,
                resent: figures.down.resent,
                dropped: figures.down.dropped,
                lost: figures.down.lost + figures.down.lost_in_outage,
                queue_bytes_max: figures.down.queue_bytes_max,
                decoded: change("framesDecoded"),
                nacks: change("nackCount"),
                plis: change("pliCount"),
                state: after.map(|at| at.state.clone()).unwrap_or_default(),
                viewers: after.map(|at| at.viewers.clone()).unwrap_or_default(),
            }
        };
        (0..count).map(one).collect()
    }

    fn decoding(&self, from_ns: i64, to_ns: i64) -> Decoding {
        let (before, after) = (self.snapshot_at(from_ns), self.snapshot_at(to_ns));
        let time = before.map_or(from_ns, |at| at.at_ns)..after.map_or(to_ns, |at| at.at_ns);
        Decoding {
            published: self.published.iter().filter(|unit| time.contains(&unit.at_ns)).count() as u64,
            decoded: change(before, after, "framesDecoded"),
            nacks: change(before, after, "nackCount"),
            plis: change(before, after, "pliCount"),
        }
    }

    /// Returns the newest snapshot taken before `at_ns`.
    fn snapshot_at(&self, at_ns: i64) -> Option<&Snapshot> {
        let after = self.snapshots.partition_point(|snapshot| snapshot.at_ns <= at_ns);
        self.snapshots.get(after.checked_sub(1)?)
    }

    /// Returns the recovery after the last change of the link. Returns `None` if the link did not change.
    fn recovery(&self, case: &Case, seen: &[Seen]) -> Option<Recovery> {
        let started_ns = self.started_ns?.cast_signed();
        let scheduled_ns = case.link.last_change_ns()?.cast_signed();
        let changed_ns = self.moved_ns.unwrap_or(started_ns + scheduled_ns);
        let after: Vec<i64> =
            seen.iter().map(|picture| picture.at_ns).filter(|at_ns| *at_ns >= changed_ns).collect();
        let is_full = |place: &usize| {
            after.get(place + FULL_RATE - 1).is_some_and(|last| last - after[*place] < NS_PER_S)
        };
        let full = (0..after.len()).find(is_full);
        Some(Recovery {
            picture_ms: after.first().map(|at_ns| rounded_ms(at_ns - changed_ns)),
            full_rate_ms: full.map(|place| rounded_ms(after[place] - changed_ns)),
        })
    }

    /// Writes one line per packet and per shown picture, in the order of time.
    pub(crate) fn write_trace(&self, path: &Path) -> Fallible<()> {
        let origin_ns = self.joined_ns;
        let ms = |ns: i64| (ns - origin_ns) as f64 / 1e6;
        let mut lines: Vec<(i64, String)> = Vec::new();
        for entry in &self.entries {
            let at_ns = entry.at_ns.cast_signed();
            let mut line = format!(
                "{:.3} {} {} bytes={} queue={} {:?} at={:.3}",
                ms(at_ns),
                if entry.direction == Direction::Down { "down" } else { "up" },
                entry.kind.name(),
                entry.bytes,
                entry.queued_bytes,
                entry.fate,
                ms(entry.out_ns.cast_signed()),
            );
            match entry.kind {
                Kind::Rtp(rtp) => write!(
                    line,
                    " type={} seq={} time={} ssrc={:08x}{}",
                    rtp.payload_type,
                    rtp.sequence,
                    rtp.time,
                    rtp.ssrc,
                    if rtp.marker { " marker" } else { "" }
                )?,
                Kind::Rtcp(report) => write!(line, " type={report}")?,
                _ => {}
            }
            lines.push((at_ns, line));
        }
        for unit in &self.published {
            let Published { number, at_ns, bytes } = unit;
            lines.push((*at_ns, format!("{:.3} camera unit={number} bytes={bytes}", ms(*at_ns))));
        }
        for picture in &self.shown {
            let number = picture.index.map_or("unreadable".to_owned(), |index| index.to_string());
            lines.push((picture.at_ns, format!("{:.3} shown {number}", ms(picture.at_ns))));
        }
        lines.sort_by_key(|(at_ns, _)| *at_ns);
        let text = lines.into_iter().fold(String::new(), |text, (_, line)| text + &line + "\n");
        Ok(std::fs::write(path, text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::case::LinkOptions;
    use super::super::server::Kind as Server;
    use super::super::stream::Stream;
    use super::*;

    #[test]
    fn recovery_is_the_next_picture_and_the_first_full_second_after_the_last_change() {
        let case = Case {
            server: Server::Ours,
            stream: Stream::parse("card").unwrap(),
            link: LinkOptions::parse("--rate 20M,1s:2M,2s:20M").unwrap(),
            seconds: 10,
            own_page: false,
            beside: 0,
            seed: 1,
        };
        let picture = |at_ms: i64| Seen {
            at_ns: at_ms * 1_000_000,
            presented: 0,
            is_read: true,
            number: None,
            age_ns: 0,
            is_broken: false,
        };
        // The schedule starts at 10 s, so the last change is at 12 s. From 12.7 s on there are 30 pictures per second.
        let slow = [11_900, 12_300, 12_700].map(picture);
        let full = (1..60).map(|index| picture(12_700 + index * 33));
        let seen: Vec<Seen> = slow.into_iter().chain(full).collect();
        let observed = Observed { started_ns: Some(10_000_000_000), ..Observed::default() };
        let recovery = observed.recovery(&case, &seen).unwrap();
        assert_eq!(recovery, Recovery { picture_ms: Some(300.0), full_rate_ms: Some(700.0) });
        let nothing = observed.recovery(&case, &seen[..1]).unwrap();
        assert_eq!(nothing, Recovery::default());
        assert_eq!(Observed::default().recovery(&case, &seen), None, "no picture, no schedule");
    }
}
