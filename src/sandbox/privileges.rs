//! Capabilities, and the way to new ones.

use std::io;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, no_new_privs,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// What a thread cannot do without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Files of its own that only root may open or remove, for root is not their owner (`CAP_DAC_OVERRIDE`).
    pub foreign_files: bool,
}

/// Gives up every capability of this thread but those needed, and gaining any by starting a program.
pub(super) fn drop_all_but(needs: Needs) -> io::Result<()> {
    // First what itself needs a capability: programs started later get none. Who lacks it has none to lose.
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let kept = if needs.foreign_files { CapabilitySet::DAC_OVERRIDE } else { CapabilitySet::empty() };
    let kept = kept & capabilities(None)?.permitted;
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })?;
    set_no_new_privs(true)?;
    if !no_new_privs()? || capabilities(None)?.permitted != kept {
        return Err(io::Error::other("the kernel does not do as it says"));
    }
    Ok(())
}
