//! `lodge image`.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use images::{BuildOptions, Check, Image, ImageName, ImportOptions, Source, Store};
use vmm_api::Failure;

use crate::agent::program::find as agent_program;
use crate::args::ImageCommand;
use crate::long_work::long_work;
use crate::run::absolute;
use crate::{failure, guests, output, size};

/// Does what was asked for; the value is the exit status.
pub fn run(command: &ImageCommand) -> Result<u8, Failure> {
    let store = Store::open().map_err(failure::image)?;
    match command {
        ImageCommand::Ls => list(&store),
        ImageCommand::Inspect { name } => inspect(&store, name),
        ImageCommand::Build { name, size, partitioned, include, no_agent, force } => {
            let options = BuildOptions {
                disk_bytes: size.saturating_mul(1 << 20),
                partitioned: *partitioned,
                agent: None,
                packages: include.clone(),
                force: *force,
            };
            if let Some(image) = store.get(name).ok().filter(|_| !force) {
                let lacks = !no_agent && !image.manifest().agent;
                let lacks = if lacks { " and has not Lodge's agent (`lodge exec`)" } else { "" };
                eprintln!("{name} is built already{lacks}; --force builds it anew");
                return Ok(0);
            }
            refuse_replacement(name, *force)?;
            // What cannot be built needs no agent: the error says so.
            let wants_agent = !no_agent && images::releases().any(|known| known == name.as_str());
            let agent = wants_agent.then(agent_program).transpose()?;
            let options = BuildOptions { agent, ..options };
            long_work(|show, cancel| Ok(print_built(&store.build(name, &options, show, cancel)?)))
        }
        ImageCommand::Import { name, disk, kernel, initrd, cmdline, force } => {
            let options = ImportOptions {
                disk: disk.clone(),
                kernel: kernel.clone(),
                initrd: initrd.clone(),
                cmdline: cmdline.clone(),
                force: *force,
            };
            refuse_replacement(name, *force)?;
            long_work(|show, cancel| {
                store.import(name, &options, show, cancel)?;
                Ok(ready(name))
            })
        }
        ImageCommand::Pull { reference } => {
            let (reference, init) = (absolute(reference)?, agent_program()?);
            long_work(|show, cancel| {
                Ok(ready(store.from_oci(&reference, &init, show, cancel)?.name()))
            })
        }
        ImageCommand::Verify { name } => {
            let image = store.get(name).map_err(failure::image)?;
            long_work(|show, cancel| {
                image.verify(Check::Full, show, cancel)?;
                Ok(format!("{name} is what its manifest says"))
            })
        }
        ImageCommand::Rm { names, force } => {
            for name in names {
                if !force {
                    refuse_if_used(name, ", or use --force if they may become unusable")?;
                }
                let status = long_work(|show, cancel| {
                    store.remove(name, show, cancel)?;
                    Ok(format!("{name} is removed"))
                })?;
                if status != 0 {
                    return Ok(status);
                }
            }
            Ok(0)
        }
    }
}

/// Kept guests hold only what differs from their image: another image under its name ruins them.
fn refuse_if_used(name: &ImageName, otherwise: &str) -> Result<(), Failure> {
    let users = guests::based_on(name)?;
    if users.is_empty() {
        return Ok(());
    }
    Err(Failure::configuration(format!(
        "the image {name} is in use by the guests kept as {}: remove these first with `lodge rm`\
         {otherwise}",
        users.join(", ")
    )))
}

fn refuse_replacement(name: &ImageName, force: bool) -> Result<(), Failure> {
    if force { refuse_if_used(name, "") } else { Ok(()) }
}

fn ready(name: &ImageName) -> String {
    format!("{name} is ready: lodge run {name}")
}

fn print_built(image: &Image) -> String {
    let logins: Vec<String> = image
        .manifest()
        .logins
        .iter()
        .map(|login| format!("{} (password {})", login.user, login.password))
        .collect();
    format!(
        "{}\nIt takes {} here. Log in as {}.",
        ready(image.name()),
        size::format_bytes(image.bytes_on_host()),
        logins.join(" or ")
    )
}

fn list(store: &Store) -> Result<u8, Failure> {
    let entries = store.list().map_err(failure::image)?;
    if entries.is_empty() {
        eprintln!("There are no images yet; `lodge image build debian:12` builds one.");
        return Ok(0);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let mut damaged = 0;
    let mut table =
        format!("{:<36} {:>9} {:>9}  {:<14} SOURCE\n", "IMAGE", "DISK", "ON HOST", "CREATED");
    for entry in entries {
        match entry.image {
            Ok(image) => {
                let manifest = image.manifest();
                let source = match &manifest.source {
                    Source::Built { what, .. } => what.clone(),
                    Source::Imported { from } | Source::Oci { from, .. } => from.clone(),
                };
                let _ = writeln!(
                    table,
                    "{:<36} {:>9} {:>9}  {:<14} {source}",
                    entry.name.as_str(),
                    size::format_bytes(manifest.disk.bytes),
                    size::format_bytes(image.bytes_on_host()),
                    size::format_age(now.saturating_sub(manifest.created)),
                );
            }
            Err(error) => {
                damaged += 1;
                let _ = writeln!(table, "{:<36} {error}", entry.name.as_str());
            }
        }
    }
    output::print(table)?;
    Ok(if damaged > 0 { vmm_api::FailureKind::Artifact.exit_status() } else { 0 })
}

fn inspect(store: &Store, name: &ImageName) -> Result<u8, Failure> {
    let image = store.get(name).map_err(failure::image)?;
    let text = serde_json::json!({
        "manifest": image.manifest(),
        "paths": {
            "disk": image.disk(),
            "kernel": image.kernel(),
            "initrd": image.initrd(),
        },
    });
    output::print(format!("{text:#}\n"))?;
    Ok(0)
}
