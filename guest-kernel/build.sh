#!/usr/bin/env bash
# Builds the guest kernel and prints the path of its vmlinux.
#
#   build.sh [smp|up]
#
# Progress goes to stderr; stdout carries the path alone. The result lies in
# ${CHITON_CACHE:-${XDG_CACHE_HOME:-~/.cache}/chiton}/kernel/<hash of all inputs>/
# as vmlinux, config and System.map; where it is there already, nothing is built.
set -euo pipefail
export LC_ALL=C
umask 022

readonly PACKAGE=linux-source-6.12
readonly TOOLS=(bc binutils bison ccache cpio flex gcc libc6-dev libelf-dev make patch perl xz-utils)

# Everything that could differ between two builds of the same inputs.
export SOURCE_DATE_EPOCH=0
export KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970'
export KBUILD_BUILD_USER=chiton KBUILD_BUILD_HOST=chiton KBUILD_BUILD_VERSION=1
# A caller's build settings must not leak into the kernel's.
unset MAKEFLAGS MFLAGS KCFLAGS KCPPFLAGS CROSS_COMPILE ARCH LLVM O KBUILD_OUTPUT

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cache=${CHITON_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/chiton}/kernel
work=

# For what is compiled again from the same text: the objects of another version's tree, of one that is gone, and of files that
# a patch touches as it did before.
export CCACHE_DIR=${cache%/kernel}/ccache CCACHE_MAXSIZE=2G CCACHE_COMPILERCHECK=content CCACHE_NOHASHDIR=1

say() { printf 'guest-kernel: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
# A failed build leaves no work directory behind.
trap '[[ -z $work ]] || rm -rf -- "$work"' EXIT

# Prints the Debian packages whose tools are missing.
missing_tools() {
    local -A tool=([bc]=bc [ld]=binutils [bison]=bison [ccache]=ccache [cpio]=cpio [flex]=flex
        [gcc]=gcc [make]=make [patch]=patch [perl]=perl [xz]=xz-utils)
    local name
    for name in "${!tool[@]}"; do
        command -v "$name" >/dev/null || echo "${tool[$name]}"
    done
    # Libraries of the build host's own programs (objtool, kconfig).
    if command -v gcc >/dev/null; then
        echo '#include <stdio.h>' | gcc -E -x c - >/dev/null 2>&1 || echo libc6-dev
        echo '#include <libelf.h>' | gcc -E -x c - >/dev/null 2>&1 || echo libelf-dev
    else
        printf '%s\n' libc6-dev libelf-dev
    fi
}

install_tools() {
    local missing
    mapfile -t missing < <(missing_tools | sort -u)
    ((${#missing[@]} > 0)) || return 0
    ((EUID == 0)) || die "missing packages: ${missing[*]} (as root: apt-get install -y --no-install-recommends ${TOOLS[*]})"
    say "installing ${missing[*]}"
    { apt-get update -q && apt-get install -qy --no-install-recommends "${TOOLS[@]}"; } >&2
}

# Prints the versions of the source package that apt offers, newest first.
offered() { apt-cache madison "$PACKAGE" 2>/dev/null | awk -F'|' '{gsub(/ /, "", $2); print $2}'; }

# Prints the version to build: the pinned one, or the newest of its series.
choose_version() {
    local pinned=$1 all
    command -v apt-cache >/dev/null || die "apt is needed to fetch $PACKAGE"
    all=$(offered)
    if [[ -z $all ]] && ((EUID == 0)); then
        apt-get update -q >&2
        all=$(offered)
    fi
    [[ -n $all ]] || die "apt offers no $PACKAGE (run apt-get update; bookworm-security has it)"
    if grep -qxF -- "$pinned" <<<"$all"; then
        echo "$pinned"
    else
        say "apt no longer offers $PACKAGE $pinned; using $(head -n1 <<<"$all")"
        head -n1 <<<"$all"
    fi
}

# Hash of all that the result depends on. $1: package version, $2: variant.
key() {
    {
        printf '%s\n' "$1" "$2"
        gcc --version | head -n1
        ld --version | head -n1
        fragments "$2"
        cat -- "$here/build.sh" "$here"/*.pl "$here"/patches/*.patch
    } | sha256sum | cut -c1-32
}

fragments() { cat -- "$here"/config/[0-9]*.config "$here/config/variant-$1.config"; }

# Fails with the list of options that the fragments ask for and .config lacks.
verify_config() {
    local lacking
    lacking=$(awk '
        NR == FNR { have[$0] = 1; if (/^CONFIG_/) { split($0, a, "="); set[a[1]] = $0 }; next }
        /^CONFIG_/ && !($0 in have) { print }
        /^# CONFIG_[A-Z0-9_]+ is not set$/ && ($2 in set) { print }
    ' .config wanted.config)
    [[ -z $lacking ]] || die "the final .config does not hold: ${lacking//$'\n'/, }"
}

# Leaves the source in $2.
fetch_source() {
    say "fetching $PACKAGE $1"
    (
        cd "$work"
        # The directory is private to this user, so apt's own download user
        # could not write there; apt would do the same and warn.
        apt-get -q -o APT::Sandbox::User="$(id -un)" download "$PACKAGE=$1" >&2
        dpkg -x ./*.deb deb
        mkdir "$2"
        # The kernel's build reads nothing of these.
        tar -xf "deb/usr/src/$PACKAGE.tar.xz" -C "$2" --strip-components=1 \
            --exclude='*/Documentation/*/*' --exclude='*/tools/testing/*' \
            --exclude='*/drivers/gpu/drm/amd/include/*' --exclude='*/arch/[!x]*/boot/*'
        rm -rf deb ./*.deb
    )
}

# Goes to the patched source. The tree of a variant's last build stays in the cache, with its objects: the kernel's own build
# knows which of them an option or a file that has changed concerns. A tree without the stamp `built` is of a build that failed.
enter_tree() {
    local tree=$cache/tree-$2 each
    exec {lock}>"$tree.lock"
    flock "$lock"
    if [[ $(cat "$tree/built" 2>/dev/null) = "$1" ]]; then
        rm "$tree/built"
        cd "$tree/src"
        ! diff -r "$tree/patches" "$here/patches" >/dev/null || return 0
        say 'exchanging the patches'
        for each in $(printf '%s\n' "$tree"/patches/*.patch | sort -r); do
            patch -s -R -p1 <"$each" >&2 || die "$each cannot be taken back; the next build starts with a fresh source"
        done
    else
        rm -rf "$tree"
        mkdir "$tree"
        fetch_source "$1" "$tree/src"
        cd "$tree/src"
    fi
    for each in "$here"/patches/*.patch; do
        patch -s -p1 <"$each" >&2 || die "$each does not apply to this version of the kernel"
    done
    rm -rf "$tree/patches"
    cp -r "$here/patches" "$tree/patches"
}

build() {
    enter_tree "$1" "$2"
    fragments "$2" >wanted.config
    say "configuring ($2)"
    make -s ARCH=x86_64 CC='ccache gcc' HOSTCC='ccache gcc' KCONFIG_ALLCONFIG=wanted.config allnoconfig >&2
    verify_config
    say "compiling $(grep -c '=y$' .config) options on $(nproc) CPUs"
    # What collect has changed is linked again.
    rm -f vmlinux
    # In-tree, so that no absolute path gets into the image.
    make -s -j"$(nproc)" ARCH=x86_64 CC='ccache gcc' HOSTCC='ccache gcc' vmlinux >&2
}

# Leaves in $work/out what goes into the cache, and the tree for the next build.
collect() {
    mkdir "$work/out"
    # Symbols stay in System.map.
    perl "$here/sort-jumps.pl" vmlinux System.map
    perl "$here/compact.pl" vmlinux "$work/out/vmlinux"
    cp .config "$work/out/config"
    cp System.map "$work/out/System.map"
    chmod 0644 "$work"/out/*
    echo "$1" >../built
}

main() {
    local variant=${1:-smp} pinned version final
    (($# <= 1)) && [[ -r $here/config/variant-$variant.config ]] || die "usage: build.sh [smp|up]"
    read -r pinned <"$here/version"
    install_tools

    final=$cache/$(key "$pinned" "$variant")
    if [[ ! -e $final/vmlinux ]]; then
        version=$(choose_version "$pinned")
        final=$cache/$(key "$version" "$variant")
    fi
    if [[ ! -e $final/vmlinux ]]; then
        mkdir -p "$cache"
        work=$(mktemp -d "$cache/.work-XXXXXXXX")
        build "$version" "$variant"
        collect "$version"
        # Where another build of the same inputs came first, its result stays.
        mv -T "$work/out" "$final" 2>/dev/null || [[ -e $final/vmlinux ]] || die "cannot write $final"
        say "done: $(stat -c %s "$final/vmlinux") bytes"
    fi
    echo "$final/vmlinux"
}

main "$@"
