//! The table of links that a viewer must survive, with the limits that must hold, and its text.

use std::fmt::Write as _;
use std::path::Path;

use super::beside::Beside;
use super::chart;
use super::outcome::Figures;
use super::record::{Decoding, Record, Recovery};
use super::server::Kind;
use crate::Fallible;

pub(crate) const RECORDS: &str = "perf/results/link.jsonl";

const BOTH: &[&str] = &["x264-720p", "x264-1080p"];

/// A row of the table: a link, and what must hold on it.
pub(crate) struct Row {
    pub(crate) link: &'static str,
    pub(crate) streams: &'static [&'static str],
    pub(crate) seconds: u64,
    pub(crate) rounds: u64,
    /// True if the browser opens the server's own page. Only streaming-server is measured so.
    pub(crate) own_page: bool,
    /// Load viewers over loopback beside the browser. Only streaming-server is measured so.
    pub(crate) beside: usize,
    /// True if the link is between streaming-server and mediamtx, to which it publishes.
    is_uplink: bool,
    wanted: &'static str,
    /// Returns true if the record is as wanted. The flag is true for the 1080p stream.
    holds: fn(&Record, bool) -> bool,
}

/// What most rows have. A row replaces the fields that differ.
const USUAL: Row = Row {
    link: "",
    streams: BOTH,
    seconds: 20,
    rounds: 1,
    own_page: false,
    beside: 0,
    is_uplink: false,
    wanted: "",
    holds: |_, _| false,
};

impl Row {
    /// Returns which servers are measured, if `asked` are wanted.
    pub(crate) fn servers_of(&self, asked: &[Kind]) -> Vec<Kind> {
        if self.is_uplink {
            return asked.iter().filter(|kind| **kind == Kind::Ours).map(|_| Kind::OursWhip).collect();
        }
        let needs_ours = self.own_page || self.beside > 0;
        asked.iter().copied().filter(|kind| *kind == Kind::Ours || !needs_ours).collect()
    }

    /// Returns the link and what is special about the row.
    pub(crate) fn title(&self) -> String {
        let mut title = format!("`{}`", self.link);
        if self.own_page {
            title.push_str(", the server's own page");
        }
        if self.is_uplink {
            title.push_str(", WHIP to mediamtx");
        }
        if self.beside > 0 {
            let _ = write!(title, ", beside {} viewers over loopback", self.beside);
        }
        title
    }

    /// Returns true if the record is a run of this row.
    pub(crate) fn has(&self, record: &Record) -> bool {
        record.link == self.link
            && self.streams.contains(&record.stream.as_str())
            && record.own_page == self.own_page
            && record.beside.map_or(0, |beside| beside.viewers) == self.beside
            && (record.server == Kind::OursWhip.name()) == self.is_uplink
    }
}

/// Returns true if the full rate is back within one STUN check after the viewer has moved.
fn media_follows(record: &Record) -> bool {
    let full_ms = record.recovery.and_then(|recovery| recovery.full_rate_ms);
    is_whole(&record.counted) && full_ms.is_some_and(|ms| ms < 2_700.0)
}

/// Returns true if another way has shown the picture within 3 s.
fn has_no_long_gap(record: &Record) -> bool {
    record.counted.broken == 0 && record.counted.longest_gap_ms < 3_000.0
}

/// Returns true if nothing is missing for the load viewers.
fn is_undisturbed(record: &Record) -> bool {
    record.beside.is_some_and(|beside| beside.missing == 0 && beside.received > 0)
}

fn is_whole(figures: &Figures) -> bool {
    figures.broken == 0 && figures.backwards == 0 && figures.shown > 0
}

fn is_steady(figures: &Figures) -> bool {
    figures.per_second_max - figures.per_second_min <= 2
}

fn limit(is_large: bool, small: f64, large: f64) -> f64 {
    if is_large { large } else { small }
}

pub(crate) const ROWS: &[Row] = &[
    Row {
        link: "--rate max",
        seconds: 10,
        wanted: "the harness itself: nothing lost, no freeze over 200 ms",
        holds: |record, _| is_whole(&record.counted) && record.counted.freezes_200 == 0,
        ..USUAL
    },
    Row {
        link: "--rate 15M --queue 60k --rtt 20ms",
        rounds: 5,
        wanted: "0 pictures lost, no freeze over 200 ms, age p95 < 120 ms (1080p: 170 ms)",
        holds: |record, is_large| {
            let figures = &record.counted;
            is_whole(figures)
                && figures.not_shown == 0
                && figures.freezes_200 == 0
                && figures.age_ms.p95 < limit(is_large, 120.0, 170.0)
        },
        ..USUAL
    },
    Row {
        link: "--rate 10M --queue 100k --rtt 40ms",
        wanted: "no freeze over 400 ms, age p95 < 250 ms (1080p: 300 ms)",
        holds: |record, is_large| {
            let figures = &record.counted;
            is_whole(figures)
                && figures.freezes_400 == 0
                && figures.age_ms.p95 < limit(is_large, 250.0, 300.0)
        },
        ..USUAL
    },
    Row {
        link: "--rate 4M --queue 100k --rtt 40ms",
        seconds: 60,
        wanted: "unbroken, at least 8 pictures/s (1080p: 6), age p95 < 700 ms, steady (counts differ by at most 2)",
        holds: |record, is_large| {
            let figures = &record.counted;
            is_whole(figures)
                && figures.per_second_min as f64 >= limit(is_large, 8.0, 6.0)
                && figures.age_ms.p95 < 700.0
                && is_steady(figures)
        },
        ..USUAL
    },
    Row {
        link: "--rate 4M --queue 100k --rtt 40ms",
        streams: &["card-obeys"],
        wanted: "30 pictures/s from 5 s after the first picture on, unbroken",
        holds: |record, _| {
            let later = record.per_second.iter().filter(|second| second.second >= 5);
            is_whole(&record.counted) && later.map(|second| second.shown).min() >= Some(29)
        },
        ..USUAL
    },
    Row {
        link: "--rate 1M --queue 60k --rtt 80ms",
        seconds: 30,
        wanted: "unbroken, a picture every 2 s (1080p: 3.5 s), age p95 < 2.5 s (1080p: 4 s)",
        holds: |record, is_large| {
            let figures = &record.counted;
            is_whole(figures)
                && figures.longest_gap_ms <= limit(is_large, 2_000.0, 3_500.0)
                && figures.age_ms.p95 < limit(is_large, 2_500.0, 4_000.0)
        },
        ..USUAL
    },
    Row {
        link: "--rate 20M --queue 200k --rtt 30ms --loss 5%",
        wanted: "0 broken, no freeze over 500 ms",
        holds: |record, _| is_whole(&record.counted) && record.counted.freezes_500 == 0,
        ..USUAL
    },
    Row {
        link: "--rate 20M,10s:2M,20s:20M --queue 200k --rtt 20ms",
        seconds: 30,
        wanted: "full rate again within 4 s",
        holds: |record, _| {
            let full_ms = record.recovery.and_then(|recovery| recovery.full_rate_ms);
            is_whole(&record.counted) && full_ms.is_some_and(|ms| ms < 4_000.0)
        },
        ..USUAL
    },
    Row {
        link: "--rate 20M --queue 200k --rtt 20ms --outage 10s:2s",
        wanted: "picture within 800 ms of its end, no reconnect",
        holds: |record, _| {
            let picture_ms = record.recovery.and_then(|recovery| recovery.picture_ms);
            is_whole(&record.counted) && picture_ms.is_some_and(|ms| ms < 800.0) && record.connections == 1
        },
        ..USUAL
    },
    Row {
        link: "--rate 20M --queue 200k --rtt 20ms --move 10s",
        streams: &["x264-720p"],
        wanted: "media follows within 2.7 s",
        holds: |record, _| media_follows(record),
        ..USUAL
    },
    Row {
        link: "--rate 1M --queue 60k --rtt 40ms --loss 2%",
        streams: &["x264-600k"],
        wanted: "30 pictures/s",
        holds: |record, _| {
            is_whole(&record.counted) && record.counted.not_shown == 0 && record.counted.per_second_min >= 29
        },
        ..USUAL
    },
    Row {
        link: "--rate 20M --queue 200k --rtt 20ms --move 10s",
        streams: &["x264-720p"],
        own_page: true,
        wanted: "media follows within 2.7 s",
        holds: |record, _| media_follows(record),
        ..USUAL
    },
    Row {
        link: "--rate 20M --queue 200k --rtt 20ms --block-udp 10s",
        own_page: true,
        wanted: "no gap over 3 s",
        holds: |record, _| has_no_long_gap(record),
        ..USUAL
    },
    Row {
        link: "--rate 20M --queue 200k --rtt 20ms --block-udp 10s --block-tcp 16s",
        own_page: true,
        wanted: "no gap over 3 s",
        holds: |record, _| has_no_long_gap(record),
        ..USUAL
    },
    Row {
        link: "--rate 20M --queue 200k --rtt 20ms --block-udp 0s --block-tcp 0s",
        own_page: true,
        wanted: "first picture within 3 s",
        holds: |record, _| {
            record.counted.broken == 0 && record.first_picture_ms.is_some_and(|ms| ms < 3_000.0)
        },
        ..USUAL
    },
    Row {
        link: "--rate 4M --queue 100k --rtt 40ms",
        is_uplink: true,
        streams: &["x264-720p"],
        seconds: 60,
        wanted: "unbroken at the far end, age below 1 s",
        holds: |record, _| is_whole(&record.counted) && record.counted.age_ms.max < 1_000.0,
        ..USUAL
    },
    beside("--rate max"),
    beside("--rate 15M --queue 60k --rtt 20ms"),
    beside("--rate 4M --queue 100k --rtt 40ms"),
    beside("--rate 1M --queue 60k --rtt 80ms"),
    beside("--rate 20M --queue 200k --rtt 30ms --loss 5%"),
    beside("--rate 20M --queue 200k --rtt 20ms --outage 10s:2s"),
    Row { own_page: true, ..beside("--rate 20M --queue 200k --rtt 20ms --block-udp 0s --block-tcp 0s") },
];

/// Returns a row with one browser on this link and 20 load viewers on a good one.
const fn beside(link: &'static str) -> Row {
    Row {
        link,
        streams: &["x264-720p"],
        beside: 20,
        wanted: "nothing missing for the 20, p99 and CPU as beside `--rate max`",
        holds: |record, _| is_undisturbed(record),
        ..USUAL
    }
}

/// Returns the figures of a run in a few lines.
pub(crate) fn brief(record: &Record) -> String {
    let mut text = format!(
        "{} {} {}{}: first picture {}, {} connection(s)\n",
        record.server,
        record.stream,
        record.link,
        if record.own_page { " (own page)" } else { "" },
        record.first_picture_ms.map_or("never".to_owned(), |ms| format!("after {ms:.0} ms")),
        record.connections,
    );
    for (name, figures) in [("start", &record.start), ("counted", &record.counted)] {
        let Figures { age_ms, down, up, .. } = figures;
        let _ = writeln!(
            text,
            "  {name:>7} {:.1} s: shown {} of {} (lost {}), {}-{} per s, broken {}, backwards {} | gap {:.0} ms, \
             freezes >200 {} >400 {} >500 {} | age p50 {:.0} p95 {:.0} max {:.0} ms | down {} kbit/s, RTP {}, resent {}, \
             dropped {}, lost {}, queue {} B | up {} packets",
            figures.seconds,
            figures.shown,
            figures.published,
            figures.not_shown,
            figures.per_second_min,
            figures.per_second_max,
            figures.broken,
            figures.backwards,
            figures.longest_gap_ms,
            figures.freezes_200,
            figures.freezes_400,
            figures.freezes_500,
            age_ms.p50,
            age_ms.p95,
            age_ms.max,
            (down.bytes as f64 * 8.0 / 1e3 / figures.seconds.max(0.001)).round(),
            down.rtp,
            down.resent,
            down.dropped,
            down.lost + down.lost_in_outage,
            down.queue_bytes_max,
            up.packets,
        );
    }
    let Decoding { published, decoded, nacks, plis } = record.decoding;
    let _ = writeln!(text, "  decoded {decoded} of {published} published, NACK {nacks}, PLI {plis}");
    if let Some(Beside { viewers, received, missing, p50_ms, p99_ms, cpu_ms }) = record.beside {
        let _ = writeln!(
            text,
            "  beside {viewers} viewers: {received} units, {missing} missing, p50 {p50_ms} p99 {p99_ms} ms, CPU {cpu_ms} ms/s"
        );
    }
    if let Some(recovery) = record.recovery {
        let shown = |ms: Option<f64>| ms.map_or("never".to_owned(), |ms| format!("{ms:.0} ms"));
        let _ = writeln!(
            text,
            "  after the change: next picture {}, full rate {}",
            shown(recovery.picture_ms),
            shown(recovery.full_rate_ms)
        );
    }
    let _ = writeln!(
        text,
        "  disturbance: page stalled {:.0} ms, link late p99 {:.1} max {:.1} ms, machine idle {:.0} % {}",
        record.disturbance.page_stalled_ms,
        record.disturbance.link_late_p99_ms,
        record.disturbance.link_late_max_ms,
        record.disturbance.machine_idle * 100.0,
        record.errors.join("; "),
    );
    text
}

/// Returns one line for each second of a run.
pub(crate) fn per_second(record: &Record) -> String {
    let mut text = String::from(
        "   s  shown decoded broken    gap   age p50/p95/max ms   kbit/s   RTP resent dropped lost   queue NACK PLI\n",
    );
    for second in &record.per_second {
        let _ = writeln!(
            text,
            "{:>4}  {:>5} {:>7} {:>6} {:>6.0} {:>7.0} {:>6.0} {:>6.0}  {:>7} {:>5} {:>6} {:>7} {:>4} {:>7} {:>4} {:>3}",
            second.second,
            second.shown,
            second.decoded,
            second.broken,
            second.longest_gap_ms,
            second.age_ms.p50,
            second.age_ms.p95,
            second.age_ms.max,
            second.kbits,
            second.rtp,
            second.resent,
            second.dropped,
            second.lost,
            second.queue_bytes_max,
            second.nacks,
            second.plis,
        );
    }
    text
}

/// Writes the table and the charts of all records of a file, next to it.
pub(crate) fn write(records: &Path) -> Fallible<()> {
    let text = std::fs::read_to_string(records)?;
    let records_read = text.lines().map(serde_json::from_str).collect::<Result<Vec<Record>, _>>()?;
    let path = records.with_extension("md");
    std::fs::write(&path, markdown(&records_read)?)?;
    for (name, svg) in chart::all(&records_read) {
        std::fs::write(records.with_file_name(name), svg)?;
    }
    eprintln!("wrote {}", path.display());
    Ok(())
}

const HEAD: &str = "\
# Links

`perf/link table` made these runs and wrote this file from `link.jsonl`; see [Links](../README.md#links) for what the
columns mean. The values count from 3 s after the first picture; the columns *first 3 s* are apart. With several runs,
each cell has the lowest and the highest value.
";

/// Returns the table as text: a section for each row, a line for each stream and server.
fn markdown(records: &[Record]) -> Fallible<String> {
    let mut text = HEAD.to_owned();
    for row in ROWS {
        let of_row: Vec<&Record> = records.iter().filter(|record| row.has(record)).collect();
        if of_row.is_empty() {
            continue;
        }
        write!(
            text,
            "\n## {}\n\nWanted: {}.\n\n\
             | stream | server | holds | first picture, ms | pictures/s | lost | not decoded | broken \
             | freezes > 200, 400 ms | longest gap, ms | age p50, p95, max, ms | after the change: picture, full rate, ms \
             | resent | dropped | first 3 s: gap, ms | lost | page stalled, ms | beside: missing, p99 ms, CPU ms/s |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
            row.title(),
            row.wanted
        )?;
        for stream in row.streams {
            let mut servers: Vec<&str> = Vec::new();
            for record in of_row.iter().filter(|record| record.stream == *stream) {
                if !servers.contains(&record.server.as_str()) {
                    servers.push(&record.server);
                }
            }
            for server in servers {
                let runs = of_row.iter().filter(|record| record.stream == *stream && record.server == server);
                line(&mut text, row, stream, server, &runs.copied().collect::<Vec<_>>())?;
            }
        }
    }
    Ok(text)
}

/// Returns the lowest and the highest value as text, or `None` if there are no values.
fn range_text(values: impl Iterator<Item = f64> + Clone) -> Option<String> {
    let low = values.clone().reduce(f64::min)?;
    let high = values.reduce(f64::max)?;
    Some(if low < high { format!("{low}-{high}") } else { format!("{high}") })
}

fn line(text: &mut String, row: &Row, stream: &str, server: &str, runs: &[&Record]) -> Fallible<()> {
    let held = runs.iter().filter(|record| (row.holds)(record, stream.contains("1080p"))).count();
    let range = |value: fn(&Record) -> f64| {
        range_text(runs.iter().map(|record| value(record).round())).unwrap_or_default()
    };
    let recovery = |time: fn(&Recovery) -> Option<f64>| {
        let recoveries: Vec<Recovery> = runs.iter().filter_map(|record| record.recovery).collect();
        let never = recoveries.iter().filter(|recovery| time(recovery).is_none()).count();
        match range_text(recoveries.iter().filter_map(time).map(f64::round)) {
            Some(times) if never > 0 => format!("{times}, {never} never"),
            Some(times) => times,
            None if recoveries.is_empty() => "-".to_owned(),
            None => "never".to_owned(),
        }
    };
    let beside = |value: fn(&Beside) -> f64| {
        range_text(runs.iter().filter_map(|record| record.beside.as_ref().map(value)))
    };
    let beside = match (beside(|b| b.missing as f64), beside(|b| b.p99_ms), beside(|b| b.cpu_ms)) {
        (Some(missing), Some(p99), Some(cpu)) => format!("{missing}, {p99}, {cpu}"),
        _ => "-".to_owned(),
    };
    let first = if runs.iter().any(|record| record.first_picture_ms.is_none()) {
        "never".to_owned()
    } else {
        range(|record| record.first_picture_ms.unwrap_or(0.0))
    };
    writeln!(
        text,
        "| {stream} | {server} | {held} of {} | {first} | {} to {} | {} | {} | {} | {}, {} | {} | {}, {}, {} | {}, {} | {} \
         | {} | {} | {} | {} | {beside} |",
        runs.len(),
        range(|record| record.counted.per_second_min as f64),
        range(|record| record.counted.per_second_max as f64),
        range(|record| record.counted.not_shown as f64),
        range(|record| record.decoding.published.saturating_sub(record.decoding.decoded) as f64),
        range(|record| record.counted.broken as f64),
        range(|record| record.counted.freezes_200 as f64),
        range(|record| record.counted.freezes_400 as f64),
        range(|record| record.counted.longest_gap_ms),
        range(|record| record.counted.age_ms.p50),
        range(|record| record.counted.age_ms.p95),
        range(|record| record.counted.age_ms.max),
        recovery(|recovery| recovery.picture_ms),
        recovery(|recovery| recovery.full_rate_ms),
        range(|record| record.counted.down.resent as f64),
        range(|record| record.counted.down.dropped as f64),
        range(|record| record.start.longest_gap_ms),
        range(|record| record.start.not_shown as f64),
        range(|record| record.disturbance.page_stalled_ms),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::case::LinkOptions;
    use super::super::outcome::Ages;
    use super::super::stream::Stream;
    use super::*;

    #[test]
    fn rows_have_known_streams_and_links_that_records_can_repeat() {
        for row in ROWS {
            assert_eq!(LinkOptions::parse(row.link).unwrap().text(), row.link);
            assert!(row.streams.iter().all(|stream| Stream::parse(stream).is_ok()));
        }
    }

    #[test]
    fn the_table_reports_the_range_of_all_runs_and_how_many_held() {
        let run = |not_shown, p95| Record {
            server: "ours".to_owned(),
            stream: "x264-720p".to_owned(),
            link: ROWS[1].link.to_owned(),
            counted: Figures {
                shown: 600,
                not_shown,
                age_ms: Ages { p50: 50.0, p95, max: 130.0 },
                ..Figures::default()
            },
            ..Record::default()
        };
        let text = markdown(&[run(0, 110.0), run(0, 125.0), run(7, 110.0)]).unwrap();
        let line = text.lines().find(|line| line.starts_with("| x264-720p | ours |")).unwrap();
        assert!(line.contains("| 1 of 3 |") && line.contains("| 0-7 |"), "{line}");
        assert!(line.contains("| 50, 110-125, 130 |"), "{line}");
        assert_eq!(text.matches("\n## ").count(), 1, "rows without runs are left out");
    }
}
