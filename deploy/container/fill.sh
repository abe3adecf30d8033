#!/usr/bin/env bash
# Fills a directory with what the image consists of; run by Containerfile in a Debian container, at the root of the sources.
# $BINARY names a binary that is built already.
set -euo pipefail

image=$1
binary=${BINARY:-}

if [ -z "$binary" ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -q -y --no-install-recommends ca-certificates cargo-web
    scripts/setup.sh --build
    # What a backtrace needs stays, what a debugger needs does not.
    CARGO_PROFILE_RELEASE_STRIP=debuginfo cargo build --quiet --release --locked --package etcd-lb
    binary=target/release/etcd-lb
fi

install -D -m 755 "$binary" "$image/usr/bin/etcd-lb"
"$image/usr/bin/etcd-lb" --version

# The libraries, by the names that the dynamic linker looks for, and the linker itself.
mapfile -t libraries < <(ldd "$binary" | grep -oE '/[^ ]+\.so[^ ]*')
cp --dereference --parents "${libraries[@]}" "$image"

# What scanners of images read: the distribution, and the packages that the libraries are of.
install -D -m 644 /etc/os-release "$image/etc/os-release"
mkdir -p "$image/var/lib/dpkg/status.d"
for package in libc6 libgcc-s1; do
    dpkg-query --status "$package" >"$image/var/lib/dpkg/status.d/$package"
done

install -D -m 644 -t "$image/usr/share/doc/etcd-lb" LICENSE LICENSE-APACHE LICENSE-MIT
echo 'root:x:0:0:root:/:/sbin/nologin' >"$image/etc/passwd"
# Where volumes are mounted.
mkdir -p "$image/etc/etcd-lb" "$image/run/etcd-lb" "$image/var/log/etcd-lb"
