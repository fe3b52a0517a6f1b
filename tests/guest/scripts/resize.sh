# shellcheck shell=bash
# Disk 0 grows to $BYTES bytes while it is in use.

device=$(disk 0)
before=$(blockdev --getsize64 "$device")
pattern 1 65536 >/tmp/first
dd if=/tmp/first of="$device" bs=65536 seek=$((before / 65536 - 1)) oflag=direct conv=notrunc status=none
result before "$before"
until [[ $(blockdev --getsize64 "$device") != "$before" ]]; do sleep 0.1; done
expect "bytes" "$(blockdev --getsize64 "$device")" "$BYTES"

step "its new end, and its old one"
pattern 2 65536 >/tmp/second
dd if=/tmp/second of="$device" bs=65536 seek=$((BYTES / 65536 - 1)) oflag=direct conv=notrunc,fsync status=none
dd if="$device" bs=65536 skip=$((BYTES / 65536 - 1)) iflag=direct status=none | cmp - /tmp/second || fail "the new end"
dd if="$device" bs=65536 skip=$((before / 65536 - 1)) count=1 iflag=direct status=none | cmp - /tmp/first ||
    fail "the old end"
no_kernel_complaints
