# shellcheck shell=bash
# Another boot, another back end process: disk 0 must hold what filesystem_write.sh left there.

modprobe ext4
device=$(disk 0)
step "check $device"
e2fsck -fn "$device" >/tmp/e2fsck 2>&1 || { cat /tmp/e2fsck && fail "e2fsck"; }
mount -t ext4 -o ro "$device" /mnt
(cd /mnt && sha256sum -c --quiet SUMS) || fail "checksums"
result sums0 "$(sha256sum </mnt/SUMS)"
result files "$(wc -l </mnt/SUMS)"
umount /mnt
no_kernel_complaints
