//! The picture: curves over the number of things, both axes logarithmic. Pure.

use std::fmt::Write as _;

use super::{fleet, growth};

const PANEL: (f64, f64) = (300.0, 200.0);
/// Of a panel: left of its axis, and above it.
const MARGIN: (f64, f64) = (56.0, 34.0);
const STEP: (f64, f64) = (480.0, 290.0);
const COLOURS: [&str; 6] = ["#0969da", "#1a7f37", "#bf3989", "#9a6700", "#8250df", "#57606a"];

const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#24292f}\
    .title{font-weight:600;font-size:13px}.faint{fill:#6e7781;font-size:11px}\
    .end{text-anchor:end}.middle{text-anchor:middle}.grid{stroke:#d8dee4}\
    polyline{fill:none;stroke-width:2}";

/// A number of things, and what it took.
type Point = (f64, f64);

struct Panel {
    title: &'static str,
    curves: Vec<(String, Vec<Point>)>,
}

/// All that is drawn.
#[derive(Default)]
pub(super) struct Curves(Vec<Panel>);

impl Curves {
    pub(super) fn fleet(&mut self, rows: &[fleet::Row]) {
        let curve = |which: usize| {
            rows.iter().map(|row| (row.agents as f64, row.last()[which] * 1e3)).collect()
        };
        let curves = vec![("median".to_owned(), curve(0)), ("worst".to_owned(), curve(1))];
        self.0
            .push(Panel { title: "one change until the last agent has it, ms, by agents", curves });
    }

    pub(super) fn growth(&mut self, rows: &[growth::Row]) {
        let mut panel = |title, of: fn(&growth::Row) -> f64| {
            let mut curves: Vec<(String, Vec<Point>)> = Vec::new();
            for row in rows {
                match curves.last_mut() {
                    Some((kind, curve)) if kind == row.kind => {
                        curve.push((row.count as f64, of(row)));
                    }
                    _ => curves.push((row.kind.to_owned(), vec![(row.count as f64, of(row))])),
                }
            }
            self.0.push(Panel { title, curves });
        };
        panel("time of the program for a packet, ns", growth::Row::packet);
        panel("one more: from snapshot to kernel, µs", |row| row.one() * 1e6);
        panel("memory of all maps, MiB", |row| row.memory() / f64::from(1 << 20));
    }

    pub(super) fn draw(&self) -> String {
        let (width, height) = (STEP.0 * 2.0, STEP.1 * self.0.len().div_ceil(2) as f64);
        let mut body = String::new();
        for (index, panel) in self.0.iter().enumerate() {
            let (left, top) = ((index % 2) as f64 * STEP.0, (index / 2) as f64 * STEP.1);
            let _ = write!(body, r#"<g transform="translate({left} {top})">{}</g>"#, panel.draw());
        }
        format!(
            concat!(
                r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}">"#,
                "<title>Cost as the work grows</title><style>{style}</style>",
                r##"<rect width="100%" height="100%" fill="#fff"/>{body}</svg>"##,
                "\n"
            ),
            w = width,
            h = height,
            style = STYLE,
            body = body
        )
    }
}

impl Panel {
    fn draw(&self) -> String {
        let points = || self.curves.iter().flat_map(|(_, points)| points);
        let x = Axis::over(points().map(|point| point.0), PANEL.0);
        let y = Axis::over(points().map(|point| point.1), PANEL.1);
        let bottom = MARGIN.1 + PANEL.1;
        let right = MARGIN.0 + PANEL.0;
        let mut text = format!(r#"<text class="title" x="8" y="20">{}</text>"#, self.title);
        for (at, label) in x.ticks() {
            let at = MARGIN.0 + at;
            let _ = write!(
                text,
                r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{top}" y2="{bottom}"/><text class="faint middle" x="{at:.1}" y="{y}">{label}</text>"#,
                top = MARGIN.1,
                y = bottom + 16.0
            );
        }
        for (at, label) in y.ticks() {
            let at = bottom - at;
            let _ = write!(
                text,
                r#"<line class="grid" x1="{left}" x2="{right}" y1="{at:.1}" y2="{at:.1}"/><text class="faint end" x="{x}" y="{y:.1}">{label}</text>"#,
                left = MARGIN.0,
                x = MARGIN.0 - 6.0,
                y = at + 4.0
            );
        }
        for (index, ((name, points), colour)) in self.curves.iter().zip(COLOURS).enumerate() {
            let place = |point: &Point| (MARGIN.0 + x.at(point.0), bottom - y.at(point.1));
            let line: Vec<_> =
                points.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = write!(text, r#"<polyline stroke="{colour}" points="{}"/>"#, line.join(" "));
            let at = MARGIN.1 + 12.0 + 16.0 * index as f64;
            let _ = write!(
                text,
                r#"<text style="fill:{colour}" x="{}" y="{at}">{name}</text>"#,
                right + 8.0
            );
        }
        text
    }
}

/// Powers of ten from one end to the other.
struct Axis {
    first: i32,
    last: i32,
    length: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, length: f64) -> Self {
        let logs: Vec<_> = values.filter(|value| *value > 0.0).map(f64::log10).collect();
        let first = logs.iter().copied().fold(f64::INFINITY, f64::min);
        let last = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if logs.is_empty() {
            return Self { first: 0, last: 1, length };
        }
        // Figures of a bench: far from what an i32 cannot hold.
        let first = first.floor() as i32;
        Self { first, last: (last.ceil() as i32).max(first + 1), length }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value.max(f64::MIN_POSITIVE).log10() - f64::from(self.first))
            / f64::from(self.last - self.first);
        part.clamp(0.0, 1.0) * self.length
    }

    /// Where a line is, and what it is called.
    fn ticks(&self) -> impl Iterator<Item = (f64, String)> {
        (self.first..=self.last).map(|power| {
            let value = 10_f64.powi(power);
            let label = match power {
                6.. => format!("{} M", value / 1e6),
                3.. => format!("{} k", value / 1e3),
                _ => format!("{value}"),
            };
            (self.at(value), label)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_goes_from_power_to_power() {
        let axis = Axis::over([20.0, 5000.0].into_iter(), 300.0);
        let ticks: Vec<_> = axis.ticks().collect();
        let labels: Vec<_> = ticks.iter().map(|(_, label)| label.as_str()).collect();
        assert_eq!(labels, ["10", "100", "1 k", "10 k"]);
        assert_eq!((ticks[0].0, ticks[3].0), (0.0, 300.0));
        assert!((axis.at(1000.0) - 200.0).abs() < 1e-9);
    }

    #[test]
    fn one_value_and_none_have_an_axis_too() {
        assert_eq!(Axis::over([7.0].into_iter(), 1.0).ticks().count(), 2);
        assert_eq!(Axis::over([].into_iter(), 1.0).ticks().count(), 2);
    }
}
