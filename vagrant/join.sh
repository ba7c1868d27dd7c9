#!/bin/sh
# Runs on the host, after `vagrant up`: makes the three machines one cluster.
set -eu
cd "$(dirname "$0")"

on() {
    machine=$1
    shift
    vagrant ssh "$machine" --no-tty -c "sudo netagent $*"
}

# A machine has an address for Vagrant as well, so the one to use must be named.
on n1 cluster init --advertise-addr 192.168.56.11
token=$(on n1 cluster join-token -q worker | tr -d '\r')
for number in 2 3; do
    on "n$number" cluster join --token "$token" --advertise-addr "192.168.56.1$number" 192.168.56.11
done
on n1 node ls
