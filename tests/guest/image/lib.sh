# shellcheck shell=bash
# What scripts in the guest have at hand. They run under `set -euo pipefail`.

# result KEY VALUE...: a line for the host.
result() {
    local key=$1
    shift
    echo "result $key=$*" >&3
    echo "    $key = $*"
}

# step TEXT...: says on the console what comes next.
step() {
    local uptime
    read -r uptime _ </proc/uptime
    echo "[$uptime] $*"
}

fail() {
    echo "FAILED: $*"
    exit 1
}

# slot N: the block device in PCI slot N.
slot() {
    local path
    path=$(printf '/sys/bus/pci/devices/0000:00:%02x.0' "$1")
    for path in "$path"/virtio*/block/*; do
        [[ -e $path ]] || fail "no disk in PCI slot $1"
        echo "/dev/${path##*/}"
    done
}

# disk N: the block device of the Nth disk that the host attached, from 0.
disk() { slot $((2 + $1)); }

# attribute DEVICE NAME: reads a sysfs attribute of a block device.
attribute() { cat "/sys/block/${1##*/}/$2"; }

# expect WHAT ACTUAL WANTED
expect() {
    [[ $2 == "$3" ]] || fail "$1 is '$2', not '$3'"
    result "${1// /_}" "$2"
}

# pattern SEED BYTES: decimal numbers that differ for every SEED (a number) and at every offset, so that data in the
# wrong place shows.
pattern() {
    # seq ends by a broken pipe. Without a format it is fast.
    { seq $((10 ** 15 + $1 * 10 ** 10)) $((10 ** 16)) 2>/dev/null || true; } | head -c "$2"
}

# drop_caches: what is read next comes from the disks.
drop_caches() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
}

# run_fio ARGUMENT...: fio from its own disk; its output is shown only if it fails.
run_fio() {
    if [[ ! -d /fio/bin ]]; then
        modprobe ext4
        mkdir -p /fio
        mount -t ext4 -o ro "$(slot 1)" /fio
    fi
    LD_LIBRARY_PATH=/fio/lib/x86_64-linux-gnu /fio/bin/fio "$@" >/tmp/fio.out 2>&1 || {
        cat /tmp/fio.out
        fail "fio $*"
    }
}

# no_kernel_complaints: fails if the kernel has met an I/O error.
no_kernel_complaints() {
    ! dmesg | grep -iE 'I/O error|critical .* error|virtio_blk.*(error|fail|not a head)|EXT4-fs (error|warning)' ||
        fail "the kernel complained"
}
