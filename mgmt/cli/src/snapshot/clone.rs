//! `lodge clone`: guests that go on from another one's snapshot, which is linked into their own
//! directories, as are the layers of its disk.

use std::fs;
use std::path::Path;

use toml::{Table, Value};
use vmm_api::{Failure, Snapshot, VmConfig, card_number, default_mac, format_mac};

use super::{layers, link, make, of_guest, store};
use crate::agent::renew::renew;
use crate::args::snapshot::CloneArgs;
use crate::guests::{self, DEFINITION, Guest, Record, lock};
use crate::{failure, output, run};

/// What a clone calls the snapshot that it comes from.
pub(super) const ORIGIN: &str = "origin";

/// Makes the clones and prints their names; the value is the exit status.
pub fn run(args: &CloneArgs) -> Result<u8, Failure> {
    let source = guests::existing(&args.name)?;
    let names = match &args.new_name {
        Some(name) => vec![name.clone()],
        None => free_names(&args.name, args.count)?,
    };
    if args.snapshot.is_some() || !lock::is_held(&source) {
        let snapshot = store::find(&source, &args.name, args.snapshot.as_deref())?;
        return start_all(&source, &snapshot, &names);
    }
    // One for the clones alone, which have their own links to it.
    let passing = format!("clone-{}", guests::unix_ms());
    make(&args.name, &passing)?;
    let result = store::find(&source, &args.name, Some(&passing))
        .and_then(|snapshot| start_all(&source, &snapshot, &names));
    store::remove(&source, &args.name, &passing)?;
    layers::sweep(&source)?;
    result
}

fn start_all(source: &Path, snapshot: &Snapshot, names: &[String]) -> Result<u8, Failure> {
    if snapshot.config.nets.iter().any(|net| !net.forwards.is_empty()) {
        eprintln!("lodge: ports of this machine go on leading into the original alone");
    }
    for name in names {
        start(source, snapshot, name)?;
        output::print(format!("{name}\n"))?;
    }
    Ok(0)
}

/// Makes one clone, whole or not at all, and starts it.
fn start(source: &Path, snapshot: &Snapshot, name: &str) -> Result<(), Failure> {
    if guests::directory_of(name)?.is_dir() {
        return Err(Failure::configuration(format!(
            "there is a guest {name} already: choose another name"
        )));
    }
    let home = images::home().map_err(failure::image)?;
    let mut guest = Guest::claim(&home, name)?;
    let origin = store::directory(guest.directory(), ORIGIN);
    fs::create_dir_all(&origin).map_err(failure::io("make", &origin))?;
    for file in store::files(source, &snapshot.name)? {
        if let Some(name) = file.file_name() {
            link(&file, &origin.join(name))?;
        }
    }
    for layer in snapshot.layers.iter().flatten() {
        for layer in layers::chain(source, layer) {
            link(&source.join(&layer), &guest.directory().join(&layer))?;
        }
    }
    let record = Record::read(source)?.unwrap_or_default();

    let mut config = of_guest(snapshot, name, guest.directory());
    for (index, net) in config.nets.iter_mut().enumerate() {
        net.mac = Some(format_mac(default_mac(name, card_number(index, net))));
        net.forwards.clear();
    }
    let definition = fs::read_to_string(source.join(DEFINITION));
    if let Some(text) = definition.ok().and_then(|text| own(&text, &config)) {
        guests::write_whole(guest.directory(), DEFINITION, text.as_bytes())?;
    }
    // Until it runs, it goes with this process.
    let created_ms = guests::unix_ms();
    guest.set_record(Record { keep: false, created_ms, ..record.clone() })?;
    let directory = guest.directory().to_owned();
    run::launch_detached(&config, guest, Some(&origin))?;
    Record { keep: true, created_ms, ..record }.write(&directory)?;
    renew(&snapshot.config, &config);
    Ok(())
}

/// A guest's definition with what only one guest can have: its cards' addresses, which are this one's, and
/// ports of this machine, of which there are none. `None`: it is no definition.
fn own(definition: &str, config: &VmConfig) -> Option<String> {
    let mut table: Table = definition.parse().ok()?;
    if let Some(Value::Array(nets)) = table.get_mut("nets") {
        for (index, net) in nets.iter_mut().filter_map(Value::as_table_mut).enumerate() {
            net.remove("forwards");
            net.remove("mac");
            let number = run::definition::number(index, net);
            let mut cards = config.nets.iter().enumerate();
            let own = cards.find(|(index, own)| card_number(*index, own) == number);
            if let Some(mac) = own.and_then(|(_, own)| own.mac.clone()) {
                net.insert("mac".into(), mac.into());
            }
        }
    }
    toml::to_string_pretty(&table).ok()
}

/// So many names that no guest has: `web-1`, `web-2`...
fn free_names(name: &str, count: u32) -> Result<Vec<String>, Failure> {
    let taken = guests::names()?;
    let free = (1u32..).map(|n| format!("{name}-{n}")).filter(|name| !taken.contains(name));
    Ok(free.take(count as usize).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_has_addresses_of_its_own() {
        let text = "cpus = 2\n[[nets]]\nmac = '52:54:00:00:00:01'\n[[nets.forwards]]\nhost_port = 1\n\
             [[nets]]\nmac = '52:54:00:00:00:01'\nslot = 25\n";
        // The one between was attached until the guest ends.
        let card = |slot, last: u8| vmm_api::NetConfig {
            mac: Some(format!("52:54:00:00:00:{last:02x}")),
            slot,
            ..Default::default()
        };
        let mut config = crate::run::empty_config();
        config.nets = vec![card(None, 2), card(Some(24), 3), card(Some(25), 4)];
        let own = own(text, &config).unwrap();
        assert!(own.contains("cpus = 2") && own.contains("52:54:00:00:00:02"), "{own}");
        assert!(!own.contains("52:54:00:00:00:01") && !own.contains("forwards"), "{own}");
        assert!(own.contains("52:54:00:00:00:04") && !own.contains("52:54:00:00:00:03"), "{own}");
    }
}
