//! Bar charts of the table: a group of bars for each link, a bar for each server.

use std::fmt::Write as _;

use super::record::Record;
use super::server::Kind;
use super::table::{ROWS, Row};
use crate::plot::COLOURS;

const SERVERS: [Kind; 4] = [Kind::Ours, Kind::PionBest, Kind::Go2rtc, Kind::Mediamtx];
const STREAM: &str = "x264-720p";
const WIDTH: f64 = 900.0;
const LABEL_WIDTH: f64 = 400.0;
const BAR_WIDTH: f64 = 400.0;
const BAR_HEIGHT: f64 = 10.0;
const TOP: f64 = 64.0;

/// A figure of one run, and the value at which its bar is as long as the chart is wide.
struct Figure {
    file: &'static str,
    title: &'static str,
    full: f64,
    value: fn(&Record) -> f64,
}

const FIGURES: [Figure; 2] = [
    Figure {
        file: "link-pictures.svg",
        title: "Pictures per second that Chromium shows (8 Mbit/s, 720p)",
        full: 30.0,
        value: |record| record.counted.shown as f64 / record.counted.seconds.max(1.0),
    },
    Figure {
        file: "link-gap.svg",
        title: "Longest time without a new picture, in seconds (8 Mbit/s, 720p)",
        full: 5.0,
        value: |record| record.counted.longest_gap_ms / 1e3,
    },
];

/// Returns each chart as its file name and its SVG. A chart shows the rows of the table in which at least two servers
/// were measured.
pub(crate) fn all(records: &[Record]) -> Vec<(&'static str, String)> {
    FIGURES.iter().map(|figure| (figure.file, draw(figure, records))).collect()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Returns the median of each server, or `None` for a server without runs.
fn medians(row: &Row, figure: &Figure, records: &[Record]) -> Vec<Option<f64>> {
    let of_row = || records.iter().filter(|record| record.stream == STREAM && row.has(record));
    let of_server =
        |kind: Kind| of_row().filter(|record| record.server == kind.name()).map(figure.value).collect();
    SERVERS.into_iter().map(|kind| median(of_server(kind))).collect()
}

fn draw(figure: &Figure, records: &[Record]) -> String {
    let groups: Vec<(String, Vec<Option<f64>>)> = ROWS
        .iter()
        .map(|row| (row.link.replace("--", ""), medians(row, figure, records)))
        .filter(|(_, values)| values.iter().flatten().count() > 1)
        .collect();
    let group_height = BAR_HEIGHT * SERVERS.len() as f64 + 14.0;
    let height = TOP + group_height * groups.len() as f64 + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n<text x=\"10\" y=\"20\" \
         font-size=\"15\">{}</text>\n",
        figure.title
    );
    for (index, kind) in SERVERS.iter().enumerate() {
        let (x, colour) = (10.0 + 110.0 * index as f64, COLOURS[index * 2]);
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"34\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"44\">{}</text>",
            x + 18.0,
            kind.name()
        );
    }
    for (group, (link, values)) in groups.iter().enumerate() {
        let y = TOP + group_height * group as f64;
        let middle = y + group_height / 2.0;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{link}</text>",
            LABEL_WIDTH - 10.0
        );
        for (index, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let (y, width) = (y + BAR_HEIGHT * index as f64, (value / figure.full).min(1.0) * BAR_WIDTH);
            let _ = writeln!(
                svg,
                "<rect x=\"{LABEL_WIDTH}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{}\"/><text x=\"{:.1}\" \
                 y=\"{}\" font-size=\"10\">{value:.1}</text>",
                BAR_HEIGHT - 1.0,
                COLOURS[index * 2],
                LABEL_WIDTH + width + 4.0,
                y + BAR_HEIGHT - 1.5,
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::super::outcome::Figures;
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_the_median_of_its_server() {
        let run = |server: &str, shown| Record {
            server: server.to_owned(),
            stream: STREAM.to_owned(),
            link: ROWS[1].link.to_owned(),
            counted: Figures { shown, seconds: 10.0, ..Figures::default() },
            ..Record::default()
        };
        let records = [run("ours", 150), run("ours", 300), run("ours", 280), run("go2rtc", 75)];
        let (name, svg) = &all(&records)[0];
        assert_eq!(*name, "link-pictures.svg");
        assert_eq!(svg.matches("font-size=\"10\"").count(), 2, "servers without runs have no bar: {svg}");
        assert!(svg.contains(">28.0</text>") && svg.contains(">7.5</text>"), "{svg}");
        assert!(svg.contains("width=\"100.0\""), "7.5 of 30 is a quarter of the width: {svg}");
    }
}
