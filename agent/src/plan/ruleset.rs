//! Our nftables table as text, in the very form in which `nft -s list table`
//! prints it, so that what is wanted and what is observed compare as they are.

use std::fmt::Display;

use super::state::NFT_TABLE;

/// Renders the table. `forward` are the rules for packets that the host routes,
/// `masquerade` match packets that leave with this host's address.
pub(super) fn table(
    forward: &[impl Display],
    masquerade: impl IntoIterator<Item = impl Display>,
) -> String {
    let mut text = format!("table ip {NFT_TABLE} {{\n");
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
