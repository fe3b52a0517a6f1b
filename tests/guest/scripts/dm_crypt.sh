# shellcheck shell=bash
# Fills (ACTION=write) or compares (ACTION=read) whole disks, directly (MAPPED=no) or through the kernel's dm-crypt
# (MAPPED=yes). /run/job/cases has a line for each disk: INDEX KEY_BITS SECTOR_BYTES LARGE OFFSET SKIP CAPACITY.

# open_plain NAME DEVICE KEY_BITS SECTOR_BYTES LARGE OFFSET SKIP
open_plain() {
    local name=$1 device=$2 large=()
    [[ $5 == no ]] || large=(--iv-large-sectors)
    cryptsetup open --batch-mode --type plain --cipher aes-xts-plain64 --key-file "/run/job/key$3" --key-size "$3" \
        --sector-size "$4" --offset "$6" --skip "$7" "${large[@]}" "$device" "$name"
}

# matches DEVICE SEED BYTES
matches() { dd if="$1" bs=64k iflag=direct status=none | cmp -s - <(pattern "$2" "$3"); }

if [[ $MAPPED == yes ]]; then
    modprobe dm_crypt
    modprobe xts
    modprobe aesni_intel || true
fi
while read -r index key_bits sector_bytes large offset skip capacity; do
    device=$(disk "$index")
    what="disk $index: $key_bits-bit key, sectors of $sector_bytes, large $large, offset $offset, skip $skip"
    if [[ $MAPPED == yes ]]; then
        open_plain case "$device" "$key_bits" "$sector_bytes" "$large" "$offset" "$skip"
        device=/dev/mapper/case
    fi
    [[ $(blockdev --getsize64 "$device") == "$capacity" ]] ||
        fail "$what: $(blockdev --getsize64 "$device") bytes, not $capacity"
    case $ACTION in
    write)
        pattern $((SEED + index)) "$capacity" |
            dd of="$device" bs=64k iflag=fullblock oflag=direct conv=notrunc,fsync status=none
        ;;
    read) matches "$device" $((SEED + index)) "$capacity" || fail "$what: not what was written" ;;
    *) fail "ACTION is '$ACTION'" ;;
    esac
    echo "$ACTION $what: good"
    if [[ $MAPPED == yes ]]; then cryptsetup close case; fi
done </run/job/cases

if [[ $MAPPED == yes && $ACTION == read ]]; then
    step "a wrong IV, sector size or key is noticed"
    read -r index key_bits sector_bytes large offset skip capacity </run/job/cases
    other_size=$((sector_bytes == 512 ? 1024 : 512))
    for wrong in "$key_bits $sector_bytes $large $offset $((skip + 8))" \
        "$key_bits $other_size $large $offset $skip" "$((768 - key_bits)) $sector_bytes $large $offset $skip"; do
        # shellcheck disable=SC2086  # five words
        open_plain wrong "$(disk "$index")" $wrong
        ! matches /dev/mapper/wrong $((SEED + index)) "$capacity" || fail "'$wrong' reads the same"
        cryptsetup close wrong
    done
fi
result cases "$(wc -l </run/job/cases)"
no_kernel_complaints
