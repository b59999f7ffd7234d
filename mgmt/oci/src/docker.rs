//! What `docker save` wrote before it wrote image layouts: a `manifest.json` that names a configuration
//! and archives of layers, which only the configuration has digests of (moby, image/tarexport).

use serde::Deserialize;

use crate::files::Files;
use crate::image::{self, Blob, Config};
use crate::{Digest, Error, Image, document};

/// What makes an archive one of `docker save`.
pub(crate) const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Saved {
    fn tags(&self) -> impl Iterator<Item = &String> {
        self.repo_tags.iter().flatten()
    }
}

/// Finds the image with that name, or the only one.
pub(crate) fn open(files: Files, tag: Option<&str>) -> Result<Image, Error> {
    let place = files.path().display().to_string();
    let manifest: Vec<Saved> = document::parse(MANIFEST, &blob(MANIFEST).read(&files)?)?;
    let known = || {
        let tags: Vec<&str> = manifest.iter().flat_map(Saved::tags).map(String::as_str).collect();
        if tags.is_empty() { "no names".to_owned() } else { tags.join(", ") }
    };
    let saved = match (tag, manifest.as_slice()) {
        (None, [only]) => only,
        (None, []) => return Err(Error::damaged(MANIFEST, "it names no image")),
        (None, _) => return Err(Error::WhichTag { place, known: known() }),
        (Some(tag), all) => {
            // `latest` is as good as debian:latest.
            let is = |name: &String| {
                name == tag
                    || name.rsplit_once(':').is_some_and(|(name, t)| t == tag || name == tag)
            };
            let found = all.iter().find(|saved| saved.tags().any(is));
            let missing =
                || Error::NoTag { place: place.clone(), tag: tag.to_owned(), known: known() };
            found.ok_or_else(missing)?
        }
    };
    if saved.layers.len() > document::MAX_LAYERS {
        let limit = format!("{} layers", document::MAX_LAYERS);
        return Err(Error::TooLarge { what: place, limit });
    }
    let bytes = blob(&saved.config).read(&files)?;
    let configuration = document::read_configuration(&saved.config, &bytes)?;
    let blobs = saved.layers.iter().map(|layer| blob(layer)).collect();
    let layers = image::layers(&place, &configuration, blobs)?;
    Ok(Image {
        // What docker calls an image by. The digests of the layers are in it.
        digest: Digest::of(&bytes),
        config: Config::of(&configuration),
        layers,
        blobs: Box::new(files),
    })
}

/// A member of the archive.
fn blob(name: &str) -> Blob {
    Blob { place: name.to_owned(), name: name.to_owned(), digest: None, size: None }
}
