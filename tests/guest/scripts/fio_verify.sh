# shellcheck shell=bash
# Writes and verifies disk 0 with fio in many ways. QUEUES is how many queues the disk must have.

device=$(disk 0)
block=$(attribute "$device" queue/logical_block_size)
expect queues "$(find "/sys/block/${device##*/}/mq" -mindepth 1 -maxdepth 1 | wc -l)" "$QUEUES"

cat >/tmp/jobs <<JOBS
[global]
filename=$device
direct=1
rw=randrw
verify=crc32c
verify_fatal=1
do_verify=1
randseed=1
group_reporting=1

# Verified again below; fio's random sequence depends on the position among the jobs, so this one stays first.
[kept]
rw=randwrite
bs=4k
ioengine=io_uring
iodepth=64
size=8m
offset=16m

[logical_block]
stonewall
bs=$block
ioengine=libaio
iodepth=16
size=1m
offset=0m

[one_at_a_time]
stonewall
bs=4k
ioengine=psync
size=2m
offset=8m

[middle]
stonewall
bs=64k
ioengine=io_uring
iodepth=8
size=16m
offset=32m

[large]
stonewall
bs=1m
ioengine=libaio
iodepth=4
size=32m
offset=64m

[buffered]
stonewall
direct=0
bs=8k
ioengine=psync
end_fsync=1
size=8m
offset=96m

# One process on each processor, hence on each queue, with flushes in between.
[all_queues]
stonewall
rw=randwrite
bsrange=$block-128k
blockalign=$block
ioengine=libaio
iodepth=16
fsync=64
numjobs=$QUEUES
cpus_allowed=0-$((QUEUES - 1))
cpus_allowed_policy=split
verify=sha256
size=8m
offset=128m
offset_increment=16m
JOBS
step "fio"
run_fio /tmp/jobs

step "what fio wrote is on the disk, not in the cache"
drop_caches
verify_again=(--name=kept "--filename=$device" --direct=1 --rw=randwrite --verify=crc32c --verify_fatal=1 --randseed=1
    --bs=4k --ioengine=libaio --iodepth=16 --size=8m --offset=16m --verify_only)
run_fio "${verify_again[@]}"
# And fio does notice a wrong byte.
dd if=/dev/urandom of="$device" bs=4k count=8 seek=$(((16 << 20) / 4096 + 40)) oflag=direct status=none
if (run_fio "${verify_again[@]}") >/dev/null; then fail "fio takes any data for verified"; fi

step "every queue was used"
virtio=$(basename "$(readlink -f "/sys/block/${device##*/}/device")")
for ((queue = 0; queue < QUEUES; queue++)); do
    interrupts=$(awk -v name="$virtio-req.$queue" '
        $NF == name { for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) sum += $i; print sum }' /proc/interrupts)
    ((${interrupts:-0} > 0)) || fail "queue $queue never had a completion"
    result "interrupts$queue" "$interrupts"
done
no_kernel_complaints
