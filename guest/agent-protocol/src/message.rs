//! Requests and replies, as JSON in frames.

use serde::{Deserialize, Serialize};

/// What `lodge` wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`](crate::VERSION).
    pub version: u32,
    /// What is to be done.
    pub task: Task,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Nothing: the agent answers [`Reply::Done`].
    Ping,
    /// Run a command.
    Exec(Exec),
    /// Say what is at a path.
    Stat {
        /// The path.
        path: String,
    },
    /// Send a file or directory as an archive.
    CopyOut {
        /// Its path.
        path: String,
        /// What it is called in the archive. Empty: only what is in the directory.
        name: String,
    },
    /// Unpack an archive.
    CopyIn {
        /// The directory.
        directory: String,
    },
    /// Connect to a TCP port of the guest's loopback interface; the connection is that, then.
    Connect {
        /// The port.
        port: u16,
    },
    /// The guest goes on from a snapshot: it is to be another one than that which it was.
    Renew(Renewal),
}

/// What makes a copy of a guest another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// What nobody can guess, for the kernel's random numbers.
    pub entropy: [u8; 32],
    /// Its network cards that have other addresses now.
    pub cards: Vec<CardChange>,
}

/// A card that has another Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardChange {
    /// The one that it had when the snapshot was made.
    pub from: [u8; 6],
    /// The one that it has now.
    pub to: [u8; 6],
}

/// A command to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program, by path or name, and its arguments.
    pub command: Vec<String>,
    /// Additional variables of its environment.
    pub environment: Vec<(String, String)>,
    /// Its working directory. `None`: the user's home.
    pub directory: Option<String>,
    /// USER or USER:GROUP, names or numbers. `None`: the agent's user, root.
    pub user: Option<String>,
    /// It gets what `lodge` sends; else nothing.
    pub input: bool,
    /// It gets a terminal of this size.
    pub terminal: Option<Size>,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// How many lines.
    pub rows: u16,
    /// How many columns.
    pub columns: u16,
}

/// What else happens on `lodge`'s side of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// The terminal has another size.
    Resize(Size),
    /// A signal is for the command and what it has started.
    Signal(i32),
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It begins.
    Started,
    /// It is done.
    Done,
    /// What is at a path.
    Stat(Kind),
    /// The command has ended: its exit status, or 128 and the number of the signal that ended it.
    Exited(u8),
    /// It cannot be done.
    Failed {
        /// The exit status that says so: 127 for a command that is not there, 126 for one that
        /// cannot be run, else 125.
        status: u8,
        /// For people.
        message: String,
    },
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Nothing.
    Missing,
    /// A directory, perhaps by a symbolic link.
    Directory,
    /// Something else.
    File,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_are_written() {
        let exec = Exec { command: vec!["ls".into()], ..Exec::default() };
        let cards = vec![CardChange { from: [2; 6], to: [6; 6] }];
        let renewal = Renewal { entropy: [9; 32], cards };
        let connect = Task::Connect { port: 22 };
        for task in [Task::Ping, Task::Exec(exec), connect, Task::Renew(renewal)] {
            let request = Request { version: 1, task };
            let text = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request, "{text}");
        }
        // An agent of before does not know a new task, and says which version it speaks.
        assert!(serde_json::from_str::<Request>(r#"{"version":2,"task":"dance"}"#).is_err());
    }
}
