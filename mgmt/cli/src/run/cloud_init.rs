//! What the command line says to a guest's cloud-init.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use vmm_api::{CloudInitConfig, Failure};

use crate::args::GuestArgs;
use crate::failure;

/// Where ssh-keygen puts public keys, the better ones first.
const DEFAULT_KEYS: [&str; 3] = [".ssh/id_ed25519.pub", ".ssh/id_ecdsa.pub", ".ssh/id_rsa.pub"];
/// More than any of the files may have.
const MAX_FILE: u64 = (1 << 20) + 1;

/// Changes what the configuration file says as the command line says.
pub fn set(args: &GuestArgs, config: &mut Option<CloudInitConfig>) -> Result<(), Failure> {
    let GuestArgs { cloud_init, user_data, ssh_key, hostname, .. } = args;
    if !cloud_init && user_data.is_none() && ssh_key.is_empty() && hostname.is_none() {
        return Ok(());
    }
    let config = config.get_or_insert_default();
    if let Some(path) = user_data {
        config.user_data = Some(read(path)?);
    }
    for path in ssh_key {
        let text = if path == Path::new("default") { read(&default_key()?)? } else { read(path)? };
        let keys = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        config.ssh_keys.extend(keys.map(str::to_owned));
    }
    if hostname.is_some() {
        config.hostname.clone_from(hostname);
    }
    Ok(())
}

fn default_key() -> Result<PathBuf, Failure> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let mut keys = DEFAULT_KEYS.iter().map(|name| home.join(name));
    keys.find(|path| path.is_file()).ok_or_else(|| {
        Failure::configuration(format!(
            "there is no public key in {}: make a pair with `ssh-keygen`, or name the file with \
             --ssh-key",
            home.join(".ssh").display()
        ))
    })
}

/// What is in a file: as a text, since it becomes a part of the configuration.
fn read(path: &Path) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes))
        .map_err(failure::io("read", path))?;
    String::from_utf8(bytes).map_err(|_| {
        Failure::configuration(format!(
            "{} is no text: cloud-init is told texts only, neither archives nor what is compressed",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_a_part_of_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, contents: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, contents).unwrap();
            path
        };
        let mut config = None;
        set(&GuestArgs::default(), &mut config).unwrap();
        assert_eq!(config, None);
        set(&GuestArgs { cloud_init: true, ..Default::default() }, &mut config).unwrap();
        assert_eq!(config, Some(CloudInitConfig::default()));
        let args = GuestArgs {
            user_data: Some(file("u", b"#!/bin/sh\n")),
            ssh_key: vec![file("k", b"# mine\nssh-ed25519 AAAA a\n\nssh-rsa BBBB\n")],
            hostname: Some("db".into()),
            ..Default::default()
        };
        set(&args, &mut config).unwrap();
        let config = config.unwrap();
        assert_eq!(config.user_data.as_deref(), Some("#!/bin/sh\n"));
        assert_eq!(config.ssh_keys, ["ssh-ed25519 AAAA a", "ssh-rsa BBBB"]);
        assert_eq!(config.hostname.as_deref(), Some("db"));
        let args = GuestArgs { user_data: Some(file("z", b"\x1f\x8b\x08")), ..Default::default() };
        assert!(set(&args, &mut None).unwrap_err().message.contains("is no text"));
        let args = GuestArgs { user_data: Some("/nowhere".into()), ..Default::default() };
        assert!(set(&args, &mut None).unwrap_err().message.contains("/nowhere"));
    }
}
