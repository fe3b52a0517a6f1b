//! The picture: for each job, how many requests each back end answers for one of the reference's.

use std::io;
use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::job::JOBS;
use super::measurement::{Report, Result};

const COLOURS: [RGBColor; 6] = [
    RGBColor(0x1b, 0x6c, 0xa8),
    RGBColor(0x5f, 0xa8, 0xd3),
    RGBColor(0xb8, 0xd8, 0xea),
    RGBColor(0x6b, 0x6b, 0x6b),
    RGBColor(0xc4, 0x45, 0x36),
    RGBColor(0xe0, 0xa4, 0x58),
];
const BAR: i32 = 13;
const GAP: i32 = 16;
const LEFT: i32 = 210;
const WIDTH: i32 = 900;
const TOP: i32 = 70;

/// Draws bars whose length is the rate, as a part of the best one of the job.
pub(crate) fn draw(report: &Report, path: &Path) -> io::Result<()> {
    let jobs: Vec<Vec<&Result>> = JOBS
        .iter()
        .map(|job| report.results.iter().filter(|result| result.job == job.name()).collect())
        .filter(|results: &Vec<&Result>| !results.is_empty())
        .collect();
    let heights = jobs.iter().map(|results| results.len() as i32 * BAR + GAP);
    let height = TOP + heights.sum::<i32>() + GAP;
    let area = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    paint(&area, &jobs, &report.machine.cpu).map_err(|error| io::Error::other(error.to_string()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn paint(
    area: &Area<'_>,
    jobs: &[Vec<&Result>],
    cpu: &str,
) -> std::result::Result<(), DrawingAreaErrorKind<std::io::Error>> {
    area.fill(&WHITE)?;
    let style = |pixels: i32, at: HPos| {
        TextStyle::from(("sans-serif", pixels)).pos(Pos::new(at, VPos::Center)).color(&BLACK)
    };
    area.draw_text(&format!("Requests per second, {cpu}"), &style(18, HPos::Left), (10, 20))?;
    for (index, result) in jobs.iter().flatten().take(COLOURS.len()).enumerate() {
        let left = 10 + index as i32 % 3 * 290;
        let at = 42 + index as i32 / 3 * 16;
        bar(area, index, (left, at), 10)?;
        area.draw_text(result.back_end, &style(12, HPos::Left), (left + 16, at + BAR / 2))?;
    }
    let mut at = TOP + GAP;
    for results in jobs {
        let best = results.iter().map(|result| result.median.requests_per_s).fold(0.0, f64::max);
        let middle = at + results.len() as i32 * BAR / 2;
        area.draw_text(&results[0].job, &style(13, HPos::Right), (LEFT - 10, middle))?;
        for (index, result) in results.iter().enumerate() {
            let part = result.median.requests_per_s / best;
            let length = (part * f64::from(WIDTH - LEFT - 90)) as i32;
            bar(area, index, (LEFT, at), length)?;
            let label = match result.median.requests_per_s {
                rate if rate < 20_000.0 => format!("{rate:.0}"),
                rate => format!("{:.0}k", rate / 1e3),
            };
            area.draw_text(&label, &style(11, HPos::Left), (LEFT + length + 5, at + BAR / 2))?;
            at += BAR;
        }
        at += GAP;
    }
    area.present()
}

fn bar(
    area: &Area<'_>,
    index: usize,
    (left, top): (i32, i32),
    length: i32,
) -> std::result::Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let colour = COLOURS[index % COLOURS.len()];
    area.draw(&Rectangle::new([(left, top), (left + length.max(1), top + BAR - 2)], colour.filled()))
}
