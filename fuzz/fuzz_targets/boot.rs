//! The boot loaders. The input is the kernel: bzImage, ELF or multiboot.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lodge_fuzz::files::MemoryFile;
use machine::{MemoryMap, boot};
use vmm_api::{BootConfig, GuestModule};

fuzz_target!(|kernel: &[u8]| {
    let file = MemoryFile::new(kernel);
    let map = MemoryMap::new(64 << 20, 40).unwrap();
    let mut config = BootConfig {
        kernel: file.path.clone(),
        initrd: None,
        cmdline: "console=ttyS0".to_owned(),
        modules: Vec::new(),
    };
    let load = |config: &BootConfig| {
        let Ok(files) = boot::BootFiles::open(config) else { return false };
        boot::load(config, &files, &mem::allocate(map.ram()).unwrap(), &map, 0xe_0000).is_ok()
    };
    if load(&config) {
        config.initrd = Some(file.path.clone());
        load(&config);
        config.initrd = None;
        config.modules.push(GuestModule { path: file.path.clone(), cmdline: "a module".into() });
        load(&config);
    }
});
