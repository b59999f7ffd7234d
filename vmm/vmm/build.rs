//! How `lodge-vmm` is linked.

fn main() {
    // There are 20,000 addresses in it that depend on where it lies: half a MiB that each guest's VMM
    // would read and keep. So they take some KiB. Since glibc 2.36.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    println!("cargo:rerun-if-changed=build.rs");
}
