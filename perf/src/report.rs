//! Makes reports from records: medians of the rounds, Markdown tables, charts, and the table in the README.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::Fallible;
use crate::plot::{Chart, Line};
use crate::record::{FOREIGN_MAX, Record, Setting};

/// The lines between which the table in the README is replaced.
const BEGIN: &str = "<!-- perf/table begins -->";
const END: &str = "<!-- perf/table ends -->";

/// Servers in the order in which the tables show them, with their display names.
const SERVERS: &[(&str, &str)] = &[
    ("ours", "streaming-server"),
    ("ours-2", "streaming-server, 2 workers"),
    ("before", "streaming-server, the build compared with"),
    ("pion-best", "pion at its best"),
    ("pion-best-1", "pion at its best, one track"),
    ("pion", "pion, the Go design"),
    ("go2rtc", "go2rtc"),
    ("aiortc", "aiortc, passthrough"),
    ("floor-gcm", "floor: encrypt, GSO, send"),
    ("floor-cm", "floor: encrypt (CM), GSO, send"),
    ("floor-send", "floor: GSO, send"),
];

/// Numbers of viewers in the README's table.
const README_VIEWERS: &[usize] = &[1, 10, 100];
const README_SERVERS: &[&str] = &["ours", "ours-2", "pion-best", "pion", "go2rtc", "aiortc", "floor-gcm"];
const README_KBPS: u32 = 8_000;

/// All rounds of one setting.
struct Row {
    setting: Setting,
    rounds: Vec<Record>,
}

impl Row {
    fn median(&self, of: impl Fn(&Record) -> f64) -> f64 {
        let mut values: Vec<f64> = self.rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    }

    fn sum(&self, of: impl Fn(&Record) -> u64) -> u64 {
        self.rounds.iter().map(of).sum()
    }

    fn private_mb(&self) -> f64 {
        self.median(|record| (record.memory.anon_kb + record.memory.file_kb) as f64 / 1024.0)
    }
}

/// Reads the records of all files, one JSON object per line.
pub(crate) fn read(paths: &[std::path::PathBuf]) -> Fallible<Vec<Record>> {
    let mut records = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        for (index, line) in text.lines().enumerate() {
            let record = serde_json::from_str(line);
            records.push(record.map_err(|error| format!("{}:{}: {error}", path.display(), index + 1))?);
        }
    }
    Ok(records)
}

fn place(server: &str) -> usize {
    SERVERS.iter().position(|(name, _)| *name == server).unwrap_or(SERVERS.len())
}

fn name(server: &str) -> &str {
    SERVERS.iter().find(|(known, _)| *known == server).map_or(server, |(_, name)| name)
}

fn rows(records: &[Record]) -> Vec<Row> {
    let mut groups: BTreeMap<_, Vec<Record>> = BTreeMap::new();
    for record in records {
        let Setting { server, viewers, kbps, record: recording, gro, feedback } = &record.setting;
        let key = (*kbps, *recording, (*gro, *feedback), *viewers, place(server), server.clone());
        groups.entry(key).or_default().push(record.clone());
    }
    groups
        .into_values()
        .filter_map(|rounds| {
            Some(Row { setting: rounds.first()?.setting.clone(), rounds: undisturbed(rounds) })
        })
        .collect()
}

/// Returns the undisturbed rounds, or all rounds if every one was disturbed.
fn undisturbed(mut rounds: Vec<Record>) -> Vec<Record> {
    if rounds.iter().any(Record::is_clean) {
        rounds.retain(Record::is_clean);
    }
    rounds
}

/// Formats microseconds with about two significant digits.
fn time(us: f64) -> String {
    match us {
        0.0 => "-".to_owned(),
        ..1_000.0 => format!("{us:.0} µs"),
        ..10_000.0 => format!("{:.1} ms", us / 1e3),
        _ => format!("{:.0} ms", us / 1e3),
    }
}

/// Returns all results as Markdown, with one table per bit rate.
pub(crate) fn markdown(records: &[Record]) -> String {
    let mut text = String::from(
        "# Results\n\nWritten by `perf/table` from the records in this directory; `perf/README.md` explains each \
         figure. Figures are medians of the rounds; units are sums.\n",
    );
    for machine in unique(records, |record| record.machine.clone()) {
        let _ = writeln!(text, "\nMachine: {machine}.");
    }
    for commit in unique(records, |record| record.commit.clone()) {
        let _ = writeln!(text, "Commit: {commit}.");
    }
    let rows = rows(records);
    let _ = write!(text, "\n{}", disturbance(rows.iter()));
    let mut last = None;
    for row in &rows {
        let Setting { kbps, record, gro, feedback, .. } = row.setting;
        if last.replace((kbps, record, gro, feedback)) != Some((kbps, record, gro, feedback)) {
            text.push_str(&heading(&row.setting));
        }
        text.push_str(&line(row));
    }
    text
}

fn unique(records: &[Record], of: impl Fn(&Record) -> String) -> Vec<String> {
    let mut values: Vec<String> = records.iter().map(of).collect();
    values.sort();
    values.dedup();
    values
}

fn heading(setting: &Setting) -> String {
    format!(
        "\n## {} kbit/s{}{}{}\n\n| viewers | server | rounds | CPU ms/s | per viewer | user/sys | p50 | p90 | p99 | \
         p99.9 | max | IDR p50 | last viewer p50 | missing | dup | torn | late | of | private MB | ring MB | \
         switches/s | first datagram | first IDR | start | load ms/s | idle | others |\n|{}\n",
        setting.kbps,
        if setting.record { ", recording" } else { "" },
        if setting.gro { ", whole GSO batches received" } else { "" },
        if setting.feedback { ", viewers send transport-wide feedback" } else { "" },
        "---|".repeat(27),
    )
}

fn line(row: &Row) -> String {
    let us = |of: &dyn Fn(&Record) -> f64| time(row.median(of));
    format!(
        "| {} | {} | {} | {:.1} | {:.2} | {:.0}/{:.0} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | \
         {:.1} | {:.1} | {:.0} | {} | {} | {:.0} ms | {:.0} | {:.0} % | {:.0} % |\n",
        row.setting.viewers,
        row.setting.server,
        row.rounds.len(),
        row.median(|r| r.cpu.total_ms),
        row.median(Record::cpu_per_viewer_ms),
        row.median(|r| r.cpu.user_ms),
        row.median(|r| r.cpu.system_ms),
        us(&|r| r.latency.p50),
        us(&|r| r.latency.p90),
        us(&|r| r.latency.p99),
        us(&|r| r.latency.p99_9),
        us(&|r| r.latency.max),
        us(&|r| r.latency_idr.p50),
        us(&|r| r.latency_last_viewer.p50),
        row.sum(|r| r.units.missing),
        row.sum(|r| r.units.duplicated),
        row.sum(|r| r.units.torn),
        row.sum(|r| r.units.late),
        row.sum(|r| r.units.expected),
        row.private_mb(),
        row.median(|r| r.memory.shmem_kb as f64 / 1024.0),
        row.median(|r| r.cpu.voluntary_switches + r.cpu.involuntary_switches),
        us(&|r| r.first_datagram_ms.p50 * 1e3),
        us(&|r| r.first_idr_ms.p50 * 1e3),
        row.median(|r| r.start_ms),
        row.median(|r| r.load_ms),
        row.median(|r| r.idle * 100.0),
        row.median(|r| r.foreign * 100.0),
    )
}

/// Returns the table of the README: some settings and the most important figures.
fn readme_table(records: &[Record]) -> String {
    let rows = rows(records);
    let is_shown = |row: &&Row| {
        let Setting { viewers, kbps, record, gro, feedback, server } = &row.setting;
        *kbps == README_KBPS
            && !record
            && !gro
            && !feedback
            && README_VIEWERS.contains(viewers)
            && README_SERVERS.contains(&server.as_str())
    };
    let mut text = String::from(
        "\n| viewers | server | CPU of one core, per viewer | latency p50 | p99 | units missing, late | private memory \
         |\n|---|---|---|---|---|---|---|\n",
    );
    for row in rows.iter().filter(is_shown) {
        let share = |units: u64| units as f64 * 100.0 / row.sum(|r| r.units.expected).max(1) as f64;
        let (missing, late) = (row.sum(|r| r.units.missing), row.sum(|r| r.units.late));
        let units = if missing + late == 0 {
            "0".to_owned()
        } else {
            format!("{:.1} %, {:.1} %", share(missing), share(late))
        };
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} % | {} | {} | {units} | {:.1} MB |",
            row.setting.viewers,
            name(&row.setting.server),
            row.median(Record::cpu_per_viewer_ms) / 10.0,
            time(row.median(|r| r.latency.p50)),
            time(row.median(|r| r.latency.p99)),
            row.private_mb(),
        );
    }
    for machine in unique(records, |record| record.machine.clone()) {
        let _ = writeln!(
            text,
            "\nMeasured on {machine}, shared with camera and viewers; 8 Mbit/s, no recording."
        );
    }
    text.push_str(&disturbance(rows.iter().filter(is_shown)));
    text
}

/// Returns the sentences that describe disturbances by other processes.
fn disturbance<'a>(rows: impl Iterator<Item = &'a Row>) -> String {
    let rounds: Vec<&Record> = rows.flat_map(|row| &row.rounds).collect();
    let mut text = String::new();
    if rounds.iter().any(|record| record.shielded) {
        text.push_str("Server and camera ran with real-time priority.\n");
    }
    let disturbed = rounds.iter().filter(|record| record.foreign > FOREIGN_MAX).count();
    if disturbed > 0 {
        let most = rounds.iter().map(|record| record.foreign).fold(0.0, f64::max);
        let _ = writeln!(
            text,
            "In {disturbed} of {} runs other processes used more than {:.0} % of the machine, at most {:.0} %. \
             Sharing caches and memory with them costs CPU time.",
            rounds.len(),
            FOREIGN_MAX * 100.0,
            most * 100.0
        );
    }
    text
}

/// Returns `text` with the part between the markers replaced.
fn replace_marked(text: &str, table: &str) -> Fallible<String> {
    let (before, rest) = text.split_once(BEGIN).ok_or_else(|| format!("no line {BEGIN}"))?;
    let (_, after) = rest.split_once(END).ok_or_else(|| format!("no line {END}"))?;
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

/// Writes the table of all runs, the charts and the table of the README.
pub(crate) fn write(records: &[Record], directory: &Path, readme: Option<&Path>) -> Fallible<()> {
    std::fs::create_dir_all(directory)?;
    std::fs::write(directory.join("README.md"), markdown(records))?;
    let rows = rows(records);
    let mut groups: Vec<(u32, bool)> =
        rows.iter().map(|row| (row.setting.kbps, row.setting.record)).collect();
    groups.dedup();
    for (kbps, record) in groups {
        let shown = |row: &&Row| {
            row.setting.kbps == kbps
                && row.setting.record == record
                && !row.setting.gro
                && !row.setting.feedback
                && row.setting.viewers > 0
        };
        let shown: Vec<&Row> = rows.iter().filter(shown).collect();
        let suffix = format!("{kbps}{}.svg", if record { "-recording" } else { "" });
        let title = format!("{kbps} kbit/s{}", if record { ", recording" } else { "" });
        let cpu = chart(&shown, format!("CPU per viewer, ms/s: {title}"), Record::cpu_per_viewer_ms);
        std::fs::write(directory.join(format!("cpu-{suffix}")), cpu.svg())?;
        let p99 = chart(&shown, format!("latency p99, ms: {title}"), |r| r.latency.p99 / 1e3);
        std::fs::write(directory.join(format!("p99-{suffix}")), p99.svg())?;
        let p50 = chart(&shown, format!("latency p50, ms: {title}"), |r| r.latency.p50 / 1e3);
        std::fs::write(directory.join(format!("p50-{suffix}")), p50.svg())?;
    }
    if let Some(path) = readme {
        let text = std::fs::read_to_string(path)?;
        std::fs::write(path, replace_marked(&text, &readme_table(records))?)?;
    }
    Ok(())
}

fn chart(rows: &[&Row], title: String, of: impl Fn(&Record) -> f64 + Copy) -> Chart {
    let mut lines: Vec<Line> = Vec::new();
    for (server, label) in SERVERS {
        let of_server = rows.iter().filter(|row| row.setting.server == *server);
        let points: Vec<(f64, f64)> = of_server
            .map(|row| (row.setting.viewers as f64, row.median(of)))
            .filter(|(_, y)| *y > 0.0)
            .collect();
        if !points.is_empty() {
            lines.push(Line { label: (*label).to_owned(), points });
        }
    }
    Chart { title, x_label: "viewers".to_owned(), lines }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Memory;
    use crate::record::{Cpu, Quantiles, Units};

    fn record(server: &str, viewers: usize, cpu_ms: f64) -> Record {
        let setting = Setting {
            server: server.to_owned(),
            viewers,
            kbps: 8_000,
            record: false,
            gro: false,
            feedback: false,
        };
        Record {
            setting,
            at: 0,
            commit: "abc".to_owned(),
            machine: "a machine".to_owned(),
            seconds: 8.0,
            srtp: "-".to_owned(),
            units: Units { expected: 100, received: 100, ..Units::default() },
            latency: Quantiles { p50: 400.0, p90: 1.0, p99: 2_500.0, p99_9: 1.0, max: 1.0 },
            latency_idr: Quantiles::default(),
            latency_other: Quantiles::default(),
            latency_last_viewer: Quantiles::default(),
            cpu: Cpu { total_ms: cpu_ms, ..Cpu::default() },
            memory: Memory { anon_kb: 1024, file_kb: 1024, shmem_kb: 0 },
            start_ms: 1.0,
            first_datagram_ms: Quantiles::default(),
            first_idr_ms: Quantiles::default(),
            load_ms: 1.0,
            camera_ms: 1.0,
            idle: 0.5,
            stolen: 0.0,
            foreign: 0.0,
            shielded: false,
            recorded_units: None,
        }
    }

    #[test]
    fn rounds_are_reduced_to_medians_and_servers_keep_their_order() {
        let records = [
            record("pion", 10, 9.0),
            record("ours", 10, 1.0),
            record("ours", 10, 30.0),
            record("ours", 10, 20.0),
        ];
        let rows = rows(&records);
        let servers: Vec<&str> = rows.iter().map(|row| row.setting.server.as_str()).collect();
        assert_eq!(servers, ["ours", "pion"]);
        assert_eq!(rows[0].median(|r| r.cpu.total_ms), 20.0);
    }

    #[test]
    fn only_the_text_between_the_markers_changes() {
        let table = readme_table(&[record("ours", 10, 20.0)]);
        assert!(
            table.contains("| 10 | streaming-server | 0.20 % | 400 µs | 2.5 ms | 0 | 2.0 MB |"),
            "{table}"
        );
        let text = format!("above\n{BEGIN}old{END}\nbelow");
        let replaced = replace_marked(&text, &table).unwrap();
        assert!(
            replaced.starts_with("above\n") && replaced.ends_with("\nbelow") && !replaced.contains("old")
        );
        assert!(replace_marked("no markers", &table).is_err());
    }

    #[test]
    fn record_survives_a_json_round_trip() {
        let record = record("ours", 10, 20.0);
        let line = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
    }
}
