//! A strict parser of what `/metrics` says: Prometheus' text format 0.0.4, and OpenMetrics 1.0.

use std::collections::{HashMap, HashSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Prometheus,
    OpenMetrics,
}

type Labels = Vec<(String, String)>;

/// All samples, in their order.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    samples: Vec<(String, Labels, f64)>,
}

/// A family whose lines are being read.
struct Family {
    name: String,
    kind: Option<String>,
}

impl Exposition {
    pub(crate) fn parse(text: &str, format: Format) -> Result<Self, String> {
        let mut lines = text.strip_suffix('\n').ok_or("no end of the last line")?.split('\n').peekable();
        let mut this = Self::default();
        let (mut family, mut families, mut seen) = (None::<Family>, HashSet::new(), HashSet::new());
        let mut ended = false;
        while let Some(line) = lines.next() {
            let wrong = |what: &str| Err(format!("{what}: {line:?}"));
            if line == "# EOF" && format == Format::OpenMetrics {
                ended = lines.peek().is_none();
                continue;
            }
            if let Some(comment) = line.strip_prefix("# ") {
                let [keyword, name, rest] = comment.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                    return wrong("no comment");
                };
                if family.as_ref().is_none_or(|family| family.name != name) {
                    if !is_name(name) || !families.insert(name.to_owned()) {
                        return wrong("a family must have a name and stand together");
                    }
                    family = Some(Family { name: name.to_owned(), kind: None });
                }
                let family = family.as_mut().expect("it was just made");
                match keyword {
                    "HELP" if family.kind.is_none() => {}
                    "TYPE" if family.kind.is_none() && ["counter", "gauge", "histogram"].contains(&rest) => {
                        family.kind = Some(rest.to_owned());
                    }
                    _ => return wrong("neither HELP nor TYPE, or at the wrong place"),
                }
                continue;
            }
            let (name, labels, value) = sample(line).ok_or_else(|| format!("no sample: {line:?}"))?;
            let Some(Family { name: of, kind: Some(kind) }) = &family else {
                return wrong("a sample without a type");
            };
            let suffixes: &[&str] = match (kind.as_str(), format) {
                ("counter", Format::OpenMetrics) => &["_total"],
                ("histogram", _) => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            if !suffixes.iter().any(|suffix| name.strip_suffix(suffix) == Some(of)) {
                return wrong("a sample that is not of the family before it");
            }
            if kind == "counter" && !(value >= 0.0 && value.is_finite()) {
                return wrong("not the value of a counter");
            }
            if !seen.insert((name.clone(), labels.clone())) {
                return wrong("a sample that is there twice");
            }
            this.samples.push((name, labels, value));
        }
        if (format == Format::OpenMetrics) != ended {
            return Err("`# EOF` must be the last line of OpenMetrics".to_owned());
        }
        let histograms: HashSet<_> =
            this.samples.iter().filter_map(|(name, ..)| name.strip_suffix("_bucket")).collect();
        histograms.into_iter().try_for_each(|name| this.check_histogram(name))?;
        Ok(this)
    }

    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Labels =
            labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let found = self.samples.iter().find(|sample| sample.0 == name && sample.1 == labels);
        found.unwrap_or_else(|| panic!("no {name} {labels:?} in {self:?}")).2
    }

    /// Returns the upper limits and cumulative counts of a histogram.
    fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let name = format!("{name}_bucket");
        let buckets = self.samples.iter().filter(|sample| sample.0 == name);
        buckets.map(|(_, labels, count)| (number(&labels[0].1).unwrap_or(f64::NAN), *count)).collect()
    }

    fn check_histogram(&self, name: &str) -> Result<(), String> {
        let buckets = self.buckets(name);
        let rising = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        let &(limit, count) = buckets.last().ok_or("no buckets")?;
        let sum = self.value(&format!("{name}_sum"), &[]);
        if !rising
            || limit != f64::INFINITY
            || count != self.value(&format!("{name}_count"), &[])
            || sum < 0.0
        {
            return Err(format!("not the buckets of a histogram: {buckets:?}"));
        }
        Ok(())
    }

    /// Returns the quantile of a histogram, as Prometheus' `histogram_quantile` estimates it.
    pub(crate) fn quantile(&self, name: &str, q: f64) -> f64 {
        let buckets = self.buckets(name);
        let total = buckets.last().map_or(0.0, |bucket| bucket.1);
        if total == 0.0 || buckets.len() < 2 || buckets.last().is_some_and(|bucket| bucket.0 != f64::INFINITY)
        {
            return f64::NAN;
        }
        let rank = q * total;
        let at = buckets.iter().position(|bucket| bucket.1 >= rank).expect("the last has all");
        if at == buckets.len() - 1 {
            return buckets[at - 1].0;
        }
        let (low, before) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
        let (high, count) = buckets[at];
        if count == before { low } else { low + (high - low) * (rank - before) / (count - before) }
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Returns a number as both formats write it.
fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        "NaN" => Some(f64::NAN),
        // Rust also reads `inf` and `infinity`, which are words here.
        _ if text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.e".contains(&byte)) => text.parse().ok(),
        _ => None,
    }
}

fn sample(line: &str) -> Option<(String, Labels, f64)> {
    let (name, value) = line.rsplit_once(' ')?;
    let (name, labels) = match name.strip_suffix('}') {
        None => (name, Labels::new()),
        Some(rest) => {
            let (name, labels) = rest.split_once('{')?;
            let label = |text: &str| {
                let (name, value) = text.split_once("=\"")?;
                let value = value.strip_suffix('"').filter(|value| !value.contains(['"', '\\']))?;
                is_name(name).then(|| (name.to_owned(), value.to_owned()))
            };
            (name, labels.split(',').map(label).collect::<Option<_>>()?)
        }
    };
    let unique: HashMap<_, _> = labels.iter().cloned().collect();
    (is_name(name) && unique.len() == labels.len()).then_some((name.to_owned(), labels, number(value)?))
}
