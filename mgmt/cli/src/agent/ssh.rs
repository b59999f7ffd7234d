//! `lodge ssh`: the real ssh, through the agent to the guest's sshd. No network is needed.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use agent_protocol::Task;
use vmm_api::Failure;

use super::Agent;
use crate::args::agent::SshArgs;
use crate::guests;
use crate::run::write_stdout;

/// Who logs in, if nobody is named: the user that images built by Lodge have.
const USER: &str = "lodge";
/// Where a guest's host keys are kept: they go with it.
const KNOWN_HOSTS: &str = "ssh_known_hosts";
const PIECE: usize = 64 << 10;

/// Becomes ssh; the value is the exit status.
pub fn run(args: &SshArgs) -> Result<u8, Failure> {
    let (user, name) = args.target.rsplit_once('@').unwrap_or((USER, &args.target));
    if args.proxy {
        return proxy(name, args.port);
    }
    // Whether there is a way, ssh could not say as well.
    connect(name, args.port)?;
    let program = std::env::current_exe()
        .map_err(|error| Failure::host(format!("cannot find lodge's own program file: {error}")))?;
    let program = program.display().to_string();
    let proxy = format!("{} ssh --proxy --port {} {name}", quote(&program), args.port);
    let known_hosts = guests::existing(name)?.join(KNOWN_HOSTS);
    let mut command = Command::new("ssh");
    for option in [
        // A percent sign is ssh's own (ssh_config(5)).
        format!("ProxyCommand={}", proxy.replace('%', "%%")),
        format!("HostKeyAlias={name}"),
        format!("UserKnownHostsFile=\"{}\"", known_hosts.display().to_string().replace('%', "%%")),
        // The way to the guest leads through nobody else's hands.
        "StrictHostKeyChecking=accept-new".to_owned(),
    ] {
        command.args(["-o", &option]);
    }
    // What was said comes behind: ssh takes the first of equals, and the way to the guest is not to be changed.
    for option in &args.option {
        command.args(["-o", option]);
    }
    for file in &args.identity {
        command.arg("-i").arg(file);
    }
    command.args(["-l", user, "--", name]).args(&args.arguments);
    let error = command.exec();
    Err(Failure::host(match error.kind() {
        io::ErrorKind::NotFound => {
            "ssh is missing: install it, with `apt install openssh-client`".to_owned()
        }
        _ => format!("cannot start ssh: {error}"),
    }))
}

/// A connection to a port of the guest.
fn connect(name: &str, port: u16) -> Result<Agent, Failure> {
    let mut agent = Agent::ask(name, Task::Connect { port })?;
    agent.reply().map_err(|Failure { kind, message }| {
        let advice = format!(
            "no sshd listens there: install one with `lodge exec {name} -- apt-get install \
             --yes openssh-server`, or do without by `lodge exec -it {name} -- bash`"
        );
        Failure::new(kind, format!("{message}; {advice}"))
    })?;
    Ok(agent)
}

/// Moves bytes between this program's input and output and the guest's port.
fn proxy(name: &str, port: u16) -> Result<u8, Failure> {
    let Agent { mut stream, frames, .. } = connect(name, port)?;
    let lost =
        |error: io::Error| Failure::host(format!("the connection to {name} is lost: {error}"));
    let mut input = stream.try_clone().map_err(lost)?;
    // Ends with this program.
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut input);
        let _ = input.shutdown(Shutdown::Write);
    });
    write_stdout(&frames.into_rest()).map_err(lost)?;
    // At once: Rust's own standard output waits for the end of a line.
    let mut piece = vec![0; PIECE];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok(0),
            Ok(count) => write_stdout(piece.get(..count).unwrap_or_default()).map_err(lost)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(error)),
        }
    }
}

/// A word for a shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted() {
        assert_eq!(quote("/a b/it's"), r"'/a b/it'\''s'");
    }
}
