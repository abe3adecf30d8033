# Makes the mounts of a machine whose root is a directory, and becomes its first process. Run by /bin/sh in new namespaces.
# shellcheck shell=sh
set -e
root=$1 bpffs=$2
shift 2

mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount --bind "$bpffs" "$root/sys/fs/bpf"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs tmpfs "$root/dev/shm"

cd "$root"
mkdir -p run/host
pivot_root . run/host
umount -l run/host
rmdir run/host
: >run/mounted
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
