//! `lodge disk`: images, most of it about those that no guest uses.

use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::Path;

use block::{Backing, Format, Info, OpenOptions};
use images::{Progress, Unit};
use serde_json::{Value, json};
use vmm_api::{Device, Failure};

use crate::args::disk::{
    ConvertDiskArgs, CreateDiskArgs, DiskCommand, DiskInfoArgs, FormatArg, NewSize, ResizeDiskArgs,
};
use crate::long_work::{Stopped, long_work};
use crate::{failure, hotplug, output, size};

/// Does what was asked for; the value is the exit status.
pub fn run(command: &DiskCommand) -> Result<u8, Failure> {
    match command {
        DiskCommand::Create(args) => create(args),
        DiskCommand::Resize(args) => resize(args),
        DiskCommand::Info(args) => info(args),
        DiskCommand::Convert(args) => convert(args),
        DiskCommand::Attach(args) => hotplug::attach_disk(args),
        DiskCommand::Detach(args) => {
            hotplug::detach(args, |device| matches!(device, Device::Disk(_)))
        }
    }
}

impl From<FormatArg> for Format {
    fn from(arg: FormatArg) -> Format {
        match arg {
            FormatArg::Raw => Format::Raw,
            FormatArg::Qcow2 => Format::Qcow2,
        }
    }
}

fn options(file: &Path, format: Option<FormatArg>) -> OpenOptions {
    OpenOptions::new(file).format(format.map_or(Format::Auto, Format::from))
}

fn create(args: &CreateDiskArgs) -> Result<u8, Failure> {
    let backing = match &args.backing {
        None => None,
        Some(_) if args.format == FormatArg::Raw => {
            return Err(Failure::configuration(
                "a raw image cannot have a backing file: leave out --format raw",
            ));
        }
        Some(path) => Some(backing(path, args.backing_format)?),
    };
    let asked = args.size.map(mib).transpose()?;
    let size = asked.or(backing.as_ref().map(|(_, size)| *size)).unwrap_or_default();
    match Format::from(args.format) {
        Format::Raw => block::create_raw(&args.file, size),
        _ => block::create_qcow2(&args.file, size, backing.as_ref().map(|(backing, _)| backing)),
    }
    .map_err(failure::disk)?;
    done(&args.file, args.format.into(), args.json)
}

/// What a new image is to stand on, and how large its disk is.
fn backing(path: &Path, format: Option<FormatArg>) -> Result<(Backing, u64), Failure> {
    let options = options(path, format);
    let format = block::info(&options).map_err(failure::disk)?.format;
    // It must be one that a guest can be given.
    let disk = block::open(&options.format(format).readonly(true)).map_err(failure::disk)?;
    Ok((Backing { path: path.to_owned(), relative: false, format }, disk.size()))
}

fn resize(args: &ResizeDiskArgs) -> Result<u8, Failure> {
    refuse_if_of_store(&args.file)?;
    let options = options(&args.file, args.format);
    let Info { format, size: old, .. } = block::info(&options).map_err(failure::disk)?;
    let new = match args.size {
        NewSize::Mib(size) => mib(size)?,
        NewSize::More(more) => mib(more)?.checked_add(old).ok_or_else(too_large)?,
    };
    if new < old && !args.shrink {
        return Err(Failure::configuration(format!(
            "{} holds a disk of {}: what lies beyond {} would be lost; say --shrink if it may",
            args.file.display(),
            size::format_bytes(old),
            size::format_bytes(new),
        )));
    }
    block::resize(&options.format(format), new).map_err(failure::disk)?;
    done(&args.file, format, args.json)
}

fn info(args: &DiskInfoArgs) -> Result<u8, Failure> {
    let info = block::info(&options(&args.file, args.format)).map_err(failure::disk)?;
    let text = if args.json { format!("{:#}\n", as_json(&args.file, &info)) } else { table(&info) };
    output::print(text)?;
    Ok(0)
}

fn convert(args: &ConvertDiskArgs) -> Result<u8, Failure> {
    let source = options(&args.source, args.from);
    let status = long_work(|show, cancel| {
        show.step(&format!("copying {}", args.source.display()));
        let copied = block::convert(&source, &args.target, args.to.into(), |done, total| {
            show.advance(done, total, Unit::Bytes);
            if cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        match copied {
            ControlFlow::Break(()) => Err(Stopped::Cancelled),
            ControlFlow::Continue(()) => Ok(format!("{} is ready", args.target.display())),
        }
    })?;
    if status == 0 {
        done(&args.target, args.to.into(), args.json)?;
    }
    Ok(status)
}

/// The image as it is now, for whoever asked to see it.
fn done(file: &Path, format: Format, json: bool) -> Result<u8, Failure> {
    if json {
        let info = block::info(&OpenOptions::new(file).format(format)).map_err(failure::disk)?;
        output::print(format!("{:#}\n", as_json(file, &info)))?;
    }
    Ok(0)
}

/// Images of the store never change: guests stand on them.
fn refuse_if_of_store(file: &Path) -> Result<(), Failure> {
    let store = images::home().ok().and_then(|home| home.join("images").canonicalize().ok());
    match (store, file.canonicalize()) {
        (Some(store), Ok(file)) if file.starts_with(&store) => {
            Err(Failure::configuration(format!(
                "{} belongs to an image of the store, on which guests stand: resize the guest's own disk, \
             or a copy made by `lodge disk convert`",
                file.display()
            )))
        }
        _ => Ok(()),
    }
}

fn mib(mib: u64) -> Result<u64, Failure> {
    mib.checked_mul(1 << 20).ok_or_else(too_large)
}

fn too_large() -> Failure {
    Failure::configuration("no disk can be so large: the most are 2 PiB")
}

fn format_name(format: Format) -> &'static str {
    if format == Format::Qcow2 { "qcow2" } else { "raw" }
}

fn as_json(file: &Path, info: &Info) -> Value {
    let mut value = json!({
        "path": file.to_string_lossy(),
        "format": format_name(info.format),
        "size": info.size,
        "allocated": info.allocated,
        "in_use": info.in_use,
    });
    if let Some(qcow2) = &info.qcow2 {
        let backing = qcow2.backing.as_ref();
        value["qcow2"] = json!({
            "version": qcow2.version,
            "cluster_size": qcow2.cluster_size,
            "backing": backing.map(|backing| json!({ "path": backing.path.to_string_lossy(), "format": backing.format })),
            "snapshots": qcow2.snapshots,
        });
    }
    value
}

fn table(info: &Info) -> String {
    let mut table = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(table, "{name:<12}{value}");
    };
    let Info { format, size, allocated, in_use, qcow2 } = info;
    line("format", format_name(*format).to_owned());
    line("disk", format!("{} ({size} bytes)", size::format_bytes(*size)));
    line("on host", size::format_bytes(*allocated));
    if let Some(qcow2) = qcow2 {
        if let Some(backing) = &qcow2.backing {
            let format = backing.format.as_deref().unwrap_or("format not recorded");
            line("stands on", format!("{} ({format})", backing.path.display()));
        }
        line("version", qcow2.version.to_string());
        line("clusters", size::format_bytes(qcow2.cluster_size));
        if qcow2.snapshots > 0 {
            line("snapshots", qcow2.snapshots.to_string());
        }
    }
    if *in_use {
        line("in use", "somebody writes to it now".to_owned());
    }
    table
}
