# shellcheck shell=bash
# The demo's second boot: everything is still there. Reports where on the disk the letter lies, and what it reads there.

modprobe ext4
device=$(disk 0)
e2fsck -fn "$device" >/tmp/e2fsck 2>&1 || { cat /tmp/e2fsck && fail "e2fsck"; }
step "after the reboot e2fsck finds no fault"
mount -t ext4 -o ro "$device" /mnt
(cd /mnt && sha256sum -c --quiet SUMS) || fail "checksums"
step "the checksums of $(wc -l </mnt/SUMS) files are right; the letter says:"
echo "          $(head -n 1 /mnt/letter)"
umount /mnt

matches=$(grep -aoF "$SECRET" "$device" | wc -l)
offset=$(grep -aboF -m 1 "$SECRET" "$device" | head -n 1 | cut -d : -f 1)
step "the letter's words are on the disk $matches times, first at byte $offset"
echo "result matches=$matches" >&3
echo "result offset=$offset" >&3
dd if="$device" bs=512 skip=$((offset / 512)) count=1 iflag=direct status=none |
    od -An -tx1z -w8 -v -N 96 | sed 's/^/result dump=/' >&3
no_kernel_complaints
