//! The VMM process: one per guest
fn main() {}
