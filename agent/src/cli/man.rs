//! `netagent man`: the manual, made from the same text as `--help`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use clap_mangen::Man as Page;
use clap_mangen::roff::{Roff, roman};

use super::{Cli, output};

/// Section of the manual: system administration.
const SECTION: &str = "8";

/// Write the manual pages to a directory
///
/// Writes one page per command to the directory, which must exist: netagent.8,
/// netagent-network-create.8 and so on. Prints their names.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent man /usr/local/share/man/man8
      man netagent-network-create")]
pub(super) struct Man {
    /// Directory for the pages
    directory: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        let mut written = String::new();
        write(&command, &self.directory, &mut written)?;
        Ok(output::print(&written)?)
    }
}

/// Writes the page of `command`, then those of its subcommands; adds their files,
/// one a line, to `written`.
fn write(command: &Command, directory: &Path, written: &mut String) -> anyhow::Result<()> {
    let page = Page::new(command.clone())
        .section(SECTION)
        .source(concat!("netagent ", env!("CARGO_PKG_VERSION")))
        .manual("netagent manual");
    let file = directory.join(page.get_filename());
    let mut text = Vec::new();
    render(&page, command, &mut text)?;
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    *written += &format!("{}\n", file.display());
    command.get_subcommands().try_for_each(|sub| write(sub, directory, written))
}

fn render(page: &Page, command: &Command, out: &mut impl Write) -> io::Result<()> {
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_description_section(out)?;
    page.render_options_section(out)?;
    if command.has_subcommands() {
        page.render_subcommands_section(out)?;
    }
    let rest = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    sections(&rest).to_writer(out)
}

/// What `--help` has after the options: sections that begin with a line `Name:`,
/// their lines kept as they are.
fn sections(help: &str) -> Roff {
    let mut roff = Roff::new();
    for line in help.lines() {
        match line.strip_suffix(':').filter(|_| !line.starts_with(' ')) {
            Some(name) => {
                roff.control("fi", []).control("SH", [name.to_uppercase().as_str()]);
                roff.control("nf", []);
            }
            None => {
                roff.text([roman(line)]);
            }
        }
    }
    roff.control("fi", []);
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_examples() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Cli::command();
        command.build();
        write(&command, directory.path(), &mut String::new()).unwrap();
        let page = fs::read_to_string(directory.path().join("netagent-network-create.8")).unwrap();
        for text in [
            ".TH netagent-network-create 8",
            ".SH NAME",
            ".SH OPTIONS",
            ".SH EXAMPLES\n.nf\n",
            "netagent network create mydrupal",
        ] {
            assert!(page.contains(text), "{text} is not in {page}");
        }
        for command in [
            "",
            "-cluster",
            "-cluster-join",
            "-node-ls",
            "-service-create",
            "-endpoint-rm",
            "-metrics",
        ] {
            assert!(directory.path().join(format!("netagent{command}.8")).exists(), "{command}");
        }
    }

    #[test]
    fn sections_keep_their_lines() {
        let text = sections("Filters:\n  a  b\n\nExamples:\n    x: y\n").to_roff();
        assert_eq!(
            text,
            ".fi\n.SH FILTERS\n.nf\n  a  b\n\n.fi\n.SH EXAMPLES\n.nf\n    x: y\n.fi\n"
        );
    }
}
