//! Documents: indexes, manifests and configurations (image-spec; docker's image manifest v2, schema 2,
//! which has the same form).

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Os};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{Digest, Error};

/// The most bytes of a document (distribution-spec: 4 MiB are to be expected of manifests).
pub(crate) const MAX_BYTES: u64 = 4 << 20;
/// The most layers of an image. Overlay file systems have 500 at most.
pub(crate) const MAX_LAYERS: usize = 512;

/// A document of a kind that its contents tell.
pub(crate) enum Document {
    Index(Box<ImageIndex>),
    Manifest(Box<ImageManifest>),
}

impl Document {
    /// Reads an index or a manifest. `name` is what it is called in errors.
    pub(crate) fn read(name: &str, bytes: &[u8]) -> Result<Document, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Outline {
            #[serde(default)]
            schema_version: u32,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
        }
        let outline: Outline = parse(name, bytes)?;
        if outline.schema_version == 1 {
            return Err(Error::Unsupported {
                what: format!("{name} is a manifest of schema version 1"),
                hint: "push the image again with a program of this decade",
            });
        }
        match (outline.manifests, outline.layers) {
            (Some(_), None) => parse(name, bytes).map(|it| Document::Index(Box::new(it))),
            (None, Some(_)) => parse(name, bytes).map(|it| Document::Manifest(Box::new(it))),
            // Two programs could see two images in it.
            (Some(_), Some(_)) => Err(Error::damaged(name, "it has both manifests and layers")),
            (None, None) => Err(Error::damaged(name, "it has neither manifests nor layers")),
        }
    }
}

/// Reads the configuration of an image.
pub(crate) fn read_configuration(name: &str, bytes: &[u8]) -> Result<ImageConfiguration, Error> {
    let configuration: ImageConfiguration = parse(name, bytes)?;
    let (os, architecture) = (configuration.os(), configuration.architecture());
    if (os, architecture) != (&Os::Linux, &Arch::Amd64) {
        let found = format!("{os}/{architecture}");
        return Err(Error::Platform { image: name.to_owned(), found });
    }
    if configuration.rootfs().diff_ids().len() > MAX_LAYERS {
        let limit = format!("{MAX_LAYERS} layers");
        return Err(Error::TooLarge { what: name.to_owned(), limit });
    }
    Ok(configuration)
}

pub(crate) fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| Error::damaged(name, error))
}

/// The digest in a descriptor.
pub(crate) fn digest(descriptor: &Descriptor) -> Result<Digest, Error> {
    descriptor.digest().as_ref().parse()
}

/// The one for Linux on x86-64; what says nothing of its platform is looked at only if no other is
/// right. `name`: what is chosen from, for errors.
pub(crate) fn choose<'a>(
    name: &str,
    descriptors: impl Iterator<Item = &'a Descriptor> + Clone,
) -> Result<&'a Descriptor, Error> {
    let is_ours = |descriptor: &&Descriptor| {
        descriptor.platform().as_ref().is_some_and(|platform| {
            (platform.os(), platform.architecture()) == (&Os::Linux, &Arch::Amd64)
        })
    };
    // The plain one rather than one for newer processors only.
    let plain = |descriptor: &&Descriptor| {
        let variant = descriptor.platform().as_ref().and_then(|platform| {
            platform.variant().as_deref().filter(|variant| !matches!(*variant, "" | "v1"))
        });
        is_ours(descriptor) && variant.is_none()
    };
    let unsaid = |descriptor: &&Descriptor| descriptor.platform().is_none();
    let mut all = descriptors.clone();
    let found = all.find(plain).or_else(|| descriptors.clone().find(is_ours));
    found.or_else(|| descriptors.clone().find(unsaid)).ok_or_else(|| {
        let mut found: Vec<String> = descriptors
            .filter_map(|descriptor| descriptor.platform().as_ref())
            .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
            // Attestations are no images.
            .filter(|platform| platform != "unknown/unknown")
            .collect();
        found.sort();
        found.dedup();
        let found = if found.is_empty() { "no machine at all".into() } else { found.join(", ") };
        Error::Platform { image: name.to_owned(), found }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(platform: &str) -> String {
        let digest = Digest::of(platform.as_bytes());
        let platform = match platform.split('/').collect::<Vec<_>>()[..] {
            [os, architecture] => {
                format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"}}"#)
            }
            [os, architecture, variant] => format!(
                r#","platform":{{"os":"{os}","architecture":"{architecture}","variant":"{variant}"}}"#
            ),
            _ => String::new(),
        };
        format!(r#"{{"mediaType":"x","size":1,"digest":"{digest}"{platform}}}"#)
    }

    fn choose_of(platforms: &[&str]) -> Result<Digest, Error> {
        let list: Vec<String> = platforms.iter().map(|platform| descriptor(platform)).collect();
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, list.join(","));
        let Document::Index(index) = Document::read("x", text.as_bytes()).unwrap() else {
            panic!("no index");
        };
        digest(choose("x", index.manifests().iter())?)
    }

    #[test]
    fn the_image_for_this_machine_is_chosen() {
        let of = |platform: &str| Digest::of(platform.as_bytes());
        let right = "linux/amd64";
        assert_eq!(choose_of(&["linux/arm64", right, "unknown/unknown"]).unwrap(), of(right));
        assert_eq!(choose_of(&["linux/amd64/v3", right]).unwrap(), of(right));
        assert_eq!(choose_of(&["linux/amd64/v3"]).unwrap(), of("linux/amd64/v3"));
        assert_eq!(choose_of(&["", right]).unwrap(), of(right));
        assert_eq!(choose_of(&["linux/arm64", ""]).unwrap(), of(""));
        let error = choose_of(&["linux/arm64", "windows/amd64", "unknown/unknown"]).unwrap_err();
        assert!(error.to_string().contains("linux/arm64, windows/amd64,"), "{error}");
        assert!(matches!(choose_of(&[]), Err(Error::Platform { .. })));
    }

    #[test]
    fn ambiguous_and_old_documents_are_refused() {
        let read = |text: &str| Document::read("x", text.as_bytes()).map(drop).unwrap_err();
        assert!(matches!(read(r#"{"schemaVersion":1,"layers":[]}"#), Error::Unsupported { .. }));
        let both = r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        for bad in ["", "[]", "{}", r#"{"schemaVersion":2}"#, both, r#"{"layers":7}"#] {
            assert!(matches!(read(bad), Error::Damaged { .. }), "{bad}");
        }
    }
}
