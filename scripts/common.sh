# Sourced by the scripts beside it: where things are, and how to run something as root.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
# A plain shell may lack rustup's programs, and the directory of ip, ethtool and bpftool. rustup's come first: its cargo
# would take a distribution's rustc from the PATH otherwise, which setup.sh may install for the XDP object alone.
PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() { say "$*"; exit 1; }

# Runs a command as root, with this user's Rust.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
        return
    fi
    command -v sudo >/dev/null || die "this needs root, for $1, and there is no sudo: run it as root"
    sudo env "PATH=$PATH" "HOME=$HOME" ${CARGO_HOME:+"CARGO_HOME=$CARGO_HOME"} ${RUSTUP_HOME:+"RUSTUP_HOME=$RUSTUP_HOME"} \
        ${CARGO_TARGET_DIR:+"CARGO_TARGET_DIR=$CARGO_TARGET_DIR"} "$@"
}

# Runs a task of the workspace as root, and gives what it built back to this user.
xtask_as_root() {
    cd "$root" || exit 1
    if [ "$(id -u)" = 0 ]; then
        exec cargo xtask "$@"
    fi
    local status=0
    as_root cargo xtask "$@" || status=$?
    as_root chown -R "$(id -u):$(id -g)" "$target"
    exit "$status"
}
