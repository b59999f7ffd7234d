//! `lodge snapshot`: a guest as it was at a moment. The guest's VMM makes snapshots, and a new VMM goes
//! on from them; here they are listed, chosen and removed. docs/snapshots.md says what they consist of.

pub mod clone;
mod layers;
mod store;

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use vmm_api::{
    ConsoleConfig, Failure, Snapshot, SnapshotRequest, VmConfig, card_number, default_mac,
    format_mac,
};

use crate::agent::renew::renew;
use crate::args::snapshot::{CreateArgs, ListArgs, RemoveArgs, RestoreArgs, SnapshotCommand};
use crate::guests::{self, DEFINITION, Guest};
use crate::lifecycle::stop;
use crate::{failure, output, run, size};

/// How long a guest's memory may take to be written.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Does what was asked for; the value is the exit status.
pub fn run(command: &SnapshotCommand) -> Result<u8, Failure> {
    match command {
        SnapshotCommand::Create(args) => create(args),
        SnapshotCommand::Ls(args) => list(args),
        SnapshotCommand::Restore(args) => restore(args),
        SnapshotCommand::Rm(args) => remove(args),
    }
}

fn create(args: &CreateArgs) -> Result<u8, Failure> {
    let name = match &args.snapshot {
        Some(name) => name.clone(),
        None => format!("{}", guests::unix_ms()),
    };
    make(&args.name, &name)?;
    output::print(name + "\n")?;
    Ok(0)
}

/// Has a running guest's VMM make a snapshot.
fn make(guest: &str, name: &str) -> Result<(), Failure> {
    let mut client = guests::client(guest)?.with_patience(PATIENCE);
    let request = SnapshotRequest { name: name.to_owned() };
    client.make_snapshot(&request).map_err(|error| error.about(guest))
}

fn list(args: &ListArgs) -> Result<u8, Failure> {
    let snapshots = store::all(&guests::existing(&args.name)?)?;
    if args.json {
        let text = serde_json::to_string_pretty(&snapshots).map_err(Failure::internal)?;
        output::print(text + "\n")?;
    } else if args.quiet {
        output::print(snapshots.iter().map(|it| format!("{}\n", it.name)).collect::<String>())?;
    } else if snapshots.is_empty() {
        eprintln!("{0} has no snapshots; `lodge snapshot create {0}` makes one.", args.name);
    } else {
        output::print(table(&snapshots, &guests::existing(&args.name)?))?;
    }
    Ok(0)
}

fn table(snapshots: &[Snapshot], guest: &Path) -> String {
    let (name, made, memory, own, shared) = ("SNAPSHOT", "MADE", "MEMORY", "ON DISK", "SHARED");
    let mut table = format!("{name:<32} {made:<16} {memory:>9} {own:>9} {shared:>9}\n");
    for snapshot in snapshots {
        let age = size::format_age(guests::unix_ms().saturating_sub(snapshot.created_ms) / 1000);
        let memory = size::format_bytes(snapshot.memory_bytes);
        let room = store::room(guest, &snapshot.name);
        let (own, shared) = (size::format_bytes(room.own), size::format_bytes(room.shared));
        let _ = writeln!(table, "{:<32} {age:<16} {memory:>9} {own:>9} {shared:>9}", snapshot.name);
    }
    table
}

fn restore(args: &RestoreArgs) -> Result<u8, Failure> {
    let name = &args.name;
    // Before anything is ended.
    let snapshot = store::find(&guests::existing(name)?, name, args.snapshot.as_deref())?;
    if args.force {
        stop::end_now(name)?;
    }
    let guest = Guest::claim_existing(name)?;
    let mut config = of_guest(&snapshot, name, guest.directory());
    if let Some(accel) = args.accel {
        config.accelerator = accel.into();
    }
    keep_macs(&snapshot, &mut config, guest.directory());
    let directory = store::directory(guest.directory(), &snapshot.name);
    run::launch_detached(&config, guest, Some(&directory))?;
    renew(&snapshot.config, &config);
    Ok(0)
}

/// Has the cards stay the same ones, however the guest is called now. A clone that goes back to where it
/// comes from has cards of its own, not the original's.
fn keep_macs(snapshot: &Snapshot, config: &mut VmConfig, directory: &Path) {
    let is_renamed = snapshot.config.name != config.name;
    let definition =
        is_renamed.then(|| fs::read_to_string(directory.join(DEFINITION)).ok()).flatten();
    let own = run::definition::macs(&definition.unwrap_or_default());
    // Also those that it was given until it ends, of which its definition knows nothing.
    let clone =
        Some(&config.name).filter(|_| is_renamed && snapshot.name == clone::ORIGIN).cloned();
    for (index, net) in config.nets.iter_mut().enumerate() {
        let number = card_number(index, net);
        let then = default_mac(&snapshot.config.name, number);
        let of_clone = clone.as_ref().map(|name| format_mac(default_mac(name, number)));
        let own = own.get(&number).cloned().or(of_clone);
        net.mac = own.or(net.mac.take()).or_else(|| Some(format_mac(then)));
    }
}

/// What a snapshot's guest is made of, if it goes on as the guest `name` in this directory.
fn of_guest(snapshot: &Snapshot, name: &str, directory: &Path) -> VmConfig {
    let mut config = snapshot.config.clone();
    config.name = name.to_owned();
    for (disk, layer) in config.disks.iter_mut().zip(&snapshot.layers) {
        // A layer lies beside its overlay.
        if let (Some(overlay), Some(_)) = (&mut disk.overlay, layer)
            && let Some(file) = overlay.file_name()
        {
            *overlay = directory.join(file);
        }
    }
    // Where it led then, there is nobody now.
    if let ConsoleConfig::Fd(_) | ConsoleConfig::Stdio = config.serial {
        config.serial = ConsoleConfig::Api;
    }
    config.gdb = None;
    config
}

fn remove(args: &RemoveArgs) -> Result<u8, Failure> {
    let guest = guests::existing(&args.name)?;
    let mut first = None;
    for name in &args.snapshots {
        if let Err(failure) = store::remove(&guest, &args.name, name) {
            eprintln!("lodge: {failure}");
            first.get_or_insert(failure.kind.exit_status());
        }
    }
    store::sweep(&guest);
    layers::sweep(&guest)?;
    Ok(first.unwrap_or(0))
}

/// Gives a file a further name, in another directory of the same file system.
fn link(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::hard_link(from, to).map_err(failure::io("link to", from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_api::{Accelerator, NetConfig};

    #[test]
    fn cards_stay_their_guests() {
        let mac = |last: u8| format!("52:54:00:00:00:{last:02x}");
        let card = |mac, slot| NetConfig { mac, slot, ..NetConfig::default() };
        let mut config = run::empty_config();
        config.nets =
            vec![card(None, None), card(Some(mac(3)), Some(24)), card(Some(mac(4)), Some(25))];
        let mut snapshot = Snapshot {
            name: "here".into(),
            created_ms: 0,
            version: String::new(),
            accelerator: Accelerator::Soft,
            memory_bytes: 0,
            pause_us: 0,
            layers: Vec::new(),
            config: config.clone(),
        };
        // The card in slot 24 was attached until the guest ends.
        let directory = tempfile::tempdir().unwrap();
        let definition =
            "[[nets]]\nmac = '52:54:00:00:00:08'\n[[nets]]\nmac = '52:54:00:00:00:09'\nslot = 25\n";
        fs::write(directory.path().join(DEFINITION), definition).unwrap();
        let kept = |snapshot: &Snapshot, name: &str| {
            let mut config = VmConfig { name: name.into(), ..config.clone() };
            keep_macs(snapshot, &mut config, directory.path());
            config.nets.into_iter().map(|net| net.mac.unwrap()).collect::<Vec<_>>()
        };
        let first = format_mac(default_mac("guest", 0));
        assert_eq!(kept(&snapshot, "guest"), [first, mac(3), mac(4)]);
        assert_eq!(kept(&snapshot, "renamed"), [mac(8), mac(3), mac(9)]);
        snapshot.name = clone::ORIGIN.into();
        let attached = format_mac(default_mac("clone", 24));
        assert_eq!(kept(&snapshot, "clone"), [mac(8), attached, mac(9)]);
    }
}
