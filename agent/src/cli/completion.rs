//! `netagent completion`: scripts that make a shell complete our commands.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, output};

/// Print a script that completes netagent's commands in a shell
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent completion bash > /etc/bash_completion.d/netagent
      netagent completion zsh > /usr/local/share/zsh/site-functions/_netagent
      netagent completion fish > /etc/fish/completions/netagent.fish")]
pub(super) struct Completion {
    /// Shell to print it for
    #[arg(value_enum)]
    shell: Shell,
}

impl Completion {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "netagent", &mut script);
        Ok(output::print(&String::from_utf8(script)?)?)
    }
}
