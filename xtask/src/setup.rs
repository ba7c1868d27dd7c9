//! What the project needs of a machine, and how it gets there: programs by apt-get, on
//! Debian 12 QEMU from its backports, the pinned linker by cargo, parts of the toolchain by rustup, the mounted bpffs. Looks before
//! it acts, so that on a machine that has everything it only looks. Removes nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::Uid;

use crate::apt;
use crate::command::{CommandExt, cargo, checkout, find};

/// How much of the set-up a command needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// To compile: the toolchain's components and bpf-linker.
    Build,
    /// To run hosts in namespaces, the demo and their tests: root and programs as well.
    Hosts,
    /// To run test machines, too: QEMU, and what else makes one.
    Machines,
    /// To run machines by Vagrant, too, and to make a box for it.
    Vagrant,
}

/// A program that must be there, or a file with a version for `*`, its Debian package, and
/// who needs it.
type Program = (&'static str, &'static str, &'static str);

/// Gives a program another clock.
pub(crate) const LIBFAKETIME: &str = "/usr/lib/*/faketime/libfaketimeMT.so.1";

/// For hosts in namespaces. Not the C compiler: without one, this would not have been linked.
const PROGRAMS: &[Program] = &[
    ("ip", "iproute2", "makes the playground's hosts"),
    ("nsenter", "util-linux", "runs commands on them"),
    ("ping", "iputils-ping", "tries the paths between them"),
    ("tcpdump", "tcpdump", "shows what is on the wire"),
    ("iperf3", "iperf3", "puts load on an overlay"),
    ("nft", "nftables", "holds the agent's rules"),
    ("dig", "bind9-dnsutils", "asks the agent's name server"),
    ("bpftool", "bpftool", "shows programs, maps and links"),
    ("ethtool", "ethtool", "shows and sets offloads"),
    ("curl", "curl", "speaks to the API"),
    ("nc.openbsd", "netcat-openbsd", "small clients and servers"),
    ("ps", "procps", "shows processes"),
    ("python3", "python3", "a web server that tests use"),
    (LIBFAKETIME, "libfaketime", "sets the clocks of agents"),
    ("psql", "postgresql-client", "the demo's client"),
    ("initdb", "postgresql", "the demo's server"),
    ("redis-check-rdb", "redis-tools", "a server that tests use"),
    ("apache2", "apache2-bin", "the demo's web server"),
    ("php", "php-cli", "runs the demo's web application"),
    ("/usr/lib/apache2/modules/libphp*.so", "libapache2-mod-php", "PHP in that server"),
    ("/usr/lib/php/*/pgsql.so", "php-pgsql", "PHP's way to PostgreSQL"),
    ("/usr/lib/php/*/intl.so", "php-intl", "the web application uses it"),
    ("/usr/lib/php/*/mbstring.so", "php-mbstring", "the web application uses it"),
    ("/usr/lib/php/*/xml.so", "php-xml", "the web application uses it"),
];

/// For test machines.
const MACHINE_PROGRAMS: &[Program] = &[
    (QEMU, "qemu-system-x86", "runs test machines"),
    ("conntrack", "conntrack", "shows their connections"),
    ("depmod", "kmod", "lists their kernel modules"),
    ("ipvsadm", "ipvsadm", "shows their virtual servers"),
    ("ldd", "libc-bin", "finds libraries for them"),
    ("strip", "binutils", "makes tests small for them"),
    ("tc", "iproute2", "shows their filters"),
];

/// For machines by Vagrant.
const VAGRANT_PROGRAMS: &[Program] = &[
    ("vagrant", "vagrant", "runs three machines"),
    (
        "/usr/share/rubygems-integration/all/specifications/vagrant-libvirt*.gemspec",
        "vagrant-libvirt",
        "its way to libvirt",
    ),
    ("virsh", "libvirt-clients", "asks libvirt"),
    ("libvirtd", "libvirt-daemon-system", "starts the machines"),
    ("dnsmasq", "dnsmasq-base", "gives them addresses"),
    ("qemu-img", "qemu-utils", "makes their disks"),
    ("debootstrap", "debootstrap", "makes a box"),
    ("ssh", "openssh-client", "reaches them"),
];

pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// Debian 12 has 7.2, of which more than a quarter of the machines end before their first
/// process (of 10.0, none of 150); its backports have 10.
const GOOD_QEMU: u32 = 8;
const BACKPORTS: &str = "bookworm-backports";
/// QEMU, and what must be of the same version.
const QEMU_PACKAGES: &[&str] =
    &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];

/// Parts of the toolchain that must be there: name, a file of it under the sysroot, and
/// what it is for.
const COMPONENTS: &[(&str, &str, &str)] = &[
    ("rust-src", "lib/rustlib/src/rust/library/core/Cargo.toml", "the eBPF programs' `core`"),
    ("rustfmt", "bin/rustfmt", "checks form"),
    ("clippy", "bin/cargo-clippy", "lints"),
];

/// A compiler and a linker that are known to work together. The linker reads the
/// bitcode that the compiler wrote, so it must know that LLVM.
struct Pair {
    /// Major version of the LLVM in rustc.
    llvm: u32,
    /// Version of bpf-linker. 0.10.4 is the last one that loads rustc's own LLVM;
    /// from 0.11 on it wants one of the system, which Debian 12 does not have.
    linker: &'static str,
}

const PAIRS: &[Pair] = &[Pair { llvm: 22, linker: "0.10.4" }];

/// Has everything that `need` says, installing what is missing.
///
/// # Errors
/// If something is missing and cannot be installed; says what and how to get it.
pub fn ensure(need: Need) -> Result<()> {
    if need >= Need::Hosts {
        if !Uid::effective().is_root() {
            bail!(
                "this needs root, for network namespaces and eBPF: \
                 run `sudo -E env \"PATH=$PATH\" cargo xtask ...`"
            );
        }
        programs(PROGRAMS)?;
        bpffs()?;
    }
    if need >= Need::Machines {
        qemu()?;
        programs(MACHINE_PROGRAMS)?;
    }
    if need >= Need::Vagrant {
        programs(VAGRANT_PROGRAMS)?;
    }
    components()?;
    linker()
}

/// Brings a newer QEMU than Debian 12's own onto a Debian 12.
fn qemu() -> Result<()> {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let good = find(QEMU).is_some_and(|qemu| qemu_version(&qemu) >= Some(GOOD_QEMU));
    if good || !release.lines().any(|line| line == "VERSION_CODENAME=bookworm") {
        return Ok(());
    }
    eprintln!(
        "setup: a good {QEMU} is missing (runs test machines): apt-get install {} from {BACKPORTS}",
        QEMU_PACKAGES.join(" ")
    );
    apt::install_backports(BACKPORTS, QEMU_PACKAGES, &checkout().join("target/apt/backports"))
}

fn qemu_version(qemu: &Path) -> Option<u32> {
    let text = Command::new(qemu).arg("--version").read().ok()?;
    text.strip_prefix("QEMU emulator version ")?.split('.').next()?.parse().ok()
}

fn programs(programs: &[Program]) -> Result<()> {
    let missing: Vec<_> = programs.iter().filter(|(name, ..)| !is_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for (name, package, why) in &missing {
        eprintln!("setup: `{name}` is missing ({why}); package {package}");
    }
    if find("apt-get").is_none() {
        bail!("install these programs with this distribution's package manager");
    }
    let packages: Vec<&str> = missing.iter().map(|(_, package, _)| *package).collect();
    eprintln!("setup: apt-get install {}", packages.join(" "));
    if apt_get("install").args(&packages).read().is_err() {
        // The lists may be absent or older than the mirror.
        eprintln!("setup: apt-get update, and once more");
        apt_get("update").run()?;
        apt_get("install").args(&packages).run()?;
    }
    match missing.iter().find(|(name, ..)| !is_installed(name)) {
        Some((name, package, _)) => bail!("package {package} is installed but brought no `{name}`"),
        None => Ok(()),
    }
}

fn apt_get(verb: &str) -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args([verb, "--yes", "--quiet=2"]);
    if verb == "install" {
        command.arg("--no-install-recommends");
    }
    command
}

fn is_installed(program: &str) -> bool {
    installed(program).is_some()
}

/// Where a program is, or a file with a version for `*`.
pub(crate) fn installed(program: &str) -> Option<PathBuf> {
    if let Some((before, after)) = program.split_once('*') {
        return between(before, after);
    }
    // Debian keeps the server's programs off PATH, one directory a version.
    find(program).or_else(|| postgres_program(program))
}

/// A file whose path begins and ends so, with a part of one directory entry between.
fn between(before: &str, after: &str) -> Option<PathBuf> {
    let (directory, prefix) = before.rsplit_once('/').unwrap_or((".", before));
    let names = std::fs::read_dir(directory).into_iter().flatten();
    let mut names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.find_map(|name| {
        let name = name.starts_with(prefix).then_some(name)?;
        let paths = [format!("{directory}/{name}"), format!("{directory}/{name}{after}")];
        let [file, below] = paths.map(PathBuf::from);
        if name.ends_with(after) { Some(file) } else { Some(below).filter(|path| path.exists()) }
    })
}

/// Where a program of the PostgreSQL server is: the newest version's.
pub fn postgres_program(name: &str) -> Option<PathBuf> {
    let version =
        |directory: &PathBuf| -> Option<u32> { directory.file_name()?.to_str()?.parse().ok() };
    let directories = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let newest = directories
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|directory| directory.join("bin").join(name).is_file())
        .max_by_key(version);
    newest.map(|directory| directory.join("bin").join(name)).or_else(|| find(name))
}

fn components() -> Result<()> {
    let sysroot =
        Command::new("rustc").args(["--print", "sysroot"]).current_dir(checkout()).read()?;
    for (name, file, why) in COMPONENTS {
        if Path::new(&sysroot).join(file).exists() {
            continue;
        }
        eprintln!("setup: {name} is missing ({why}): rustup component add {name}");
        let mut add = Command::new("rustup");
        add.args(["component", "add", name]).current_dir(checkout());
        add.run().with_context(|| format!("install {name} for the compiler in {sysroot}"))?;
    }
    Ok(())
}

fn linker() -> Result<()> {
    let rustc = Command::new("rustc").arg("-vV").current_dir(checkout()).read()?;
    let wanted = pair(&rustc)?.linker;
    let found = linker_version();
    if found.as_deref() == Some(wanted) {
        return Ok(());
    }
    let mut install = cargo();
    install.args(["install", "bpf-linker", "--version", wanted, "--locked"]);
    match found {
        None => eprintln!("setup: bpf-linker is missing (links the eBPF programs)"),
        Some(found) => {
            // Somebody wants that version; ours goes beside it.
            install.arg("--root").arg(tools());
            eprintln!("setup: bpf-linker is {found}, but this compiler works with {wanted}");
        }
    }
    eprintln!("setup: {}", install.line());
    install.run()
}

fn pair(rustc: &str) -> Result<&'static Pair> {
    let version = rustc.lines().next().unwrap_or_default();
    let llvm = rustc
        .lines()
        .find_map(|line| {
            line.strip_prefix("LLVM version: ")?.split('.').next()?.parse::<u32>().ok()
        })
        .with_context(|| format!("{version}: `rustc -vV` names no LLVM version"))?;
    PAIRS.iter().find(|pair| pair.llvm == llvm).with_context(|| {
        let known: Vec<_> = PAIRS
            .iter()
            .map(|Pair { llvm, linker }| format!("LLVM {llvm} with bpf-linker {linker}"))
            .collect();
        format!(
            "{version} has LLVM {llvm}, for which no bpf-linker is known to work (known: {}); \
             use the compiler that rust-toolchain.toml names",
            known.join(", ")
        )
    })
}

fn linker_version() -> Option<String> {
    let mut command = Command::new("bpf-linker");
    command.arg("--version").env("PATH", path_with_tools());
    Some(command.read().ok()?.strip_prefix("bpf-linker ")?.to_owned())
}

/// Tools of this checkout's own.
fn tools() -> PathBuf {
    checkout().join("target/tools")
}

/// `PATH` with the tools of this checkout first.
pub(crate) fn path_with_tools() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let directories = std::iter::once(tools().join("bin"))
        .chain(std::env::split_paths(&path))
        .chain(home.map(|home| home.join("bin")));
    std::env::join_paths(directories).unwrap_or(path)
}

/// Pins of programs and maps live there.
fn bpffs() -> Result<()> {
    let at = Path::new("/sys/fs/bpf");
    let found = statfs(at).with_context(|| {
        format!("{} does not exist: this kernel has no eBPF (CONFIG_BPF_SYSCALL)", at.display())
    })?;
    if found.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    eprintln!("setup: mounting bpffs at {} (pins of programs and maps)", at.display());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), at, Some("bpf"), flags, Some("mode=700"))
        .with_context(|| format!("cannot mount bpffs at {}", at.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_compiler_has_its_linker() {
        let rustc = "rustc 1.95.0 (59807616e 2026-04-14)\nhost: x\nLLVM version: 22.1.2";
        assert_eq!(pair(rustc).unwrap().linker, "0.10.4");
    }

    #[test]
    fn a_file_of_some_version_is_found() {
        let at = std::env::temp_dir().join(format!("netagent-setup-{}", std::process::id()));
        std::fs::create_dir_all(at.join("8.2")).unwrap();
        for file in ["8.2/pgsql.so", "libphp8.2.so"] {
            std::fs::write(at.join(file), "").unwrap();
        }
        let found = |pattern: &str| is_installed(&format!("{}/{pattern}", at.display()));
        let all = ["*/pgsql.so", "libphp*.so", "*/intl.so", "libperl*.so"].map(found);
        std::fs::remove_dir_all(&at).unwrap();
        assert_eq!(all, [true, true, false, false]);
    }

    #[test]
    fn an_unknown_pair_is_refused_by_name() {
        let Err(error) = pair("rustc 1.99.0\nLLVM version: 24.0.1") else { panic!("accepted") };
        let text = error.to_string();
        assert!(text.contains("rustc 1.99.0 has LLVM 24"), "{text}");
        assert!(text.contains("LLVM 22 with bpf-linker 0.10.4"), "{text}");
    }
}
