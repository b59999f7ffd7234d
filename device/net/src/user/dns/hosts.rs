//! Names in a file as hosts(5) describes it, which somebody else writes.

use std::fs::{self, File};
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

/// A longer file is read up to here: names of some ten thousand guests.
const MOST: u64 = 1 << 20;

/// The names in a file, as it is now.
#[derive(Debug)]
pub struct Hosts {
    path: PathBuf,
    /// Which file was read last: its inode, when it was changed, and its length.
    seen: Option<(u64, SystemTime, u64)>,
    entries: Vec<(Ipv4Addr, String)>,
}

impl Hosts {
    /// The names in the file at `path`, which need not be there yet.
    pub fn at(path: PathBuf) -> Self {
        Self { path, seen: None, entries: Vec::new() }
    }

    /// The addresses of a name.
    pub fn addresses(&mut self, name: &str) -> Vec<Ipv4Addr> {
        self.look();
        let its = self.entries.iter().filter(|(_, own)| own.eq_ignore_ascii_case(name));
        its.map(|&(address, _)| address).collect()
    }

    /// The name of an address.
    pub fn name(&mut self, address: Ipv4Addr) -> Option<&str> {
        self.look();
        self.entries.iter().find(|(own, _)| *own == address).map(|(_, name)| name.as_str())
    }

    /// Reads the file if it is another one than before. A file that is gone has no names.
    fn look(&mut self) {
        let seen = fs::metadata(&self.path)
            .and_then(|file| Ok((file.ino(), file.modified()?, file.len())))
            .ok();
        if seen.is_some() && seen == self.seen {
            return;
        }
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|file| file.take(MOST).read_to_end(&mut bytes));
        if let (Err(error), Some(_)) = (read, seen) {
            tracing::debug!(%error, "cannot read {}", self.path.display());
        }
        self.entries = parse(&String::from_utf8_lossy(&bytes));
        self.seen = seen;
    }
}

/// The IPv4 addresses in the text of a hosts(5) file, with the first name of each.
fn parse(text: &str) -> Vec<(Ipv4Addr, String)> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_ascii_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_and_go_with_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        let mut hosts = Hosts::at(path.clone());
        assert_eq!(hosts.addresses("db"), [Ipv4Addr::UNSPECIFIED; 0]);
        fs::write(
            &path,
            "# guests\n10.0.0.16 db # its\n10.0.0.17\tdb\nnonsense\n::1 six\n10.0.0.18 Web x\n",
        )
        .unwrap();
        assert_eq!(hosts.addresses("DB"), [[10, 0, 0, 16], [10, 0, 0, 17]].map(Ipv4Addr::from));
        assert_eq!(hosts.addresses("web"), [Ipv4Addr::new(10, 0, 0, 18)]);
        assert_eq!(hosts.name([10, 0, 0, 17].into()), Some("db"));
        assert_eq!(hosts.name([10, 0, 0, 19].into()), None);
        // As one is replaced whole: another file with the same length.
        let new = directory.path().join("new");
        fs::write(&new, "10.0.0.19 db\n").unwrap();
        fs::rename(new, &path).unwrap();
        assert_eq!(hosts.addresses("db"), [Ipv4Addr::new(10, 0, 0, 19)]);
        fs::remove_file(&path).unwrap();
        assert!(hosts.addresses("db").is_empty());
    }
}
