//! The text format that a scraper asks for (RFC 9110 section 12.5.1).

use axum::http::{HeaderMap, header::ACCEPT};

use crate::fields;

/// A format of `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus' own, which every scraper reads.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// OpenMetrics for a scraper that names it and does not prefer plain text; else Prometheus' own, also for
    /// one that wants neither: it may understand the response all the same.
    pub(crate) fn negotiate(headers: &HeaderMap) -> Self {
        let ranges: Vec<_> = fields::list(headers, &ACCEPT).filter_map(Range::read).collect();
        let weight = |media_type: &str| {
            let these = ranges.iter().filter(|range| range.media_type.eq_ignore_ascii_case(media_type));
            these.map(|range| range.weight).reduce(f32::max)
        };
        // The most specific range counts. One with wildcards never means OpenMetrics: browsers send those.
        let open_metrics = weight("application/openmetrics-text").unwrap_or(0.0);
        let text = weight("text/plain").or_else(|| weight("text/*")).or_else(|| weight("*/*")).unwrap_or(0.0);
        if open_metrics > 0.0 && open_metrics >= text { Self::OpenMetrics } else { Self::Prometheus }
    }
}

/// One member of `Accept`, of a version that is spoken here.
struct Range<'a> {
    media_type: &'a str,
    /// The weight, from 0 to 1.
    weight: f32,
}

impl<'a> Range<'a> {
    fn read(member: &'a [u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(member).ok()?.split(';').map(str::trim);
        let media_type = parts.next()?;
        let mut weight = 1.0;
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if name.eq_ignore_ascii_case("q") {
                weight = value.parse().ok().filter(|weight| (0.0..=1.0).contains(weight))?;
            } else if name.eq_ignore_ascii_case("version")
                && media_type.eq_ignore_ascii_case("application/openmetrics-text")
                && !matches!(value.trim_matches('"'), "1.0.0" | "0.0.1")
            {
                return None;
            }
        }
        Some(Self { media_type, weight })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(lines: &[&'static str]) -> Format {
        Format::negotiate(&lines.iter().map(|line| (ACCEPT, line.parse().unwrap())).collect())
    }

    #[test]
    fn open_metrics_is_for_scrapers_that_name_it_and_do_not_prefer_text() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for lines in [
            &[prometheus_2][..],
            &[prometheus_3],
            &["application/openmetrics-text"],
            &["Application/OpenMetrics-Text ; version=\"1.0.0\" ; q=0.5", "text/plain;q=0.5"],
            &["text/*;q=0.9, application/openmetrics-text;q=0.9"],
            &["text/plain;q=0, application/openmetrics-text;q=0.001"],
        ] {
            assert_eq!(asked(lines), Format::OpenMetrics, "{lines:?}");
        }
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for lines in [
            &[][..],
            &[""],
            &["*/*"],
            &[browser],
            &["text/plain"],
            &["text/plain;version=0.0.4;q=1,*/*;q=0.1"],
            &["text/plain;q=0.6", "application/openmetrics-text;q=0.5"],
            &["*/*, application/openmetrics-text;q=0.5"],
            &["application/openmetrics-text;q=0"],
            &["application/openmetrics-text;q=2"],
            &["application/openmetrics-text;version=2.0.0"],
            &["application/json"],
            &[",;,=;q="],
        ] {
            assert_eq!(asked(lines), Format::Prometheus, "{lines:?}");
        }
    }
}
