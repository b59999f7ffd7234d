//! Lodge's own engine: runs guest processors without hardware virtualization

mod native;
