#!/bin/busybox sh
# The first process of the virtual machine: mounts what programs expect, loads modules, runs the command, says how it ended.
# The kernel's messages are on the first serial port, the command's output is on the second.
/bin/busybox mkdir -p /busybox /dev /proc /sys /run /tmp /var/run /etc
/bin/busybox --install -s /busybox
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/busybox HOME=/root TERM=dumb
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /run
# A workspace below /tmp brings its files there.
[ -n "$(ls -A /tmp)" ] || mount -t tmpfs none /tmp
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf none /sys/fs/bpf
ln -s /proc/self/fd /dev/fd
# What goes to the second port is not to be changed on the way.
stty -F /dev/ttyS1 raw -echo
exec >/dev/ttyS1 2>&1
# A namespace has what its test puts there, and no tunnel that the module makes in each.
echo 2 >/proc/sys/net/core/fb_tunnels_only_for_init_net
while read -r module; do
    insmod "/modules/$module.ko" || echo "cannot load the module $module"
done </modules/order
ip link set lo up
echo "kubeferry-vm: started $(uname -r)"
sh /command
echo "kubeferry-vm: exit $?"
# The port is empty before the machine is off.
stty -F /dev/ttyS1 cooked
poweroff -f
