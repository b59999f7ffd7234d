//! What runs in a guest that is made of an OCI image, and how Lodge's init is told.
//!
//! What the image says ([`Program`]) is a file in the initial RAM disk; what a person says for one
//! guest ([`Start`]) goes on the kernel's command line, as parameters that begin with `lodge.`, which
//! the kernel leaves alone (Linux, admin-guide/kernel-parameters: a name with a dot is a module's).

use serde::{Deserialize, Serialize};

/// Where [`Program`] lies in the initial RAM disk, as JSON.
pub const PROGRAM_FILE: &str = "/lodge/program.json";
/// The directory of the kernel's modules in the initial RAM disk. They are loaded in the order of
/// their names.
pub const MODULES: &str = "/lodge/modules";
/// The I/O port to which init writes the program's exit status, which ends the machine.
pub const EXIT_PORT: u16 = 0xf8;
/// The exit status where init itself failed, as docker's.
pub const INIT_FAILED: u8 = 125;
/// Init writes this before the first byte of a program without a terminal, so that the kernel's
/// words can be told from the program's. Terminals show nothing of it (ECMA-48, OSC).
pub const BEGIN: &[u8] = b"\x1b]lodge;begin\x07";
/// On the console of such a program, this ends a line that is begun, and input where none is (Ctrl-D).
pub const END: u8 = 0x04;
/// And this makes the byte behind it one like any other (Ctrl-V).
pub const LITERAL: u8 = 0x16;

/// What an image says about its program (OCI image-spec, config.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Program {
    /// What is always run.
    pub entrypoint: Vec<String>,
    /// Its arguments, or the program where there is no entrypoint.
    pub command: Vec<String>,
    /// `NAME=VALUE`.
    pub environment: Vec<String>,
    /// The working directory.
    pub directory: Option<String>,
    /// `USER` or `USER:GROUP`, names or numbers.
    pub user: Option<String>,
    /// The signal that asks it to end, as `SIGTERM` or a number.
    pub stop_signal: Option<String>,
}

/// What a person says about the program of one guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// In the place of the image's command; of no words: as the image has it.
    pub command: Vec<String>,
    /// In the place of the image's entrypoint and command.
    pub entrypoint: Option<String>,
    /// `NAME=VALUE`, besides the image's.
    pub environment: Vec<String>,
    /// In the place of the image's working directory.
    pub directory: Option<String>,
    /// In the place of the image's user.
    pub user: Option<String>,
    /// What the guest calls itself.
    pub hostname: Option<String>,
    /// Its input and output are no terminal: bytes stay as they are.
    pub plain: bool,
    /// What kind of terminal it has, as the variable `TERM` says it.
    pub terminal: Option<String>,
    /// The terminal's lines and columns.
    pub size: Option<(u16, u16)>,
}

/// The parameters that have texts.
const COMMAND: &str = "lodge.command";
const ENTRYPOINT: &str = "lodge.entrypoint";
const ENVIRONMENT: &str = "lodge.env";
const DIRECTORY: &str = "lodge.directory";
const USER: &str = "lodge.user";
const HOSTNAME: &str = "lodge.hostname";
const TERMINAL: &str = "lodge.terminal";
const SIZE: &str = "lodge.size";
/// The parameter without one.
const PLAIN: &str = "lodge.plain";

impl Start {
    /// The parameters for the kernel's command line, with a space before each.
    #[must_use]
    pub fn to_cmdline(&self) -> String {
        let one = |text: &Option<String>| text.iter().cloned().collect::<Vec<_>>();
        let lists = [
            (ENTRYPOINT, &one(&self.entrypoint)),
            (COMMAND, &self.command),
            (ENVIRONMENT, &self.environment),
            (DIRECTORY, &one(&self.directory)),
            (USER, &one(&self.user)),
            (HOSTNAME, &one(&self.hostname)),
            (TERMINAL, &one(&self.terminal)),
            (SIZE, &one(&self.size.map(|(lines, columns)| format!("{lines}x{columns}")))),
        ];
        let mut text = String::new();
        for (name, words) in lists {
            if !words.is_empty() {
                let words: Vec<String> = words.iter().map(|word| encode(word)).collect();
                text += &format!(" {name}={}", words.join(","));
            }
        }
        if self.plain {
            text += " ";
            text += PLAIN;
        }
        text
    }

    /// Finds them there again.
    #[must_use]
    pub fn from_cmdline(cmdline: &str) -> Start {
        let mut start = Start::default();
        for parameter in cmdline.split_ascii_whitespace() {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let words = || value.split(',').map(decode).collect::<Vec<_>>();
            match name {
                ENTRYPOINT => start.entrypoint = Some(decode(value)),
                COMMAND => start.command = words(),
                ENVIRONMENT => start.environment = words(),
                DIRECTORY => start.directory = Some(decode(value)),
                USER => start.user = Some(decode(value)),
                HOSTNAME => start.hostname = Some(decode(value)),
                TERMINAL => start.terminal = Some(decode(value)),
                SIZE => start.size = size(value),
                PLAIN => start.plain = true,
                _ => {}
            }
        }
        start
    }
}

impl Program {
    /// The words that are run in the end; none if neither image nor person names any.
    #[must_use]
    pub fn words(&self, start: &Start) -> Vec<String> {
        if let Some(entrypoint) = &start.entrypoint {
            // An empty one takes the image's away (docker run --entrypoint "").
            let entrypoint = Some(entrypoint.clone()).filter(|word| !word.is_empty());
            return entrypoint.into_iter().chain(start.command.iter().cloned()).collect();
        }
        let command = if start.command.is_empty() { &self.command } else { &start.command };
        self.entrypoint.iter().chain(command).cloned().collect()
    }
}

fn size(text: &str) -> Option<(u16, u16)> {
    let (lines, columns) = text.split_once('x')?;
    Some((lines.parse().ok()?, columns.parse().ok()?))
}

/// Writes a text in letters, digits and a few signs that mean nothing to the kernel; all other bytes
/// as `%` and two digits (RFC 3986, section 2.1).
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:@+".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        let digits = (byte == b'%').then(|| behind.split_at_checked(2)).flatten();
        let value = digits
            .and_then(|(digits, _)| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match (value, digits) {
            (Some(value), Some((_, behind))) => {
                bytes.push(value);
                rest = behind;
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn the_command_is_put_together_as_dockers() {
        let image = Program {
            entrypoint: words(&["/entry", "-e"]),
            command: words(&["serve"]),
            ..Program::default()
        };
        let run = |entrypoint: Option<&str>, command: &[&str]| {
            let entrypoint = entrypoint.map(str::to_owned);
            image.words(&Start { entrypoint, command: words(command), ..Start::default() })
        };
        assert_eq!(run(None, &[]), ["/entry", "-e", "serve"]);
        assert_eq!(run(None, &["help", "me"]), ["/entry", "-e", "help", "me"]);
        assert_eq!(run(Some("/bin/sh"), &[]), ["/bin/sh"]);
        assert_eq!(run(Some("/bin/sh"), &["-c", "x"]), ["/bin/sh", "-c", "x"]);
        assert_eq!(run(Some(""), &["ls"]), ["ls"]);
        assert!(Program::default().words(&Start::default()).is_empty());
    }

    #[test]
    fn the_kernel_sees_nothing_but_words() {
        let start = Start {
            command: words(&["sh", "-c", "echo \"a, b\" % 'c'; exit 7", ""]),
            environment: words(&["A=ü", "B="]),
            plain: true,
            size: Some((24, 80)),
            ..Start::default()
        };
        let cmdline = start.to_cmdline();
        assert!(!cmdline.contains(['"', '\'', ';']), "{cmdline}");
        assert_eq!(cmdline.split(' ').count(), 5, "{cmdline}");
        assert_eq!(Start::from_cmdline(&format!("root=/dev/vda{cmdline} quiet")), start);
        // Nonsense is something, and no panic.
        assert_eq!(Start::from_cmdline("lodge.user=%zz%4 lodge.x").user.as_deref(), Some("%zz%4"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            command in proptest::collection::vec(".*", 1..4),
            environment in proptest::collection::vec("[A-Z]+=.*", 0..4),
            user in proptest::option::of(".+"),
            plain: bool,
        ) {
            let start = Start { command, environment, user, plain, ..Start::default() };
            prop_assert_eq!(Start::from_cmdline(&start.to_cmdline()), start);
        }
    }
}
