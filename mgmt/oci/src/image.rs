//! One image: where its layers are, and what is said about its program.

use std::io::{self, Read};

use oci_spec::image::ImageConfiguration;

use crate::digest::Hashed;
use crate::document::{self, MAX_BYTES};
use crate::files::Files;
use crate::{Access, Digest, Error, Reference, Tree, compression, docker, layout, registry};

/// An image for Linux on x86-64.
pub struct Image {
    pub(crate) digest: Digest,
    pub(crate) config: Config,
    pub(crate) layers: Vec<Layer>,
    pub(crate) blobs: Box<dyn Blobs>,
}

/// What an image says about its program (image-spec, config.md).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What is always run.
    pub entrypoint: Vec<String>,
    /// Its arguments, or the program where there is no entrypoint.
    pub command: Vec<String>,
    /// `NAME=VALUE`.
    pub environment: Vec<String>,
    /// The working directory.
    pub directory: Option<String>,
    /// `USER` or `USER:GROUP`, names or numbers.
    pub user: Option<String>,
    /// The signal that asks it to end.
    pub stop_signal: Option<String>,
}

/// A layer.
pub(crate) struct Layer {
    pub(crate) blob: Blob,
    /// The digest of its archive, uncompressed.
    pub(crate) diff_id: Digest,
}

/// Something that can be fetched.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    /// Where, for those who fetch it.
    pub(crate) place: String,
    /// What people call it.
    pub(crate) name: String,
    /// What it is known to be.
    pub(crate) digest: Option<Digest>,
    pub(crate) size: Option<u64>,
}

/// Where blobs come from.
pub(crate) trait Blobs {
    /// The contents at a place, as they come. `None`: there is none.
    fn open(&self, place: &str) -> Result<Option<Box<dyn Read + '_>>, Error>;
}

impl Blobs for Files {
    fn open(&self, place: &str) -> Result<Option<Box<dyn Read + '_>>, Error> {
        let found = self.get(place)?;
        Ok(found.map(|(reader, _)| Box::new(reader) as Box<dyn Read>))
    }
}

impl Image {
    /// Finds the image of that name, and reads all but its layers.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn open(reference: &Reference) -> Result<Image, Error> {
        Image::open_with(reference, &Access::of_user())
    }

    /// As [`Image::open`], with these logins at registries.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn open_with(reference: &Reference, access: &Access) -> Result<Image, Error> {
        match reference {
            Reference::Registry { host, repository, version } => {
                registry::open(host, repository, version, access)
            }
            Reference::Files { path, tag } => {
                let files = Files::open(path)?;
                if files.get(layout::INDEX)?.is_some() {
                    layout::open(files, tag.as_deref())
                } else if files.get(docker::MANIFEST)?.is_some() {
                    docker::open(files, tag.as_deref())
                } else {
                    Err(Error::NotAnImage {
                        path: path.clone(),
                        why: "it has neither an index.json, as OCI layouts have, nor a \
                              manifest.json, as `docker save` writes it"
                            .into(),
                    })
                }
            }
        }
    }

    /// What identifies it: the digest of its manifest, or of its configuration where there is no
    /// manifest. All else follows from it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What it says about its program.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How many layers it has.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Fetches a layer, counted from 0, and adds it to a tree, to which all before it have been added.
    /// `is_cancelled` is asked now and then.
    ///
    /// # Errors
    ///
    /// See [`Error`]. The tree is of no use then.
    pub fn add_layer(
        &self,
        index: usize,
        tree: &mut Tree,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let Some(layer) = self.layers.get(index) else { return Ok(()) };
        let name = &layer.blob.name;
        let mut blob = Hashed::new(layer.blob.open(&*self.blobs)?);
        let added = add(&mut blob, name, tree, is_cancelled);
        if matches!(added, Err(Error::Cancelled | Error::TooLarge { .. } | Error::Io { .. })) {
            return added.map(drop);
        }
        // What does not come is not damaged.
        if let Some(error) = blob.take_error() {
            return Err(Error::io("read", name.as_ref())(error));
        }
        // That it is not what it should be goes before what is wrong with what it is.
        let rest = io::copy(&mut blob, &mut io::sink());
        let read = rest.map_err(Error::io("read", name.as_ref()));
        let (digest, length) = blob.finish();
        read?;
        layer.blob.check(digest, length)?;
        let diff_id = added?;
        if diff_id != layer.diff_id {
            return Err(Error::damaged(
                name,
                format!("uncompressed, it is {diff_id} instead of {}", layer.diff_id),
            ));
        }
        Ok(())
    }
}

/// Adds an archive that may be compressed to a tree; the digest of the archive.
fn add(
    blob: &mut impl Read,
    name: &str,
    tree: &mut Tree,
    is_cancelled: &dyn Fn() -> bool,
) -> Result<Digest, Error> {
    let damaged = |error: io::Error| Error::damaged(name, error);
    let mut archive = Hashed::new(compression::decompress(blob).map_err(damaged)?);
    tree.add_layer(&mut archive, name, is_cancelled)?;
    // Behind an archive's end, nothing but zeros is of use.
    let mut piece = [0; 1 << 16];
    let mut left = MAX_PADDING;
    loop {
        let count = archive.read(&mut piece).map_err(damaged)?;
        if count == 0 {
            return Ok(archive.finish().0);
        }
        left = left.checked_sub(count as u64).ok_or_else(|| {
            let limit = format!("{} MiB behind the end of its archive", MAX_PADDING >> 20);
            Error::TooLarge { what: name.to_owned(), limit }
        })?;
    }
}

/// What an archive may have behind its end. GNU tar fills up to 10 KiB, others to a megabyte.
const MAX_PADDING: u64 = 64 << 20;

impl Blob {
    /// Opens it, for all of it to be read. What is longer than it should be has no end in sight: one
    /// byte of that is enough.
    fn open<'a>(&self, blobs: &'a dyn Blobs) -> Result<impl Read + use<'a>, Error> {
        let reader = blobs.open(&self.place)?;
        let reader = reader.ok_or_else(|| Error::damaged(&self.name, "it is missing"))?;
        Ok(reader.take(self.size.map_or(u64::MAX, |size| size.saturating_add(1))))
    }

    /// Reads a document.
    pub(crate) fn read(&self, blobs: &dyn Blobs) -> Result<Vec<u8>, Error> {
        let too_large = || {
            let limit = format!("{} MiB in a document", MAX_BYTES >> 20);
            Error::TooLarge { what: self.name.clone(), limit }
        };
        if self.size.is_some_and(|size| size > MAX_BYTES) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        let reader = self.open(blobs)?;
        reader
            .take(MAX_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::damaged(&self.name, error))?;
        let length = bytes.len() as u64;
        if length > MAX_BYTES {
            return Err(too_large());
        }
        self.check(Digest::of(&bytes), length)?;
        Ok(bytes)
    }

    /// Whether it is what it is known to be.
    fn check(&self, digest: Digest, length: u64) -> Result<(), Error> {
        match (self.size, self.digest) {
            (Some(size), _) if length < size => {
                Err(Error::damaged(&self.name, format!("it has {length} bytes instead of {size}")))
            }
            (Some(size), _) if length > size => {
                Err(Error::damaged(&self.name, format!("it has more than {size} bytes")))
            }
            (_, Some(known)) if known != digest => {
                Err(Error::damaged(&self.name, format!("its contents are {digest}")))
            }
            _ => Ok(()),
        }
    }
}

/// The layers of an image with this configuration, of which these are the blobs.
pub(crate) fn layers(
    name: &str,
    configuration: &ImageConfiguration,
    blobs: Vec<Blob>,
) -> Result<Vec<Layer>, Error> {
    let diff_ids = configuration.rootfs().diff_ids();
    if diff_ids.len() != blobs.len() {
        let (layers, ids) = (blobs.len(), diff_ids.len());
        return Err(Error::damaged(name, format!("it has {layers} layers, and digests of {ids}")));
    }
    let layer = |(blob, id): (Blob, &String)| Ok(Layer { blob, diff_id: id.parse()? });
    blobs.into_iter().zip(diff_ids).map(layer).collect()
}

impl Config {
    pub(crate) fn of(configuration: &ImageConfiguration) -> Config {
        let Some(config) = configuration.config() else { return Config::default() };
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Config {
            entrypoint: list(config.entrypoint()),
            command: list(config.cmd()),
            environment: list(config.env()),
            directory: text(config.working_dir()),
            user: text(config.user()),
            stop_signal: text(config.stop_signal()),
        }
    }
}

/// The image whose manifest is this one.
pub(crate) fn of_manifest(
    digest: Digest,
    manifest: &oci_spec::image::ImageManifest,
    blobs: Box<dyn Blobs>,
    blob: impl Fn(&oci_spec::image::Descriptor) -> Result<Blob, Error>,
) -> Result<Image, Error> {
    let name = digest.to_string();
    for layer in manifest.layers() {
        compression::check_media_type(layer.media_type().as_ref())?;
    }
    let config = blob(manifest.config())?;
    let configuration = document::read_configuration(&config.name, &config.read(&*blobs)?)?;
    let layer_blobs = manifest.layers().iter().map(blob).collect::<Result<_, _>>()?;
    let layers = layers(&name, &configuration, layer_blobs)?;
    Ok(Image { digest, config: Config::of(&configuration), layers, blobs })
}
