//! What a guest is made of, as the file in its directory: `lodge start` reads it, and people may
//! edit it. It has the form of every configuration file (`lodge run --config`).

use std::collections::BTreeMap;

use images::Image;
use serde_json::{Map, Value};
use vmm_api::{ConsoleConfig, Failure, VmConfig, card_number, default_mac, format_mac};

/// The file's text. `config` is without the image's disk; what it has from the image is left out,
/// so that it is taken from the image again.
pub fn text(config: &VmConfig, image: Option<&Image>) -> Result<String, Failure> {
    let mut config = config.clone();
    // The card stays the same one if the guest is renamed.
    for (index, net) in config.nets.iter_mut().enumerate() {
        let of_name = default_mac(&config.name, card_number(index, net));
        net.mac.get_or_insert_with(|| format_mac(of_name));
    }
    if let Some(cloud_init) = &mut config.cloud_init {
        // What was done once is not done again because of another name.
        cloud_init.instance_id.get_or_insert_with(|| format!("lodge-{}", config.name));
    }
    let serial_is_here = config.serial == ConsoleConfig::Null;
    let Value::Object(mut fields) = serde_json::to_value(&config).map_err(Failure::internal)?
    else {
        return Err(Failure::internal("a configuration is no table"));
    };
    // The directory is the name.
    fields.remove("name");
    if serial_is_here {
        fields.remove("serial");
    }
    if let Some(image) = image {
        let image_of = |fields: &mut Map<String, Value>| {
            let Some(Value::Object(boot)) = fields.get_mut("boot") else { return };
            let path = |path: std::path::PathBuf| Value::from(path.to_string_lossy());
            if boot.get("kernel") == image.kernel().map(path).as_ref() {
                boot.remove("kernel");
                boot.remove("initrd");
            }
            if boot.get("cmdline") == Some(&Value::from(image.manifest().cmdline.as_str())) {
                boot.remove("cmdline");
            }
        };
        image_of(&mut fields);
        fields.insert("image".into(), image.name().to_string().into());
    }
    let mut value = Value::Object(fields);
    strip(&mut value);
    let text = toml::to_string_pretty(&value).map_err(Failure::internal)?;
    Ok(format!(
        "# What this guest is made of. `lodge start` reads it; see `lodge run --help`.\n{text}"
    ))
}

/// The addresses that a definition gives to cards, by the cards' numbers ([`card_number`]).
pub fn macs(text: &str) -> BTreeMap<usize, String> {
    let table: toml::Table = text.parse().unwrap_or_default();
    let nets = table.get("nets").and_then(toml::Value::as_array);
    let nets = nets.into_iter().flatten().filter_map(toml::Value::as_table).enumerate();
    nets.filter_map(|(index, net)| Some((number(index, net), net.get("mac")?.as_str()?.to_owned())))
        .collect()
}

/// As [`card_number`], of a card in a definition.
pub fn number(index: usize, net: &toml::Table) -> usize {
    let slot = net.get("slot").and_then(toml::Value::as_integer);
    slot.and_then(|slot| usize::try_from(slot).ok()).unwrap_or(index)
}

/// Takes out what TOML cannot say or need not: nulls, and tables with nothing in them.
pub fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(strip);
            fields.retain(|_, value| {
                !value.is_null() && value.as_object().is_none_or(|table| !table.is_empty())
            });
        }
        Value::Array(values) => values.iter_mut().for_each(strip),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::empty_config;

    #[test]
    fn a_definition_says_all_but_the_name() {
        let mut config = empty_config();
        config.cpus = 3;
        config.nets.push(Default::default());
        config.disks.push(vmm_api::BlockConfig {
            path: "/d".into(),
            format: vmm_api::DiskFormat::Raw,
            readonly: true,
            on_full: vmm_api::OnFull::Report,
            ..Default::default()
        });
        let text = text(&config, None).unwrap();
        let mut read: Value = toml::from_str::<Value>(&text).unwrap();
        assert!(read.get("name").is_none() && read.get("serial").is_none(), "{text}");
        read["name"] = "guest".into();
        let read: VmConfig = serde_json::from_value(read).unwrap();
        let mac = read.nets[0].mac.clone().unwrap();
        assert_eq!(vmm_api::parse_mac(&mac).unwrap(), default_mac("guest", 0));
        assert_eq!(macs(&text), BTreeMap::from([(0, mac.clone())]));
        let cards = "[[nets]]\n[[nets]]\nmac = 'x'\n[[nets]]\nmac = 'y'\nslot = 25";
        assert_eq!(macs(cards), BTreeMap::from([(1, "x".to_owned()), (25, "y".to_owned())]));
        assert_eq!(macs("no TOML"), BTreeMap::new());
        config.nets[0].mac = Some(mac);
        assert_eq!(read, config);
    }
}
