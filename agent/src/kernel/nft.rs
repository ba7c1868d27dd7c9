//! Our nftables table, whole, through the `nft` program: the only place where rules
//! are in the text that people know and that observing can be compared with.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::plan::{NFT_TABLE, Ns};

use super::netns::Netns;

const PROGRAM: &str = "nft";

/// `nft` with `arguments` inside the namespace.
fn command(netns: &Netns, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).kill_on_drop(true).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let namespace = netns.file();
    // SAFETY: between fork and exec nothing but one system call is made, on a
    // descriptor that is open for as long as the closure is.
    unsafe {
        command.pre_exec(move || {
            setns(&*namespace, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
        });
    }
    command
}

/// The tables we made, as they were asked for and as `nft` lists them: versions of `nft`
/// differ in how they print one and the same rule.
#[derive(Default)]
pub(super) struct Tables {
    made: BTreeMap<Ns, Made>,
}

struct Made {
    asked: String,
    listed: Option<String>,
}

impl Tables {
    /// The table of a namespace, in the words in which it was asked for if it still is
    /// what came of them.
    pub(super) async fn observe(&self, ns: &Ns, netns: &Netns) -> Result<Option<String>> {
        let listed = list(netns).await?;
        Ok(match self.made.get(ns) {
            Some(made) if made.listed == listed && listed.is_some() => Some(made.asked.clone()),
            _ => listed,
        })
    }

    /// Replaces the table by `ruleset` in one transaction.
    pub(super) async fn put(&mut self, ns: &Ns, netns: &Netns, ruleset: &str) -> Result<()> {
        // To name a table creates it, so that it can be deleted in any case.
        let script = format!("table ip {NFT_TABLE}\ndelete table ip {NFT_TABLE}\n{ruleset}");
        run(netns, &script).await?;
        let made = Made { asked: ruleset.to_owned(), listed: list(netns).await? };
        self.made.insert(ns.clone(), made);
        Ok(())
    }

    /// Removes the table; it being gone is success.
    pub(super) async fn delete(&mut self, ns: &Ns, netns: &Netns) -> Result<()> {
        self.made.remove(ns);
        run(netns, &format!("table ip {NFT_TABLE}\ndelete table ip {NFT_TABLE}\n")).await
    }
}

/// The table as text, or `None` if there is none. Without `nft`, or in a kernel without
/// nftables, there can be none of ours.
async fn list(netns: &Netns) -> Result<Option<String>> {
    let output = match command(netns, &["-s", "list", "table", "ip", NFT_TABLE]).output().await {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("running nft"),
    };
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let words = String::from_utf8_lossy(&output.stderr);
    if words.contains("No such file or directory") || words.contains("not supported") {
        return Ok(None);
    }
    bail!("nft list table ip {NFT_TABLE}: {}", words.trim())
}

async fn run(netns: &Netns, script: &str) -> Result<()> {
    let mut child = match command(netns, &["-f", "-"]).spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("the program `nft` is needed and is not there: install the package nftables")
        }
        Err(error) => return Err(error).context("running nft"),
    };
    let mut stdin = child.stdin.take().context("nft has no standard input")?;
    // An error here is one that nft itself tells better.
    let _ = stdin.write_all(script.as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output().await.context("waiting for nft")?;
    if !output.status.success() {
        bail!("nft refuses the table: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
