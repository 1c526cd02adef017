#!/bin/sh
# Packs the guest's initramfs: the agent as /init, the mount points it uses, and the two nodes that
# it needs before devtmpfs is there. Same agent in, same bytes out: an uncompressed newc archive
# (Documentation/driver-api/early-userspace/buffer-format.rst) with all times, owners and inode
# numbers fixed. Needs no privileges, since the nodes exist in the archive alone.
# The agent's bytes begin at a page, so that the kernel makes them the file's without a copy
# (guest-kernel/patches); what fills up the page before are NULs behind its name.
# usage: initramfs.sh AGENT OUTPUT
set -eu
agent=$1
output=$2
test -x "$agent" || { echo "initramfs.sh: $agent is not an executable" >&2; exit 1; }
inode=0
offset=0

# entry NAME MODE NLINK SIZE RDEVMAJOR RDEVMINOR [ALIGNMENT]: a header and its name, padded to 4 bytes or
# to the alignment.
entry() {
    inode=$((inode + 1))
    name=$((${#1} + 1))
    [ -z "${7-}" ] || name=$((name + ($7 - (offset + 110 + name) % $7) % $7))
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s' \
        $inode "$2" 0 0 "$3" 0 "$4" 0 0 "$5" "$6" $name 0 "$1"
    head -c $((name - ${#1})) /dev/zero
    offset=$((offset + 110 + name))
    pad
}

# To 4 bytes.
pad() {
    head -c $(((4 - offset % 4) % 4)) /dev/zero
    offset=$(((offset + 3) / 4 * 4))
}

temporary=$output.tmp.$$
trap 'rm -f "$temporary"' EXIT
{
    for directory in dev proc run sys; do
        entry $directory 0040755 2 0 0 0
    done
    # The Rust runtime opens /dev/null for the standard descriptors, which a kernel without a
    # console leaves closed; errors before devtmpfs is mounted go to /dev/kmsg.
    entry dev/null 0020666 1 0 1 3
    entry dev/kmsg 0020600 1 0 1 11
    size=$(wc -c <"$agent")
    entry init 0100755 1 "$size" 0 0 4096
    cat "$agent"
    offset=$((offset + size))
    pad
    entry TRAILER!!! 0 1 0 0 0
} >"$temporary"
# What has not changed keeps its time stamp: nothing is built anew for it.
cmp -s "$temporary" "$output" || mv "$temporary" "$output"
