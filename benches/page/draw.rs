//! Results as pictures.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;
use serde_json::Value;

use crate::Results;

type Outcome = Result<(), Box<dyn Error>>;

const FONT: &str = "sans-serif";

/// A colour for each backend, the same in every picture.
fn colour(way: &str) -> RGBColor {
    match way {
        "chosen" => BLACK,
        "sendfile" => RGBColor(31, 119, 180),
        "splice" => RGBColor(44, 160, 44),
        "copy-file-range" => RGBColor(148, 103, 189),
        "mmap" => RGBColor(255, 127, 14),
        _ => RGBColor(214, 39, 40),
    }
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// GiB/s by size, one panel a pair.
pub(crate) fn throughput(path: &Path, results: &Results) -> Outcome {
    const PAIRS: [&str; 6] = [
        "file -> TCP",
        "file -> UNIX",
        "file -> pipe",
        "file -> file",
        "TCP -> TCP",
        "TCP -> file",
    ];
    let root = SVGBackend::new(path, (1080, 640)).into_drawing_area();
    root.fill(&WHITE)?;
    let titled = root.titled(
        "Throughput by size, GiB/s; black: what the probe chose",
        (FONT, 18),
    )?;
    for (area, pair) in titled.split_evenly((2, 3)).iter().zip(PAIRS) {
        let rows: Vec<&Value> = results
            .rows
            .iter()
            .filter(|row| row["pair"] == pair)
            .collect();
        let speeds = rows.iter().flat_map(|row| list(&row["ways"]));
        let top = speeds
            .map(|way| number(&way["gib_per_s"]))
            .fold(0.1, f64::max);
        let mut chart = ChartBuilder::on(area)
            .caption(pair, (FONT, 15))
            .margin(6)
            .x_label_area_size(28)
            .y_label_area_size(34)
            .build_cartesian_2d(
                (4096_f64..268_435_456.0).log_scale().base(4.0),
                0.0..top * 1.1,
            )?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&|bytes| label(*bytes))
            .draw()?;
        let mut names: Vec<&str> = Vec::new();
        for way in rows.iter().flat_map(|row| list(&row["ways"])) {
            if !names.contains(&text(way, "way")) {
                names.push(text(way, "way"));
            }
        }
        // The choice last, so that it lies on top.
        names.sort_by_key(|name| *name == "chosen");
        for name in names {
            let points: Vec<(f64, f64)> = rows
                .iter()
                .filter_map(|row| {
                    let way = list(&row["ways"]).iter().find(|way| way["way"] == name)?;
                    Some((number(&row["bytes"]), number(&way["gib_per_s"])))
                })
                .collect();
            let style = colour(name).stroke_width(if name == "chosen" { 1 } else { 2 });
            let series = chart.draw_series(LineSeries::new(points, style).point_size(2))?;
            series
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font((FONT, 11))
            .draw()?;
    }
    titled.present()?;
    Ok(())
}

fn label(bytes: f64) -> String {
    match bytes {
        b if b >= 1_048_576.0 => format!("{:.0}M", b / 1_048_576.0),
        b => format!("{:.0}K", b / 1024.0),
    }
}

/// Each cell's ratio of processor time, sorted, with its interval.
pub(crate) fn regret(path: &Path, results: &Results) -> Outcome {
    let mut cells: Vec<[f64; 3]> = results
        .rows
        .iter()
        .map(|row| [0, 1, 2].map(|at| number(&row["cpu_ratio"][at])))
        .collect();
    cells.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let root = SVGBackend::new(path, (1080, 320)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(
            "Regret: processor time of the choice to that of the best backend, each pair and size",
            (FONT, 16),
        )
        .margin(8)
        .y_label_area_size(36)
        .build_cartesian_2d(0_f64..cells.len() as f64, 0.7..1.6)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .draw()?;
    let bound = [(0.0, 1.1), (cells.len() as f64, 1.1)];
    chart.draw_series(LineSeries::new(bound, RED.stroke_width(1)))?;
    for (at, [mid, low, high]) in cells.into_iter().enumerate() {
        let x = at as f64 + 0.5;
        let bar = [(x, low.max(0.7)), (x, high.min(1.6))];
        chart.draw_series(LineSeries::new(
            bar,
            RGBColor(160, 160, 160).stroke_width(2),
        ))?;
        chart.draw_series([Circle::new((x, mid.min(1.6)), 2, BLACK.filled())])?;
    }
    root.present()?;
    Ok(())
}

/// Processor time per GiB of the crate and of everything beside it.
pub(crate) fn cpu(path: &Path, all: &[Results]) -> Outcome {
    let rows: Vec<&Value> = all.iter().flat_map(|results| &results.rows).collect();
    let rows: Vec<&Value> = rows
        .into_iter()
        .filter(|row| row["ways"].is_array())
        .collect();
    let lines: usize = rows.iter().map(|row| list(&row["ways"]).len() + 1).sum();
    let (width, height) = (1080_u32, 16 * lines as u32 + 60);
    let root = SVGBackend::new(path, (width, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let titled = root.titled("Processor time, ms per GiB (less is better)", (FONT, 18))?;
    let name = |size: i32| (FONT, size).into_text_style(&titled);
    let mut y = 10;
    for row in rows {
        titled.draw_text(text(row, "name"), &name(13), (12, y))?;
        y += 16;
        let ways = list(&row["ways"]);
        let most = ways
            .iter()
            .map(|way| number(&way["cpu_ms_per_gib"]))
            .fold(1.0, f64::max);
        for (at, way) in ways.iter().enumerate() {
            let value = number(&way["cpu_ms_per_gib"]);
            let end = 300 + (value / most * 680.0) as i32;
            let colour = if at == 0 {
                RGBColor(31, 119, 180)
            } else {
                RGBColor(190, 190, 190)
            };
            titled.draw_text(text(way, "way"), &name(12), (32, y))?;
            titled.draw(&Rectangle::new(
                [(300, y + 1), (end, y + 12)],
                colour.filled(),
            ))?;
            titled.draw_text(&format!("{value:.0}"), &name(12), (end + 6, y))?;
            y += 16;
        }
    }
    root.present()?;
    Ok(())
}
