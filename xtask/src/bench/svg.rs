//! The picture: a panel a measure, in it a row a variant, its ratio to its base as a dot
//! with its spread as a bar. Needs no program and no font but the reader's. Pure.

use std::fmt::Write;

use super::measures::Measure;
use super::stats::{Samples, Summary};
use super::table::{Row, figure, tables};

const WIDTH: f64 = 960.0;
const COLUMNS: usize = 2;
/// Of a panel: names, then the plot, then figures.
const NAMES: f64 = 148.0;
const PLOT: f64 = 190.0;
const ROW: f64 = 19.0;
/// Above and below a panel's rows: the title, the axis.
const HEAD: f64 = 36.0;
const FOOT: f64 = 34.0;

const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#24292f}\
    .title{font-weight:600;font-size:13px}.faint{fill:#6e7781;font-size:11px}\
    .end{text-anchor:end}.middle{text-anchor:middle}\
    .grid{stroke:#d8dee4}.one{stroke:#57606a;stroke-dasharray:3 3}\
    .other{stroke:#8c959f;fill:#8c959f}.ours{stroke:#0969da;fill:#0969da}\
    .spread{stroke-width:5;stroke-opacity:.35;stroke-linecap:round}";

/// The picture of all ratios.
pub(crate) fn picture(samples: &Samples) -> String {
    let panels: Vec<Panel> = tables(samples).filter_map(Panel::of).collect();
    let mut body = String::new();
    let mut top = 44.0;
    for row in panels.chunks(COLUMNS) {
        for (column, panel) in row.iter().enumerate() {
            let left = 16.0 + column as f64 * WIDTH / COLUMNS as f64;
            let _ = write!(body, r#"<g transform="translate({left} {top})">{}</g>"#, panel.draw());
        }
        top += row.iter().map(Panel::height).fold(0.0, f64::max);
    }
    format!(
        concat!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}">"#,
            "<title>netagent's datapaths beside others, as ratios</title><style>{style}</style>",
            r##"<rect width="100%" height="100%" fill="#fff"/>"##,
            r#"<text class="faint" x="16" y="26">Ratio to what the tables compare with, within "#,
            "a round: median, and the tenth to the ninetieth percentile. Dashed: 1.</text>",
            "{body}</svg>\n"
        ),
        w = WIDTH,
        h = top,
        style = STYLE,
        body = body
    )
}

struct Panel {
    measure: &'static Measure,
    /// Those that have a ratio.
    rows: Vec<(Row, Summary)>,
    /// The ratio at the right end of the axis.
    end: f64,
}

impl Panel {
    /// None if there is nothing to compare.
    fn of((measure, rows): (&'static Measure, Vec<Row>)) -> Option<Self> {
        let rows: Vec<_> =
            rows.into_iter().filter_map(|row| row.ratio.map(|ratio| (row, ratio))).collect();
        let most = rows.iter().map(|(_, ratio)| ratio.p90).fold(1.0, f64::max);
        (!rows.is_empty()).then_some(Self { measure, rows, end: (most * 1.05 * 4.0).ceil() / 4.0 })
    }

    fn height(&self) -> f64 {
        HEAD + ROW * self.rows.len() as f64 + FOOT
    }

    fn x(&self, ratio: f64) -> f64 {
        NAMES + ratio.clamp(0.0, self.end) / self.end * PLOT
    }

    fn draw(&self) -> String {
        let mut text =
            format!(r#"<text class="title" y="14">{}</text>"#, escape(self.measure.title));
        let hint = if self.measure.less_is_better { "less is better" } else { "more is better" };
        let right = NAMES + PLOT + 96.0;
        let _ = write!(text, r#"<text class="faint end" x="{right}" y="14">{hint}</text>"#);
        let bottom = HEAD + ROW * self.rows.len() as f64 - 8.0;
        for tick in ticks(self.end) {
            let class = if tick == 1.0 { "one" } else { "grid" };
            let x = self.x(tick);
            let _ = write!(
                text,
                r#"<line class="{class}" x1="{x:.1}" x2="{x:.1}" y1="24" y2="{bottom}"/>"#
            );
            let y = bottom + 13.0;
            let _ = write!(text, r#"<text class="faint middle" x="{x:.1}" y="{y}">{tick}</text>"#);
        }
        for (index, (row, ratio)) in self.rows.iter().enumerate() {
            text += &self.draw_row(row, *ratio, HEAD + ROW * index as f64);
        }
        text
    }

    fn draw_row(&self, row: &Row, ratio: Summary, y: f64) -> String {
        let class = if row.kind.is_ours() { "ours" } else { "other" };
        let (low, median, high) = (self.x(ratio.p10), self.x(ratio.median), self.x(ratio.p90));
        let (names, figures) = (NAMES - 10.0, NAMES + PLOT + 10.0);
        let base = y + 4.0;
        format!(
            concat!(
                r#"<text class="end" x="{names}" y="{base}">{title}</text>"#,
                r#"<line class="{class} spread" x1="{low:.1}" x2="{high:.1}" y1="{y}" y2="{y}"/>"#,
                r#"<circle class="{class}" cx="{median:.1}" cy="{y}" r="3.5"/>"#,
                r#"<text x="{figures}" y="{base}">{ratio:.2}"#,
                r#" <tspan class="faint">{value}</tspan></text>"#
            ),
            names = names,
            base = base,
            title = escape(row.kind.title),
            class = class,
            low = low,
            high = high,
            y = y,
            median = median,
            figures = figures,
            ratio = ratio.median,
            value = escape(&figure(row.value.median, self.measure.unit)),
        )
    }
}

/// Where the axis has lines: few, and always at 1.
fn ticks(end: f64) -> Vec<f64> {
    let step = if end <= 1.5 { 0.25 } else { (end / 4.0).ceil().clamp(0.5, 1.0) };
    let step = if end > 5.0 { (end / 5.0).ceil() } else { step };
    let mut ticks: Vec<_> =
        (0..).map(|n| f64::from(n) * step).take_while(|tick| *tick <= end).collect();
    if !ticks.contains(&1.0) {
        ticks.insert(1, 1.0);
    }
    ticks
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::samples;
    use super::*;

    #[test]
    fn a_panel_a_measure_and_a_dot_a_ratio() {
        let svg = picture(&samples());
        assert_eq!(svg.matches("<g ").count(), 2);
        assert_eq!(svg.matches("<circle ").count(), 2, "raw and bridge-same are bases");
        assert_eq!(svg.matches("class=\"one\"").count(), 2);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        // Whatever is opened is closed: it is XML.
        for tag in ["svg", "g", "text", "tspan", "title", "style"] {
            let opened =
                svg.matches(&format!("<{tag} ")).count() + svg.matches(&format!("<{tag}>")).count();
            assert_eq!(opened, svg.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn nothing_measured_is_an_empty_picture() {
        assert!(!picture(&Samples::default()).contains("<g "));
    }

    #[test]
    fn the_axis_has_few_lines_and_one_of_them_is_at_1() {
        for end in [1.25, 1.5, 2.25, 3.75, 5.0, 9.5, 40.0] {
            let ticks = ticks(end);
            assert!(ticks.contains(&1.0) && (3..=8).contains(&ticks.len()), "{end}: {ticks:?}");
            assert!(ticks.is_sorted() && ticks[0] == 0.0, "{end}: {ticks:?}");
        }
    }

    #[test]
    fn markup_in_a_text_is_text() {
        assert_eq!(escape("a<b & c>d"), "a&lt;b &amp; c&gt;d");
    }
}
