//! What a hostile guest does to its disk, and what must not come of it.
//!
//! The cases bear the names that the public suite virtio-villain gave them, and are written afresh for a back end
//! whose ring is laid out by hand. Cases that end in the VMM (PCI registers, interrupt status, the device status
//! byte, packed rings that are not offered) have no counterpart here.
//!
//! The device's verdicts: a request that cannot be carried out gets IOERR; a type or flag that is not known
//! UNSUPP; a chain that has no usable status byte comes back with used length 0; an available-ring entry that is
//! no descriptor, or a head that is in flight already, is skipped; an impossible available index stops that queue
//! until it is restarted, and no other.
//!
//! Every case is run on a volume without a header, and on LUKS volumes, whose header has to stay as it was.

mod luks1;
mod luks2;
mod plain;
