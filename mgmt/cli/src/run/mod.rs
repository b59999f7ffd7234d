//! `lodge run`.

pub mod cgroup;
mod cloud_init;
mod config;
mod console;
pub mod definition;
mod escape;
mod preamble;
mod program;
mod terminal;
mod vmm;

use std::path::{Path, PathBuf};

use images::{Cancel, Check, Image};
use vmm_api::{BlockConfig, ConsoleConfig, Failure, FailureKind, FolderConfig, VmConfig};

use crate::args::{GuestArgs, ImageArg, RunArgs, SerialArg};
use crate::guests::{self, Guest, Record};
use crate::progress::Show;
use crate::{agent, failure, network, output};
pub use escape::{Escape, Wish};
pub use program::{absolute, find_image};
pub use terminal::{RawTerminal, notice, write_stdout};
use vmm::Launch;
pub use vmm::find_program;

/// A guest that is to be.
struct Plan {
    config: VmConfig,
    image: Option<Image>,
    /// What `lodge start` is to read.
    definition: String,
    /// The first serial port leads to whoever attaches.
    here: bool,
}

/// `lodge run`: to the guest's end, or detached; the value is the exit status.
pub fn run(args: &RunArgs) -> Result<u8, Failure> {
    let plan = plan(&args.guest)?;
    if args.print_config {
        let text = serde_json::to_string_pretty(&plan.config).map_err(Failure::internal)?;
        output::print(text + "\n")?;
        return Ok(0);
    }
    if args.detach {
        let name = plan.config.name.clone();
        let (guest, is_new) = make(&plan, !args.rm)?;
        start_detached(plan, guest).inspect_err(|failure| {
            // Nobody wants one that has never run, unless to find a mistake in Lodge.
            if is_new && failure.kind != FailureKind::Internal {
                let _ = Guest::claim_existing(&name).and_then(Guest::remove);
            }
        })?;
        if args.wait {
            agent::wait(&name)?;
        }
        output::print(name + "\n")?;
        return Ok(0);
    }
    let guest = match &plan.image {
        Some(_) => Some(make(&plan, args.keep)?.0),
        None if args.keep => {
            return Err(Failure::configuration(
                "--keep keeps the disk of a guest that runs from an image; disks given with \
                 --disk are written in place and stay anyway",
            ));
        }
        None => register(&plan.config.name)?,
    };
    run_here(&plan, guest)
}

/// `lodge create`: a guest that `lodge start` starts.
pub fn create(args: &GuestArgs) -> Result<u8, Failure> {
    let plan = plan(args)?;
    let is_new = !guests::directory_of(&plan.config.name)?.is_dir();
    if !is_new {
        return Err(Failure::configuration(format!(
            "there is a guest {0}: choose another name, or remove it with `lodge rm {0}`",
            plan.config.name
        )));
    }
    make(&plan, true)?;
    output::print(plan.config.name + "\n")?;
    Ok(0)
}

/// `lodge start`: a guest that is there, as its file says.
pub fn start(name: &str, attach: bool) -> Result<u8, Failure> {
    let guest = Guest::claim_existing(name)?;
    let definition = guest.directory().join(guests::DEFINITION);
    if !definition.exists() {
        return Err(Failure::configuration(format!(
            "the guest {name} was kept without saying what it is made of: `lodge run --name {name}` \
             starts it"
        )));
    }
    let args =
        GuestArgs { name: Some(name.to_owned()), config: Some(definition), ..GuestArgs::default() };
    let plan = plan(&args)?;
    if let Some(image) = &plan.image {
        fits(&guest, image, name)?;
    }
    if attach {
        return run_here(&plan, Some(guest));
    }
    start_detached(plan, guest)?;
    Ok(0)
}

/// Runs a guest to its end, in this terminal if its serial port is to lead here.
fn run_here(plan: &Plan, guest: Option<Guest>) -> Result<u8, Failure> {
    let mut config = network::connect(&plan.config)?;
    let has_program = program::of(plan.image.as_ref()).is_some();
    let plain = has_program && !program::at_start(&mut config, plan.here) && plan.here;
    let api = guest.as_ref().map(Guest::listen).transpose().unwrap_or_else(|error| {
        eprintln!("lodge: other commands will not reach this guest: {error}");
        None
    });
    if let Some(image) = &plan.image {
        for login in &image.manifest().logins {
            eprintln!("lodge: log in as {}, password {}", login.user, login.password);
        }
    }
    let launch =
        Launch { config: &config, guest: guest.as_ref(), api, detached: false, snapshot: None };
    let result = vmm::run_to_end(launch, plan.here, plain);
    drop(guest);
    if config.nets.iter().any(|card| card.lease.is_some()) {
        network::sweep();
    }
    result
}

/// Starts a guest that goes on without this program.
fn start_detached(mut plan: Plan, guest: Guest) -> Result<(), Failure> {
    if plan.here {
        plan.config.serial = ConsoleConfig::Api;
    }
    if program::of(plan.image.as_ref()).is_some() {
        program::at_start(&mut plan.config, false);
    }
    launch_detached(&plan.config, guest, None)
}

/// Starts a guest that goes on without this program, and to begin with from a snapshot, if there is
/// one.
pub fn launch_detached(
    config: &VmConfig,
    guest: Guest,
    snapshot: Option<&Path>,
) -> Result<(), Failure> {
    let config = &network::connect(config)?;
    let api = guest.listen().map_err(|error| {
        Failure::host(format!("cannot listen in {}: {error}", guest.directory().display()))
    })?;
    let (api, detached) = (Some(api), true);
    vmm::start_detached(Launch { config, guest: Some(&guest), api, detached, snapshot })?;
    guest.hand_over();
    Ok(())
}

/// Makes one configuration of everything that says something about the guest.
fn plan(args: &GuestArgs) -> Result<Plan, Failure> {
    let file = match (&args.config, &args.name) {
        (Some(path), _) => config::read_file(path)?,
        // A kept guest is continued as it is, unless it is said anew what it is.
        (None, Some(name)) if args.image.is_none() && args.kernel.is_none() => {
            let path = guests::directory_of(name)?.join(guests::DEFINITION);
            if path.exists() { config::read_file(&path)? } else { config::File::default() }
        }
        _ => config::File::default(),
    };
    let name = args.name.clone().or_else(|| file.name().map(str::to_owned));
    if let Some(name) = &name {
        vmm_api::validate_name(name).map_err(failure::config)?;
    }
    let image = image_of(args, file.image()?, name.as_deref())?;
    let name = name.unwrap_or_else(|| {
        let stem = match (&args.image, &image) {
            (Some(ImageArg::Oci(reference)), _) => reference.stem(),
            (_, Some(image)) => image.name().to_guest_name(),
            (_, None) => "guest".to_owned(),
        };
        format!("{stem}-{}", std::process::id())
    });
    let mut config = config::assemble(args, file, image.as_ref(), &name)?;
    program::set(args, &mut config, image.as_ref())?;
    let definition = definition::text(&config, image.as_ref())?;
    if let Some(image) = &image {
        let home = images::home().map_err(failure::image)?;
        config.disks.insert(0, image_disk(image, &guests::disk(&home, &name)));
    }
    config.validate().map_err(failure::config)?;
    tell_of_mounts(&config, image.as_ref());
    let here =
        matches!(args.serial, None | Some(SerialArg::Here)) && config.serial == ConsoleConfig::Null;
    Ok(Plan { config, image, definition, here })
}

/// Says how folders are mounted in a guest that may not do so by itself.
fn tell_of_mounts(config: &VmConfig, image: Option<&Image>) {
    if image.is_some_and(|image| image.manifest().folders) {
        return;
    }
    for (index, folder) in config.folders.iter().enumerate() {
        eprintln!(
            "lodge: the guest may not mount {0} by itself; in the guest: mkdir -p {0} && mount -t virtiofs {1} \
             {0}",
            folder.guest,
            FolderConfig::tag(index)
        );
    }
}

/// The image that the guest starts from: as asked for, else that of the kept guest.
fn image_of(
    args: &GuestArgs,
    from_file: Option<images::ImageName>,
    guest: Option<&str>,
) -> Result<Option<Image>, Failure> {
    let home = images::home();
    let kept = match (guest, &home) {
        (Some(guest), Ok(home)) => guests::kept(home, guest)?,
        _ => None,
    };
    let mut made = None;
    let asked = match &args.image {
        Some(ImageArg::Stored(name)) => Some(name.clone()),
        Some(ImageArg::Oci(reference)) => {
            let store = images::Store::at(home.as_ref().map_err(|_| no_home())?);
            let image = find_image(&store, reference)?;
            Some(made.insert(image).name().clone())
        }
        None => from_file,
    };
    let name = match (&asked, &kept) {
        (Some(asked), Some(kept)) if kept.image.as_deref() != Some(asked.as_str()) => {
            return Err(Failure::configuration(format!(
                "the kept guest {} is based on {}, not on {asked}: choose another name, or remove \
                 it with `lodge rm`",
                guest.unwrap_or_default(),
                kept.image.as_deref().unwrap_or("no image")
            )));
        }
        (Some(asked), _) => asked.clone(),
        (None, Some(Record { image: Some(image), .. })) => image.parse().map_err(failure::image)?,
        (None, _) => return Ok(None),
    };
    if made.is_some() {
        return Ok(made);
    }
    let store = images::Store::at(&home.map_err(failure::image)?);
    store.get(&name).map(Some).map_err(failure::image)
}

fn no_home() -> Failure {
    failure::image(images::Error::NoHome)
}

/// The image's disk, read only through an overlay that takes the guest's writes.
fn image_disk(image: &Image, overlay: &Path) -> BlockConfig {
    BlockConfig {
        path: image.disk(),
        format: image.manifest().disk_format,
        overlay: Some(overlay.to_owned()),
        ..BlockConfig::default()
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

/// Makes the planned guest this process's and writes down what it is made of. With it, whether it is new: not
/// kept by an earlier run.
fn make(plan: &Plan, keep: bool) -> Result<(Guest, bool), Failure> {
    let home = images::home().map_err(failure::image)?;
    let name = &plan.config.name;
    let mut guest = Guest::claim(&home, name)?;
    if let Some(image) = &plan.image {
        fits(&guest, image, name)?;
    }
    let is_new = guest.kept().is_none();
    if is_new {
        let image = plan.image.as_ref();
        guest.set_record(Record {
            image: image.map(|image| image.name().to_string()),
            disk_sha256: image.map(|image| image.manifest().disk.sha256.clone()),
            keep,
            created_ms: guests::unix_ms(),
        })?;
    } else {
        eprintln!("lodge: the kept guest {name} goes on");
    }
    let text = plan.definition.as_bytes();
    guests::write_whole(guest.directory(), guests::DEFINITION, text)?;
    Ok((guest, is_new))
}

/// Whether the image is whole, and the guest's disk based on it.
fn fits(guest: &Guest, image: &Image, name: &str) -> Result<(), Failure> {
    image.verify(Check::Quick, &mut Show::new(), &Cancel::default()).map_err(failure::image)?;
    let sum = &image.manifest().disk.sha256;
    match guest.kept().and_then(|kept| kept.disk_sha256.as_ref()) {
        Some(its) if its != sum => Err(Failure::artifact(format!(
            "the image {} was built anew since the guest {name} was made, and the guest's disk \
             fits the old one only: remove the guest with `lodge rm {name}`",
            image.name()
        ))),
        _ => Ok(()),
    }
}

/// A configuration with nothing in it but what must be, for the tests of this module.
#[cfg(test)]
pub fn empty_config() -> vmm_api::VmConfig {
    vmm_api::VmConfig {
        name: "guest".into(),
        cpus: 1,
        memory_mib: 1024,
        accelerator: Default::default(),
        cpu_model: Default::default(),
        hugepages: false,
        balloon: true,
        hyperv: false,
        boot: vmm_api::BootConfig {
            kernel: "/k".into(),
            initrd: None,
            cmdline: String::new(),
            modules: Vec::new(),
        },
        disks: Vec::new(),
        nets: Vec::new(),
        folders: Vec::new(),
        serial: Default::default(),
        serial2: Default::default(),
        virtio_console: None,
        exit_port: false,
        debug: Default::default(),
        cloud_init: None,
        gdb: None,
        sandbox: Default::default(),
        limits: Default::default(),
    }
}
