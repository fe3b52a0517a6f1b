# shellcheck shell=bash
# Disk 0 is served, disk 1 a plain file: the same files go to both. PHRASE is what the host will search for.

modprobe ext4
for index in 0 1; do
    device=$(disk $index)
    step "mkfs.ext4 and files on $device"
    mkfs.ext4 -q -F "$device"
    mount -t ext4 "$device" /mnt
    mkdir /mnt/many
    for seed in 1 2 3; do
        pattern $seed $((seed * 1234567)) | dd of=/mnt/file$seed bs=64k iflag=fullblock conv=fsync status=none
    done
    for name in $(seq 100); do pattern "$name" $((name * 97)) >"/mnt/many/$name"; done
    for _ in $(seq 4096); do echo "$PHRASE"; done | dd of=/mnt/phrases bs=64k iflag=fullblock conv=fsync status=none
    rm /mnt/file2 /mnt/many/5*
    sync -f /mnt
    # A freeze writes out everything, by another path than unmounting.
    fsfreeze -f /mnt
    fsfreeze -u /mnt
    (cd /mnt && find file* many phrases -type f | sort | xargs sha256sum >SUMS)
    sync -f /mnt
    umount /mnt

    step "check $device"
    e2fsck -fn "$device" >/tmp/e2fsck 2>&1 || { cat /tmp/e2fsck && fail "e2fsck"; }
    drop_caches
    mount -t ext4 -o ro "$device" /mnt
    (cd /mnt && sha256sum -c --quiet SUMS) || fail "checksums on disk $index"
    result "sums$index" "$(sha256sum </mnt/SUMS)"
    umount /mnt
done
no_kernel_complaints
