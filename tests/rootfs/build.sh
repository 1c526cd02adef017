#!/bin/sh
# Builds a Debian 12 root file system from Debian's packages and prints the path of its tar archive.
#
#   build.sh [--variant demo|full] [DIR]
#
# demo: the essential packages and python3. full: also apt, a C compiler, what file system tests need, a web server and a database.
# With DIR, which must not exist, the archive is also unpacked there (as root, so that owners are kept).
#
# The archive is in the cache, under a name made of all that decides its content but the mirror's state, so a
# second call does nothing. Only those package sources of this machine are used that Debian itself publishes.
set -eu

release=bookworm
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# Time stamp of every generated file, s since 1970: the first release of Debian 12.
export SOURCE_DATE_EPOCH=1686355200
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin

fail() {
	echo "build.sh: $*" >&2
	exit 1
}

variant=demo
if [ "${1-}" = --variant ]; then
	[ $# -ge 2 ] || fail "--variant needs demo or full"
	variant=$2
	shift 2
fi
[ $# -le 1 ] || fail "one directory at most, got: $*"
case "${1-}" in -*) fail "unknown option $1" ;; esac
[ $# -eq 0 ] || [ ! -e "$1" ] || fail "$1 exists already"

case $variant in
demo)
	base=essential
	packages=python3
	;;
full)
	base=minbase
	packages="python3 gcc libc6-dev make procps util-linux mount attr acl iproute2 iputils-ping e2fsprogs \
		psmisc strace file git ca-certificates kmod libcap2-bin xz-utils bzip2 nginx-light redis-server"
	;;
*) fail "variant $variant: neither demo nor full" ;;
esac

# Prints "deb" lines for the sources of this machine that say they are Debian's own; their signatures are checked
# against Debian's keyring when they are used, whatever they say.
sources() {
	apt-get indextargets --format '$(ORIGIN)|$(CODENAME)|$(RELEASE)|$(REPO_URI)|$(COMPONENT)' 'Created-By: Packages' |
		awk -F'|' -v release=$release -v keyring=$keyring \
			'$1 == "Debian" && $2 ~ "^" release "(-updates|-security)?$" && $5 == "main" &&
			!seen[$0]++ { print "deb [signed-by=" keyring "]", $4, $3, $5 }'
}

install_missing() {
	missing=
	command -v mmdebstrap >/dev/null || missing="$missing mmdebstrap"
	[ -e "$keyring" ] || missing="$missing debian-archive-keyring"
	[ -n "$missing" ] || return 0
	[ "$(id -u)" = 0 ] || fail "install these Debian packages first:$missing"
	echo "build.sh: installing$missing" >&2
	# shellcheck disable=SC2086 # a list of words
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing >&2
}

cache=${CHITON_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/chiton}/rootfs
key=$({ cat "$0"; echo "$release $variant $packages"; } | sha256sum | cut -c1-16)
tar=$cache/$key.tar

if [ ! -e "$tar" ]; then
	[ -n "$(sources)" ] || apt-get update >&2
	list=$(sources)
	[ -n "$list" ] || fail "no package source of Debian $release is configured on this machine"
	install_missing
	mkdir -p "$cache"
	work=$(mktemp -d "$cache/tmp-XXXXXX")
	trap 'rm -rf "$work"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	echo "build.sh: building the $variant root file system of Debian $release" >&2
	# shellcheck disable=SC2086 # lists of words
	echo "$list" | TMPDIR=$work mmdebstrap --quiet --variant=$base --format=tar \
		--include="$(echo $packages | tr ' ' ,)" \
		--aptopt='APT::Install-Recommends "false"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		$release "$work/rootfs.tar" - >&2
	mv "$work/rootfs.tar" "$tar"
fi
if [ $# -eq 1 ]; then
	mkdir -p "$(dirname "$1")"
	unpacked=$(mktemp -d "$1.XXXXXX")
	trap 'rm -rf "$unpacked"' EXIT
	tar -C "$unpacked" -x --numeric-owner --xattrs --xattrs-include='*' -p -f "$tar"
	chmod 755 "$unpacked"
	mv -T "$unpacked" "$1"
	trap - EXIT
fi
echo "$tar"
