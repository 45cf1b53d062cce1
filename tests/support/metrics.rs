//! Parses the Prometheus text format as far as is needed to look up samples by name and labels.

/// The samples of one scrape.
#[derive(Clone, Debug)]
pub struct Metrics(Vec<Sample>);

/// Name, labels and value of a sample.
type Sample = (String, Vec<(String, String)>, f64);

impl Metrics {
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        Self(lines.map(|line| sample(line).unwrap_or_else(|| panic!("not a sample: {line}"))).collect())
    }

    /// Returns the sum of the samples with this name whose labels include `labels`, or `None` if there is no such
    /// sample.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |have: &[(String, String)]| {
            labels.iter().all(|(key, value)| have.iter().any(|(k, v)| k == key && v == value))
        };
        let hits: Vec<f64> =
            self.0.iter().filter(|(n, have, _)| n == name && has(have)).map(|(_, _, value)| *value).collect();
        (!hits.is_empty()).then(|| hits.iter().sum())
    }

    /// Returns the same as [`Metrics::value`] without labels, but panics if there is no sample.
    pub fn expect(&self, name: &str) -> f64 {
        self.value(name, &[]).unwrap_or_else(|| panic!("no metric {name}, only {:?}", self.names()))
    }

    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.0.iter().map(|(name, _, _)| name.as_str()).collect();
        names.dedup();
        names
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = series.split_once('{') else {
        return Some((series.trim().to_owned(), Vec::new(), value));
    };
    let mut labels = Vec::new();
    for pair in rest.trim().strip_suffix('}')?.split(',').filter(|pair| !pair.is_empty()) {
        let (key, quoted) = pair.split_once('=')?;
        labels.push((key.trim().to_owned(), quoted.trim().trim_matches('"').to_owned()));
    }
    Some((name.to_owned(), labels, value))
}
