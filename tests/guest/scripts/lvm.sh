# shellcheck shell=bash
# Ephemeral disks on logical volumes of the real LVM. Disk 0 is for LVM; disk 1 has the programs.

modprobe ext4
modprobe dm_crypt
modprobe xts
modprobe aesni_intel || true
mkdir /tools
mount -t ext4 -o ro "$(disk 1)" /tools
export PATH=/run/bin:/tools/bin:$PATH LD_LIBRARY_PATH=/tools/lib/x86_64-linux-gnu
export LVM_SUPPRESS_FD_WARNINGS=1
mkdir -p /run/bin /run/lock/lvm /etc/lvm /etc/sealblk
for tool in pvcreate vgcreate lvs lvcreate lvremove lvrename lvchange; do ln -s /tools/bin/lvm "/run/bin/$tool"; done
# Nobody is there to wait for: no udev, no dmeventd.
cat >/etc/lvm/lvm.conf <<'CONF'
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
devices { obtain_device_list_from_udev = 0 use_devicesfile = 0 }
CONF
pvcreate --quiet "$(disk 0)"
vgcreate --quiet vg0 "$(disk 0)"

# field NAME JSON: the value of a member that is text.
field() {
    local rest=${2#*"\"$1\":\""}
    echo "${rest%%\"*}"
}

# refused STATUS COMMAND...: what a command says that must fail.
refused() {
    local wanted=$1 status=0
    shift
    "$@" >/tmp/said 2>&1 || status=$?
    [[ $status == "$wanted" ]] || fail "$* ended with $status, not $wanted: $(</tmp/said)"
}

# lvm_has NAMES: the logical volumes that there are, by LVM's word.
lvm_has() {
    local there
    there=$(lvs --noheadings --options lv_name --sort lv_name vg0 | xargs)
    [[ $there == "$1" ]] || fail "there is '$there' in vg0, not '$1'"
}

create() { sealblk ephemeral create --size 8M --lvm "$@" --json; }

(umask 077 && head -c 32 /dev/urandom >/etc/sealblk/kek && mkdir /etc/sealblk/store)
cat >/etc/sealblk/keys.toml <<'CONF'
[keystore.default]
path = "/etc/sealblk/store/keystore"
kek = "file:/etc/sealblk/kek"
CONF
sealblk keystore init

step "a logical volume with a key of its own"
made=$(create vg0/a)
result made "$made"
[[ -b $(field path "$made") ]] || fail "there is no device"
result tags "$(lvs --noheadings --options lv_tags vg0/a | xargs)"
result luks_uuid "$(cryptsetup luksUUID /dev/vg0/a)"
refused 9 create vg0/a

step "the kernel opens it with that key, and we read what it wrote"
sealblk key export "$(field key "$made")" --to /tmp/key
cryptsetup open --batch-mode --type luks2 --key-file /tmp/key /dev/vg0/a a
result mapped_bytes "$(blockdev --getsize64 /dev/mapper/a)"
pattern 1 $((8 << 20)) >/tmp/pattern
dd if=/tmp/pattern of=/dev/mapper/a bs=64k oflag=direct conv=fsync status=none
step "nothing is destroyed while it is in use"
refused 4 sealblk ephemeral destroy --lvm vg0/a --yes
result in_use "$(</tmp/said)"
cryptsetup close a
lvm_has a
sealblk convert --from luks2 --src-key "$(field key "$made")" --to raw /dev/vg0/a /tmp/plain
cmp /tmp/pattern <(head -c $((8 << 20)) /tmp/plain) || fail "sealblk does not read what the kernel wrote"
! grep -q "$(head -c 64 /tmp/pattern)" /dev/vg0/a || fail "plaintext is on the volume"
rm /tmp/plain

step "what serves it keeps it"
# shellcheck disable=SC2046  # they are words
sealblk serve --socket-path /run/a.sock $(sed 's/.*"arguments":\[\([^]]*\)\].*/\1/; s/[",]/ /g' <<<"$made") &
until [[ -S /run/a.sock ]]; do
    kill -0 $! || fail "it is not served"
    sleep 0.1
done
refused 4 sealblk ephemeral destroy --lvm vg0/a --yes
refused 5 lvremove --yes vg0/a
kill $!
wait $! || fail "serve ended with $?"

step "no room, and no group"
refused 1 sealblk ephemeral create --size 1T --lvm vg0/large
result no_room "$(</tmp/said)"
refused 1 create vg1/x
result no_group "$(</tmp/said)"
lvm_has a

step "renamed, removed and switched off by hand; a key destroyed by hand"
result gone "$(create vg0/gone --format plain)"
made=$(create vg0/keyless --format plain)
result keyless "$made"
result off "$(create vg0/off)"
lvrename --quiet vg0 a moved
lvremove --quiet --yes vg0/gone
sealblk key destroy "$(field key "$made")" --yes
lvchange --quiet --activate n vg0/off
lvcreate --quiet --yes --size 4M --name other vg0
result listing "$(sealblk ephemeral list --json)"

step "the end"
result destroyed "$(sealblk ephemeral destroy --lvm vg0/moved --yes --json)"
sealblk ephemeral destroy --lvm vg0/keyless --yes
sealblk ephemeral destroy --lvm vg0/gone --yes
refused 3 sealblk ephemeral destroy --lvm vg0/off --yes
result inactive "$(</tmp/said)"
lvm_has "off other"
lvchange --quiet --activate y vg0/off
sealblk ephemeral destroy --lvm vg0/off --yes
lvm_has other
result keys_left "$(sealblk key list --json)"
result listing_left "$(sealblk ephemeral list --json)"
no_kernel_complaints
