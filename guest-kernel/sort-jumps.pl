#!/usr/bin/perl
# Sorts the table of static branches in a vmlinux, in place, as jump_label_init() would at every boot.
#
#   sort-jumps.pl VMLINUX SYSTEM_MAP
#
# An entry is { s32 code; s32 target; s64 key }, each relative to its own place (include/linux/jump_label.h); the two lowest bits of the
# key are flags. The order is that of jump_label_cmp(): by key, then by code.
use strict;
use warnings;
no warnings qw(portable);    # 64-bit addresses

use constant ENTRY   => 16;
use constant PT_LOAD => 1;

@ARGV == 2 or die "usage: sort-jumps.pl VMLINUX SYSTEM_MAP\n";
my ($path, $map) = @ARGV;

my %symbol;
open(my $symbols, '<', $map) or die "$map: $!\n";
/^([0-9a-f]{16}) \S (__st\w+___jump_table)$/ and $symbol{$2} = hex($1) while <$symbols>;
my ($start, $stop) = @symbol{qw(__start___jump_table __stop___jump_table)};
defined $start && defined $stop && $stop > $start && ($stop - $start) % ENTRY == 0 or die "$map: no table of static branches\n";

open(my $fh, '+<:raw', $path) or die "$path: $!\n";
my $elf = do { local $/; <$fh> };
my ($phoff, $phentsize, $phnum) = (unpack('Q<', substr($elf, 32, 8)), unpack('S<S<', substr($elf, 54, 4)));
my $at;
for my $n (0 .. $phnum - 1) {
    my ($type, undef, $offset, $vaddr, undef, $filesz) = unpack('L<L<Q<4', substr($elf, $phoff + $n * $phentsize, $phentsize));
    $at = $offset + $start - $vaddr if $type == PT_LOAD && $start >= $vaddr && $stop <= $vaddr + $filesz;
}
defined $at or die "$path: the table of static branches is in no segment\n";

# Absolute while they move.
my @entries;
for (my $place = $start; $place < $stop; $place += ENTRY) {
    my ($code, $target, $key) = unpack('l<l<q<', substr($elf, $at + $place - $start, ENTRY));
    push @entries, [$place + $code, $place + 4 + $target, $place + 8 + $key];
}
@entries = sort { ($a->[2] & ~3) <=> ($b->[2] & ~3) || $a->[0] <=> $b->[0] } @entries;
my ($table, $place) = ('', $start);
for my $entry (@entries) {
    my ($code, $target, $key) = @$entry;
    $table .= pack('l<l<q<', $code - $place, $target - $place - 4, $key - $place - 8);
    $place += ENTRY;
}
seek($fh, $at, 0) && print($fh $table) && close($fh) or die "$path: $!\n";
