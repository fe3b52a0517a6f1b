//! Blocks of 512 bytes over encryption sectors of 4096: what the guest's kernel makes of them, and the firmware, which
//! boots from no larger ones.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tempfile::tempdir;

use crate::harness::process::Process;
use crate::harness::{BackEnd, Guest, PlainLayout, ServeOptions, Served, Volume};

/// Prints a message on the first serial port and ends QEMU through its exit device.
const BOOT_CODE: &[u8] = &[
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0xbe, 0x19, 0x7c, // mov si, message
    0xac, // next: lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x06, // jz done
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xeb, 0xf5, // jmp next
    0xb0, 0x10, // done: mov al, 16
    0xe6, 0xf4, // out 0xf4, al
    0xf4, // hlt
    0xeb, 0xfd, // jmp to hlt
];
const MESSAGE: &str = "booted from an encrypted disk";
/// What QEMU exits with when 16 is written to its exit device: twice that, and one.
const EXIT_STATUS: i32 = 33;
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// A boot sector, as an argument of the shell's `printf %b`.
fn boot_sector() -> String {
    let mut sector = [BOOT_CODE, MESSAGE.as_bytes()].concat();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

/// Lets the firmware boot from the disk; returns how QEMU exited and what came over the serial port.
fn boot(folder: &Path, served: &Served) -> (Option<i32>, String) {
    let serial = folder.join("serial");
    let option = |name: &str, value: String| [name.to_owned(), value];
    let arguments = [
        option("-machine", "q35,memory-backend=memory".to_owned()),
        option("-accel", "tcg".to_owned()),
        option("-m", "64".to_owned()),
        option("-object", "memory-backend-memfd,id=memory,size=64M,share=on".to_owned()),
        option("-display", "none".to_owned()),
        option("-boot", "strict=on,reboot-timeout=100".to_owned()),
        option("-action", "reboot=shutdown".to_owned()),
        option("-serial", format!("file:{}", serial.display())),
        option("-device", "isa-debug-exit,iobase=0xf4,iosize=4".to_owned()),
        option("-chardev", format!("socket,id=disk,path={}", served.socket.display())),
        option("-device", "vhost-user-blk-pci,chardev=disk,num-queues=1,bootindex=0".to_owned()),
    ];
    let arguments: Vec<String> =
        [vec!["-nodefaults".to_owned(), "-no-user-config".to_owned()], arguments.concat()].concat();
    let log = folder.join("firmware.log");
    let mut qemu = Process::spawn("the firmware", Path::new("qemu-system-x86_64"), &arguments, &log);
    let status = qemu.wait(BOOT_LIMIT).unwrap_or_else(|| panic!("QEMU does not end\n{}", qemu.tail()));
    (status.code(), fs::read_to_string(serial).unwrap_or_default())
}

#[test]
fn kernel_and_firmware_use_blocks_smaller_than_sectors() {
    BackEnd::require_sealblk("the stand-in has one block size");
    let folder = tempdir().unwrap();
    let layout = PlainLayout { sector_bytes: 4096, ..PlainLayout::default() };
    let volume = Volume::create(folder.path(), "volume", 64 << 20, layout);
    let options = ServeOptions {
        queue_count: 2,
        pass_discard: true,
        logical_block_bytes: Some(512),
        ..ServeOptions::default()
    };
    let served = Served::start(&volume, &options);
    Guest::new(folder.path(), "small_blocks")
        .disk(&served)
        .with_fio()
        .cpus_and_queues(2)
        .var("BOOT_SECTOR", boot_sector())
        .run();
    assert_eq!(boot(folder.path(), &served), (Some(EXIT_STATUS), MESSAGE.to_owned()));
    served.stop();
}
