//! What is said about guests that are there.

use std::time::Duration;

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;

use super::GuestArgs;
use crate::completion;
use crate::guests::state::State;
use crate::stats;

/// `lodge create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    #[command(flatten)]
    pub guest: GuestArgs,
}

/// Some guests.
#[derive(Args, Debug)]
pub struct Names {
    /// Their names
    #[arg(required = true, value_name = "NAME", add = ArgValueCandidates::new(completion::names))]
    pub names: Vec<String>,
}

/// `lodge ps`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Show guests that do not run, too
    #[arg(long, short)]
    pub all: bool,
    /// Print names only
    #[arg(long, short)]
    pub quiet: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    /// Show those of which this is so: state=STATE, image=IMAGE or name=PART; repeatable, and then
    /// all of them must be so
    #[arg(long, short, value_name = "WHAT=VALUE")]
    pub filter: Vec<Filter>,
}

/// `--filter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// What it is doing.
    State(State),
    /// What it was made from.
    Image(String),
    /// A part of its name.
    Name(String),
}

impl std::str::FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Filter, String> {
        match text.split_once('=') {
            Some(("state", name)) => {
                let state = State::ALL.into_iter().find(|state| state.name() == name);
                state.map(Filter::State).ok_or_else(|| {
                    let all = State::ALL.map(State::name).join(", ");
                    format!("there is no state {name:?}: it is one of {all}")
                })
            }
            Some(("image", image)) => Ok(Filter::Image(image.to_owned())),
            Some(("name", part)) => Ok(Filter::Name(part.to_owned())),
            _ => Err("write state=STATE, image=IMAGE or name=PART".to_owned()),
        }
    }
}

/// `lodge start`.
#[derive(Args, Debug)]
pub struct StartArgs {
    #[command(flatten)]
    pub guests: Names,
    /// Connect this terminal to its console, and wait for its end
    #[arg(long, short)]
    pub attach: bool,
}

/// `lodge stop` and `lodge restart`.
#[derive(Args, Debug)]
pub struct StopArgs {
    #[command(flatten)]
    pub guests: Names,
    /// How many seconds a guest may take to switch itself off, before it is ended by force
    #[arg(long, short, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u32,
}

/// `lodge rm`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    #[command(flatten)]
    pub guests: Names,
    /// End those that run, at once
    #[arg(long, short)]
    pub force: bool,
}

/// `lodge rename`.
#[derive(Args, Debug)]
pub struct RenameArgs {
    /// Its name
    #[arg(add = ArgValueCandidates::new(completion::names))]
    pub name: String,
    /// Its new name
    pub new_name: String,
}

/// `lodge logs`.
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// Its name
    #[arg(add = ArgValueCandidates::new(completion::names))]
    pub name: String,
    /// Go on with what it writes, until it ends
    #[arg(long, short)]
    pub follow: bool,
    /// Begin with the last so many lines [default: all that are kept]
    #[arg(long, short = 'n', value_name = "LINES")]
    pub tail: Option<u64>,
}

/// `lodge console`.
#[derive(Args, Debug)]
pub struct ConsoleArgs {
    /// Its name
    #[arg(add = ArgValueCandidates::new(completion::names))]
    pub name: String,
    /// Show the last so many lines first
    #[arg(long, short = 'n', value_name = "LINES", default_value_t = 1)]
    pub tail: u64,
}

/// `lodge stats`.
#[derive(Args, Debug)]
pub struct StatsArgs {
    /// The guest's name: `lodge ps` lists them
    #[arg(add = ArgValueCandidates::new(completion::names))]
    pub name: Option<String>,
    /// Print JSON: with a name, what was counted for each processor until now
    #[arg(long)]
    pub json: bool,
    /// Look once
    #[arg(long)]
    pub once: bool,
    /// For how many seconds to look, to see how often things happen
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = stats::parse_interval)]
    pub interval: Duration,
}

/// `lodge events`.
#[derive(Args, Debug)]
pub struct EventsArgs {
    /// Of these guests only
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(completion::names))]
    pub names: Vec<String>,
    /// Print what has happened until now, and end
    #[arg(long)]
    pub once: bool,
    /// Print a line of JSON for each
    #[arg(long)]
    pub json: bool,
}

/// The shells for which there is completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShellArg {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read() {
        assert_eq!("state=running".parse(), Ok(Filter::State(State::Running)));
        assert_eq!("image=debian:12".parse(), Ok(Filter::Image("debian:12".into())));
        assert_eq!("name=we".parse(), Ok(Filter::Name("we".into())));
        for bad in ["", "state", "state=asleep", "size=1"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
    }
}
