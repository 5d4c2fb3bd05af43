//! How figures grow with the load: measured at three loads, drawn as small multiples.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};

use crate::{
    figure::{Figure, written},
    scenario::{self, Scenario},
};

/// A figure that is this many times worse than at the smallest load has bent.
const BENT: f64 = 1.5;
/// Figures of all the load together, which may grow as it does.
const OF_ALL: [&str; 1] = ["all caught up"];

/// A scenario at three loads.
#[derive(Debug, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub(crate) struct Growth {
    /// What the load counts.
    of: String,
    curves: Vec<Curve>,
    date: String,
    commit: String,
}

/// A figure at each load.
#[derive(Debug, Serialize, Deserialize)]
struct Curve {
    figure: String,
    /// Load and figure, and how that is written with its unit.
    points: Vec<(usize, f64, String)>,
}

/// As it is stored: once there was one figure a scenario.
#[derive(Debug, Deserialize)]
struct Stored {
    of: String,
    #[serde(default)]
    curves: Vec<Curve>,
    #[serde(flatten)]
    only: Option<Curve>,
    date: String,
    commit: String,
}

impl From<Stored> for Growth {
    fn from(stored: Stored) -> Self {
        let Stored { of, mut curves, only, date, commit } = stored;
        curves.extend(only);
        Self { of, curves, date, commit }
    }
}

impl Growth {
    pub(crate) fn of(scenario: &Scenario, measured: &[(usize, Vec<Figure>)]) -> Self {
        let curve = |name: &&str| {
            let point = |(load, figures): &(usize, Vec<Figure>)| {
                let figure = figures.iter().find(|figure| figure.name == *name)?;
                figure.value.is_finite().then(|| (*load, figure.value, figure.to_string()))
            };
            let points = measured.iter().filter_map(point).collect();
            Curve { figure: (*name).to_owned(), points }
        };
        Self {
            of: scenario.of.to_owned(),
            curves: scenario.grows.iter().map(curve).collect(),
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            commit: crate::machine::commit(),
        }
    }
}

impl Curve {
    /// What follows the numbers: ` ms`.
    fn unit(&self) -> &str {
        let Some((_, value, text)) = self.points.first() else { return "" };
        text.strip_prefix(&written(*value)).unwrap_or_default()
    }

    /// How many times worse it is than at the smallest load.
    fn worse(&self, place: usize) -> f64 {
        let (Some(first), Some(point)) = (self.points.first(), self.points.get(place)) else {
            return f64::NAN;
        };
        let more = point.0 as f64 / first.0 as f64;
        match self.unit() {
            "/s" => first.1 / point.1,
            _ if OF_ALL.contains(&&*self.figure) => point.1 / first.1 / more,
            _ => point.1 / first.1,
        }
    }

    /// The place of the first load at which it has bent.
    fn bends_at(&self) -> Option<usize> {
        (1..self.points.len()).find(|place| self.worse(*place) >= BENT)
    }
}

/// What bends first, first.
pub(crate) fn table(growth: &BTreeMap<String, Growth>) -> String {
    let curves =
        |(name, growth)| -> Vec<_> { of_all(growth).map(|curve| (name, growth, curve)).collect() };
    let mut rows: Vec<(&String, &Growth, &Curve)> = growth.iter().flat_map(curves).collect();
    let bends = |curve: &Curve| curve.bends_at().unwrap_or(usize::MAX);
    let last = |curve: &Curve| curve.worse(curve.points.len().saturating_sub(1));
    rows.sort_by(|(.., a), (.., b)| {
        bends(a).cmp(&bends(b)).then_with(|| last(b).total_cmp(&last(a)))
    });
    let mut table = "| scenario | figure | 1× | 4× | 16× | bends | worse at 16× | |\n\
                     |---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for (name, growth, curve) in rows {
        let cells: Vec<String> = curve
            .points
            .iter()
            .map(|(load, _, text)| format!("{text} ({} {})", spaced(*load), growth.of))
            .collect();
        let bends = ["–", "at 4×", "at 16×"].get(curve.bends_at().unwrap_or_default());
        let Growth { date, commit, .. } = growth;
        let _ = writeln!(
            table,
            "| `{name}` | {} | {} | {} | {} × | {date} `{commit}` |",
            curve.figure,
            cells.join(" | "),
            bends.unwrap_or(&"–"),
            written(last(curve)),
        );
    }
    table
}

/// The curves that have points at all loads.
fn of_all(growth: &Growth) -> impl Iterator<Item = &Curve> {
    growth.curves.iter().filter(|curve| curve.points.len() == 3)
}

/// A whole number, thousands apart.
fn spaced(number: usize) -> String {
    if number < 1000 { number.to_string() } else { written(number as f64) }
}

const WIDTH: f64 = 250.0;
const HEIGHT: f64 = 180.0;
const COLUMNS: usize = 4;
const FLAT: &str = "#157f4f";
const BENDING: &str = "#b5462a";

/// A panel for each figure: load across (1, 4, 16 times), the figure up, from zero.
pub(crate) fn svg(growth: &BTreeMap<String, Growth>) -> String {
    let of = |scenario: &'static Scenario| {
        let growth = growth.get(scenario.name)?;
        Some(of_all(growth).map(move |curve| (scenario, growth, curve)))
    };
    let panels: Vec<(&Scenario, &Growth, &Curve)> =
        scenario::ALL.iter().filter_map(of).flatten().collect();
    let rows = panels.len().div_ceil(COLUMNS);
    let (width, height) = (WIDTH * COLUMNS as f64, HEIGHT * rows as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for (place, (scenario, growth, curve)) in panels.iter().enumerate() {
        let left = (place % COLUMNS) as f64 * WIDTH;
        let top = (place / COLUMNS) as f64 * HEIGHT;
        let _ = writeln!(out, "<g transform=\"translate({left} {top})\">");
        panel(&mut out, scenario, growth, curve);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

fn panel(out: &mut String, scenario: &Scenario, growth: &Growth, curve: &Curve) {
    let (left, right, top, bottom) = (52.0, WIDTH - 26.0, 52.0, HEIGHT - 36.0);
    let unit = curve.unit().trim_start();
    let bend = curve.bends_at();
    let (color, told) = match bend {
        Some(1) => (BENDING, ", bends at 4×"),
        Some(_) => (BENDING, ", bends at 16×"),
        None => (FLAT, ""),
    };
    let _ = writeln!(
        out,
        "<text x=\"12\" y=\"18\" font-weight=\"bold\">{}</text>\
         <text x=\"12\" y=\"33\" fill=\"#333\">{} ({unit})<tspan fill=\"{color}\">{told}</tspan></text>",
        scenario.name, curve.figure
    );
    let most = curve.points.iter().map(|(_, value, _)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let step = step(most);
    let steps = (most / step).ceil();
    let height = |value: f64| bottom - (bottom - top) * value / (steps * step);
    for nth in 0..=steps as usize {
        let value = nth as f64 * step;
        let y = height(value);
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#666\">{}</text>",
            left - 5.0,
            y + 4.0,
            tick(value, step)
        );
    }
    let gaps = curve.points.len().saturating_sub(1).max(1) as f64;
    // Each load is four times the one before: they are as far apart.
    let x = |place: usize| left + 14.0 + (right - left - 28.0) * place as f64 / gaps;
    let places: Vec<(f64, f64)> = curve
        .points
        .iter()
        .enumerate()
        .map(|(nth, (_, value, _))| (x(nth), height(*value)))
        .collect();
    let line: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
        line.join(" ")
    );
    for ((x, y), (load, value, _)) in places.iter().zip(&curve.points) {
        let _ = writeln!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">{}</text>",
            y - 7.0,
            written(*value),
            bottom + 14.0,
            spaced(*load)
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">{}</text>",
        f64::midpoint(left, right),
        bottom + 28.0,
        growth.of
    );
}

/// Between two lines of an axis: 1, 2 or 5 times a power of ten, for two to five lines above zero.
fn step(most: f64) -> f64 {
    let power = 10_f64.powf((most / 2.0).log10().floor());
    let fits = |times: &f64| most / (times * power) >= 2.0;
    [5.0, 2.0, 1.0].into_iter().find(fits).unwrap_or(1.0) * power
}

/// A number of an axis, with as many decimals as its steps need.
fn tick(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    if value >= 1000.0 { written(value) } else { format!("{value:.decimals$}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(figure: &str, unit: &str, values: [f64; 3]) -> Curve {
        let point = |(load, value)| (load, value, format!("{}{unit}", written(value)));
        let points = [10, 40, 160].into_iter().zip(values).map(point).collect();
        Curve { figure: figure.to_owned(), points }
    }

    #[test]
    fn a_cost_bends_when_it_grows_and_a_rate_when_it_falls() {
        for (curve, bends) in [
            (curve("CPU", " s/M", [10.0, 14.9, 15.0]), Some(2)),
            (curve("CPU", " s/M", [10.0, 15.0, 9.0]), Some(1)),
            (curve("events", "/s", [900.0, 1800.0, 3600.0]), None),
            (curve("events", "/s", [900.0, 800.0, 600.0]), Some(2)),
            (curve("all caught up", " s", [0.5, 2.0, 8.0]), None),
            (curve("all caught up", " s", [0.5, 3.0, 8.0]), Some(1)),
        ] {
            assert_eq!(curve.bends_at(), bends, "{curve:?}");
        }
    }

    #[test]
    fn what_bends_first_is_first_in_the_table() {
        let growth = |curves| Growth {
            of: "readers".to_owned(),
            curves,
            date: String::new(),
            commit: String::new(),
        };
        let late = curve("p99", " ms", [1.0, 1.0, 9.0]);
        let early = curve("p50", " ms", [1.0, 2.0, 2.0]);
        let flat = curve("CPU", " s/M", [1.0, 1.0, 1.2]);
        let all = BTreeMap::from([("a".to_owned(), growth(vec![flat, late, early]))]);
        let table = table(&all);
        let figures = table.lines().skip(2).filter_map(|line| line.split(" | ").nth(1));
        assert_eq!(figures.collect::<Vec<&str>>(), ["p50", "p99", "CPU"]);
        assert!(table.contains("| at 4× | 2.00 × |") && table.contains("| – | 1.20 × |"));
    }

    #[test]
    fn growth_of_one_figure_is_read() {
        let text = r#"{"of":"readers","figure":"CPU","points":[[250,6.3,"6.30 s/M"]],
            "date":"2026-11-22","commit":"12dd3ef949"}"#;
        let old: Growth = serde_json::from_str(text).unwrap();
        let new: Growth = serde_json::from_str(&serde_json::to_string(&old).unwrap()).unwrap();
        for growth in [old, new] {
            let [curve] = growth.curves.as_slice() else { panic!("{growth:?}") };
            assert_eq!((curve.figure.as_str(), curve.unit()), ("CPU", " s/M"));
        }
    }

    #[test]
    fn axes_have_few_round_steps() {
        for (most, expected) in [(6.3, 2.0), (0.95, 0.2), (4081.0, 2000.0), (25_586.0, 10_000.0)] {
            assert!((step(most) - expected).abs() < 1e-9, "{most}: {}", step(most));
        }
        assert_eq!(tick(0.4, 0.2), "0.4");
        assert_eq!(tick(20_000.0, 10_000.0), "20 000");
    }
}
