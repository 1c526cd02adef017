#!/usr/bin/perl
# Rewrites a vmlinux so that its file holds only what a loader must copy.
#
#   compact.pl IN OUT
#
# The kernel aligns its segments and some code to 2 MiB, and the linker writes that
# padding into the file. Guest memory is zero to begin with, so a run of pages
# that are all zero needs no loading; nor does a run of pages that are all int3
# (0xcc), which is what the linker puts between functions and nothing executes.
# Each PT_LOAD is split around such runs. Section headers and notes go: a
# loader reads the ELF header and the program headers.
#
# Field offsets are those of Elf64_Ehdr and Elf64_Phdr, see elf(5).
use strict;
use warnings;

use constant PAGE    => 4096;
use constant MIN_RUN => 16;     # pages; shorter runs are not worth a segment
use constant PT_LOAD => 1;

@ARGV == 2 or die "usage: compact.pl IN OUT\n";
my ($in, $out) = @ARGV;
open(my $fh, '<:raw', $in) or die "$in: $!\n";
my $elf = do { local $/; <$fh> };
substr($elf, 0, 6) eq "\x7fELF\x02\x01" or die "$in: not a little-endian ELF64 file\n";

# Splits a segment's file bytes: list of [offset in the segment, length].
sub pieces {
    my ($bytes) = @_;
    my ($pages, @keep, $run) = (int((length($bytes) + PAGE - 1) / PAGE));
    my $filler = sub {
        my $page = substr($bytes, $_[0] * PAGE, PAGE);
        return $page !~ /[^\0]/ || $page !~ /[^\xcc]/;
    };
    for (my $i = 0; $i < $pages; ) {
        my $end = $i;
        $end++ while $end < $pages && $filler->($end);
        if (@keep && $end - $i < MIN_RUN && $end < $pages) {
            $keep[-1][1] += ($end - $i) * PAGE;    # too short: stays in the file
        } elsif ($end < $pages) {
            push @keep, [$end * PAGE, 0];
        }
        last if $end == $pages;
        $i = $end;
        $i++ while $i < $pages && !$filler->($i);
        $keep[-1][1] += ($i - $end) * PAGE;
    }
    for my $piece (@keep) {
        my $left = length($bytes) - $piece->[0];
        $piece->[1] = $left if $piece->[1] > $left;
    }
    return @keep;
}

my ($phoff, $phentsize, $phnum) = (unpack('Q<', substr($elf, 32, 8)), unpack('S<S<', substr($elf, 54, 4)));
my (@headers, @data);
for my $n (0 .. $phnum - 1) {
    my ($type, $flags, $offset, $vaddr, $paddr, $filesz, $memsz) =
        unpack('L<L<Q<6', substr($elf, $phoff + $n * $phentsize, $phentsize));
    next if $type != PT_LOAD;
    my $bytes = substr($elf, $offset, $filesz);
    length($bytes) == $filesz or die "$in: segment $n lies outside the file\n";
    my @pieces = pieces($bytes);
    for my $p (0 .. $#pieces) {
        my ($at, $length) = @{ $pieces[$p] };
        # The memory up to the next piece, or to the end, belongs to this one.
        my $mem = ($p < $#pieces ? $pieces[$p + 1][0] : $memsz) - $at;
        push @headers, [$flags, $vaddr + $at, $paddr + $at, $length, $mem];
        push @data, substr($bytes, $at, $length);
    }
}

# A page of headers, then each piece at a page boundary, so that it can be mapped.
my ($table, $body) = ('', '');
for my $h (@headers) {
    my ($flags, $vaddr, $paddr, $filesz, $memsz) = @$h;
    $table .= pack('L<L<Q<6', PT_LOAD, $flags, PAGE + length($body), $vaddr, $paddr, $filesz, $memsz, PAGE);
    $body .= shift @data;
    $body .= "\0" x (-length($body) % PAGE);
}
64 + length($table) <= PAGE or die "$in: too many pieces\n";
my $head = substr($elf, 0, 64);
substr($head, 32, 8) = pack('Q<', 64);                              # e_phoff
substr($head, 40, 8) = pack('Q<', 0);                               # e_shoff
substr($head, 54, 10) = pack('S<5', 56, scalar(@headers), 0, 0, 0); # e_phentsize .. e_shstrndx
$head .= $table;
$head .= "\0" x (PAGE - length($head));
open(my $to, '>:raw', $out) or die "$out: $!\n";
print $to $head, $body or die "$out: $!\n";
close($to) or die "$out: $!\n";
