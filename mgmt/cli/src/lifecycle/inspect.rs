//! `lodge inspect`.

use serde::Serialize;
use serde_json::Value;
use vmm_api::{EventRecord, Failure, Instance, VmConfig};

use super::list::Entry;
use crate::args::lifecycle::Names;
use crate::{guests, output};

#[derive(Serialize)]
struct Inspected {
    #[serde(flatten)]
    entry: Entry,
    /// What `guest.toml` says.
    definition: Option<Value>,
    /// What the VMM says of itself, if it runs.
    instance: Option<Instance>,
    /// What it is made of, if it runs.
    config: Option<VmConfig>,
    /// The last that happened, if it does not run.
    last_event: Option<EventRecord>,
}

/// Prints an array with all that is known of each guest; the value is the exit status.
pub fn run(args: &Names) -> Result<u8, Failure> {
    let mut all = Vec::new();
    let status = super::each(args, |name| {
        let directory = guests::existing(name)?;
        let (entry, found) = Entry::of(name)?;
        let text = std::fs::read_to_string(directory.join(guests::DEFINITION)).ok();
        let config = match &found.instance {
            Some(_) => guests::client(name)?.config().ok(),
            None => None,
        };
        all.push(Inspected {
            entry,
            definition: text.and_then(|text| toml::from_str(&text).ok()),
            instance: found.instance,
            config,
            last_event: found.last,
        });
        Ok(())
    })?;
    let text = serde_json::to_string_pretty(&all).map_err(Failure::internal)?;
    output::print(text + "\n")?;
    Ok(status)
}
