//! The chart of a comparison: bars of the ratios to the floor, with their spread.

use std::fmt::Write as _;

use crate::{contestant::Contestant, measured::Measured};

const FIGURE: &str = "CPU per delivery, µs";

/// Bars longer than this are cut, and say so.
const LONGEST: f64 = 2.0;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 190.0;
const BAR: f64 = 16.0;

/// Returns an SVG of the CPU time per delivery in every table that has it.
pub(crate) fn draw(all: &[Measured]) -> Result<String, std::fmt::Error> {
    let mut bars = String::new();
    let scale = (WIDTH - LEFT - 120.0) / LONGEST;
    let mut y = 78.0;
    for measured in all {
        let rows: Vec<_> =
            measured.rows.iter().filter(|row| row.figure == FIGURE && row.ratio.is_some()).collect();
        if rows.is_empty() {
            continue;
        }
        writeln!(
            bars,
            r##"<text x="24" y="{}" font-weight="600" fill="#221d18">{}</text>"##,
            y + 12.0,
            measured.name
        )?;
        y += 22.0;
        for row in rows {
            let Some([median, least, most]) = row.ratio else { continue };
            let fill = if row.server == Contestant::Lastcall { "#a34a07" } else { "#b9aea1" };
            let x = |ratio: f64| LEFT + scale * ratio.min(LONGEST);
            let middle = y + BAR / 2.0;
            writeln!(
                bars,
                r##"<text x="{}" y="{}" text-anchor="end" fill="#5b5249">{}</text><rect x="{LEFT}" y="{y}" width="{:.1}" height="{BAR}" rx="3" fill="{fill}"/><path d="M{:.1} {middle}H{:.1}" stroke="#221d18" stroke-width="1.5"/><text x="{:.1}" y="{}" fill="#221d18">{median:.2} ×</text>"##,
                LEFT - 10.0,
                y + 13.0,
                row.server.name(),
                x(median) - LEFT,
                x(least),
                x(most),
                x(most.max(median)) + 8.0,
                y + 13.0,
            )?;
            y += BAR + 6.0;
        }
        y += 12.0;
    }
    let floor = LEFT + scale;
    let height = y + 12.0;
    let mut svg = String::new();
    writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif" font-size="13" role="img" aria-label="CPU time per delivery, as multiples of a floor"><rect width="{WIDTH}" height="{height}" rx="12" fill="#faf7f2"/><text x="24" y="36" font-size="17" font-weight="600" fill="#221d18">Server CPU time per delivery</text><text x="24" y="57" fill="#5b5249">as a multiple of the floor: a program that does nothing but write each frame to each socket; less is better, bars end at 2 ×</text>"##
    )?;
    write!(svg, "{bars}")?;
    writeln!(
        svg,
        r##"<path d="M{floor:.1} 70V{:.1}" stroke="#221d18" stroke-dasharray="4 4"/></svg>"##,
        height - 16.0
    )?;
    Ok(svg)
}
