//! What is said to the agent in a guest.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::completion;

/// `lodge exec`.
#[derive(Args, Debug)]
pub struct ExecArgs {
    /// Give the command this program's input
    #[arg(long, short)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Set a variable of the command's environment: NAME=VALUE, or NAME for the value that it has
    /// here; repeatable
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Run it in this directory of the guest [default: the user's home]
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Run it as this user of the guest, USER[:GROUP], names or numbers [default: root]
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    /// The guest's name
    #[arg(add = ArgValueCandidates::new(completion::names))]
    pub name: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// `lodge cp`.
#[derive(Args, Debug)]
pub struct CopyArgs {
    /// What to copy: NAME:PATH in a guest, PATH here, or - for a tar archive from standard input
    #[arg(add = ArgValueCandidates::new(completion::places))]
    pub source: Place,
    /// Where to: NAME:PATH, PATH, or - for a tar archive to standard output
    #[arg(add = ArgValueCandidates::new(completion::places))]
    pub target: Place,
}

/// A place that can be copied from or to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Standard input or output.
    Stream,
    /// A file or directory of this machine.
    Here(String),
    /// One of a guest.
    Guest {
        /// The guest's name.
        name: String,
        /// The path; a relative one is taken to be from the root.
        path: String,
    },
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        match text.split_once(':') {
            _ if text.is_empty() => Err("a path is missing".to_owned()),
            _ if text == "-" => Ok(Place::Stream),
            // A path of this machine that has a colon is written ./a:b.
            Some((name, path)) if !name.contains('/') && !name.starts_with('.') => {
                vmm_api::validate_name(name).map_err(|error| error.to_string())?;
                let slash = if path.starts_with('/') { "" } else { "/" };
                Ok(Place::Guest { name: name.to_owned(), path: format!("{slash}{path}") })
            }
            _ => Ok(Place::Here(text.to_owned())),
        }
    }
}

/// `lodge ssh`.
#[derive(Args, Debug)]
pub struct SshArgs {
    /// The guest's name, and the user to log in as [default: lodge]
    #[arg(value_name = "[USER@]NAME", add = ArgValueCandidates::new(completion::names))]
    pub target: String,
    /// The port of the guest at which sshd listens
    #[arg(long, short, default_value_t = 22)]
    pub port: u16,
    /// Log in with the private key in this file; repeatable
    #[arg(long, short, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    /// Give ssh this option, as in -o ForwardAgent=yes (ssh_config(5)); repeatable
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub option: Vec<String>,
    /// Be the connection that ssh goes through (its ProxyCommand)
    #[arg(long, hide = true)]
    pub proxy: bool,
    /// A command to run instead of a shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let guest = |name: &str, path: &str| Place::Guest { name: name.into(), path: path.into() };
        for (text, place) in [
            ("-", Place::Stream),
            ("a", Place::Here("a".into())),
            ("./a:b", Place::Here("./a:b".into())),
            ("/x:y", Place::Here("/x:y".into())),
            ("web:/etc", guest("web", "/etc")),
            ("web:etc:x", guest("web", "/etc:x")),
            ("web:", guest("web", "/")),
        ] {
            assert_eq!(text.parse(), Ok(place), "{text}");
        }
        for bad in ["", ":", "a b:/c"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }
}
