//! OCI images made by hand: a layout and what `docker save` would make of it.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::sha256;

/// An entry of a layer: its name, owner, mode and contents. A name that ends with a slash is a
/// directory's; contents that begin with `->` are where a symbolic link leads.
pub type Entry<'a> = (&'a str, u64, u32, &'a [u8]);

/// An image in the making.
pub struct OciImage {
    /// What its configuration says under `config`.
    pub config: Value,
    /// Which machines it is for.
    pub architecture: &'static str,
    layers: Vec<Vec<u8>>,
}

impl OciImage {
    /// An image of these layers.
    #[must_use]
    pub fn new(config: Value, layers: &[&[Entry<'_>]]) -> OciImage {
        let layers = layers.iter().map(|entries| layer(entries)).collect();
        OciImage { config, architecture: "amd64", layers }
    }

    fn configuration(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| digest(layer)).collect();
        json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
        .to_string()
        .into_bytes()
    }

    /// Writes an image layout with the tag `latest`. The names of its layers' blobs.
    ///
    /// # Panics
    ///
    /// If it cannot be written.
    pub fn write_layout(&self, directory: &Path) -> Vec<String> {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("a directory");
        let blob = |kind: &str, bytes: &[u8]| {
            let name = digest(bytes);
            fs::write(blobs.join(&name[7..]), bytes).expect("a blob");
            let kind = format!("application/vnd.oci.image.{kind}");
            json!({ "mediaType": kind, "digest": name, "size": bytes.len() })
        };
        let layers = self.layers.iter().map(|layer| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(layer).expect("memory");
            blob("layer.v1.tar+gzip", &encoder.finish().expect("memory"))
        });
        let layers: Vec<Value> = layers.collect();
        let config = blob("config.v1+json", &self.configuration());
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let mut manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(directory.join("index.json"), index.to_string()).expect("an index");
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .expect("a layout");
        layers.iter().filter_map(|layer| layer["digest"].as_str().map(str::to_owned)).collect()
    }

    /// What `docker save` wrote before it wrote layouts, with the name `test:1`.
    ///
    /// # Panics
    ///
    /// Never.
    #[must_use]
    pub fn docker_archive(&self) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        let mut add = |name: &str, bytes: &[u8]| {
            let mut header = Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, bytes).expect("memory");
        };
        let mut names = Vec::new();
        for layer in &self.layers {
            let name = format!("{}/layer.tar", &digest(layer)[7..]);
            add(&name, layer);
            names.push(name);
        }
        add("config.json", &self.configuration());
        let manifest =
            json!([{ "Config": "config.json", "RepoTags": ["test:1"], "Layers": names }]);
        add("manifest.json", manifest.to_string().as_bytes());
        builder.into_inner().expect("memory")
    }
}

/// A shell and its commands that need no libraries. `None`: this machine has none.
#[must_use]
pub fn static_busybox() -> Option<Vec<u8>> {
    let loader = b"/ld-linux";
    let is_static =
        |program: &Vec<u8>| !program.windows(loader.len()).any(|window| window == loader);
    let mut places = ["/bin/busybox", "/usr/bin/busybox"].iter();
    places.find_map(|path| fs::read(path).ok()).filter(is_static)
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

fn layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, owner, mode, contents) in entries {
        let mut header = Header::new_gnu();
        header.set_uid(*owner);
        header.set_gid(*owner);
        header.set_mode(*mode);
        header.set_size(0);
        if name.ends_with('/') {
            header.set_entry_type(EntryType::Directory);
            builder.append_data(&mut header, name, &b""[..]).expect("memory");
        } else if let Some(target) = contents.strip_prefix(b"->") {
            header.set_entry_type(EntryType::Symlink);
            let target = String::from_utf8_lossy(target).into_owned();
            builder.append_link(&mut header, name, target).expect("memory");
        } else {
            header.set_size(contents.len() as u64);
            builder.append_data(&mut header, name, *contents).expect("memory");
        }
    }
    builder.into_inner().expect("memory")
}
