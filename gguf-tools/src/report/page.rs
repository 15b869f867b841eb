//! The page: headings, parts, and a style of its own. It holds no script, and its policy lets none run.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::plot::Plot;
use super::sample::{self, Sample};
use super::table::Table;

/// The style of the page, with the colours of both schemes.
const STYLE: &str = include_str!("page.css");
/// Nothing is loaded and nothing runs; the page's own style alone is let in.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// A page in the making.
#[derive(Debug, Clone, Default)]
pub struct Page {
    title: String,
    /// Names and what they are: the model, the heads, how it was measured.
    facts: Vec<(String, String)>,
    sections: Vec<Section>,
}

/// A part of a page under a heading of its own.
#[derive(Debug, Clone, Default)]
pub struct Section {
    title: String,
    parts: Vec<Part>,
}

/// What a section is made of.
#[derive(Debug, Clone)]
pub enum Part {
    /// A paragraph.
    Text(String),
    /// A picture of numbers.
    Plot(Plot),
    /// The numbers.
    Table(Table),
    /// Texts, coloured by where their tokens left the model.
    Samples(Vec<Sample>),
}

impl Section {
    /// An empty section.
    pub fn new(title: impl Into<String>) -> Section {
        Section { title: title.into(), parts: Vec::new() }
    }

    /// Adds a paragraph.
    #[must_use]
    pub fn text(self, text: impl Into<String>) -> Section {
        self.part(Part::Text(text.into()))
    }

    /// Adds a plot.
    #[must_use]
    pub fn plot(self, plot: Plot) -> Section {
        self.part(Part::Plot(plot))
    }

    /// Adds a table, if it has rows.
    #[must_use]
    pub fn table(self, table: Table) -> Section {
        if table.is_empty() { self } else { self.part(Part::Table(table)) }
    }

    /// Adds texts.
    #[must_use]
    pub fn samples(self, samples: Vec<Sample>) -> Section {
        if samples.is_empty() { self } else { self.part(Part::Samples(samples)) }
    }

    fn part(mut self, part: Part) -> Section {
        self.parts.push(part);
        self
    }
}

impl Page {
    /// A page without sections.
    pub fn new(title: impl Into<String>) -> Page {
        Page { title: title.into(), ..Page::default() }
    }

    /// Says what something is, below the title.
    #[must_use]
    pub fn fact(mut self, name: &str, value: impl Into<String>) -> Page {
        self.facts.push((name.to_string(), value.into()));
        self
    }

    /// Adds sections; those without parts are left out.
    #[must_use]
    pub fn sections(mut self, sections: impl IntoIterator<Item = Section>) -> Page {
        self.sections.extend(sections.into_iter().filter(|section| !section.parts.is_empty()));
        self
    }

    /// The whole document.
    pub fn html(&self) -> String {
        let title = escape(&self.title);
        let facts: String = self
            .facts
            .iter()
            .map(|(name, value)| format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(name), escape(value)))
            .collect();
        let entries: String = self
            .sections
            .iter()
            .enumerate()
            .map(|(i, section)| format!("<li><a href=\"#s{i}\">{}</a></li>\n", escape(&section.title)))
            .collect();
        let mut figures = 0;
        let mut body = String::new();
        for (i, section) in self.sections.iter().enumerate() {
            body.push_str(&format!("<section id=\"s{i}\">\n<h2>{}</h2>\n", escape(&section.title)));
            for part in &section.parts {
                body.push_str(&match part {
                    Part::Text(text) => format!("<p>{}</p>\n", escape(text)),
                    Part::Table(table) => table.html(),
                    Part::Samples(samples) => sample::html(samples),
                    Part::Plot(plot) => {
                        figures += 1;
                        plot.html(figures)
                    }
                });
            }
            body.push_str("</section>\n");
        }
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{title}</h1>\n\
             <dl>\n{facts}</dl>\n</header>\n<nav aria-label=\"Sections\"><ul>\n{entries}</ul></nav>\n{body}\
             <footer>{}</footer>\n</main>\n</body>\n</html>\n",
            escape(offramp::ENGINE)
        )
    }

    /// Writes `report.html` into `folder`, which is made where it is missing, and gives its path.
    ///
    /// # Errors
    ///
    /// What the disk says.
    pub fn write(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let path = folder.join("report.html");
        std::fs::write(&path, self.html()).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// Text for an HTML element or attribute. Control characters but line breaks are shown as a replacement.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_model_is_called_the_page_runs_and_loads_nothing() {
        let hostile = "<script>alert(1)</script>\" onload='x' \u{1b}[31m";
        let mut table = Table::new(hostile, ["a"]);
        table.row([hostile.to_string()]);
        let section = Section::new(hostile).text(hostile).table(table).table(Table::new("empty", ["a"]));
        let page = Page::new(hostile).fact(hostile, hostile).sections([section, Section::new("left out")]);
        let html = page.html();
        assert!(!html.contains("<script") && !html.contains('\u{1b}') && !html.contains("onload='"));
        assert!(!html.contains("left out") && !html.contains("empty"));
        assert!(!html.contains("http://") && !html.contains("https://") && !html.contains("src="), "nothing is loaded");
        let folder = tempfile::tempdir().unwrap();
        let path = page.write(&folder.path().join("new/folder")).unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), html);
    }
}
