//! `lodge run`.

mod config;
mod console;
mod escape;
mod terminal;
mod vmm;

use std::path::{Path, PathBuf};

use images::{Cancel, Check, Image};
use vmm_api::{BlockConfig, Failure, FailureKind};

use crate::args::{RunArgs, SerialArg};
use crate::guests::{self, Guest, Record};
use crate::progress::Show;
use crate::{failure, output};

pub use vmm::find_program;

/// Runs a guest to its end; the value is the exit status.
pub fn run(args: &RunArgs) -> Result<u8, Failure> {
    let file = args.config.as_deref().map(config::read_file).transpose()?.unwrap_or_default();
    let name = args.name.clone().or_else(|| file.name().map(str::to_owned));
    if let Some(name) = &name {
        vmm_api::validate_name(name).map_err(failure::config)?;
    }
    let image = find_image(args, file.image()?, name.as_deref())?;
    let name = name.unwrap_or_else(|| {
        let stem = image.as_ref().map_or("guest".to_owned(), |i| i.name().to_guest_name());
        format!("{stem}-{}", std::process::id())
    });
    let mut config = config::assemble(args, file, image.as_ref(), &name)?;
    if let Some(image) = &image {
        let home = images::home().map_err(failure::image)?;
        config.disks.insert(0, image_disk(image, &guests::disk(&home, &name)));
    }
    config.validate().map_err(failure::config)?;
    if args.print_config {
        let text = serde_json::to_string_pretty(&config).map_err(Failure::internal)?;
        output::print(text + "\n")?;
        return Ok(0);
    }

    let guest = match &image {
        Some(image) => {
            image
                .verify(Check::Quick, &mut Show::new(), &Cancel::default())
                .map_err(failure::image)?;
            Some(claim(image, &name, args.keep)?)
        }
        None if args.keep => {
            return Err(Failure::configuration(
                "--keep keeps the disk of a guest that runs from an image; disks given with \
                 --disk are written in place and stay anyway",
            ));
        }
        None => register(&name)?,
    };
    let api = guest.as_ref().map(Guest::listen).transpose().unwrap_or_else(|error| {
        eprintln!("lodge: `lodge stats` will not reach this guest: {error}");
        None
    });
    if let Some(image) = &image {
        for login in &image.manifest().logins {
            eprintln!("lodge: log in as {}, password {}", login.user, login.password);
        }
    }
    let here = matches!(args.serial, None | Some(SerialArg::Here))
        && config.serial == vmm_api::ConsoleConfig::Null;
    let result = vmm::run_to_end(config, here, api);
    drop(guest);
    result
}

/// The image that the guest starts from: as asked for, else that of the kept guest.
fn find_image(
    args: &RunArgs,
    from_file: Option<images::ImageName>,
    guest: Option<&str>,
) -> Result<Option<Image>, Failure> {
    let home = images::home();
    let kept = match (guest, &home) {
        (Some(guest), Ok(home)) => guests::kept(home, guest)?,
        _ => None,
    };
    let asked = args.image.clone().or(from_file);
    let name = match (&asked, &kept) {
        (Some(asked), Some(kept)) if asked.as_str() != kept.image => {
            return Err(Failure::configuration(format!(
                "the kept guest {} is based on {}, not on {asked}: choose another name, or remove \
                 it with `lodge rm`",
                guest.unwrap_or_default(),
                kept.image
            )));
        }
        (Some(asked), _) => asked.clone(),
        (None, Some(kept)) => kept.image.parse().map_err(failure::image)?,
        (None, None) => return Ok(None),
    };
    let store = images::Store::at(&home.map_err(failure::image)?);
    store.get(&name).map(Some).map_err(failure::image)
}

/// The image's disk, read only through an overlay that takes the guest's writes.
fn image_disk(image: &Image, overlay: &Path) -> BlockConfig {
    BlockConfig {
        path: image.disk(),
        format: image.manifest().disk_format,
        readonly: false,
        overlay: Some(overlay.to_owned()),
        serial: None,
    }
}

/// Makes `name` this process's guest where there is no image. It needs no files then: without a
/// place for them it runs all the same, only that others do not find it.
fn register(name: &str) -> Result<Option<Guest>, Failure> {
    let claim = |home: PathBuf| Guest::claim(&home, name);
    match images::home().map_err(failure::image).and_then(claim) {
        Err(failure) if failure.kind == FailureKind::Host => {
            eprintln!("lodge: `lodge ls` and `lodge stats` will not find this guest: {failure}");
            Ok(None)
        }
        result => result.map(Some),
    }
}

fn claim(image: &Image, name: &str, keep: bool) -> Result<Guest, Failure> {
    let home = images::home().map_err(failure::image)?;
    let mut guest = Guest::claim(&home, name)?;
    let sum = &image.manifest().disk.sha256;
    match guest.kept() {
        Some(kept) if kept.disk_sha256 != *sum => {
            return Err(Failure::artifact(format!(
                "the image {} was built anew since the guest {name} was made, and the guest's \
                 disk fits the old one only: remove the guest with `lodge rm {name}`",
                image.name()
            )));
        }
        Some(_) => eprintln!("lodge: the kept guest {name} goes on"),
        None => guest.set_record(Record {
            image: image.name().to_string(),
            disk_sha256: sum.clone(),
            keep,
        })?,
    }
    Ok(guest)
}

/// A configuration with nothing in it but what must be, for the tests of this module.
#[cfg(test)]
fn empty_config() -> vmm_api::VmConfig {
    vmm_api::VmConfig {
        name: "guest".into(),
        cpus: 1,
        memory_mib: 1024,
        accelerator: Default::default(),
        cpu_model: Default::default(),
        boot: vmm_api::BootConfig {
            kernel: "/k".into(),
            initrd: None,
            cmdline: String::new(),
            modules: Vec::new(),
        },
        disks: Vec::new(),
        nets: Vec::new(),
        serial: Default::default(),
        serial2: Default::default(),
        virtio_console: None,
        debug: Default::default(),
        gdb: None,
    }
}
