//! The networks of one user: a file each in `$LODGE_HOME/networks`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use vmm_api::{Failure, Lease as CardLease};

use crate::network::{check_name, name_of_bridge};
use crate::{Lease, Network, Reach, Subnet, host};

/// Held while networks are changed.
const LOCK: &str = "lock";

/// The networks of one user.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Those in the directory `networks` of Lodge's home, which need not exist.
    #[must_use]
    pub fn at(home: &Path) -> Store {
        Store { directory: home.join("networks") }
    }

    /// All networks, in the order of their names.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is damaged.
    pub fn all(&self) -> Result<Vec<Network>, Failure> {
        let directory = match fs::read_dir(&self.directory) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(cannot("read", &self.directory, &error)),
        };
        let names = directory.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> =
            names.filter_map(|name| name.strip_suffix(".json").map(str::to_owned)).collect();
        names.sort();
        names.retain(|name| check_name(name).is_ok());
        names.iter().filter_map(|name| self.find(name).transpose()).collect()
    }

    /// The network of that name.
    ///
    /// # Errors
    ///
    /// There is none, or its file cannot be read.
    pub fn get(&self, name: &str) -> Result<Network, Failure> {
        check_name(name)?;
        self.find(name)?.ok_or_else(|| {
            Failure::configuration(format!(
                "there is no network {name}: `lodge network ls` lists networks, `lodge network create {name}` makes \
                 it; a bridge of this machine is written --net bridge={name}"
            ))
        })
    }

    /// The network with that bridge, if it is one of these.
    ///
    /// # Errors
    ///
    /// Its file cannot be read.
    pub fn with_bridge(&self, bridge: &str) -> Result<Option<Network>, Failure> {
        name_of_bridge(bridge).map_or(Ok(None), |name| self.find(name))
    }

    /// Whether the host has the network's bridge.
    #[must_use]
    pub fn is_up(&self, network: &Network) -> bool {
        host::is_up(&network.name)
    }

    /// Makes a network, on the subnet or one that nothing else is on. Of one that is there already and is the
    /// same, what the host lacks is made.
    ///
    /// # Errors
    ///
    /// There is another one of that name, or something else is on the subnet; no privilege. Nothing is left
    /// then.
    pub fn create(
        &self,
        name: &str,
        subnet: Option<Subnet>,
        reach: Reach,
    ) -> Result<Network, Failure> {
        check_name(name)?;
        let _lock = self.lock()?;
        if let Some(network) = self.find(name)? {
            if network.reach != reach || subnet.is_some_and(|subnet| subnet != network.subnet) {
                return Err(Failure::configuration(format!(
                    "there is another network {name} ({}, {}): choose another name, or remove it with `lodge \
                     network rm {name}`",
                    network.subnet,
                    network.reach.name()
                )));
            }
            host::up(&network, &self.directory)?;
            return Ok(network);
        }
        let subnet = self.choose(subnet)?;
        let network = Network { name: name.to_owned(), subnet, reach, leases: Vec::new() };
        if host::has_interface(&network.bridge())? {
            return Err(Failure::configuration(format!(
                "this machine has an interface {} already, which is none of Lodge's: choose another name",
                network.bridge()
            )));
        }
        // Written down before anything is made, so that whatever is made can be found again.
        self.write(&network)?;
        host::up(&network, &self.directory).inspect_err(|_| {
            let _ = self.take_down(&network);
            let _ = self.remove_files(name);
        })?;
        Ok(network)
    }

    /// Removes a network and all that the host has of it.
    ///
    /// # Errors
    ///
    /// There is none of that name; no privilege. The network is still there then, and may be removed again.
    pub fn remove(&self, name: &str) -> Result<(), Failure> {
        let _lock = self.lock()?;
        let network = self.get(name)?;
        self.take_down(&network)?;
        self.remove_files(name)
    }

    /// Makes what is missing of a network, after a reboot for example, and gives a guest's card its
    /// address there: what the card is to be told of the network.
    ///
    /// # Errors
    ///
    /// No privilege, or the network is gone; another guest has a card with this address, or all are taken.
    pub fn connect(&self, name: &str, guest: &str, mac: [u8; 6]) -> Result<CardLease, Failure> {
        let _lock = self.lock()?;
        let mut network = self.get(name)?;
        host::up(&network, &self.directory)?;
        let before = network.leases.len();
        let address = network.grant(guest, mac)?;
        let names = self.hosts_file(name);
        if network.leases.len() != before || !names.exists() {
            self.write(&network)?;
        }
        let Network { subnet, reach, .. } = network;
        Ok(CardLease {
            address,
            prefix: subnet.prefix(),
            server: subnet.server(),
            host: (reach != Reach::Isolated).then(|| subnet.gateway()),
            nat: reach == Reach::Nat,
            names,
        })
    }

    /// Changes who has which address, on each network where `change` says that it did.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or written.
    pub fn change_leases(&self, change: impl Fn(&mut Vec<Lease>) -> bool) -> Result<(), Failure> {
        // Mostly there is nothing to do, and a person who has no networks gets no directory for them.
        if !self.all()?.iter_mut().any(|network| change(&mut network.leases)) {
            return Ok(());
        }
        let _lock = self.lock()?;
        for mut network in self.all()? {
            if change(&mut network.leases) {
                self.write(&network)?;
            }
        }
        Ok(())
    }

    fn take_down(&self, network: &Network) -> Result<(), Failure> {
        let all = self.all()?;
        let last_nat =
            !all.iter().any(|other| other.reach == Reach::Nat && other.name != network.name);
        host::down(network, last_nat, &self.directory)
    }

    /// A subnet that neither another network nor anything else of the host is on.
    fn choose(&self, wanted: Option<Subnet>) -> Result<Subnet, Failure> {
        let networks = self.all()?;
        let routes = host::routes();
        let taken = |subnet: &Subnet| {
            let network = networks.iter().find(|network| network.subnet.overlaps(subnet));
            let route = routes.iter().find(|route| route.overlaps(subnet));
            network
                .map(|it| format!("the network {}, {}", it.name, it.subnet))
                .or_else(|| route.map(|route| format!("a route of this machine to {route}")))
        };
        match wanted {
            Some(subnet) => match taken(&subnet) {
                None => Ok(subnet),
                Some(by) => Err(Failure::configuration(format!(
                    "the subnet {subnet} overlaps with {by}: choose another one, or leave out --subnet"
                ))),
            },
            None => Subnet::proposals().find(|subnet| taken(subnet).is_none()).ok_or_else(|| {
                Failure::configuration(
                    "all of 10.88.0.0/16 is in use: choose a subnet with --subnet",
                )
            }),
        }
    }

    /// Taken by all that change something, one after the other.
    fn lock(&self) -> Result<File, Failure> {
        fs::create_dir_all(&self.directory)
            .map_err(|error| cannot("create", &self.directory, &error))?;
        let path = self.directory.join(LOCK);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let locked = file.and_then(|file| file.lock().map(|()| file));
        locked.map_err(|error| cannot("lock", &path, &error))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }

    /// The names of a network's guests, for their VMMs to read.
    fn hosts_file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.hosts"))
    }

    fn remove_files(&self, name: &str) -> Result<(), Failure> {
        // The network is there as long as its own file is.
        for file in [self.hosts_file(name), self.file(name)] {
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(cannot("remove", &file, &error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<Option<Network>, Failure> {
        let path = self.file(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(cannot("read", &path, &error)),
        };
        let network: Network =
            serde_json::from_slice(&bytes).map_err(|error| damaged(&path, &error))?;
        if network.name != name {
            return Err(damaged(&path, &"it is another network's"));
        }
        Ok(Some(network))
    }

    /// Writes a network's files.
    fn write(&self, network: &Network) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(network).map_err(Failure::internal)?;
        self.write_whole(&self.file(&network.name), &text)?;
        self.write_whole(&self.hosts_file(&network.name), network.hosts().as_bytes())
    }

    /// Writes a file, whole or not at all, also if the host's power fails.
    fn write_whole(&self, path: &Path, text: &[u8]) -> Result<(), Failure> {
        let temporary = self.directory.join(".new");
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(text)?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        write().map_err(|error| cannot("write", path, &error))
    }
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::host(format!("cannot {what} {}: {error}", path.display()))
}

fn damaged(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::artifact(format!(
        "{} is damaged: {why}; remove the file, and the bridge with `ip link delete`",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str, subnet: &str) -> Network {
        let (subnet, reach) = (subnet.parse().unwrap(), Reach::Host);
        Network { name: name.into(), subnet, reach, leases: Vec::new() }
    }

    #[test]
    fn networks_are_found_again() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::at(home.path());
        assert_eq!(store.all().unwrap(), []);
        let _lock = store.lock().unwrap();
        let (a, b) = (network("a", "10.250.0.0/24"), network("b", "10.251.0.0/24"));
        store.write(&b).unwrap();
        store.write(&a).unwrap();
        assert_eq!(store.all().unwrap(), [a.clone(), b]);
        assert_eq!(store.get("a").unwrap(), a);
        assert_eq!(store.with_bridge("br-a").unwrap(), Some(a));
        assert_eq!(store.with_bridge("br0").unwrap(), None);
        assert!(store.get("c").unwrap_err().message.contains("lodge network create c"));
        assert!(store.get("../a").is_err());
        fs::write(home.path().join("networks/a.json"), "{").unwrap();
        assert!(store.get("a").unwrap_err().message.contains("is damaged"));
    }

    #[test]
    fn leases_go_with_their_guests() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::at(home.path());
        store.change_leases(|_| panic!("there are no networks")).unwrap();
        assert!(!home.path().join("networks").exists());
        drop(store.lock().unwrap());
        let mut lab = network("lab", "10.250.0.0/24");
        for (number, guest) in (0..).zip(["web", "db"]) {
            lab.grant(guest, [2, 0, 0, 0, 0, number]).unwrap();
        }
        store.write(&lab).unwrap();
        let names = || fs::read_to_string(home.path().join("networks/lab.hosts")).unwrap();
        assert!(names().contains(" web\n") && names().contains(" db\n"));
        let without_web = |leases: &mut Vec<Lease>| {
            let before = leases.len();
            leases.retain(|lease| lease.guest != "web");
            leases.len() != before
        };
        store.change_leases(without_web).unwrap();
        assert_eq!(store.get("lab").unwrap().leases, lab.leases[1..]);
        assert!(!names().contains("web") && names().contains(" db\n"));
        store.remove_files("lab").unwrap();
        store.remove_files("lab").unwrap();
        assert_eq!(store.all().unwrap(), []);
    }

    #[test]
    fn subnets_do_not_overlap() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::at(home.path());
        drop(store.lock().unwrap());
        let first = store.choose(None).unwrap();
        store.write(&Network { subnet: first, ..network("a", "10.250.0.0/24") }).unwrap();
        let second = store.choose(None).unwrap();
        assert!(!first.overlaps(&second));
        assert_eq!(store.choose(Some(second)).unwrap(), second);
        let failure = store.choose(Some(first)).unwrap_err();
        assert!(failure.message.contains("the network a"), "{failure}");
    }
}
