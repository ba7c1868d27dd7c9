//! What the programs have to say, passed on to the agent's own log.

use std::path::Path;

use anyhow::{Context, Result};
use aya::programs::ProgramInfo;
use aya_log::EbpfLogger;
use log::Log;

use super::object_digest;
use super::pins::Pins;
use crate::plan::Hook;

/// The programs' log. All three write to one ring buffer, which lives as long as they do.
pub struct Logs {
    pins: Pins,
    reader: Option<(u32, EbpfLogger<&'static dyn Log>)>,
}

impl Logs {
    /// The log of the programs under `bpf_dir`, whether there are any yet or not.
    #[must_use]
    pub fn new(bpf_dir: &Path) -> Self {
        Self { pins: Pins { root: bpf_dir.to_owned(), digest: object_digest() }, reader: None }
    }

    /// Passes on what has been said since; nothing where no programs are loaded.
    ///
    /// # Errors
    /// If the programs are there and their log cannot be read.
    pub fn flush(&mut self) -> Result<()> {
        let pin = self.pins.program(Hook::FromUplink);
        let id = match ProgramInfo::from_pin(&pin) {
            Ok(info) => info.id(),
            Err(_) if !pin.exists() => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("reading {}", pin.display())),
        };
        let reader = match self.reader.take() {
            Some((same, reader)) if same == id => reader,
            _ => EbpfLogger::init_from_id(id).context("opening the programs' log")?,
        };
        self.reader.insert((id, reader)).1.flush();
        Ok(())
    }
}
