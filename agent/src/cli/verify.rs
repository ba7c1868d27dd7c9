//! `netagent verify`: does the kernel of this node have what it should?

use anyhow::bail;
use clap::Args;

use super::output::{self, Format};
use crate::api::client::Client;
use crate::reconcile::Verified;

/// Hold this node's kernel against what it should be
///
/// The agent looks at every link, address, route, forwarding entry, map entry, program
/// and rule of its own, and prints what is missing, altered or too much. It mends nothing
/// now; the agent's next full pass, at most 30 seconds away, does. Exits with 1 if
/// anything differs.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent verify
      netagent verify --format json | jq .drift")]
pub(super) struct Verify {
    /// How to print: lines of text, or one line of JSON
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

impl Verify {
    pub(super) async fn run(self, client: &Client) -> anyhow::Result<()> {
        let verified: Verified = client.get("/v1/verify").await?;
        output::print(&match self.format {
            Format::Json => output::json_line(&verified),
            Format::Table => text(&verified),
        })?;
        match verified.differences.len() {
            0 => Ok(()),
            1 => bail!("1 difference"),
            n => bail!("{n} differences"),
        }
    }
}

fn text(verified: &Verified) -> String {
    let outcome = &verified.outcome;
    let mut text = output::facts([
        ("Revision applied", outcome.applied.to_string()),
        ("Passes", outcome.passes.to_string()),
        ("Changes made", outcome.writes.to_string()),
        ("Of these, drift mended", outcome.drift.to_string()),
    ]);
    for error in &outcome.errors {
        text += &format!("failed: {error}\n");
    }
    for difference in &verified.differences {
        text += &format!("differs: {difference}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::Outcome;

    #[test]
    fn what_failed_and_what_differs_has_a_line_each() {
        let verified = Verified {
            outcome: Outcome {
                applied: 9,
                passes: 3,
                writes: 12,
                drift: 1,
                errors: vec!["no".to_owned()],
            },
            differences: vec!["put link na-x".to_owned()],
        };
        assert_eq!(
            text(&verified),
            "Revision applied:       9\n\
             Passes:                 3\n\
             Changes made:           12\n\
             Of these, drift mended: 1\n\
             failed: no\n\
             differs: put link na-x\n"
        );
    }
}
