//! The chart of restarts: how long messages take around each upgrade, and how many clients each one reached.

use std::fmt::{Error, Write as _};

use super::{Outcome, record::Message};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 24.0;
const INK: &str = "#221d18";
const GREY: &str = "#5b5249";
const OURS: &str = "#a34a07";
const BAND: &str = "#eadfce";

/// A panel: where it is, and what its axes show.
struct Panel {
    top: f64,
    height: f64,
    from: f64,
    to: f64,
    most: f64,
}

impl Panel {
    fn x(&self, seconds: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (seconds - self.from) / (self.to - self.from)
    }

    fn y(&self, value: f64) -> f64 {
        self.top + self.height * (1.0 - value.min(self.most) / self.most)
    }

    /// Returns the bands of the restarts, the axes, and a title.
    fn frame(&self, svg: &mut String, title: &str, one: &Outcome, unit: &str) -> Result<(), Error> {
        for restart in &one.restarts {
            let (from, to) = (self.x(restart.from), self.x(restart.to));
            writeln!(
                svg,
                r##"<rect x="{from:.1}" y="{:.1}" width="{:.1}" height="{:.1}" fill="{BAND}"/>"##,
                self.top,
                (to - from).max(2.0),
                self.height
            )?;
        }
        let bottom = self.top + self.height;
        writeln!(
            svg,
            r##"<text x="24" y="{:.1}" font-weight="600" fill="{INK}">{title}</text><path d="M{LEFT} {bottom:.1}H{:.1}" stroke="{GREY}"/>"##,
            self.top - 12.0,
            WIDTH - RIGHT
        )?;
        for share in [0.0, 0.5, 1.0] {
            let value = self.most * share;
            writeln!(
                svg,
                r##"<text x="{:.1}" y="{:.1}" text-anchor="end" fill="{GREY}" font-size="12">{value:.0}{unit}</text>"##,
                LEFT - 8.0,
                self.y(value) + 4.0
            )?;
        }
        for second in (self.from.ceil() as i64..=self.to as i64).filter(|second| self.labels(*second)) {
            writeln!(
                svg,
                r##"<text x="{:.1}" y="{:.1}" text-anchor="middle" fill="{GREY}" font-size="12">{second} s</text>"##,
                self.x(second as f64),
                bottom + 16.0
            )?;
        }
        Ok(())
    }

    /// Returns true if there is room for this second's label.
    fn labels(&self, second: i64) -> bool {
        let every = ((self.to - self.from) / 10.0).ceil().max(1.0) as i64;
        second % every == 0
    }

    fn line(
        &self,
        svg: &mut String,
        messages: &[Message],
        stroke: &str,
        value: impl Fn(&Message) -> f64,
    ) -> Result<(), Error> {
        let mut points = String::new();
        for message in messages.iter().filter(|message| (self.from..=self.to).contains(&message.sent)) {
            write!(points, "{:.1},{:.1} ", self.x(message.sent), self.y(value(message)))?;
        }
        writeln!(svg, r##"<polyline points="{points}" fill="none" stroke="{stroke}" stroke-width="1.5"/>"##)
    }
}

/// Returns an SVG: the latency over many upgrades, and below, for each server, the share of clients that each
/// message reached around one restart.
pub(crate) fn draw(full: &Outcome, beside: &[Outcome]) -> Result<String, Error> {
    let mut svg = String::new();
    let to = full.messages.last().map_or(1.0, |message| message.sent);
    let longest = full.longest(|_| true, |message| message.longest_ms);
    let most = (longest / 50.0).ceil().max(2.0) * 50.0;
    let panel = Panel { top: 100.0, height: 150.0, from: 0.0, to, most };
    let title = format!(
        "{} upgrades of lastcall, {} clients, 20 messages a second: longest (dark) and mean (light) latency",
        full.restarts.len(),
        full.clients
    );
    panel.frame(&mut svg, &title, full, " ms")?;
    panel.line(&mut svg, &full.messages, "#b9aea1", |message| message.mean_ms)?;
    panel.line(&mut svg, &full.messages, OURS, |message| message.longest_ms)?;
    let mut top = 320.0;
    for one in beside {
        let Some(restart) = one.restarts.first() else { continue };
        let until = one.all_back_s.map_or(restart.to, |back| restart.from + back).max(restart.to) + 1.0;
        let from = (restart.from - 1.0).max(0.0);
        let panel = Panel { top, height: 70.0, from, to: until.max(from + 4.0), most: 100.0 };
        let title = format!(
            "{}: {} of {} clients cut off, {:.0} messages lost by each",
            one.server.name(),
            one.cut,
            one.clients,
            one.lost as f64 / one.clients as f64
        );
        panel.frame(&mut svg, &title, one, " %")?;
        let stroke = if one.cut == 0 { OURS } else { INK };
        panel.line(&mut svg, &one.messages, stroke, |message| {
            100.0 * message.got as f64 / one.clients as f64
        })?;
        top += 130.0;
    }
    let height = top - 20.0;
    Ok(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif" font-size="13" role="img" aria-label="Messages around restarts"><rect width="{WIDTH}" height="{height}" rx="12" fill="#faf7f2"/><text x="24" y="36" font-size="17" font-weight="600" fill="{INK}">A restart under load</text><text x="24" y="57" fill="{GREY}">shaded: from the wish to restart until it was done; below: the share of clients that got each message</text>
{svg}</svg>
"##
    ))
}
