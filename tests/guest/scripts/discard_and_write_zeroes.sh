# shellcheck shell=bash
# Disk 0 passes discards on. Three areas of 8 MiB are filled and holed, each in its own way.

readonly mib=$((1 << 20)) area_bytes=$((8 << 20))
device=$(disk 0)
pattern 1 $area_bytes >/tmp/area

fill() { dd if=/tmp/area of="$device" bs=1M seek=$(($1 / mib)) oflag=direct conv=notrunc status=none; }

# read_back START LENGTH: what the disk, not the cache, has there.
read_back() { dd if="$device" bs=4k skip=$(($1 / 4096)) count=$(($2 / 4096)) iflag=direct status=none; }

# neighbours_intact AREA HOLE LENGTH: the pattern around a hole at HOLE bytes into the area.
neighbours_intact() {
    local area=$1 hole=$2 after=$(($2 + $3))
    read_back "$area" "$hole" | cmp - <(head -c "$hole" /tmp/area) || fail "data before the hole is damaged"
    read_back $((area + after)) $((area_bytes - after)) | cmp - <(tail -c +$((after + 1)) /tmp/area) ||
        fail "data after the hole is damaged"
}

# zeroes AREA HOLE LENGTH: the hole reads as zeroes.
zeroes() { read_back $(($1 + $2)) "$3" | cmp - <(head -c "$3" /dev/zero) || fail "the range does not read as zeroes"; }

[[ $(attribute "$device" queue/discard_max_bytes) -gt 0 ]] || fail "discard is not offered"
[[ $(attribute "$device" queue/write_zeroes_max_bytes) -gt 0 ]] || fail "write zeroes is not offered"

step "blkdiscard"
fill 0
blkdiscard -o $mib -l $((2 * mib)) "$device"
neighbours_intact 0 $mib $((2 * mib))

step "blkdiscard -z"
area=$area_bytes
fill $area
blkdiscard -z -o $((area + mib + 4096)) -l $((2 * mib)) "$device"
neighbours_intact $area $((mib + 4096)) $((2 * mib))
zeroes $area $((mib + 4096)) $((2 * mib))

step "fallocate -z"
area=$((2 * area_bytes))
fill $area
fallocate -z -o $((area + 3 * mib)) -l $((mib + 8192)) "$device"
neighbours_intact $area $((3 * mib)) $((mib + 8192))
zeroes $area $((3 * mib)) $((mib + 8192))

step "fallocate -p, which allows the range to be unmapped"
area=$((3 * area_bytes))
fill $area
fallocate -p -o $((area + 4 * mib)) -l $((mib + 4096)) "$device"
neighbours_intact $area $((4 * mib)) $((mib + 4096))
zeroes $area $((4 * mib)) $((mib + 4096))

step "a discarded range takes data again"
dd if=/tmp/area of="$device" bs=4k seek=$((mib / 4096)) count=64 oflag=direct conv=notrunc status=none
read_back $mib $((64 * 4096)) | cmp - <(head -c $((64 * 4096)) /tmp/area) || fail "a discarded range took no data"
sync
no_kernel_complaints
