//! How costs grow with the load: measured at three loads, drawn as small multiples.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};

use crate::{
    figure::Figure,
    scenario::{self, Scenario},
};

/// A scenario at three loads.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Growth {
    /// What the load counts.
    of: String,
    /// The figure that is drawn.
    figure: String,
    /// Load and figure, with its unit.
    points: Vec<(usize, f64, String)>,
    date: String,
    commit: String,
}

impl Growth {
    pub(crate) fn of(scenario: &Scenario, measured: &[(usize, Vec<Figure>)]) -> Self {
        let point = |(load, figures): &(usize, Vec<Figure>)| {
            let figure = figures.iter().find(|figure| figure.name == scenario.grows)?;
            Some((*load, figure.value, figure.to_string()))
        };
        Self {
            of: scenario.of.to_owned(),
            figure: scenario.grows.to_owned(),
            points: measured.iter().filter_map(point).collect(),
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            commit: crate::machine::commit(),
        }
    }

    /// How much the cost grew while the load grew sixteenfold.
    fn factor(&self) -> f64 {
        match (self.points.first(), self.points.last()) {
            (Some((_, first, _)), Some((_, last, _))) => last / first,
            _ => f64::NAN,
        }
    }
}

/// What bends first, first.
pub(crate) fn table(growth: &BTreeMap<String, Growth>) -> String {
    let mut rows: Vec<(&String, &Growth)> = growth.iter().collect();
    rows.sort_by(|a, b| b.1.factor().total_cmp(&a.1.factor()));
    let mut table =
        "| scenario | figure | 1× | 4× | 16× | grew | |\n|---|---|---|---|---|---|---|\n"
            .to_owned();
    for (name, growth) in rows {
        let cells: Vec<String> = growth
            .points
            .iter()
            .map(|(load, _, text)| format!("{text} ({load} {})", growth.of))
            .collect();
        let Growth { figure, date, commit, .. } = growth;
        let _ = writeln!(
            table,
            "| `{name}` | {figure} | {} | {:.2} × | {date} `{commit}` |",
            cells.join(" | "),
            growth.factor()
        );
    }
    table
}

const WIDTH: f64 = 220.0;
const HEIGHT: f64 = 150.0;
const COLUMNS: usize = 4;

/// A panel for each scenario: load across (1, 4, 16), cost up, from zero.
pub(crate) fn svg(growth: &BTreeMap<String, Growth>) -> String {
    let panels: Vec<(&Scenario, &Growth)> = scenario::ALL
        .iter()
        .filter_map(|scenario| Some((scenario, growth.get(scenario.name)?)))
        .collect();
    let rows = panels.len().div_ceil(COLUMNS);
    let (width, height) = (WIDTH * COLUMNS as f64, HEIGHT * rows as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for (place, (scenario, growth)) in panels.iter().enumerate() {
        let left = (place % COLUMNS) as f64 * WIDTH;
        let top = (place / COLUMNS) as f64 * HEIGHT;
        let _ = writeln!(out, "<g transform=\"translate({left} {top})\">");
        panel(&mut out, scenario, growth);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

fn panel(out: &mut String, scenario: &Scenario, growth: &Growth) {
    let (left, right, top, bottom) = (30.0, WIDTH - 40.0, 40.0, HEIGHT - 30.0);
    let most = growth.points.iter().map(|(_, value, _)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let _ = writeln!(
        out,
        "<text x=\"{left}\" y=\"16\" font-weight=\"bold\">{}</text>\
         <text x=\"{left}\" y=\"30\" fill=\"#666\">{} by {}</text>\
         <line x1=\"{left}\" y1=\"{bottom}\" x2=\"{right}\" y2=\"{bottom}\" stroke=\"#999\"/>",
        scenario.name, growth.figure, growth.of
    );
    let steps = growth.points.len().saturating_sub(1).max(1) as f64;
    let at = |place: usize, value: f64| {
        let x = left + (right - left) * place as f64 / steps;
        (x, bottom - (bottom - top - 14.0) * value / most)
    };
    let places: Vec<(f64, f64)> =
        growth.points.iter().enumerate().map(|(n, (_, value, _))| at(n, *value)).collect();
    let line: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#1a6\" stroke-width=\"2\"/>",
        line.join(" ")
    );
    for ((x, y), (load, _, text)) in places.iter().zip(&growth.points) {
        let _ = writeln!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#1a6\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">{load}</text>",
            y - 7.0,
            bottom + 14.0
        );
    }
}
