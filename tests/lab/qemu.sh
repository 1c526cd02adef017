#!/usr/bin/env bash
# Builds the lab's QEMU and prints its path: Debian's source with the patches of qemu/.
#
#   qemu.sh
#
# Progress goes to stderr; stdout carries the path alone. The result lies in
# ${CHITON_CACHE:-${XDG_CACHE_HOME:-~/.cache}/chiton}/qemu/<hash of all inputs>/; where it is there already, nothing is built.
# It has the devices that machine.py uses and no others; firmware is that of Debian's packages.
set -euo pipefail
export LC_ALL=C
umask 022

readonly VERSION='1:7.2+dfsg-7+deb12u18'
readonly TOOLS=(dpkg-dev gcc libattr1-dev libc6-dev libcap-ng-dev libfdt-dev libglib2.0-dev libpixman-1-dev meson ninja-build patch pkgconf python3 xz-utils)
readonly DEVICES=(Q35 VIRTIO_9P VIRTIO_BLK VIRTIO_PCI VIRTIO_SERIAL)
readonly FEATURES=(--target-list=x86_64-softmmu --without-default-features --without-default-devices --with-devices-x86_64=lab
    --enable-system --enable-tcg --enable-plugins --enable-attr --enable-cap-ng --enable-virtfs --disable-debug-info --disable-stack-protector --disable-qom-cast-debug --disable-werror)
unset MAKEFLAGS MFLAGS CFLAGS LDFLAGS CC

script=$(realpath -- "${BASH_SOURCE[0]}")
patches=${script%.sh}
cache=${CHITON_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/chiton}/qemu
work=

say() { printf 'qemu: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
# A failed build leaves no work directory behind.
trap '[[ -z $work ]] || rm -rf -- "$work"' EXIT

install_tools() {
    local missing
    missing=$(comm -13 <(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' "${TOOLS[@]}" 2>/dev/null | sed -n 's/^ii //p' | sort -u) \
        <(printf '%s\n' "${TOOLS[@]}" | sort))
    [[ -n $missing ]] || return 0
    ((EUID == 0)) || die "missing packages: ${missing//$'\n'/ } (as root: apt-get install -y --no-install-recommends ${TOOLS[*]})"
    say "installing ${missing//$'\n'/ }"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${TOOLS[@]}"; } >&2
}

# The machine's own Debian mirrors, one "URI SUITE" a line; most machines have them for binary packages alone.
mirrors() { apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Identifier: Packages' 'Origin: Debian' 'Component: main' | sort -u; }

# Leaves the source, with Debian's patches, in $work/src.
fetch_source() {
    local version=$VERSION offered each found
    found=$(mirrors)
    if [[ -z $found ]] && ((EUID == 0)); then
        apt-get update -q >&2
        found=$(mirrors)
    fi
    [[ -n $found ]] || die 'apt has no mirror of Debian (run apt-get update)'
    sed 's/.*/deb-src & main/' <<<"$found" >"$work/sources.list"
    mkdir -p "$work/lists/partial"
    # The directory is private to this user, so apt's own download user could not write there.
    local apt=(-q -o "APT::Sandbox::User=$(id -un)" -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$work/lists" -o "Dir::Cache::srcpkgcache=" -o "Dir::Cache::pkgcache=")
    apt-get "${apt[@]}" update >&2
    offered=$(apt-cache "${apt[@]}" showsrc qemu 2>/dev/null | sed -n 's/^Version: //p')
    if ! grep -qxF -- "$version" <<<"$offered"; then
        version=$(for each in $offered; do echo "$each"; done | sort -V | tail -n 1)
        [[ -n $version ]] || die 'the mirror offers no source of qemu'
        say "the mirror no longer offers qemu $VERSION; using $version"
    fi
    say "fetching qemu $version"
    (cd "$work" && apt-get "${apt[@]}" source --download-only "qemu=$version" >&2 && dpkg-source --no-check -x ./*.dsc src >/dev/null)
}

build() {
    cd "$work/src"
    local each
    for each in "$patches"/*.patch; do
        patch -s -p1 <"$each" >&2 || die "$each does not apply"
    done
    printf 'CONFIG_%s=y\n' "${DEVICES[@]}" >configs/devices/x86_64-softmmu/lab.mak
    mkdir build
    cd build
    say 'configuring'
    ../configure --meson="$(command -v meson)" "${FEATURES[@]}" >configure.log 2>&1 || { tail -n 20 configure.log >&2; die 'configure failed'; }
    say "compiling on $(nproc) CPUs"
    nice ninja qemu-system-x86_64 >ninja.log 2>&1 || { tail -n 40 ninja.log >&2; die 'the build failed'; }
    mkdir "$work/out"
    strip -o "$work/out/qemu-system-x86_64" qemu-system-x86_64
    # Plugins find its functions in the dynamic symbols, which are still there.
    chmod 0755 "$work/out/qemu-system-x86_64"
}

main() {
    local final lock
    (($# == 0)) || die 'usage: qemu.sh'
    final=$cache/$(cat "$script" "$patches"/*.patch | sha256sum | cut -c1-32)
    if [[ ! -e $final/qemu-system-x86_64 ]]; then
        mkdir -p "$cache"
        # Labs that begin at once want the same.
        exec {lock}>"$cache/.lock"
        flock "$lock"
    fi
    if [[ ! -e $final/qemu-system-x86_64 ]]; then
        install_tools
        work=$(mktemp -d "$cache/.work-XXXXXXXX")
        fetch_source
        (build)
        mv -T "$work/out" "$final" || die "cannot write $final"
        say "done: $(stat -c %s "$final/qemu-system-x86_64") bytes"
    fi
    echo "$final/qemu-system-x86_64"
}

main "$@"
