//! What a guest's cloud-init is told.

use serde::{Deserialize, Serialize};

/// What a guest's cloud-init is told, by a disk labelled `cidata` (cloud-init's data source "NoCloud").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CloudInitConfig {
    /// What is to be done, as a text that cloud-init understands: `#cloud-config`, `#!/bin/sh` and
    /// others. `None`: nothing besides the rest of this.
    pub user_data: Option<String>,
    /// Public keys, a line each as in `authorized_keys`, with which the image's own user can log in by ssh.
    pub ssh_keys: Vec<String>,
    /// What the guest shall call itself; by default as it is called here.
    pub hostname: Option<String>,
    /// Another one has cloud-init do again what it does once per instance. By default made from the
    /// guest's name.
    pub instance_id: Option<String>,
    /// The network's configuration, in cloud-init's form. `None`: each card by DHCP.
    pub network_config: Option<String>,
}

/// Something that cloud-init cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloudInitError {
    /// Too long for the disk that it is handed over on.
    #[error("the {0} for cloud-init is longer than 1 MiB: have the guest fetch the rest")]
    TooLong(&'static str),
    /// Not a public key.
    #[error(
        "{0:?} is no public key for ssh: give a line as in ~/.ssh/id_ed25519.pub, \
         \"ssh-ed25519 AAAA... comment\""
    )]
    SshKey(String),
    /// The other half of the key.
    #[error(
        "this is a private key for ssh, which no guest may see: give the file that ends in .pub"
    )]
    PrivateKey,
    /// Not a host name.
    #[error(
        "the host name {0:?} cannot be: a name has letters, digits and inner hyphens, parts of up to \
         63 with dots between them"
    )]
    Hostname(String),
}

/// The longest text, in bytes.
const MAX_TEXT: usize = 1 << 20;

impl CloudInitConfig {
    /// Checks what can be told from the configuration alone.
    ///
    /// # Errors
    ///
    /// The first thing that cannot be.
    pub fn validate(&self) -> Result<(), CloudInitError> {
        for (what, text) in [
            ("user data", &self.user_data),
            ("network configuration", &self.network_config),
            ("instance ID", &self.instance_id),
        ] {
            if text.as_ref().is_some_and(|text| text.len() > MAX_TEXT) {
                return Err(CloudInitError::TooLong(what));
            }
        }
        if self.ssh_keys.iter().map(String::len).sum::<usize>() > MAX_TEXT {
            return Err(CloudInitError::TooLong("list of keys"));
        }
        self.ssh_keys.iter().try_for_each(|key| check_key(key))?;
        match &self.hostname {
            Some(name) if !is_host_name(name) => Err(CloudInitError::Hostname(name.clone())),
            _ => Ok(()),
        }
    }
}

/// A line of `authorized_keys` (sshd(8)) without options: type, key in base64, comment.
fn check_key(key: &str) -> Result<(), CloudInitError> {
    if key.contains("PRIVATE KEY") {
        return Err(CloudInitError::PrivateKey);
    }
    let mut words = key.split(' ');
    let kind = words.next().unwrap_or_default();
    let known = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];
    let body = words.next().unwrap_or_default();
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    let good = known.iter().any(|start| kind.starts_with(start))
        && !body.is_empty()
        && body.bytes().all(is_base64)
        && !key.contains(char::is_control);
    if good { Ok(()) } else { Err(CloudInitError::SshKey(key.chars().take(60).collect())) }
}

/// RFC 1123, 2.1.
fn is_host_name(name: &str) -> bool {
    let is_good = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_public_ones() {
        let with = |key: &str| {
            CloudInitConfig { ssh_keys: vec![key.into()], ..Default::default() }.validate()
        };
        for good in
            ["ssh-ed25519 AAAAC3Nz me@here", "ssh-rsa AAAA==", "ecdsa-sha2-nistp256 A+/= a b"]
        {
            assert_eq!(with(good), Ok(()), "{good}");
        }
        for bad in ["", "ssh-ed25519", "AAAA ssh-rsa", "ssh-rsa AA AA\nssh-rsa BB", "ssh-rsa <b>"] {
            assert_eq!(with(bad), Err(CloudInitError::SshKey(bad.into())));
        }
        let private = "-----BEGIN OPENSSH PRIVATE KEY-----";
        assert_eq!(with(private), Err(CloudInitError::PrivateKey));
    }

    #[test]
    fn names_and_lengths() {
        let named = |name: &str| {
            CloudInitConfig { hostname: Some(name.into()), ..Default::default() }.validate()
        };
        for good in ["web", "web-1.example.org", "9"] {
            assert_eq!(named(good), Ok(()));
        }
        for bad in ["", "-a", "a-", "a..b", "a_b", &"a".repeat(64)] {
            assert_eq!(named(bad), Err(CloudInitError::Hostname(bad.into())));
        }
        let user_data = Some("x".repeat(MAX_TEXT + 1));
        let long = CloudInitConfig { user_data, ..Default::default() };
        assert_eq!(long.validate(), Err(CloudInitError::TooLong("user data")));
    }
}
