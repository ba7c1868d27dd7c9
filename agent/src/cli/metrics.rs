//! `netagent metrics`: what this node's datapath did with the packets it saw.

use clap::Args;

use super::output::{self, Format};
use crate::api::client::Client;
use crate::api::types::CounterReading;

/// Show the counters of this node's datapath
///
/// Every packet that one of the eBPF programs sees moves exactly one counter: it was
/// carried, delivered, answered or passed on, or it was dropped for the reason that the
/// counter names. Counts start when the datapath is loaded and survive restarts of the
/// agent. Packets of a GSO train count as one.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent metrics
      netagent metrics --nonzero
      netagent metrics --format json | jq 'select(.name | startswith(\"drop_\"))'")]
pub(super) struct Metrics {
    /// Show only counters that have moved
    #[arg(long)]
    nonzero: bool,
    /// How to print: a table, or one JSON object a line
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

impl Metrics {
    pub(super) async fn run(self, client: &Client) -> anyhow::Result<()> {
        let counters: Vec<CounterReading> = client.get("/v1/counters").await?;
        Ok(output::print(&self.list(&counters))?)
    }

    fn list(&self, counters: &[CounterReading]) -> String {
        let shown = counters.iter().filter(|c| c.packets > 0 || !self.nonzero);
        match self.format {
            Format::Json => shown.map(output::json_line).collect(),
            Format::Table => output::table(
                &["COUNTER", "PACKETS", "BYTES", "MEANING"],
                shown.map(|c| {
                    let meaning = c.help.trim().to_owned();
                    vec![c.name.clone(), c.packets.to_string(), c.bytes.to_string(), meaning]
                }),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters() -> [CounterReading; 2] {
        [("encapsulated", 12, 1200), ("drop_internal", 0, 0)].map(|(name, packets, bytes)| {
            CounterReading { name: name.to_owned(), help: " Help.".to_owned(), packets, bytes }
        })
    }

    #[test]
    fn every_counter_has_a_line() {
        assert_eq!(
            Metrics { nonzero: false, format: Format::Table }.list(&counters()),
            "COUNTER         PACKETS   BYTES   MEANING\n\
             encapsulated    12        1200    Help.\n\
             drop_internal   0         0       Help.\n"
        );
    }

    #[test]
    fn nonzero_leaves_out_what_has_not_moved() {
        assert_eq!(
            Metrics { nonzero: true, format: Format::Json }.list(&counters()),
            "{\"name\":\"encapsulated\",\"help\":\" Help.\",\"packets\":12,\"bytes\":1200}\n"
        );
    }
}
