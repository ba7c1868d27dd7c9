//! A Vagrant box of our own, for where none can be downloaded: Debian from its packages,
//! without a boot loader (kernel and initrd are given to the machine), for libvirt.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::CommandExt;

/// Name under which Vagrant knows the box.
pub(super) const NAME: &str = "netagent-debian13";
const SUITE: &str = "trixie";
/// Beside what debootstrap installs by itself.
const PACKAGES: &str = "systemd,systemd-sysv,udev,dbus,openssh-server,sudo,ifupdown,\
     isc-dhcp-client,iproute2,iputils-ping,nftables,linux-image-cloud-amd64,netbase,kmod,procps,\
     curl,python3,ipvsadm,bpftool,tcpdump";
const INTERFACES: &str = "auto lo\niface lo inet loopback\n\
     auto eth0\niface eth0 inet dhcp\nsource /etc/network/interfaces.d/*\n";

/// Makes the box and has Vagrant know it, unless that has been done. Kernel and initrd
/// of its machines, `vmlinuz` and `initrd.img`, are in `at`.
///
/// # Errors
/// If a tool fails.
pub(super) fn ensure(at: &Path) -> Result<()> {
    let known = Command::new("vagrant").args(["box", "list", "--machine-readable"]).read()?;
    if known.contains(NAME) && at.join("vmlinuz").exists() {
        return Ok(());
    }
    println!("making the box {NAME} in {} (a few minutes)", at.display());
    let tree = at.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    fs::create_dir_all(at)?;
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE]);
    debootstrap.arg(&tree).arg(mirror()?).run()?;
    configure(&tree)?;
    for (file, name) in [("vmlinuz", "vmlinuz-"), ("initrd.img", "initrd.img-")] {
        fs::copy(newest(&tree.join("boot"), name)?, at.join(file))?;
    }
    pack(at, &tree)?;
    fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
}

/// Where this machine gets its packages.
fn mirror() -> Result<String> {
    let targets = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"];
    let list = Command::new("apt-get").args(targets).read()?;
    let is_main = |uri: &&str| !uri.contains("security");
    list.lines().find(is_main).map(str::to_owned).context("apt knows no source of packages")
}

fn configure(tree: &Path) -> Result<()> {
    let write = |path: &str, text: &str| {
        let path = tree.join(path);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("etc/hostname", "netagent\n")?;
    write("etc/fstab", "/dev/vda / ext4 errors=remount-ro 0 1\n")?;
    write("etc/network/interfaces", INTERFACES)?;
    write("etc/sudoers.d/vagrant", "vagrant ALL=(ALL) NOPASSWD: ALL\n")?;
    let chroot = |words: &[&str]| Command::new("chroot").arg(tree).args(words).read();
    chroot(&["useradd", "--create-home", "--shell", "/bin/bash", "vagrant"])?;
    // The key that every Vagrant has; it puts another in its place when it first comes in.
    let files = Command::new("dpkg-query").args(["--listfiles", "vagrant"]).read()?;
    let key = files.lines().find(|file| file.ends_with("keys/vagrant.pub"));
    let key = fs::read_to_string(key.context("the package vagrant has no public key")?)?;
    fs::create_dir_all(tree.join("home/vagrant/.ssh"))?;
    write("home/vagrant/.ssh/authorized_keys", &key)?;
    chroot(&["chown", "-R", "vagrant:vagrant", "/home/vagrant"])?;
    chroot(&["chmod", "-R", "go=", "/home/vagrant/.ssh"])?;
    chroot(&["apt-get", "clean"])?;
    let sudoers = tree.join("etc/sudoers.d/vagrant");
    Ok(fs::set_permissions(sudoers, fs::Permissions::from_mode(0o440))?)
}

fn newest(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_one = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    };
    entries.filter(is_one).max().with_context(|| format!("no {prefix} in {}", directory.display()))
}

/// A disk of the tree, and the archive that Vagrant takes.
fn pack(at: &Path, tree: &Path) -> Result<()> {
    let raw = at.join("disk.raw");
    let _ = fs::remove_file(&raw);
    Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(tree).arg(&raw).arg("3G").read()?;
    let image = at.join("box.img");
    Command::new("qemu-img").args(["convert", "-O", "qcow2"]).arg(&raw).arg(&image).read()?;
    fs::remove_file(&raw)?;
    let metadata = r#"{"provider": "libvirt", "format": "qcow2", "virtual_size": 3}"#;
    fs::write(at.join("metadata.json"), metadata)?;
    fs::write(at.join("Vagrantfile"), "Vagrant.configure('2') { }\n")?;
    let archive = at.join("netagent.box");
    let members = ["box.img", "metadata.json", "Vagrantfile"];
    Command::new("tar").arg("-C").arg(at).arg("-cf").arg(&archive).args(members).read()?;
    for member in members {
        fs::remove_file(at.join(member))?;
    }
    let mut add = Command::new("vagrant");
    add.args(["box", "add", "--force", "--provider", "libvirt", "--name", NAME]).arg(&archive);
    add.read()?;
    Ok(fs::remove_file(archive)?)
}
