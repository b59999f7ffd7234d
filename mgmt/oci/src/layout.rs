//! Image layouts (image-spec, image-layout.md): an `index.json` that names images by tags, and blobs
//! by their digests.

use std::collections::BTreeSet;

use oci_spec::image::{Descriptor, ImageIndex};

use crate::document::{self, Document};
use crate::files::Files;
use crate::image::{self, Blob};
use crate::{Error, Image};

/// What makes a directory a layout.
pub(crate) const INDEX: &str = "index.json";
/// How many indexes lead to a manifest, at most: the layout's own is the first.
const MAX_DEPTH: usize = 4;
/// Where a layout says which tag an image has; docker and containerd add the whole name.
const TAGS: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];

/// Finds the image with that tag, or the only one.
pub(crate) fn open(files: Files, tag: Option<&str>) -> Result<Image, Error> {
    let place = files.path().display().to_string();
    let index = Blob { place: INDEX.into(), name: INDEX.into(), digest: None, size: None };
    let index: ImageIndex = document::parse(INDEX, &index.read(&files)?)?;
    let tagged = select(&place, &index, tag)?;
    let mut next = document::choose(&place, tagged.iter().copied())?.clone();
    for _ in 0..MAX_DEPTH {
        let blob = blob(&next)?;
        match Document::read(&blob.name, &blob.read(&files)?)? {
            Document::Index(index) => {
                next = document::choose(&blob.name, index.manifests().iter())?.clone();
            }
            Document::Manifest(manifest) => {
                let digest = document::digest(&next)?;
                return image::of_manifest(digest, &manifest, Box::new(files), self::blob);
            }
        }
    }
    Err(Error::damaged(place, "its indexes lead to nothing but indexes"))
}

/// A blob by its descriptor.
fn blob(descriptor: &Descriptor) -> Result<Blob, Error> {
    let digest = document::digest(descriptor)?;
    Ok(Blob {
        place: format!("blobs/sha256/{}", digest.hex()),
        name: digest.to_string(),
        digest: Some(digest),
        size: Some(descriptor.size()),
    })
}

fn tags(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    let annotations = descriptor.annotations().as_ref();
    TAGS.iter().filter_map(move |key| Some(annotations?.get(*key)?.as_str()))
}

/// What the index has under a tag; without one, all of it, if it has one tag at most.
fn select<'a>(
    place: &str,
    index: &'a ImageIndex,
    tag: Option<&str>,
) -> Result<Vec<&'a Descriptor>, Error> {
    let first: BTreeSet<&str> =
        index.manifests().iter().filter_map(|descriptor| tags(descriptor).next()).collect();
    let known = || first.iter().copied().collect::<Vec<_>>().join(", ");
    let Some(tag) = tag else {
        return match first.len() {
            0 | 1 => Ok(index.manifests().iter().collect()),
            _ => Err(Error::WhichTag { place: place.to_owned(), known: known() }),
        };
    };
    // `latest` is as good as docker.io/library/debian:latest.
    let is = |known: &str| known == tag || known.rsplit_once(':').is_some_and(|(_, t)| t == tag);
    let found: Vec<&Descriptor> =
        index.manifests().iter().filter(|descriptor| tags(descriptor).any(is)).collect();
    if found.is_empty() {
        let known = if first.is_empty() { "no tags".to_owned() } else { known() };
        return Err(Error::NoTag { place: place.to_owned(), tag: tag.to_owned(), known });
    }
    Ok(found)
}
