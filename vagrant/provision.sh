#!/bin/sh
# Runs as root on each machine: installs the agent that Vagrant has copied, and starts it.
set -eu

if ! command -v nft >/dev/null; then
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends nftables
fi
install -m 0755 /tmp/netagent /usr/local/bin/netagent
install -m 0644 /tmp/netagent.service /etc/systemd/system/netagent.service
systemctl daemon-reload
systemctl enable netagent
# Also after a new binary; it returns when the agent says that it is ready.
systemctl restart netagent
netagent cluster info
