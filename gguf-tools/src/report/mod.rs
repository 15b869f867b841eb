//! One self-contained HTML page of what a verb measured: plots, the same numbers as tables, and a text coloured by exits.
//!
//! ```text
//! what was measured -> sections (tables, plots, samples) -> page -> report.html
//! ```
//!
//! The page loads nothing, runs nothing (its own policy forbids it), follows the reader's light or dark scheme, and fits a
//! phone. Every text in it is escaped: names and texts of models are data. It refuses nothing but a folder that cannot be
//! written.

mod calibrated;
mod evaluated;
mod page;
mod plot;
mod sample;
mod table;
mod trained;

pub use calibrated::calibrated;
pub use evaluated::evaluated;
pub use page::{Page, Part, Section};
pub use plot::{Axis, Bars, Chart, Plot, Series, Stroke};
pub use sample::{Piece, Sample};
pub use table::{Table, percent};
pub use trained::trained;
