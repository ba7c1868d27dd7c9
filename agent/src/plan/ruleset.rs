//! Our nftables table as text, in the very form in which `nft -s list table`
//! prints it, so that what is wanted and what is observed compare as they are.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::Ipv4Addr;

use super::state::NFT_TABLE;

/// Renders the table. `forward` are the rules for packets that the host routes,
/// `masquerade` match packets that leave with this host's address.
pub(super) fn table(
    forward: &[impl Display],
    masquerade: impl IntoIterator<Item = impl Display>,
) -> String {
    table_with("", forward, masquerade)
}

/// As [`table`], with a chain for packets to the host itself: VXLAN on `port` must come
/// from `members`.
pub(super) fn guarded(
    port: u16,
    members: &BTreeSet<Ipv4Addr>,
    forward: &[impl Display],
    masquerade: impl IntoIterator<Item = impl Display>,
) -> String {
    let members: Vec<_> = members.iter().map(Ipv4Addr::to_string).collect();
    let members = match &members[..] {
        // Versions of nft differ in how they print a set of one.
        [one] => one.clone(),
        all => format!("{{ {} }}", all.join(", ")),
    };
    let mut input = "\tchain input {\n".to_owned();
    input += "\t\ttype filter hook input priority filter; policy accept;\n";
    input += &format!("\t\tudp dport {port} ip saddr != {members} counter drop\n\t}}\n\n");
    table_with(&input, forward, masquerade)
}

fn table_with(
    input: &str,
    forward: &[impl Display],
    masquerade: impl IntoIterator<Item = impl Display>,
) -> String {
    let mut text = format!("table ip {NFT_TABLE} {{\n{input}");
    text += "\tchain forward {\n";
    text += "\t\ttype filter hook forward priority filter; policy accept;\n";
    for rule in forward {
        text += &format!("\t\t{rule}\n");
    }
    text += "\t}\n\n\tchain postrouting {\n";
    text += "\t\ttype nat hook postrouting priority srcnat; policy accept;\n";
    for rule in masquerade {
        text += &format!("\t\t{rule} masquerade\n");
    }
    text += "\t}\n}\n";
    text
}

/// Rules that let nothing through to `links` but replies to what came from there.
pub(super) fn only_replies(links: &str) -> Vec<String> {
    vec![
        format!("oifname \"{links}\" ct state established,related accept"),
        format!("oifname \"{links}\" drop"),
    ]
}
