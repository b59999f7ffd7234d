//! The disk by which a guest's cloud-init is told what to do: a FAT file system labelled `cidata`
//! with a few small files (cloud-init's documentation, "NoCloud").
//!
//! The same configuration makes the same disk, byte by byte: a guest that goes on from a snapshot finds it
//! as it was.

use std::io::{self, Cursor, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use serde_json::{Value, json};
use vmm_api::{CloudInitConfig, ConfigError, VmConfig, card_mac, format_mac, host_name};

use crate::BuildError;

/// As cloud-init looks for it.
const LABEL: [u8; 11] = *b"cidata     ";
/// "LODG", so that it does not follow from the time.
const VOLUME_ID: u32 = 0x474f_444c;
/// What the file system needs for itself, in bytes.
const OVERHEAD: usize = 256 << 10;

/// The disk's bytes.
pub fn seed(config: &VmConfig, cloud_init: &CloudInitConfig) -> Result<Vec<u8>, BuildError> {
    image(&[
        ("meta-data", text(&meta_data(&config.name, cloud_init))),
        ("user-data", user_data(cloud_init)),
        ("network-config", network_config(config, cloud_init)?),
    ])
    .map_err(BuildError::Seed)
}

/// JSON, which is YAML.
fn text(value: &Value) -> String {
    format!("{value:#}\n")
}

fn meta_data(name: &str, cloud_init: &CloudInitConfig) -> Value {
    let instance_id = cloud_init.instance_id.clone().unwrap_or_else(|| format!("lodge-{name}"));
    let hostname = cloud_init.hostname.clone().or_else(|| host_name(name));
    json!({
        "instance-id": instance_id,
        "local-hostname": hostname.as_deref().unwrap_or("guest"),
        "public-keys": cloud_init.ssh_keys,
    })
}

fn user_data(cloud_init: &CloudInitConfig) -> String {
    cloud_init.user_data.clone().unwrap_or_else(|| "#cloud-config\n".to_owned())
}

/// Each card by DHCP, wherever the guest's kernel finds it.
fn network_config(config: &VmConfig, cloud_init: &CloudInitConfig) -> Result<String, ConfigError> {
    if let Some(told) = &cloud_init.network_config {
        return Ok(told.clone());
    }
    let mut cards = serde_json::Map::new();
    for (index, card) in config.nets.iter().enumerate() {
        let mac = format_mac(card_mac(&config.name, index, card)?);
        let card = json!({ "match": { "macaddress": mac }, "dhcp4": true, "dhcp6": true });
        cards.insert(format!("card{index}"), card);
    }
    Ok(text(&json!({ "version": 2, "ethernets": cards })))
}

/// A file system with these files.
fn image(files: &[(&str, String)]) -> io::Result<Vec<u8>> {
    let contents: usize = files.iter().map(|(_, text)| text.len()).sum();
    let mut bytes = vec![0; (OVERHEAD + contents).next_multiple_of(64 << 10)];
    let options = FormatVolumeOptions::new().volume_label(LABEL).volume_id(VOLUME_ID);
    format_volume(Cursor::new(&mut bytes[..]), options)?;
    let volume = FileSystem::new(Cursor::new(&mut bytes[..]), FsOptions::new())?;
    for (name, text) in files {
        let mut file = volume.root_dir().create_file(name)?;
        file.write_all(text.as_bytes())?;
        file.flush()?;
    }
    volume.unmount()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn config(cloud_init: Value) -> VmConfig {
        serde_json::from_value(json!({
            "name": "web_1", "cpus": 1, "memory_mib": 64, "boot": { "kernel": "/k" },
            "nets": [{ "mac": "52:54:00:00:00:09" }], "cloud_init": cloud_init,
        }))
        .unwrap()
    }

    fn read(config: &VmConfig) -> Vec<String> {
        let mut bytes = seed(config, config.cloud_init.as_ref().unwrap()).unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let volume = FileSystem::new(Cursor::new(&mut bytes[..]), FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label_as_bytes(), b"cidata");
        let file = |name| {
            let mut text = String::new();
            volume.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
            text
        };
        ["meta-data", "user-data", "network-config"].map(file).to_vec()
    }

    #[test]
    fn all_that_is_told_is_there() {
        let user_data = format!("#!/bin/sh\n{}", "x".repeat((1 << 20) - 10));
        let told = config(json!({
            "user_data": user_data, "ssh_keys": ["ssh-ed25519 AAAA"], "hostname": "db.example",
            "instance_id": "one", "network_config": "version: 1\n",
        }));
        let files = read(&told);
        let meta: Value = serde_json::from_str(&files[0]).unwrap();
        let wanted = json!({
            "instance-id": "one", "local-hostname": "db.example", "public-keys": ["ssh-ed25519 AAAA"],
        });
        assert_eq!(meta, wanted);
        assert!(files[1] == user_data);
        assert_eq!(files[2], "version: 1\n");
        let again = |config: &VmConfig| seed(config, config.cloud_init.as_ref().unwrap()).unwrap();
        assert!(again(&told) == again(&told));
    }

    #[test]
    fn what_is_not_told_follows_from_the_guest() {
        let files = read(&config(json!({})));
        let meta: Value = serde_json::from_str(&files[0]).unwrap();
        assert_eq!(meta["instance-id"], "lodge-web_1");
        assert_eq!(meta["local-hostname"], "web-1");
        assert_eq!(files[1], "#cloud-config\n");
        let network: Value = serde_json::from_str(&files[2]).unwrap();
        assert_eq!(network["ethernets"]["card0"]["match"]["macaddress"], "52:54:00:00:00:09");
    }

    /// What other programs make of it.
    #[test]
    fn the_tools_of_the_system_read_it() {
        let config = config(json!({ "user_data": "#!/bin/sh\ntrue\n" }));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), seed(&config, config.cloud_init.as_ref().unwrap()).unwrap())
            .unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
            let mut command = std::process::Command::new(program);
            match command.args(arguments).arg(file.path()).env("PATH", path).output() {
                Ok(output) => {
                    assert!(output.status.success(), "{output:?}");
                    Some(String::from_utf8(output.stdout).unwrap())
                }
                Err(_) => {
                    eprintln!("SKIPPED: a seed read by {program}: it is not installed");
                    None
                }
            }
        };
        for (tag, value) in [("LABEL", "cidata"), ("TYPE", "vfat")] {
            if let Some(found) = run("blkid", &["-p", "-o", "value", "-s", tag]) {
                assert_eq!(found.trim(), value);
            }
        }
        let _ = run("fsck.fat", &["-n"]);
        if let Some(names) = run("mdir", &["-b", "-i"]) {
            let names: Vec<&str> = names.split_whitespace().collect();
            assert_eq!(names, ["::/meta-data", "::/user-data", "::/network-config"]);
        }
    }
}
