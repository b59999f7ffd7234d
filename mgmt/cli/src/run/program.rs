//! The program of a guest that is made of an OCI image: what it is started with goes on the kernel's
//! command line, where Lodge's init in the guest finds it.

use std::io::{self, IsTerminal};

use agent_protocol::program::{Program, Start};
use images::{Cancel, Image, Store};
use oci::Reference;
use rustix::termios::tcgetwinsize;
use vmm_api::{Failure, VmConfig};

use crate::args::GuestArgs;
use crate::long_work::cancellable;
use crate::progress::Show;
use crate::{agent, failure, long_work};

/// What Linux takes on x86-64 (COMMAND_LINE_SIZE), with room for what a run adds.
const MAX_CMDLINE: usize = 2047 - 128;
/// What the parameters begin with.
const PREFIX: &str = "lodge.";

/// The store's image that is made of an OCI image; made now, if need be. Where that is given up by a signal,
/// nothing has begun yet that this program would have to end.
pub fn find_image(store: &Store, reference: &Reference) -> Result<Image, Failure> {
    let (reference, init) = (absolute(reference)?, agent::program::find()?);
    let make = |show: &mut Show, cancel: &Cancel| {
        store.from_oci(&reference, &init, show, cancel).map_err(long_work::Stopped::from)
    };
    cancellable(make)?.map_err(|signal| long_work::exit_by(signal))
}

/// The same image by a name that means it from everywhere.
pub fn absolute(reference: &Reference) -> Result<Reference, Failure> {
    reference.clone().absolute().map_err(|error| failure::image(error.into()))
}

/// Completes the configuration of a guest with what is said about its program.
pub fn set(args: &GuestArgs, config: &mut VmConfig, image: Option<&Image>) -> Result<(), Failure> {
    let Some(image) = image.filter(|image| image.manifest().program.is_some()) else {
        if args.program.is_empty() {
            return Ok(());
        }
        return Err(Failure::configuration(
            "a command, and what belongs to it, is for guests that are made of OCI images (oci:PATH): in \
             other guests, `lodge exec` runs commands",
        ));
    };
    let program = image.manifest().program.clone().unwrap_or_default();
    let start = merge(Start::from_cmdline(&config.boot.cmdline), args);
    if program.words(&start).is_empty() {
        return Err(Failure::configuration(format!(
            "the image {} does not say which program to run: name one behind it, as in `lodge run \
             oci:PATH -- /bin/sh`",
            image.name()
        )));
    }
    replace(config, &start);
    if config.boot.cmdline.len() > MAX_CMDLINE {
        return Err(Failure::configuration(format!(
            "the command and the environment are too long: on the kernel's command line they come to \
             {} characters, and there may be {MAX_CMDLINE}; copy a script into the guest instead",
            config.boot.cmdline.len()
        )));
    }
    config.exit_port = true;
    Ok(())
}

/// What was said before, and now.
fn merge(before: Start, args: &GuestArgs) -> Start {
    let said = args.program.clone();
    let command_is_new = said.entrypoint.is_some() || !said.command.is_empty();
    Start {
        command: if command_is_new { said.command } else { before.command },
        entrypoint: if command_is_new { said.entrypoint } else { before.entrypoint },
        environment: [before.environment, said.env].concat(),
        directory: said.workdir.or(before.directory),
        user: said.user.or(before.user),
        hostname: args.hostname.clone().or(before.hostname),
        ..Start::default()
    }
}

fn replace(config: &mut VmConfig, start: &Start) {
    let others = config.boot.cmdline.split_whitespace().filter(|word| !word.starts_with(PREFIX));
    config.boot.cmdline = others.collect::<Vec<_>>().join(" ") + &start.to_cmdline();
}

/// Adds what holds for this run only: the guest's name, and the terminal that it is started from.
/// Whether the program has a terminal; without one, its bytes go through as they are.
pub fn at_start(config: &mut VmConfig, is_here: bool) -> bool {
    let mut start = Start::from_cmdline(&config.boot.cmdline);
    start.hostname.get_or_insert_with(|| config.name.clone());
    let stdin = io::stdin();
    start.plain = is_here && !(stdin.is_terminal() && io::stdout().is_terminal());
    if is_here && !start.plain {
        start.terminal = std::env::var("TERM").ok().filter(|term| is_short_word(term));
        start.size = tcgetwinsize(stdin).ok().map(|size| (size.ws_row, size.ws_col));
    }
    replace(config, &start);
    !start.plain
}

fn is_short_word(term: &str) -> bool {
    (1..40).contains(&term.len())
        && term.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
}

/// The program that a guest's image names, if it was made of an OCI image.
pub fn of(image: Option<&Image>) -> Option<&Program> {
    image.and_then(|image| image.manifest().program.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ProgramArgs;
    use crate::run::empty_config;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn what_is_said_later_goes_before() {
        let mut config = empty_config();
        config.boot.cmdline = "console=ttyS0 quiet".into();
        let args = |command: &[&str], env: &[&str]| GuestArgs {
            program: ProgramArgs {
                command: words(command),
                env: words(env),
                ..ProgramArgs::default()
            },
            ..GuestArgs::default()
        };
        let first = merge(Start::default(), &args(&["sh", "-c", "a b"], &["A=1"]));
        replace(&mut config, &first);
        assert!(config.boot.cmdline.starts_with("console=ttyS0 quiet lodge."));
        let kept = Start::from_cmdline(&config.boot.cmdline);
        // As `lodge start` does it, and then another command.
        assert_eq!(merge(kept.clone(), &GuestArgs::default()), first);
        let second = merge(kept, &args(&["ls"], &["A=2"]));
        assert_eq!(second.command, ["ls"]);
        assert_eq!(second.environment, ["A=1", "A=2"]);
        replace(&mut config, &second);
        assert_eq!(config.boot.cmdline.matches("lodge.command").count(), 1);
        assert!(!at_start(&mut config, true));
        assert!(config.boot.cmdline.contains("lodge.hostname=guest lodge.plain"), "{config:?}");
        assert!(at_start(&mut config, false));
    }

    #[test]
    fn commands_are_for_oci_images() {
        let program = ProgramArgs { command: words(&["ls"]), ..ProgramArgs::default() };
        let args = GuestArgs { program, ..GuestArgs::default() };
        let failure = set(&args, &mut empty_config(), None).unwrap_err();
        assert!(failure.message.contains("lodge exec"), "{failure}");
        set(&GuestArgs::default(), &mut empty_config(), None).unwrap();
    }
}
