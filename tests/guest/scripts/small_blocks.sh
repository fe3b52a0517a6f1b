# shellcheck shell=bash
# Disk 0 has blocks of 512 bytes over encryption sectors of 4096. BOOT_SECTOR is what the host wants in its first block.

device=$(disk 0)
expect "logical block" "$(attribute "$device" queue/logical_block_size)" 512
expect "physical block" "$(attribute "$device" queue/physical_block_size)" 4096
expect "smallest good request" "$(attribute "$device" queue/minimum_io_size)" 4096
expect "discard granularity" "$(attribute "$device" queue/discard_granularity)" 4096

step "a file system with blocks of 1 KiB, smaller than the encryption sectors"
modprobe ext4
mkfs.ext4 -q -F -b 1024 "$device" 48m
mount -t ext4 "$device" /mnt
mkdir /mnt/many
for name in $(seq 200); do pattern "$name" $((name * 97)) >"/mnt/many/$name"; done
pattern 1 $((1205 * 1024)) | dd of=/mnt/large bs=1k iflag=fullblock oflag=direct status=none
rm /mnt/many/1?
sync -f /mnt
(cd /mnt && find large many -type f | sort | xargs sha256sum >SUMS)
umount /mnt
e2fsck -fn "$device" >/tmp/e2fsck 2>&1 || { cat /tmp/e2fsck && fail "e2fsck"; }
drop_caches
mount -t ext4 -o ro "$device" /mnt
(cd /mnt && sha256sum -c --quiet SUMS) || fail "checksums"
umount /mnt

cat >/tmp/jobs <<JOBS
[global]
filename=$device
direct=1
rw=randwrite
verify=crc32c
verify_fatal=1
do_verify=1
randseed=1
group_reporting=1
ioengine=libaio

[blocks]
bs=512
iodepth=32
size=1m
offset=48m

# Neighbouring blocks come from different processors, hence from different queues. Each job verifies its own.
[queue0]
stonewall
bs=512
iodepth=16
offset=50m
size=512k
cpus_allowed=0
zonemode=strided
zonesize=512
zonerange=512
zoneskip=512

[queue1]
bs=512
iodepth=16
offset=52429312
size=512k
cpus_allowed=1
zonemode=strided
zonesize=512
zonerange=512
zoneskip=512

[odd_lengths]
stonewall
bsrange=512-64k
blockalign=512
iodepth=16
size=8m
offset=52m
JOBS
step "fio"
run_fio /tmp/jobs

step "the boot sector"
printf '%b' "$BOOT_SECTOR" | dd of="$device" bs=512 oflag=direct conv=notrunc iflag=fullblock status=none
no_kernel_complaints
