# shellcheck shell=bash
# Fills (ACTION=write) or compares (ACTION=read) whole disks, directly (MAPPED=no) or as LUKS volumes that the guest's
# cryptsetup opens and its kernel's dm-crypt maps (MAPPED=yes). /run/job/cases has a line for each disk:
# INDEX NAME SECTOR_BYTES CAPACITY HEADER, where HEADER is "attached" or the number of the disk with the header.

if [[ $MAPPED == yes ]]; then
    modprobe dm_crypt
    modprobe xts
    modprobe aesni_intel || true
fi
while read -r index name sector_bytes capacity header; do
    device=$(disk "$index")
    if [[ $MAPPED == yes ]]; then
        detached=()
        [[ $header == attached ]] || detached=(--header "$(disk "$header")")
        cryptsetup open --batch-mode --key-file /run/job/passphrase "${detached[@]}" "$device" case
        device=/dev/mapper/case
    fi
    [[ $(blockdev --getss "$device") == "$sector_bytes" ]] ||
        fail "$name: blocks of $(blockdev --getss "$device") bytes, not $sector_bytes"
    [[ $(blockdev --getsize64 "$device") == "$capacity" ]] ||
        fail "$name: $(blockdev --getsize64 "$device") bytes, not $capacity"
    case $ACTION in
    write)
        pattern $((SEED + index)) "$capacity" |
            dd of="$device" bs=64k iflag=fullblock oflag=direct conv=notrunc,fsync status=none
        ;;
    read)
        dd if="$device" bs=64k iflag=direct status=none | cmp -s - <(pattern $((SEED + index)) "$capacity") ||
            fail "$name: not what was written"
        ;;
    *) fail "ACTION is '$ACTION'" ;;
    esac
    echo "$ACTION $name: good"
    if [[ $MAPPED == yes ]]; then cryptsetup close case; fi
done </run/job/cases
result cases "$(wc -l </run/job/cases)"
no_kernel_complaints
