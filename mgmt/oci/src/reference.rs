//! How people name OCI images, as skopeo and podman do (containers-transports(5)).

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::{Digest, Error};

/// The names of transports for files. Which of them it is, is seen there.
const FILES: [&str; 3] = ["oci:", "oci-archive:", "docker-archive:"];

/// The transport for registries.
const REGISTRY: &str = "docker://";
/// The registry that is meant without a name.
const DOCKER_HUB: &str = "docker.io";
/// The longest name of an image in a registry.
const MAX_REPOSITORY: usize = 255;

/// The name of an OCI image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A layout or an archive on this machine.
    Files {
        /// Where it is.
        path: PathBuf,
        /// Which of its images, if it has several.
        tag: Option<String>,
    },
    /// An image in a registry.
    Registry {
        /// Its name or address, and port.
        host: String,
        /// The image's name there.
        repository: String,
        /// A tag, or a digest.
        version: String,
    },
}

impl Reference {
    /// Whether a text is meant to be the name of an OCI image.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(REGISTRY) || FILES.iter().any(|it| text.starts_with(it))
    }

    /// A short name for what is made from the image: letters, digits and hyphens.
    #[must_use]
    pub fn stem(&self) -> String {
        let text = match self {
            Reference::Files { path, .. } => {
                path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase()
            }
            Reference::Registry { repository, .. } => {
                repository.rsplit('/').next().unwrap_or_default().to_owned()
            }
        };
        let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
        let stem: String = text.chars().take(MAX_STEM).map(plain).collect();
        let stem = stem.trim_matches('-');
        if stem.is_empty() { "image".to_owned() } else { stem.to_owned() }
    }

    /// The same image wherever this process is.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn absolute(self) -> Result<Reference, Error> {
        match self {
            Reference::Files { path, tag } => {
                let path = std::path::absolute(&path).map_err(Error::io("find", &path))?;
                Ok(Reference::Files { path, tag })
            }
            far @ Reference::Registry { .. } => Ok(far),
        }
    }
}

/// The longest name that is made of an image's.
const MAX_STEM: usize = 30;

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference, Error> {
        let bad = |why| Error::Reference { text: text.to_owned(), why };
        if let Some(rest) = text.strip_prefix(REGISTRY) {
            return registry(rest).map_err(bad);
        }
        let rest = FILES.iter().find_map(|transport| text.strip_prefix(transport));
        match rest {
            Some("") => Err(bad("the path is missing")),
            Some(rest) => Ok(files(rest)),
            None => Err(bad("it does not say where the image is")),
        }
    }
}

/// A name as docker has it (distribution, reference/reference.go): without a host, it is one of Docker
/// Hub; a host has a dot or a port, or is `localhost`.
fn registry(text: &str) -> Result<Reference, &'static str> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    let is_host = |host: &str| host == "localhost" || host.contains(['.', ':']);
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if is_host(host) => (host, path.to_owned()),
        Some(_) => (DOCKER_HUB, name.to_owned()),
        None => (DOCKER_HUB, format!("library/{name}")),
    };
    let (repository, tag) = match path.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (path.as_str(), None),
    };
    let version = digest.or(tag).unwrap_or("latest");
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte)
            })
    };
    let is_address = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    if host.is_empty() || !host.bytes().all(is_address) {
        return Err("that is no host");
    }
    if repository.len() > MAX_REPOSITORY || !repository.split('/').all(is_part) {
        return Err("names in registries have lower-case letters, digits, '.', '_', '-' and '/'");
    }
    let is_tag_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match digest {
        Some(digest) if digest.parse::<Digest>().is_err() => return Err("that is no digest"),
        None if version.is_empty() || version.len() > 128 || !version.bytes().all(is_tag_byte) => {
            return Err("that is no tag");
        }
        _ => {}
    }
    let (host, version) = (host.to_owned(), version.to_owned());
    Ok(Reference::Registry { host, repository: repository.to_owned(), version })
}

/// Paths may have colons in them: the longest that is there counts.
fn files(text: &str) -> Reference {
    let whole = Reference::Files { path: text.into(), tag: None };
    if Path::new(text).exists() {
        return whole;
    }
    let colons = text.rmatch_indices(':').map(|(at, _)| at);
    let mut splits = colons.filter_map(|at| {
        let (path, tag) = (text.get(..at)?, text.get(at + 1..)?);
        (!path.is_empty() && !tag.is_empty()).then_some((path, tag))
    });
    match splits.find(|(path, _)| Path::new(path).exists()) {
        Some((path, tag)) => Reference::Files { path: path.into(), tag: Some(tag.to_owned()) },
        None => whole,
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Files { path, tag: None } => write!(f, "oci:{}", path.display()),
            Reference::Files { path, tag: Some(tag) } => write!(f, "oci:{}:{tag}", path.display()),
            Reference::Registry { host, repository, version } => {
                let between = if version.contains(':') { '@' } else { ':' };
                write!(f, "docker://{host}/{repository}{between}{version}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_registries_are_dockers() {
        let digest = Digest::of(b"").to_string();
        let full =
            |text: &str| text.parse::<Reference>().map(|reference| reference.to_string()).ok();
        for (short, long) in [
            ("docker://alpine", "docker://docker.io/library/alpine:latest"),
            ("docker://me/app:1", "docker://docker.io/me/app:1"),
            ("docker://localhost:5000/app", "docker://localhost:5000/app:latest"),
            ("docker://r.example/a/b/c:v1.2_x", "docker://r.example/a/b/c:v1.2_x"),
        ] {
            assert_eq!(full(short).as_deref(), Some(long));
            assert_eq!(full(long).as_deref(), Some(long));
        }
        let pinned = format!("docker://r.example/a:1@{digest}");
        assert_eq!(full(&pinned), Some(format!("docker://r.example/a@{digest}")));
        for bad in [
            "",
            "A",
            "a/../b",
            "r.example/",
            "a:",
            "x/a:b/c",
            "a@sha256:1",
            "a:b c",
            "ex ample.x/a",
        ] {
            assert_eq!(full(&format!("docker://{bad}")), None, "{bad}");
        }
    }

    #[test]
    fn paths_are_told_from_tags() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("my image:1");
        std::fs::create_dir(&path).unwrap();
        let path = path.to_str().unwrap();
        for (text, expected) in [
            (format!("oci:{path}"), None),
            (format!("oci-archive:{path}:latest"), Some("latest")),
            (format!("docker-archive:{path}:debian:12"), Some("debian:12")),
        ] {
            let reference: Reference = text.parse().unwrap();
            let tag = expected.map(str::to_owned);
            assert_eq!(reference, Reference::Files { path: path.into(), tag }, "{text}");
            assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            assert_eq!(reference.stem(), "my-image-1");
        }
        let missing: Reference = "oci:/no/where:x".parse().unwrap();
        assert_eq!(missing, Reference::Files { path: "/no/where:x".into(), tag: None });
        for bad in ["", "oci:", "debian:12", "/tmp/x"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
        assert!(Reference::is_meant("oci:x") && !Reference::is_meant("debian:12"));
    }
}
