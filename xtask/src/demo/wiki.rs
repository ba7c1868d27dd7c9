//! The demo's web application: MediaWiki as Debian packages it, under Apache. Its
//! packages are unpacked and not installed, so that no web server starts on this machine
//! but those of the demo.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};

use super::{NETWORK, postgres, start, typed};
use crate::command::{CommandExt, checkout};
use crate::node::Node;

/// Packages that are the application.
const PACKAGES: [&str; 2] = ["mediawiki", "mediawiki-classes"];

/// An application that is set up, with its tables in the database.
pub(super) struct Wiki {
    program: PathBuf,
    settings: PathBuf,
}

impl Wiki {
    /// Runs its own installer on a host, in a workload: what it knows of the database is
    /// the name `server`.
    pub(super) fn install(node: &Node, title: &str, server: &str, scratch: &Path) -> Result<Self> {
        let program = unpacked()?;
        let home = scratch.join("wiki");
        fs::create_dir_all(&home)?;
        let installer = program.join("maintenance/install.php");
        let home = home.display().to_string();
        let (installer, user, password) =
            (installer.display().to_string(), postgres::USER, postgres::PASSWORD);
        let database = ["--dbtype", "postgres", "--dbserver", server, "--dbname", "postgres"];
        let owner = ["--dbuser", user, "--dbpass", password];
        let installed_by = ["--installdbuser", user, "--installdbpass", password];
        let address = ["--server", "http://192.168.50.11", "--scriptpath", ""];
        let words = [
            &["netagent", "run", "--network", NETWORK, "--", "php", &installer][..],
            &database,
            &owner,
            &installed_by,
            &address,
            &["--confpath", &home, "--pass", "opensesame12345", title, "admin"],
        ];
        let said = typed(node, &words.concat())?;
        ensure!(said.contains("successfully installed"), "the installer did not come to its end");
        let settings = Path::new(&home).join("LocalSettings.php");
        // Debian's default is a directory that only an installed package has; without one the
        // cache is in the database.
        let mut text = fs::read_to_string(&settings)?;
        text.push_str("$wgCacheDirectory = false;\n");
        fs::write(&settings, text)?;
        Ok(Self { program, settings })
    }

    /// Starts a web server with it as a task of `service`. The file that it logs to.
    pub(super) fn serve(
        &self,
        node: &Node,
        service: &str,
        scratch: &Path,
    ) -> Result<(Child, PathBuf)> {
        let home = scratch.join(format!("apache-{}", node.name()));
        fs::create_dir_all(&home)?;
        let (configuration, log) = (home.join("httpd.conf"), home.join("log"));
        fs::write(&configuration, self.configuration(&home)?)?;
        let configuration = configuration.display().to_string();
        let run = ["netagent", "run", "--service", service, "--health-tcp", "80"];
        let apache = ["--health-interval", "1s", "--", "apache2", "-f", &configuration];
        let words = [&run[..], &apache, &["-D", "FOREGROUND"]].concat();
        Ok((start(node, &words, &home, &log, "resuming normal operations")?, home.join("access")))
    }

    fn configuration(&self, home: &Path) -> Result<String> {
        let modules = Path::new("/usr/lib/apache2/modules");
        let php = fs::read_dir(modules)
            .with_context(|| format!("cannot list {}", modules.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find(|name| name.starts_with("libphp"))
            .context("Apache has no PHP: package libapache2-mod-php")?;
        let load =
            |name: &str| format!("LoadModule {name}_module {}/mod_{name}.so\n", modules.display());
        let needed: String =
            ["mpm_prefork", "authz_core", "dir", "mime", "env"].into_iter().map(load).collect();
        Ok(format!(
            "ServerName web\nServerRoot {home}\nPidFile pid\nMutex posixsem\nListen 80\n{needed}\
             LoadModule php_module {modules}/{php}\n\
             User www-data\nGroup www-data\nStartServers 1\n\
             TypesConfig /etc/mime.types\nAddHandler application/x-httpd-php .php\n\
             DocumentRoot {program}\nDirectoryIndex index.php\n\
             SetEnv MW_CONFIG_FILE {settings}\n\
             ErrorLog /dev/stderr\nLogFormat \"%a %>s %U\" client\nCustomLog access client\n",
            home = home.display(),
            modules = modules.display(),
            program = self.program.display(),
            settings = self.settings.display(),
        ))
    }
}

/// The application's files, from the packages; kept for the next time.
fn unpacked() -> Result<PathBuf> {
    let kept = checkout().join("target/demo");
    let program = kept.join("usr/share/mediawiki");
    if program.join("index.php").exists() {
        return Ok(program);
    }
    eprintln!("   (unpacking {} into {})", PACKAGES.join(" and "), kept.display());
    let packages = kept.join("packages");
    let _ = fs::remove_dir_all(&kept);
    fs::create_dir_all(&packages)?;
    let mut download = Command::new("apt-get");
    download.args(["download", "--quiet=2"]).args(PACKAGES).current_dir(&packages);
    download.read()?;
    for package in fs::read_dir(&packages)? {
        Command::new("dpkg-deb").arg("--extract").arg(package?.path()).arg(&kept).read()?;
    }
    fs::remove_dir_all(&packages)?;
    // Links to where an installation has what an administrator changes.
    for link in ["config", "images", "extensions", "LocalSettings.php"] {
        let _ = fs::remove_file(program.join(link));
    }
    fs::create_dir(program.join("extensions"))?;
    Ok(program)
}
