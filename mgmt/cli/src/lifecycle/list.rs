//! `lodge ps` and `lodge ls`.

use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;
use vmm_api::Failure;

use crate::args::lifecycle::{Filter, ListArgs};
use crate::guests::state::{self, Found, State};
use crate::guests::{self, Record};
use crate::{output, size};

/// What is said of one guest.
#[derive(Debug, Serialize)]
pub struct Entry {
    pub name: String,
    pub state: State,
    /// Why it is paused, unless somebody asked for it.
    pub pause_reason: Option<String>,
    /// The image that it was made from.
    pub image: Option<String>,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: Option<u64>,
    /// When it was started, if it runs.
    pub started_ms: Option<u64>,
    /// When it ended, if it does not run.
    pub ended_ms: Option<u64>,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u64>,
    /// The process number of its VMM.
    pub pid: Option<u32>,
    /// How much room its disk takes.
    pub disk_bytes: u64,
    pub directory: PathBuf,
}

impl Entry {
    /// Looks at the guest of that name; beside it, what else was found.
    pub fn of(name: &str) -> Result<(Entry, Found), Failure> {
        let directory = guests::directory_of(name)?;
        let found = state::look(&directory);
        // One that cannot be read is listed all the same.
        let record = Record::read(&directory).ok().flatten().unwrap_or_default();
        let instance = found.instance.as_ref();
        let entry = Entry {
            name: name.to_owned(),
            state: found.state,
            pause_reason: instance.and_then(|it| it.pause_reason.clone()),
            image: record.image,
            created_ms: Some(record.created_ms).filter(|&ms| ms != 0),
            started_ms: instance.map(|it| it.started_ms),
            ended_ms: found.last.as_ref().map(|record| record.time_ms),
            cpus: instance.map(|it| it.cpus),
            memory_mib: instance.map(|it| it.memory_mib),
            pid: instance.map(|it| it.pid),
            disk_bytes: guests::disk_bytes(&directory),
            directory,
        };
        Ok((entry, found))
    }

    fn passes(&self, filter: &Filter) -> bool {
        match filter {
            Filter::State(state) => self.state == *state,
            Filter::Image(image) => self.image.as_ref() == Some(image),
            Filter::Name(part) => self.name.contains(part),
        }
    }

    /// Since when it is what it is.
    fn since(&self) -> String {
        let since = self.started_ms.or(self.ended_ms).or(self.created_ms);
        since.map_or("-".to_owned(), |ms| {
            size::format_age(guests::unix_ms().saturating_sub(ms) / 1000)
        })
    }
}

/// Prints the list; the value is the exit status.
pub fn run(args: &ListArgs) -> Result<u8, Failure> {
    let all = args.all || args.filter.iter().any(|filter| matches!(filter, Filter::State(_)));
    let mut entries = Vec::new();
    let names = guests::names()?;
    for name in &names {
        let (entry, _) = Entry::of(name)?;
        // A guest may go while guests are looked at.
        let is_there = entry.directory.is_dir();
        if is_there
            && (all || entry.state.is_active())
            && args.filter.iter().all(|f| entry.passes(f))
        {
            entries.push(entry);
        }
    }
    if args.json {
        let text = serde_json::to_string_pretty(&entries).map_err(Failure::internal)?;
        output::print(text + "\n")?;
    } else if args.quiet {
        output::print(entries.iter().map(|entry| format!("{}\n", entry.name)).collect::<String>())?;
    } else if names.is_empty() {
        eprintln!("There are no guests; `lodge run debian:12` starts one.");
    } else {
        output::print(table(&entries))?;
    }
    Ok(0)
}

fn table(entries: &[Entry]) -> String {
    let mut table = format!(
        "{:<24} {:<12} {:<14} {:<20} {:>4} {:>9} {:>9}\n",
        "GUEST", "STATE", "SINCE", "IMAGE", "CPUS", "MEMORY", "DISK"
    );
    for entry in entries {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let _ = writeln!(
            table,
            "{:<24} {:<12} {:<14} {:<20} {:>4} {:>9} {:>9}",
            entry.name,
            entry.state.name(),
            entry.since(),
            or_none(entry.image.clone()),
            or_none(entry.cpus.map(|cpus| cpus.to_string())),
            or_none(entry.memory_mib.map(|mib| size::format_bytes(mib.saturating_mul(1 << 20)))),
            size::format_bytes(entry.disk_bytes),
        );
    }
    for entry in entries {
        if let Some(reason) = &entry.pause_reason {
            let _ = writeln!(table, "{} is paused: {reason}", entry.name);
        }
    }
    table
}
