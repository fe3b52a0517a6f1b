# shellcheck shell=bash
# Disk 0: its cache is turned on and off. INITIAL is the mode it must start in.

device=$(disk 0)
mode_file=/sys/block/${device##*/}/cache_type
expect initial_mode "$(cat "$mode_file")" "$INITIAL"

# write_and_sync SEED: 1 MiB in the SEEDth MiB, in requests of several sizes, with flushes.
write_and_sync() {
    pattern "$1" $((1 << 20)) >/tmp/data
    dd if=/tmp/data of="$device" bs=4k seek=$(($1 * 256)) count=64 conv=notrunc,fsync status=none
    dd if=/tmp/data of="$device" bs=64k seek=$(($1 * 16 + 4)) skip=4 oflag=direct,dsync conv=notrunc status=none
}

seed=0
for mode in "write back" "write through" "write back" "write through"; do
    step "$mode"
    # What is not yet flushed when the cache goes off must be flushed by that.
    pattern $((seed + 100)) 65536 | dd of="$device" bs=64k seek=$((1024 + seed)) iflag=fullblock oflag=direct status=none
    echo "$mode" >"$mode_file"
    expect "mode $seed" "$(cat "$mode_file")" "$mode"
    expect "write cache $seed" "$(attribute "$device" queue/write_cache)" "$mode"
    write_and_sync $seed
    seed=$((seed + 1))
done

step "read everything back"
drop_caches
while ((seed > 0)); do
    seed=$((seed - 1))
    dd if="$device" bs=1M skip=$seed count=1 iflag=direct status=none | cmp - <(pattern $seed $((1 << 20))) ||
        fail "data written in mode $seed is damaged"
    dd if="$device" bs=64k skip=$((1024 + seed)) count=1 iflag=direct status=none |
        cmp - <(pattern $((seed + 100)) 65536) || fail "data written before mode $seed is damaged"
done
no_kernel_complaints
