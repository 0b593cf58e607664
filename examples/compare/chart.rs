//! The bar chart: a panel a pair, two columns of horizontal bars.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::figure;

/// A group of bars on scales of their own.
pub(crate) struct Panel {
    pub(crate) title: String,
    /// What the left and the right column show.
    pub(crate) units: [&'static str; 2],
    pub(crate) bars: Vec<Bar>,
}

pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) values: [f64; 2],
    /// Drawn in the colour that stands out.
    pub(crate) accent: bool,
}

const WIDTH: i32 = 1000;
const LABELS: i32 = 210;
/// From the start of one column to that of the next.
const COLUMN: i32 = 390;
/// The longest bar; the rest of the column holds its figure.
const LONGEST: f64 = 310.0;
const TITLE: i32 = 34;
const LINE: i32 = 22;
const MARGIN: i32 = 20;

const INK: RGBColor = RGBColor(40, 40, 40);
const PLAIN: RGBColor = RGBColor(150, 170, 190);
const ACCENT: RGBColor = RGBColor(214, 106, 40);

/// Draws the panels below each other under one line of heading.
pub(crate) fn draw(file: &Path, heading: &str, panels: &[Panel]) -> Result<(), Box<dyn Error>> {
    let lines: usize = panels.iter().map(|panel| panel.bars.len()).sum();
    let height = 2 * MARGIN + TITLE + panels.len() as i32 * (TITLE + MARGIN) + lines as i32 * LINE;
    let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
    let root = SVGBackend::new(file, size).into_drawing_area();
    root.fill(&WHITE)?;
    let style = |size: i32, h| {
        TextStyle::from(("sans-serif", size).into_font())
            .color(&INK)
            .pos(Pos::new(h, VPos::Center))
    };
    let text = |text: String, at: (i32, i32), style: TextStyle<'static>| {
        root.draw(&Text::new(text, at, style))
    };
    text(heading.to_owned(), (MARGIN, MARGIN), style(13, HPos::Left))?;
    let mut y = MARGIN + TITLE / 2;
    for panel in panels {
        text(
            panel.title.clone(),
            (MARGIN, y + TITLE / 2),
            style(17, HPos::Left),
        )?;
        for (column, unit) in panel.units.into_iter().enumerate() {
            let x = LABELS + column as i32 * COLUMN;
            text(unit.to_owned(), (x, y + TITLE / 2), style(13, HPos::Left))?;
        }
        y += TITLE;
        for bar in &panel.bars {
            let middle = y + LINE / 2;
            text(
                bar.label.clone(),
                (LABELS - 8, middle),
                style(13, HPos::Right),
            )?;
            for (column, value) in bar.values.into_iter().enumerate() {
                let most = panel.bars.iter().map(|bar| bar.values[column]);
                let most = most.fold(f64::MIN_POSITIVE, f64::max);
                let x = LABELS + column as i32 * COLUMN;
                let end = x + (value / most * LONGEST).round() as i32;
                let colour = if bar.accent { ACCENT } else { PLAIN };
                let corners = [(x, y + 3), (end.max(x + 1), y + LINE - 3)];
                root.draw(&Rectangle::new(corners, colour.filled()))?;
                text(figure(value), (end + 6, middle), style(13, HPos::Left))?;
            }
            y += LINE;
        }
        y += MARGIN;
    }
    root.present()?;
    Ok(())
}
