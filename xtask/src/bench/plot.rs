//! `cargo xtask bench plot`: pictures for `docs/benchmarks.md`, from what the benchmarks wrote with `--json`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;

use super::tool::numbers;

/// Draw what was measured.
#[derive(Debug, Args)]
pub(crate) struct PlotArgs {
    /// What `bench overhead --json` wrote.
    #[arg(long, value_name = "FILE")]
    overhead: Option<PathBuf>,
    /// What `bench identify --json` wrote.
    #[arg(long, value_name = "FILE")]
    identify: Option<PathBuf>,
    /// What `bench latency --json` wrote.
    #[arg(long, value_name = "FILE")]
    latency: Option<PathBuf>,
    /// What `bench memory --json` wrote.
    #[arg(long, value_name = "FILE")]
    memory: Option<PathBuf>,
    /// Where the pictures go.
    #[arg(long, value_name = "DIR", default_value = "docs/benchmarks")]
    out: PathBuf,
}

const SIZE: (u32, u32) = (820, 400);
const FONT: (&str, u32) = ("sans-serif", 14);
const TITLE: (&str, u32) = ("sans-serif", 18);
/// Told apart by lightness too.
const COLOURS: [RGBColor; 3] = [
    RGBColor(30, 90, 160),
    RGBColor(220, 130, 40),
    RGBColor(90, 160, 90),
];

/// Draws what was given.
pub(crate) fn run(arguments: &PlotArgs) -> Result<()> {
    fs::create_dir_all(&arguments.out)?;
    let read = |path: &PathBuf| -> Result<Value> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    };
    let pictures: [(&Option<PathBuf>, &str, Draw); 4] = [
        (&arguments.overhead, "overhead", overhead),
        (&arguments.identify, "identify", resident),
        (&arguments.latency, "latency", latency),
        (&arguments.memory, "memory", memory),
    ];
    for (from, bench, draw) in pictures {
        let Some(from) = from else { continue };
        let name = if bench == "identify" { "resident" } else { bench };
        draw(&read(from)?, &arguments.out.join(format!("{name}.svg"))).with_context(|| {
            let from = from.display();
            format!("{from} is not what `cargo xtask bench {bench} --json FILE` writes")
        })?;
    }
    Ok(())
}

/// Draws what was read to a file.
type Draw = fn(&Value, &Path) -> Result<()>;

/// The library's errors borrow the drawing.
fn told<E: std::fmt::Display>(error: E) -> anyhow::Error {
    anyhow!("the plot cannot be drawn: {error}")
}

/// What is drawn for each job: a name, and where it stands in the job's numbers.
const RATIOS: [(&str, &str); 3] = [
    ("QEMU with an empty plugin", "/with/empty"),
    ("QEMU, watched", "/qemu"),
    ("and the monitor", ""),
];

/// For each job the middle half of the ratios of all pairs, and their median.
fn overhead(found: &Value, path: &Path) -> Result<()> {
    let jobs: Vec<(&String, &Value)> = found.as_object().context("no jobs")?.iter().collect();
    let of = |job: &Value, at: &str| -> Option<[f64; 3]> {
        let ratios = job.pointer(at)?;
        let quartile = |nth: usize| ratios["ratio_quartiles"][nth].as_f64();
        Some([quartile(0)?, ratios["ratio_median"].as_f64()?, quartile(1)?])
    };
    let all = || {
        jobs.iter()
            .flat_map(|(_, job)| RATIOS.iter().filter_map(|(_, at)| of(job, at)))
    };
    let most = all().map(|[.., high]| high).fold(1.05, f64::max);
    let least = all().map(|[low, ..]| low).fold(0.98, f64::min);
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(told)?;
    let count = f64::from(u32::try_from(jobs.len())?);
    let mut chart = ChartBuilder::on(&area)
        .caption("CPU time over that of QEMU alone", TITLE)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..count, (least - 0.01)..(most + 0.02))
        .map_err(told)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_desc("ratio; dots: median, bars: the middle half")
        .label_style(FONT)
        .draw()
        .map_err(told)?;
    let below = least - 0.01;
    for (nth, (name, _)) in (0_u32..).zip(&jobs) {
        let style = FONT
            .into_font()
            .color(&BLACK)
            .pos(Pos::new(HPos::Center, VPos::Top));
        let text = Text::new((*name).clone(), (0, 8), style);
        let label = EmptyElement::at((f64::from(nth) + 0.5, below)) + text;
        chart.plotting_area().draw(&label).map_err(told)?;
    }
    for (nth, ((name, at), colour)) in (0_u32..).zip(RATIOS.iter().zip(COLOURS)) {
        let x = |job: u32| f64::from(job) + 0.3 + 0.2 * f64::from(nth);
        let ratios: Vec<(f64, [f64; 3])> = (0_u32..)
            .zip(&jobs)
            .filter_map(|(number, (_, job))| Some((x(number), of(job, at)?)))
            .collect();
        let bars = ratios.iter().map(|(x, [low, _, high])| {
            PathElement::new(vec![(*x, *low), (*x, *high)], colour.stroke_width(2))
        });
        chart.draw_series(bars).map_err(told)?;
        let dots = ratios
            .iter()
            .map(|(x, [_, median, _])| Circle::new((*x, *median), 5, colour.filled()));
        chart
            .draw_series(dots)
            .map_err(told)?
            .label(*name)
            .legend(move |(x, y)| Circle::new((x + 8, y), 5, colour.filled()));
    }
    let limit = vec![(0.0, 1.03), (count, 1.03)];
    chart
        .draw_series(std::iter::once(PathElement::new(limit, BLACK.mix(0.5))))
        .map_err(told)?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .label_font(FONT)
        .draw()
        .map_err(told)?;
    area.present().map_err(told)
}

/// A picture of curves.
struct Curves<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
    legend: SeriesLabelPosition,
    /// By name; each gets a colour.
    curves: Vec<(String, Vec<(f64, f64)>)>,
}

impl Curves<'_> {
    /// Draws them between these bounds.
    fn draw<X, Y>(self, path: &Path, x: X, y: Y) -> Result<()>
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: ValueFormatter<f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let area = SVGBackend::new(path, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(told)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, TITLE)
            .margin(12)
            .margin_right(36)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(x, y)
            .map_err(told)?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .label_style(FONT)
            .draw()
            .map_err(told)?;
        for ((label, points), colour) in self.curves.into_iter().zip(COLOURS) {
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .map_err(told)?
                .label(label)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour));
        }
        chart
            .configure_series_labels()
            .position(self.legend)
            .background_style(WHITE)
            .border_style(BLACK)
            .label_font(FONT)
            .draw()
            .map_err(told)?;
        area.present().map_err(told)
    }
}

/// Points of the rows that have both numbers.
fn points(rows: &[Value], (x, in_x): (&str, f64), (y, in_y): (&str, f64)) -> Vec<(f64, f64)> {
    let both = |row: &Value| Some((row[x].as_f64()? / in_x, row[y].as_f64()? / in_y));
    rows.iter().filter_map(both).collect()
}

/// Resident memory over look-ups, both logarithmic.
fn resident(found: &Value, path: &Path) -> Result<()> {
    let catalogs = found["lookups"]["catalogs"].as_array().context("no catalogs")?;
    let mut curves = Vec::new();
    for catalog in catalogs {
        let rows = catalog["resident"].as_array().context("no readings")?;
        let mut points = points(rows, ("lookups", 1.0), ("resident_kib", 1024.0));
        points.retain(|(lookups, _)| *lookups > 0.0);
        curves.push((format!("{} pages", catalog["pages"]), points));
    }
    let picture = Curves {
        title: "Resident memory after look-ups of different pages",
        x: "look-ups",
        y: "MiB",
        legend: SeriesLabelPosition::UpperLeft,
        curves,
    };
    picture.draw(
        path,
        (100.0..1e6_f64).log_scale(),
        (0.1..10_000.0_f64).log_scale(),
    )
}

/// Which share of the findings came within so many milliseconds.
fn latency(found: &Value, path: &Path) -> Result<()> {
    let conditions = found["conditions"].as_array().context("no conditions")?;
    let mut curves = Vec::new();
    for condition in conditions {
        let late = numbers(&condition["all_ms"]);
        let count = f64::from(u32::try_from(late.len())?);
        let points = late
            .iter()
            .zip(1_u32..)
            .map(|(ms, nth)| (ms.max(0.1), 100.0 * f64::from(nth) / count));
        let label = condition["condition"].as_str().unwrap_or_default().to_owned();
        curves.push((label, points.collect()));
    }
    let picture = Curves {
        title: "From the first execution of new code to its finding",
        x: "milliseconds",
        y: "% of findings",
        legend: SeriesLabelPosition::LowerRight,
        curves,
    };
    picture.draw(path, (0.1..1000.0_f64).log_scale(), 0.0..100.0_f64)
}

/// The monitor's memory over the minutes of fork-heavy work, below its bound.
fn memory(found: &Value, path: &Path) -> Result<()> {
    let readings = found["readings"].as_array().context("no readings")?;
    let curve = |name| points(readings, ("s", 60.0), (name, 1024.0));
    let own = curve("private_kib");
    let last = own.last().map_or(1.0, |(minutes, _)| *minutes);
    let picture = Curves {
        title: "The monitor's resident memory under fork-heavy work",
        x: "minutes",
        y: "MiB",
        legend: SeriesLabelPosition::MiddleLeft,
        curves: vec![
            ("its own".to_owned(), own),
            ("bound".to_owned(), vec![(0.0, 256.0), (last, 256.0)]),
            ("mapped of files".to_owned(), curve("files_kib")),
        ],
    };
    picture.draw(path, 0.0..last, 0.0..280.0_f64)
}
