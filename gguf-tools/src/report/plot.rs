//! Plots as SVG: points and lines over two axes, and bars of named groups, in the colours of the page's scheme.
//!
//! Colours are drawn as placeholders and become variables of the page, so that one picture serves light and dark. The key
//! stands below the picture as text. Each picture says what it shows in a title and a description.

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::page::escape;

/// The size of a picture in its own units; the page scales it.
const SIZE: (u32, u32) = (460, 320);
/// The placeholders for ink and for the lines behind; series take those after `FIRST`.
const INK: RGBColor = RGBColor(1, 2, 3);
const GRID: RGBColor = RGBColor(1, 2, 4);
const FIRST: u8 = 10;
/// The series colours that a page has.
const N_COLOURS: usize = 7;
/// What plotters calls this size is drawn at 13 units.
const TEXT_SIZE: i32 = 16;

/// A picture with its words.
#[derive(Debug, Clone)]
pub struct Plot {
    title: String,
    description: String,
    svg: String,
    key: Vec<(String, usize, Stroke)>,
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stroke {
    /// A line through points.
    Line,
    /// A dashed line.
    Dashed,
    /// Points, each with its label beside it.
    Points,
    /// Filled boxes; what bars are drawn as.
    Boxes,
}

/// An axis.
#[derive(Debug, Clone)]
pub struct Axis {
    name: String,
    range: (f64, f64),
    labels: Labels,
}

#[derive(Debug, Clone)]
enum Labels {
    Numbers(usize),
    Percent(usize),
    Names(Vec<String>),
}

impl Axis {
    /// Numbers with so many digits after the point.
    pub fn numbers(name: &str, range: (f64, f64), digits: usize) -> Axis {
        Axis { name: name.to_string(), range, labels: Labels::Numbers(digits) }
    }

    /// Shares, shown in percent, from 0 up to where `values` end; never all of nothing.
    pub fn shares(name: &str, values: impl IntoIterator<Item = f64>) -> Axis {
        let most = values.into_iter().filter(|value| value.is_finite()).fold(0.0f64, f64::max);
        let most = if most > 0.9 { 1.0 } else { (most * 1.1).max(1e-3) };
        let digits = if most < 0.02 { 2 } else { usize::from(most < 0.1) };
        Axis { name: name.to_string(), range: (0.0, most), labels: Labels::Percent(digits) }
    }

    /// Places with names, one unit apart, from 0.
    pub fn names(name: &str, names: Vec<String>) -> Axis {
        let range = (-0.5, names.len().max(1) as f64 - 0.5);
        Axis { name: name.to_string(), range, labels: Labels::Names(names) }
    }

    fn label(&self, value: f64) -> String {
        match &self.labels {
            Labels::Numbers(digits) => format!("{value:.digits$}"),
            Labels::Percent(digits) => format!("{:.digits$} %", 100.0 * value),
            Labels::Names(names) => {
                let is_place = (value - value.round()).abs() < 1e-6 && value > -0.5;
                let name = if is_place { names.get(value.round() as usize) } else { None };
                name.cloned().unwrap_or_default()
            }
        }
    }

    /// About how many labels it has room for.
    fn n_labels(&self, room: usize) -> usize {
        match &self.labels {
            Labels::Names(names) => names.len().clamp(1, room) + 1,
            _ => room.min(6),
        }
    }
}

/// Points of one thing.
#[derive(Debug, Clone)]
pub struct Series {
    /// What they are.
    pub name: String,
    /// Where they are.
    pub points: Vec<(f64, f64)>,
    /// Words beside them, for [`Stroke::Points`].
    pub labels: Vec<String>,
    /// How they are drawn.
    pub stroke: Stroke,
}

impl Series {
    /// Points without labels.
    pub fn new(name: impl Into<String>, stroke: Stroke, points: Vec<(f64, f64)>) -> Series {
        Series { name: name.into(), points, labels: Vec::new(), stroke }
    }
}

/// Points and lines over two axes.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// What can be read from it, for those who cannot see it.
    pub description: String,
    /// The axis along the bottom.
    pub x: Axis,
    /// The axis along the left.
    pub y: Axis,
    /// What is drawn, the first ones below the others.
    pub series: Vec<Series>,
}

/// Bars of named groups.
#[derive(Debug, Clone)]
pub struct Bars {
    /// What it shows.
    pub title: String,
    /// What can be read from it, for those who cannot see it.
    pub description: String,
    /// The groups.
    pub x: Axis,
    /// The axis along the left.
    pub y: Axis,
    /// For each part of a group its name, and its value in each.
    pub parts: Vec<(String, Vec<f64>)>,
    /// Whether parts lie on each other rather than beside each other.
    pub stacked: bool,
}

fn colour(series: usize) -> RGBColor {
    RGBColor(FIRST + (series % N_COLOURS) as u8, 0, 0)
}

fn failed<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow!("a plot cannot be drawn: {error}")
}

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plane<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

/// Draws the axes.
fn plane<'a, 'b>(root: &'a Canvas<'b>, x: &Axis, y: &Axis) -> anyhow::Result<Plane<'a, 'b>> {
    let text = || ("sans-serif", TEXT_SIZE).into_font().color(&INK);
    let mut chart = ChartBuilder::on(root)
        .margin_top(10)
        .margin_right(18)
        .margin_bottom(4)
        .margin_left(4)
        .set_label_area_size(LabelAreaPosition::Left, 66)
        .set_label_area_size(LabelAreaPosition::Bottom, 46)
        .build_cartesian_2d(x.range.0..x.range.1, y.range.0..y.range.1)
        .map_err(failed)?;
    let mut mesh = chart.configure_mesh();
    if matches!(x.labels, Labels::Names(_)) {
        mesh.disable_x_mesh();
    }
    mesh.x_labels(x.n_labels(12))
        .y_labels(y.n_labels(6))
        .x_label_formatter(&|value| x.label(*value))
        .y_label_formatter(&|value| y.label(*value))
        .x_desc(x.name.as_str())
        .y_desc(y.name.as_str())
        .label_style(text())
        .axis_desc_style(text())
        .axis_style(INK)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(failed)?;
    Ok(chart)
}

impl Chart {
    /// Draws it.
    ///
    /// # Errors
    ///
    /// What the drawing says.
    pub fn draw(self) -> anyhow::Result<Plot> {
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let mut plane = plane(&root, &self.x, &self.y)?;
            for (i, series) in self.series.iter().enumerate() {
                let line = colour(i).stroke_width(2);
                match series.stroke {
                    Stroke::Line => plane.draw_series(LineSeries::new(series.points.clone(), line)).map(|_| ()),
                    Stroke::Dashed => {
                        plane.draw_series(DashedLineSeries::new(series.points.clone(), 6, 4, line)).map(|_| ())
                    }
                    Stroke::Points | Stroke::Boxes => Ok(()),
                }
                .map_err(failed)?;
                if series.stroke != Stroke::Dashed {
                    let circles = series.points.iter().map(|point| {
                        Circle::new(*point, if series.stroke == Stroke::Points { 5 } else { 3 }, colour(i).filled())
                    });
                    plane.draw_series(circles).map_err(failed)?;
                }
                let middle = (self.x.range.0 + self.x.range.1) / 2.0;
                let words = series.points.iter().zip(&series.labels).map(|(point, label)| {
                    // On the side where there is room.
                    let width = label.chars().count() as i32 * 7 + 8;
                    let offset = if point.0 > middle { -width } else { 8 };
                    let style = ("sans-serif", TEXT_SIZE).into_font().color(&INK);
                    EmptyElement::at(*point) + Text::new(label.clone(), (offset, -7), style)
                });
                plane.draw_series(words).map_err(failed)?;
            }
            root.present().map_err(failed)?;
        }
        let key = self.series.iter().enumerate().map(|(i, series)| (series.name.clone(), i, series.stroke)).collect();
        Ok(Plot { title: self.title, description: self.description, svg: themed(&svg), key })
    }
}

impl Bars {
    /// Draws them.
    ///
    /// # Errors
    ///
    /// What the drawing says.
    pub fn draw(self) -> anyhow::Result<Plot> {
        /// The share of a place that a group takes.
        const WIDTH: f64 = 0.7;
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let mut plane = plane(&root, &self.x, &self.y)?;
            let n = self.parts.len().max(1) as f64;
            let n_groups = self.parts.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
            let mut tops = vec![0.0; n_groups];
            for (i, (_, values)) in self.parts.iter().enumerate() {
                let boxes = values.iter().enumerate().map(|(group, value)| {
                    let left = group as f64 - WIDTH / 2.0;
                    let corners = if self.stacked {
                        let bottom = tops[group];
                        tops[group] += value;
                        [(left, bottom), (left + WIDTH, tops[group])]
                    } else {
                        let width = WIDTH / n;
                        [(left + i as f64 * width, 0.0), (left + (i as f64 + 0.92) * width, *value)]
                    };
                    Rectangle::new(corners, colour(i).filled())
                });
                plane.draw_series(boxes).map_err(failed)?;
            }
            root.present().map_err(failed)?;
        }
        let key = self.parts.iter().enumerate().map(|(i, (name, _))| (name.clone(), i, Stroke::Boxes)).collect();
        Ok(Plot { title: self.title, description: self.description, svg: themed(&svg), key })
    }
}

/// The elements of a picture without its frame, in the colours of the page.
fn themed(svg: &str) -> String {
    let inner = svg.split_once('>').map_or("", |(_, inner)| inner);
    let inner = inner.trim_end().trim_end_matches("</svg>");
    let name = |colour: RGBColor| format!("\"#{:02X}{:02X}{:02X}\"", colour.0, colour.1, colour.2);
    let mut themed = inner.replace(&name(INK), "\"var(--ink)\"").replace(&name(GRID), "\"var(--line)\"");
    for i in 0..N_COLOURS {
        themed = themed.replace(&name(colour(i)), &format!("\"var(--c{i})\""));
    }
    themed
}

impl Plot {
    /// The figure; `number` tells it from others on the page.
    pub(super) fn html(&self, number: usize) -> String {
        let (width, height) = SIZE;
        let key: String = self
            .key
            .iter()
            .filter(|_| self.key.len() > 1)
            .map(|(name, series, stroke)| format!("<li>{}{}</li>\n", mark(series % N_COLOURS, *stroke), escape(name)))
            .collect();
        let (title, description) = (escape(&self.title), escape(&self.description));
        let key = if key.is_empty() { key } else { format!("<ul class=\"key\">\n{key}</ul>\n") };
        format!(
            "<figure>\n<h3>{title}</h3>\n<svg viewBox=\"0 0 {width} {height}\" role=\"img\" \
             aria-labelledby=\"t{number} d{number}\">\n<title id=\"t{number}\">{title}</title>\n\
             <desc id=\"d{number}\">{description}</desc>\n{}</svg>\n{key}</figure>\n",
            self.svg
        )
    }
}

/// The mark of a series in the key.
fn mark(series: usize, stroke: Stroke) -> String {
    let shape = match stroke {
        Stroke::Line => format!(
            "<path d=\"M0 6H24\" stroke=\"var(--c{series})\" stroke-width=\"2\"/><circle cx=\"12\" cy=\"6\" r=\"3.5\" fill=\"var(--c{series})\"/>"
        ),
        Stroke::Dashed => {
            format!("<path d=\"M0 6H24\" stroke=\"var(--c{series})\" stroke-width=\"2\" stroke-dasharray=\"6 4\"/>")
        }
        Stroke::Points => format!("<circle cx=\"12\" cy=\"6\" r=\"4\" fill=\"var(--c{series})\"/>"),
        Stroke::Boxes => format!("<path d=\"M4 0H20V12H4Z\" fill=\"var(--c{series})\"/>"),
    };
    format!("<svg viewBox=\"0 0 24 12\" aria-hidden=\"true\">{shape}</svg>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_words_for_those_who_cannot_see_it_and_no_colour_of_its_own() {
        let mut points = Series::new("b", Stroke::Points, vec![(0.5, 0.2)]);
        points.labels = vec!["<here>".to_string()];
        let chart = Chart {
            title: "Of <things>".to_string(),
            description: "It rises.".to_string(),
            x: Axis::numbers("x", (0.0, 1.0), 1),
            y: Axis::shares("y", [0.05]),
            series: vec![Series::new("a", Stroke::Line, vec![(0.0, 0.0), (1.0, 0.05)]), points],
        };
        let html = chart.draw().unwrap().html(3);
        assert!(
            html.contains("aria-labelledby=\"t3 d3\"") && html.contains("<title id=\"t3\">Of &lt;things&gt;</title>")
        );
        assert!(html.contains("<desc id=\"d3\">It rises.</desc>") && html.contains("&lt;here&gt;"));
        assert!(html.contains("var(--c0)") && html.contains("var(--c1)") && html.contains("var(--ink)"));
        assert!(!html.contains("\"#") && html.matches("</svg>").count() == 3, "{html}");
    }

    #[test]
    fn bars_of_any_number_can_be_drawn() {
        for n in [0, 1, 7] {
            let bars = Bars {
                title: String::new(),
                description: String::new(),
                x: Axis::names("x", (0..n).map(|i| format!("g{i}")).collect()),
                y: Axis::shares("y", [1.0]),
                parts: vec![("a".to_string(), vec![0.25; n]), ("b".to_string(), vec![0.75; n])],
                stacked: n != 1,
            };
            let html = bars.draw().unwrap().html(1);
            assert!((0..n).all(|i| html.contains(&format!("g{i}\n"))), "{html}");
        }
    }

    #[test]
    fn shares_get_the_digits_that_tell_them_apart() {
        assert_eq!(Axis::shares("", [0.004]).label(0.004), "0.40 %");
        assert_eq!(Axis::shares("", [0.05, f64::NAN]).label(0.05), "5.0 %");
        assert_eq!(Axis::shares("", []).range.1, 1e-3);
        assert_eq!(Axis::shares("", [0.95]).range.1, 1.0);
        let names = Axis::names("", vec!["a".to_string(), "b".to_string()]);
        assert_eq!([names.label(0.0), names.label(1.0), names.label(0.5), names.label(-1.0)], ["a", "b", "", ""]);
    }
}
