//! Prints what this machine's verifier says of the programs, a row of the table each; with
//! `write`, the table in the checkout gets these rows.

use std::fs;

use netagent_tests::verified::{self, Row, TABLE};
use xtask::command::checkout;

fn main() -> std::io::Result<()> {
    let now = verified::ask();
    for row in &now {
        println!("{row}");
    }
    if std::env::args().nth(1).as_deref() != Some("write") {
        return Ok(());
    }
    let path = checkout().join(TABLE);
    let text = fs::read_to_string(&path)?;
    let head: Vec<_> = text.lines().take_while(|line| Row::parse(line).is_none()).collect();
    let mut rows: Vec<_> = text.lines().filter_map(Row::parse).collect();
    rows.retain(|row| row.kernel != verified::kernel());
    rows.extend(now);
    let version = |row: &Row| -> Vec<u32> {
        row.kernel.split('.').map(|part| part.parse().unwrap_or(0)).collect()
    };
    rows.sort_by_key(version);
    let rows = rows.iter().map(ToString::to_string);
    let lines: Vec<_> = head.into_iter().map(str::to_owned).chain(rows).collect();
    fs::write(path, lines.join("\n") + "\n")
}
