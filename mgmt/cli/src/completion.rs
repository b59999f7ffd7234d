//! Completion in shells: guests' names, as they are at that moment.

use std::ffi::OsStr;

use clap::CommandFactory;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{CompleteEnv, Shells};
use vmm_api::Failure;

use crate::args::{Cli, ShellArg};
use crate::{guests, output};

/// What a shell sets when it asks this program to complete.
const VARIABLE: &str = "LODGE_COMPLETE";

/// Answers a shell that asks for completions, and ends the program then.
pub fn answer_shell() {
    CompleteEnv::with_factory(Cli::command).var(VARIABLE).complete();
}

/// `lodge completion`: what a shell needs to ask.
pub fn print_script(shell: ShellArg) -> Result<u8, Failure> {
    let name = match shell {
        ShellArg::Bash => "bash",
        ShellArg::Elvish => "elvish",
        ShellArg::Fish => "fish",
        ShellArg::Powershell => "powershell",
        ShellArg::Zsh => "zsh",
    };
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let completer = shells
        .completer(name)
        .ok_or_else(|| Failure::internal(format!("there is no completion for {name}")))?;
    completer
        .write_registration(VARIABLE, "lodge", "lodge", "lodge", &mut script)
        .map_err(|error| Failure::internal(format!("the completion script: {error}")))?;
    output::print(script)?;
    Ok(0)
}

/// The guests' names, as the beginning of a place in one.
pub fn places() -> Vec<CompletionCandidate> {
    let names = guests::names().unwrap_or_default();
    names.iter().map(|name| CompletionCandidate::new(format!("{name}:"))).collect()
}

/// The guests' names.
pub fn names() -> Vec<CompletionCandidate> {
    let names = guests::names().unwrap_or_default();
    names.iter().map(|name| CompletionCandidate::new(OsStr::new(name))).collect()
}
