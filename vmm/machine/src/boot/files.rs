//! The files that a guest starts from.

use vmm_api::BootConfig;

use super::{BootError, Source};

/// Kernel, initial RAM disk and modules, open for as often as the guest is reset: a VMM that has confined
/// itself could not open them again.
pub struct BootFiles {
    pub(super) kernel: Source,
    pub(super) initrd: Option<Source>,
    pub(super) modules: Vec<Source>,
}

impl BootFiles {
    /// Opens them.
    ///
    /// # Errors
    ///
    /// One is missing, or no file.
    pub fn open(config: &BootConfig) -> Result<Self, BootError> {
        let initrd = config.initrd.as_ref().map(|path| Source::open("initial RAM disk", path));
        let module = |module: &vmm_api::GuestModule| Source::open("module", &module.path);
        Ok(Self {
            kernel: Source::open("kernel", &config.kernel)?,
            initrd: initrd.transpose()?,
            modules: config.modules.iter().map(module).collect::<Result<_, _>>()?,
        })
    }
}
