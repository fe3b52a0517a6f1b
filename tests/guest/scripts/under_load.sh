# shellcheck shell=bash
# Works on a file system on disk 0, whatever the host does with its back end, until the host says on disk 1 that it is
# content. The variable fio_size is the size of the files, which says how long a round of work is.

modprobe ext4
device=$(disk 0)
host=$(disk 1)
cat >/tmp/jobs <<JOBS
[global]
directory=/mnt
verify=crc32c
verify_fatal=1
do_verify=1
group_reporting=1
size=${fio_size:-16m}

[direct]
direct=1
rw=randrw
bsrange=4k-64k
blockalign=4k
ioengine=libaio
iodepth=16
numjobs=2

[flushed]
rw=randwrite
bs=16k
ioengine=psync
fsync=8
JOBS
mkfs.ext4 -q -F "$device"
mount -t ext4 "$device" /mnt
for seed in 1 2 3; do pattern $seed $((seed * 1234567)) >"/mnt/kept$seed"; done
(cd /mnt && sha256sum kept* >SUMS)
sync -f /mnt

result load begins
rounds=0
until dd if="$host" bs=512 count=1 iflag=direct status=none | grep -q '^enough'; do
    step "fio, round $rounds"
    run_fio --randseed=$rounds /tmp/jobs
    rounds=$((rounds + 1))
    # What the host has plugged meanwhile is there to be used.
    for block in /sys/devices/system/memory/memory*/state; do
        [[ $(<"$block") != offline ]] || echo online >"$block"
    done
    result round $rounds
done
result memory_kib "$(awk '/^MemTotal/ { print $2 }' /proc/meminfo)"

step "what is there is whole"
drop_caches
(cd /mnt && sha256sum -c --quiet SUMS) || fail "checksums"
umount /mnt
e2fsck -fn "$device" >/tmp/e2fsck 2>&1 || { cat /tmp/e2fsck && fail "e2fsck"; }
no_kernel_complaints
