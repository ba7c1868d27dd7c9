//! What the verbs print: tables, JSON and plain lines, the same whether a
//! terminal or a pipe reads them. Builds text and writes it; never asks the agent.

use std::fmt;
use std::io::{self, Write as _};

use clap::{Args, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::model::SHORT_ID_LEN;

/// Form of a listing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns with a header.
    #[default]
    Table,
    /// One JSON object a line, with every field.
    Json,
}

/// How a listing is to be shown.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(super) struct Shape {
    /// Print identifiers only
    #[arg(short, long, conflicts_with = "format")]
    pub(super) quiet: bool,
    /// Print identifiers in full, not just their first 12 characters
    #[arg(long)]
    pub(super) no_trunc: bool,
    /// How to print: a table, or one JSON object a line with every field
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(super) format: Format,
}

impl Shape {
    /// The identifier as this listing shows it.
    pub(super) fn id(self, id: impl fmt::Display) -> String {
        let mut id = id.to_string();
        if !self.no_trunc {
            id.truncate(SHORT_ID_LEN);
        }
        id
    }

    /// A listing of `items`: `id` names one, `row` gives its cells.
    pub(super) fn list<'a, T: Serialize + 'a>(
        self,
        header: &[&str],
        items: impl IntoIterator<Item = &'a T>,
        id: impl Fn(&T) -> String,
        row: impl Fn(&T) -> Vec<String>,
    ) -> String {
        let items = items.into_iter();
        if self.quiet {
            items.map(|item| self.id(id(item)) + "\n").collect()
        } else if self.format == Format::Json {
            items.map(json_line).collect()
        } else {
            table(header, items.map(row))
        }
    }
}

/// Columns three spaces apart, without borders, without trailing blanks.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.force_no_tty();
    table.set_header(header.iter().copied());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.trim_fmt() + "\n"
}

/// Lines of `label: value`, the values in one column.
pub(super) fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let facts: Vec<_> = facts.into_iter().collect();
    let width = facts.iter().map(|(label, _)| label.len()).max().unwrap_or(0) + 1;
    facts.iter().map(|(label, value)| format!("{:width$} {value}\n", format!("{label}:"))).collect()
}

/// One line of JSON.
pub(super) fn json_line(item: &impl Serialize) -> String {
    serde_json::to_string(item).expect("objects of the API have JSON forms") + "\n"
}

/// Indented JSON.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("objects of the API have JSON forms") + "\n"
}

/// A truth value for a cell.
pub(super) fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// Writes to standard output. A reader that has gone away (`| head`) has read all
/// that it wanted: no error.
///
/// # Errors
/// Standard output cannot be written to.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> [(String, u8); 2] {
        [("abcdefghijklmnop".to_owned(), 1), ("bcdefghijklmnopa".to_owned(), 22)]
    }

    fn shown(shape: Shape) -> String {
        let row = |item: &(String, u8)| vec![shape.id(&item.0), item.1.to_string(), "x y".into()];
        shape.list(&["ID", "NUMBER", "TEXT"], &two(), |item| item.0.clone(), row)
    }

    #[test]
    fn a_table_has_aligned_columns_and_short_identifiers() {
        assert_eq!(
            shown(Shape::default()),
            "ID             NUMBER   TEXT\n\
             abcdefghijkl   1        x y\n\
             bcdefghijklm   22       x y\n"
        );
    }

    #[test]
    fn no_trunc_shows_whole_identifiers() {
        assert_eq!(
            shown(Shape { no_trunc: true, ..Shape::default() }),
            "ID                 NUMBER   TEXT\n\
             abcdefghijklmnop   1        x y\n\
             bcdefghijklmnopa   22       x y\n"
        );
    }

    #[test]
    fn quiet_shows_identifiers_only() {
        assert_eq!(
            shown(Shape { quiet: true, ..Shape::default() }),
            "abcdefghijkl\nbcdefghijklm\n"
        );
    }

    #[test]
    fn json_is_one_object_a_line() {
        assert_eq!(
            shown(Shape { format: Format::Json, ..Shape::default() }),
            "[\"abcdefghijklmnop\",1]\n[\"bcdefghijklmnopa\",22]\n"
        );
    }

    #[test]
    fn an_empty_table_has_its_header() {
        assert_eq!(table(&["ID", "NAME"], []), "ID   NAME\n");
    }

    #[test]
    fn empty_cells_and_long_cells_keep_the_columns() {
        let rows = [vec![String::new(), "b".into()], vec!["a".repeat(300), "c".into()]];
        let text = table(&["A", "B"], rows);
        let at = 303;
        for line in text.lines() {
            assert!(line.len() == at + 1 && !line[at..].trim().is_empty(), "{line:?}");
        }
    }

    #[test]
    fn facts_are_aligned() {
        assert_eq!(
            facts([("Role", "worker".to_owned()), ("Address", "1.2.3.4".to_owned())]),
            "Role:    worker\nAddress: 1.2.3.4\n"
        );
    }
}
