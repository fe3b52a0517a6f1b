# shellcheck shell=bash
# /run/job/expected has a line for each disk: INDEX BYTES BLOCK_BYTES READ_ONLY DISCARD CACHE_MODE SERIAL, where
# DISCARD is yes or no and '~' in the last two stands for a space.

while read -r index bytes block read_only discard mode serial; do
    device=$(disk "$index")
    step "disk $index, $device"
    expect "bytes $index" "$(blockdev --getsize64 "$device")" "$bytes"
    expect "logical block $index" "$(attribute "$device" queue/logical_block_size)" "$block"
    expect "block by ioctl $index" "$(blockdev --getss "$device")" "$block"
    expect "read only $index" "$(attribute "$device" ro)" "$read_only"
    [[ $(attribute "$device" queue/discard_max_bytes) -gt 0 ]] && offered=yes || offered=no
    expect "discard offered $index" "$offered" "$discard"
    expect "cache mode $index" "$(attribute "$device" cache_type)" "${mode//\~/ }"
    expect "serial $index" "$(attribute "$device" serial)" "${serial//\~/ }"

    step "its last block"
    last=$((bytes / block - 1))
    if ((read_only)); then
        ! dd if=/dev/urandom of="$device" bs="$block" seek=$last count=1 oflag=direct status=none 2>/tmp/error ||
            fail "a write to a read-only disk succeeded"
        result "refused_$index" "$(tail -n 1 /tmp/error)"
        dd if="$device" bs="$block" skip=$last count=1 iflag=direct status=none >/dev/null
    else
        pattern "$index" "$block" >/tmp/block
        dd if=/tmp/block of="$device" bs="$block" seek=$last oflag=direct conv=notrunc status=none
        dd if="$device" bs="$block" skip=$last iflag=direct status=none | cmp - /tmp/block || fail "the last block"
        ! dd if=/tmp/block of="$device" bs="$block" seek=$((last + 1)) oflag=direct conv=notrunc status=none 2>&1 ||
            fail "a write behind the last block succeeded"
    fi
done </run/job/expected
no_kernel_complaints
