//! Configurations as people write them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_api::VmConfig;

fuzz_target!(|text: &str| {
    let _ = vmm_api::parse_mac(text);
    let _ = vmm_api::validate_name(text);
    let from_toml = toml::from_str::<VmConfig>(text).ok();
    let from_json = serde_json::from_str::<VmConfig>(text).ok();
    for config in from_toml.into_iter().chain(from_json) {
        if let Err(error) = config.validate() {
            let _ = error.to_string();
        }
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<VmConfig>(&json).unwrap(), config);
    }
});
