//! Debian packages of suites that this machine has no sources for: found and fetched by apt
//! with sources, lists and a cache of their own. The machine's own are not touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{CommandExt, find};

const MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt with a configuration of ours, read after the machine's own, from which a proxy may come.
struct Apt {
    configuration: PathBuf,
}

impl Apt {
    /// Fetches the lists of `sources` and of what else `options` name, and keeps all in
    /// `directory`.
    fn fetch(directory: &Path, sources: &str, options: &str) -> Result<Self> {
        if find("apt-get").is_none() || find("dpkg-deb").is_none() {
            bail!(
                "Debian's packages are fetched by apt-get and unpacked by dpkg-deb: install both"
            );
        }
        if !Path::new(KEYRING).exists() {
            bail!("{KEYRING} is missing: install the package debian-archive-keyring");
        }
        for subdirectory in ["lists/partial", "cache/archives/partial"] {
            let path = directory.join(subdirectory);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            anyhow::Ok(path)
        };
        write("sources", sources)?;
        let at = directory.display();
        let configuration = write(
            "configuration",
            &format!(
                "APT::Sandbox::User \"root\";\n\
                 Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
                 Acquire::Languages \"none\";\n\
                 Acquire::Retries \"3\";\n\
                 Dir::Cache \"{at}/cache\";\n\
                 Dir::Etc::SourceList \"{at}/sources\";\n\
                 Dir::State::Lists \"{at}/lists\";\n\
                 #clear APT::Update::Post-Invoke;\n\
                 #clear APT::Update::Post-Invoke-Success;\n\
                 {options}"
            ),
        )?;
        let apt = Self { configuration };
        apt.command("apt-get").args(["--quiet=2", "--error-on=any", "update"]).read()?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.arg("--config-file").arg(&self.configuration);
        command
    }
}

fn source(suite: &str) -> String {
    format!("deb [signed-by={KEYRING}] {MIRROR} {suite} main\n")
}

/// Installs `packages` from `suite`, which belongs to this machine's own distribution; what
/// they need besides comes from where it usually does.
///
/// # Errors
/// If it cannot be fetched or installed.
pub(crate) fn install_backports(suite: &str, packages: &[&str], directory: &Path) -> Result<()> {
    // Beside the machine's own, as far as they are in one file.
    let own = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let apt = Apt::fetch(directory, &(own + "\n" + &source(suite)), "")?;
    let mut install = apt.command("apt-get");
    install.args(["--yes", "--quiet=2", "--no-install-recommends", "install"]);
    install.args(packages.iter().map(|package| format!("{package}/{suite}")));
    install.run()
}

/// The packages of one suite, none of which is taken for installed.
pub(crate) struct Suite(Apt);

impl Suite {
    /// Fetches the lists of `suite`, and keeps all in `directory`.
    ///
    /// # Errors
    /// If this machine has no apt, or the mirror cannot be reached.
    pub(crate) fn fetch(suite: &str, directory: &Path) -> Result<Self> {
        let options = "APT::Architecture \"amd64\";\n\
                       APT::Architectures { \"amd64\"; };\n\
                       Dir::Etc::SourceParts \"-\";\n\
                       Dir::State::Status \"/dev/null\";\n";
        Ok(Self(Apt::fetch(directory, &source(suite), options)?))
    }

    /// Packages that `package` depends on, directly or not, and which `wanted` names.
    ///
    /// # Errors
    /// If there is no such package.
    pub(crate) fn dependencies(
        &self,
        package: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>> {
        let mut depends = self.0.command("apt-cache");
        depends.args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-enhances"]);
        depends.args(["--no-conflicts", "--no-breaks", "--no-replaces", package]);
        let text = depends.read()?;
        // Relations are indented, packages are not.
        Ok(text.lines().filter(|line| wanted(line)).map(str::to_owned).collect())
    }

    /// Fetches packages and unpacks them under `to`.
    ///
    /// # Errors
    /// If one cannot be fetched, or `to` cannot be written.
    pub(crate) fn unpack(&self, packages: &[String], to: &Path) -> Result<()> {
        let archives = to.with_added_extension("packages");
        fs::create_dir_all(&archives)
            .with_context(|| format!("cannot make {}", archives.display()))?;
        let mut download = self.0.command("apt-get");
        download.args(["--quiet=2", "download"]).args(packages).current_dir(&archives);
        download.read()?;
        for entry in fs::read_dir(&archives)? {
            Command::new("dpkg-deb").arg("-x").arg(entry?.path()).arg(to).read()?;
        }
        fs::remove_dir_all(&archives)
            .with_context(|| format!("cannot remove {}", archives.display()))
    }
}
