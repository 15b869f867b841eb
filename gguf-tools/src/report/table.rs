//! A table that the terminal, a Markdown file and a page show alike.

use super::page::escape;

/// Rows under a header, of equal length.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// What it shows.
    pub title: String,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// A share as a percentage with so many digits after the point.
pub fn percent(share: f64, digits: usize) -> String {
    format!("{:.digits$} %", 100.0 * share)
}

impl Table {
    /// A table without rows.
    pub fn new<const N: usize>(title: impl Into<String>, header: [&str; N]) -> Table {
        Table { title: title.into(), header: header.map(str::to_string).to_vec(), rows: Vec::new() }
    }

    /// Adds a column to the header; the rows that follow have it too.
    pub fn column(&mut self, name: impl Into<String>) {
        self.header.push(name.into());
    }

    /// Adds a row. Cells that are missing are empty, and those beyond the header are left out.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<String> = cells.into_iter().collect();
        cells.resize(self.header.len(), String::new());
        self.rows.push(cells);
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// For a terminal: columns of one width, the title before them.
    pub fn text(&self) -> String {
        let lines = self.padded().into_iter().map(|row| row.join("  ").trim_end().to_string() + "\n");
        format!("{}\n{}", self.title, lines.collect::<String>())
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let widths = self.widths();
        let rule: Vec<String> = widths.iter().map(|width| "-".repeat((*width).max(3))).collect();
        let mut lines: Vec<String> = self
            .padded()
            .iter()
            .map(|row| {
                let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
                format!("| {} |\n", cells.join(" | "))
            })
            .collect();
        lines.insert(1, format!("| {} |\n", rule.join(" | ")));
        format!("**{}**\n\n{}", self.title, lines.concat())
    }

    /// As HTML, every text escaped.
    pub fn html(&self) -> String {
        let cells = |row: &[String], tag: &str| -> String {
            row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
        };
        let rows: String = self.rows.iter().map(|row| format!("<tr>{}</tr>\n", cells(row, "td"))).collect();
        format!(
            "<div class=\"wide\" tabindex=\"0\" role=\"group\" aria-label=\"{title}\"><table><caption>{title}</caption>\n\
             <thead><tr>{header}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n",
            title = escape(&self.title),
            header = cells(&self.header, "th scope=\"col\"").replace("</th scope=\"col\">", "</th>"),
        )
    }

    fn widths(&self) -> Vec<usize> {
        let width = |i: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(i)).chain(self.header.get(i));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        (0..self.header.len()).map(width).collect()
    }

    /// Header and rows, every cell as wide as its column.
    fn padded(&self) -> Vec<Vec<String>> {
        let widths = self.widths();
        let pad = |row: &Vec<String>| row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        [&self.header].into_iter().chain(&self.rows).map(pad).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_table_in_three_forms() {
        let mut table = Table::new("of <all>", ["a", "bee"]);
        assert!(table.is_empty());
        table.row(["1|2".to_string(), percent(0.5, 1)]);
        table.row(["x".to_string()]);
        assert_eq!(table.text(), "of <all>\na    bee\n1|2  50.0 %\nx\n");
        assert!(
            table.markdown().starts_with("**of <all>**\n\n| a   | bee    |\n| --- | ------ |\n| 1\\|2 | 50.0 % |\n")
        );
        let html = table.html();
        assert!(html.contains("<caption>of &lt;all&gt;</caption>") && html.contains("<td>1|2</td><td>50.0 %</td>"));
        assert!(html.contains("<th scope=\"col\">bee</th>") && html.matches("<tr>").count() == 3);
    }
}
