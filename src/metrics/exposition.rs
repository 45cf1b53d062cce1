//! Writes metrics in the Prometheus text format, version 0.0.4.
//! Specification: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::{Display, Write};

/// Builds a page of metrics. The page lists metric families in the order in which they are opened, each followed by its
/// samples.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    family: &'static str,
}

impl Exposition {
    /// Creates an empty page.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a family of counters. `name` must end in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.open(name, help, "counter")
    }

    /// Opens a family of gauges.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.open(name, help, "gauge")
    }

    // This function is called in hundreds of places. Inlining it there would make the program larger.
    #[inline(never)]
    fn open(&mut self, name: &'static str, help: &str, kind: &str) -> &mut Self {
        self.family = name;
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"))
    }

    /// Adds a sample without labels to the open family.
    pub fn value(&mut self, value: impl Display) -> &mut Self {
        self.with_labels(&[], &value)
    }

    /// Adds a sample with one label to the open family. Escapes the value of the label.
    pub fn labelled(&mut self, label: &str, label_value: &str, value: impl Display) -> &mut Self {
        self.with_labels(&[(label, label_value)], &value)
    }

    /// Adds a sample with these labels to the open family. Escapes the values of the labels.
    #[inline(never)]
    pub fn with_labels(&mut self, labels: &[(&str, &str)], value: &dyn Display) -> &mut Self {
        let name = self.family;
        if labels.is_empty() {
            return self.write(format_args!("{name} {value}\n"));
        }
        let labels: Vec<String> =
            labels.iter().map(|(label, of)| format!("{label}=\"{}\"", escape(of))).collect();
        self.write(format_args!("{name}{{{}}} {value}\n", labels.join(",")))
    }

    /// Opens a family of histograms. `name` must end in `_seconds`.
    pub fn histogram(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.open(name, help, "histogram")
    }

    /// Adds a histogram in seconds to the open family.
    ///
    /// `label` is `key="value",` or empty. Each bucket is an upper bound in microseconds and the number of values in
    /// this bucket alone. `count` and `sum_ns` are the number and the sum of all values, including those above the last
    /// bound.
    pub fn distribution(
        &mut self,
        label: &str,
        buckets: impl Iterator<Item = (u64, u64)>,
        count: u64,
        sum_ns: u64,
    ) -> &mut Self {
        let name = self.family;
        let mut below = 0;
        for (bound_us, own) in buckets {
            below += own;
            self.write(format_args!(
                "{name}_bucket{{{label}le=\"{}\"}} {below}\n",
                Seconds(bound_us * 1_000)
            ));
        }
        self.write(format_args!("{name}_bucket{{{label}le=\"+Inf\"}} {count}\n"));
        let labels =
            if label.is_empty() { String::new() } else { format!("{{{}}}", label.trim_end_matches(',')) };
        self.write(format_args!("{name}_sum{labels} {}\n{name}_count{labels} {count}\n", Seconds(sum_ns)))
    }

    fn write(&mut self, arguments: std::fmt::Arguments<'_>) -> &mut Self {
        // Writing to a String cannot fail.
        let _ = self.text.write_fmt(arguments);
        self
    }

    /// Returns the text of the whole page.
    pub fn finish(self) -> String {
        self.text
    }
}

fn escape(label_value: &str) -> String {
    label_value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// A time in nanoseconds that is displayed in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fraction = format!("{:09}", self.0 % 1_000_000_000);
        let fraction = fraction.trim_end_matches('0');
        write!(f, "{}.{}", self.0 / 1_000_000_000, if fraction.is_empty() { "0" } else { fraction })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_and_samples_follow_the_text_format() {
        let mut exposition = Exposition::new();
        exposition.counter("a_total", "What a counts.").value(3);
        exposition.gauge("b", "What b is.").labelled("kind", "x\"y\\z\n", 1.5);
        assert_eq!(
            exposition.finish(),
            "# HELP a_total What a counts.\n# TYPE a_total counter\na_total 3\n\
             # HELP b What b is.\n# TYPE b gauge\nb{kind=\"x\\\"y\\\\z\\n\"} 1.5\n"
        );
    }

    #[test]
    fn histogram_buckets_are_cumulative_and_in_seconds() {
        let mut exposition = Exposition::new();
        exposition.histogram("w_seconds", "Writes.").distribution(
            "",
            [(50, 2), (1_000_000, 3)].into_iter(),
            6,
            2_500_000_000,
        );
        let text = exposition.finish();
        for line in [
            "w_seconds_bucket{le=\"0.00005\"} 2",
            "w_seconds_bucket{le=\"1.0\"} 5",
            "w_seconds_bucket{le=\"+Inf\"} 6",
            "w_seconds_sum 2.5",
            "w_seconds_count 6",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[test]
    fn histograms_of_one_family_differ_by_their_label() {
        let mut exposition = Exposition::new();
        exposition.histogram("s_seconds", "Stages.").distribution(
            "stage=\"a\",",
            [(50, 2)].into_iter(),
            3,
            1_000,
        );
        assert_eq!(
            exposition.finish(),
            "# HELP s_seconds Stages.\n# TYPE s_seconds histogram\n\
             s_seconds_bucket{stage=\"a\",le=\"0.00005\"} 2\ns_seconds_bucket{stage=\"a\",le=\"+Inf\"} 3\n\
             s_seconds_sum{stage=\"a\"} 0.000001\ns_seconds_count{stage=\"a\"} 3\n"
        );
    }
}
