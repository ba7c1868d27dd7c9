#!/bin/sh
# The first process of a test machine. Runs /tests, whose output goes to the second serial
# port, and ends the machine. Kernel modules come as the kernel asks for them.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mkdir -p /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
stty -F /dev/ttyS1 raw -echo
exec </dev/null >/dev/ttyS1 2>&1
ip link set lo up
echo "vm: up $(uname -r)"
sh /tests
echo "vm: done"
# Back to what started us; what was written has left the port by then.
stty -F /dev/ttyS1 >/dev/null
exec >/dev/null 2>&1
sleep 0.2
echo b >/proc/sysrq-trigger
