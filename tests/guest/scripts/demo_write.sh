# shellcheck shell=bash
# The demo's first boot: a file system on disk 0, with a letter in it that says SECRET.

modprobe ext4
device=$(disk 0)
step "an ordinary virtio disk: $device, $(($(blockdev --getsize64 "$device") >> 20)) MiB, empty"
mkfs.ext4 -q "$device"
mount -t ext4 "$device" /mnt
step "mkfs.ext4 done; writing a letter and 20 other files"
for _ in $(seq 200); do echo "$SECRET"; done >/mnt/letter
for seed in $(seq 20); do pattern "$seed" $((seed * 50000)) >"/mnt/file$seed"; done
(cd /mnt && sha256sum letter file* >SUMS)
sync -f /mnt
umount /mnt
e2fsck -fn "$device" >/tmp/e2fsck 2>&1 || { cat /tmp/e2fsck && fail "e2fsck"; }
step "unmounted; e2fsck finds no fault"
no_kernel_complaints
