//! Checks of the house rules, labs and benchmarks
fn main() {}
