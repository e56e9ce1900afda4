#!/bin/bash
# pid 1 of a test host: private mounts, an sshd on port $2, then reap orphans until the power is cut.
set -e
folder=$1 port=$2
mount --make-rprivate /
hostname "$(basename "$folder")"
mkdir -p "$folder/cgroup"
mount --rbind /sys/fs/cgroup "$folder/cgroup"
mount -t sysfs sysfs /sys # shows this host's interfaces only
mount --rbind "$folder/cgroup" /sys/fs/cgroup # Slurm wants to see some
mount -t tmpfs -o size=2g,mode=1777 shm /dev/shm
mount --bind "$folder/../hosts" /etc/hosts
if [ -e "$folder/../shadow" ]; then mount --bind "$folder/../shadow" /etc/shadow; fi
mkdir -p /run/sshd
mount -t tmpfs -o mode=755 run /run/sshd
env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  /usr/sbin/sshd -D -e -p "$port" -f "$folder/sshd_config" &
set +e
while :; do sleep 3600 & wait $!; done
