//! What is said about the program of a guest that is made of an OCI image.

use std::str::FromStr;

use clap::Args;
use images::ImageName;
use oci::Reference;

/// The image to start from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageArg {
    /// One of the store.
    Stored(ImageName),
    /// An OCI image.
    Oci(Reference),
}

impl FromStr for ImageArg {
    type Err = String;

    fn from_str(text: &str) -> Result<ImageArg, String> {
        if Reference::is_meant(text) {
            return text.parse().map(ImageArg::Oci).map_err(|error: oci::Error| error.to_string());
        }
        text.parse().map(ImageArg::Stored).map_err(|error: images::Error| error.to_string())
    }
}

/// The program of a guest that is made of an OCI image.
#[derive(Args, Clone, Debug, Default)]
pub struct ProgramArgs {
    /// For OCI images: what to run, with its arguments [default: what the image says]
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    pub command: Vec<String>,
    /// Run this program with COMMAND as its arguments, in the place of the image's entrypoint
    #[arg(long, value_name = "PROGRAM", help_heading = "OCI images")]
    pub entrypoint: Option<String>,
    /// Set a variable of the program's environment; repeatable
    #[arg(long, short = 'e', value_name = "NAME=VALUE", value_parser = setting, help_heading = "OCI images")]
    pub env: Vec<String>,
    /// Run the program as this user: names or numbers [default: what the image says, else root]
    #[arg(long, short = 'u', value_name = "USER[:GROUP]", help_heading = "OCI images")]
    pub user: Option<String>,
    /// Run the program in this directory [default: what the image says, else /]
    #[arg(long, short = 'w', value_name = "DIRECTORY", help_heading = "OCI images")]
    pub workdir: Option<String>,
}

impl ProgramArgs {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        let ProgramArgs { command, entrypoint, env, user, workdir } = self;
        command.is_empty()
            && entrypoint.is_none()
            && env.is_empty()
            && user.is_none()
            && workdir.is_none()
    }
}

fn setting(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    #[test]
    fn commands_may_have_options_of_their_own() {
        let args = |line: &str| {
            let words = ["lodge", "run"].into_iter().chain(line.split_whitespace());
            match Cli::try_parse_from(words).unwrap().command {
                Command::Run(args) => args.guest,
                _ => panic!("not run"),
            }
        };
        let guest = args("oci:/x:1 --cpus 2 -e A=B sh -c exit --cpus 3");
        assert_eq!(guest.program.command, ["sh", "-c", "exit", "--cpus", "3"]);
        assert_eq!((guest.cpus, guest.program.env), (Some(2), vec!["A=B".to_owned()]));
        assert!(matches!(guest.image, Some(ImageArg::Oci(_))));
        assert_eq!(args("oci:/x -- -v").program.command, ["-v"]);
        let guest = args("debian:12 --memory 1G");
        assert!(guest.program.is_empty() && guest.memory == Some(1024));
        for bad in ["oci: x", "oci:/x -e A sh", "oci:/x -e =B sh"] {
            let words = ["lodge", "run"].into_iter().chain(bad.split_whitespace());
            assert!(Cli::try_parse_from(words).is_err(), "{bad}");
        }
    }
}
