//! What root and others may do besides: given up.

use std::io;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities,
    set_no_new_privs,
};

use crate::Needs;

/// For the whole process: no core dumps, which would have all of the guest's memory; no debugger of the
/// same user that could change it; and no more open files than now.
pub fn limit() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let files = getrlimit(Resource::Nofile).current;
    setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// For the calling thread and those that it starts: no capabilities, and no program that would bring
/// others.
pub fn drop_all(needs: Needs) -> io::Result<()> {
    set_no_new_privs(true)?;
    let held = capabilities(None)?;
    let kept = match needs.low_ports {
        // A reset opens them anew.
        true => held.permitted & CapabilitySet::NET_BIND_SERVICE,
        false => CapabilitySet::empty(),
    };
    if held.permitted != kept || !held.inheritable.is_empty() {
        clear_ambient_capability_set()?;
        let sets = CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, sets)?;
    }
    Ok(())
}
