//! Draws line charts with logarithmic axes as SVG.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 215.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 44.0;
/// Colours that people with colour blindness can also distinguish (palette of Okabe and Ito).
pub(crate) const COLOURS: [&str; 8] =
    ["#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#CC79A7", "#009E73", "#000000", "#999999"];

/// One line of a chart and its label.
pub(crate) struct Line {
    pub(crate) label: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A chart. All its values must be above 0, because the axes are logarithmic.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x_label: String,
    pub(crate) lines: Vec<Line>,
}

/// A logarithmic axis. The values from `low` to `high` are drawn at the pixels from `from` to `to`.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Axis {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(0.0, f64::max);
        let (low, high) = if low < high { (low, high) } else { (high / 2.0, high * 2.0) };
        Axis { low: low * 0.9, high: high * 1.1, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        self.from + share * (self.to - self.from)
    }

    /// Returns the values at which the axis has ticks: 1, 2 and 5 times every power of ten within the axis.
    fn ticks(&self) -> Vec<f64> {
        let decades = (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
        let all = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(decade)));
        all.filter(|tick| (self.low..=self.high).contains(tick)).collect()
    }
}

fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

impl Chart {
    pub(crate) fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| line.points.iter());
        let x = Axis::over(points().map(|point| point.0), LEFT, WIDTH - RIGHT);
        let y = Axis::over(points().map(|point| point.1), HEIGHT - BOTTOM, TOP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n<text x=\"{LEFT}\" \
             y=\"20\" font-size=\"15\">{}</text>\n",
            self.title
        );
        self.grid(&x, &y, &mut svg);
        for (index, line) in self.lines.iter().enumerate() {
            draw(line, index, &x, &y, &mut svg);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn grid(&self, x: &Axis, y: &Axis, svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in x.ticks() {
            let at = x.place(tick);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/><text \
                 x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 16.0,
                number(tick)
            );
        }
        for tick in y.ticks() {
            let at = y.place(tick);
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text \
                 x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                at + 4.0,
                number(tick)
            );
        }
        let middle = f64::midpoint(LEFT, right);
        let _ = writeln!(
            svg,
            "<text x=\"{middle}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 8.0,
            self.x_label
        );
    }
}

fn draw(line: &Line, index: usize, x: &Axis, y: &Axis, svg: &mut String) {
    let colour = COLOURS[index % COLOURS.len()];
    let places: Vec<(f64, f64)> =
        line.points.iter().map(|point| (x.place(point.0), y.place(point.1))).collect();
    let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
        path.join(" ")
    );
    for (x, y) in places {
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
    }
    let at = TOP + 10.0 + 20.0 * index as f64;
    let left = WIDTH - RIGHT + 14.0;
    let _ = writeln!(
        svg,
        "<line x1=\"{left}\" y1=\"{at}\" x2=\"{}\" y2=\"{at}\" stroke=\"{colour}\" stroke-width=\"3\"/><text \
         x=\"{}\" y=\"{}\">{}</text>",
        left + 18.0,
        left + 24.0,
        at + 4.0,
        line.label
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_inside_and_higher_values_are_higher() {
        let points = vec![(1.0, 3.0), (10.0, 30.0), (100.0, 0.3)];
        let chart = Chart {
            title: "t".to_owned(),
            x_label: "x".to_owned(),
            lines: vec![Line { label: "a".to_owned(), points: points.clone() }],
        };
        let x = Axis::over(points.iter().map(|p| p.0), LEFT, WIDTH - RIGHT);
        let y = Axis::over(points.iter().map(|p| p.1), HEIGHT - BOTTOM, TOP);
        for (px, py) in points {
            assert!((LEFT..=WIDTH - RIGHT).contains(&x.place(px)));
            assert!((TOP..=HEIGHT - BOTTOM).contains(&y.place(py)));
        }
        assert!(y.place(30.0) < y.place(3.0) && y.place(3.0) < y.place(0.3));
        assert_eq!(x.ticks(), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        let svg = chart.svg();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && svg.matches("<circle").count() == 3);
    }

    #[test]
    fn single_value_still_has_an_axis() {
        let axis = Axis::over([5.0].into_iter(), 0.0, 100.0);
        assert!((0.0..=100.0).contains(&axis.place(5.0)));
    }
}
