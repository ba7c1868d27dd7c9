//! The demo's database: a PostgreSQL system of its own, and its server in a workload.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use nix::unistd::User;

use super::{Network, start};
use crate::command::CommandExt;
use crate::node::Node;
use crate::setup::postgres_program;

/// User of the server's process.
const SYSTEM_USER: &str = "postgres";
/// Owner of the database.
pub(super) const USER: &str = "drupal";
/// Its password.
pub(super) const PASSWORD: &str = "opensesame";

/// Makes a database system that is open to the network's addresses only, and starts its
/// server as a task of `service`.
pub(super) fn serve(
    node: &Node,
    network: &Network,
    service: &str,
    scratch: &Path,
) -> Result<Child> {
    let user = User::from_name(SYSTEM_USER)?
        .with_context(|| format!("there is no user {SYSTEM_USER}; package postgresql makes it"))?;
    let home = scratch.join("postgres");
    fs::create_dir_all(&home)?;
    chown(&home, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    let data = home.join("data").display().to_string();
    let password = home.join("password");
    fs::write(&password, PASSWORD)?;
    chown(&password, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;

    let initdb = postgres_program("initdb").context("initdb is missing: package postgresql")?;
    let mut init = Command::new("setpriv");
    init.args(["--reuid", SYSTEM_USER, "--regid", SYSTEM_USER, "--clear-groups"]).arg(&initdb);
    init.args(["--pgdata", &data, "--username", USER, "--auth", "scram-sha-256"]);
    init.arg(format!("--pwfile={}", password.display()));
    // It may be lost with the machine, and must be there soon.
    init.args(["--no-sync", "--no-locale", "--encoding", "UTF8", "--wal-segsize", "1"]);
    init.current_dir(&home).read()?;
    let append = |file: &str, line: &str| -> Result<()> {
        let mut file = File::options().append(true).open(home.join("data").join(file))?;
        Ok(writeln!(file, "{line}")?)
    };
    append("pg_hba.conf", &format!("host all all {} scram-sha-256", network.subnet))?;
    append("postgresql.conf", "listen_addresses = '*'\nunix_socket_directories = ''")?;

    let postgres = postgres_program("postgres").context("the server: package postgresql")?;
    let postgres = postgres.to_string_lossy();
    let run = ["netagent", "run", "--service", service, "--user", SYSTEM_USER];
    let words = [&run[..], &["--", &postgres, "-D", &data]].concat();
    let log = scratch.join("postgres.log");
    start(node, &words, &home, &log, "database system is ready to accept connections")
}
