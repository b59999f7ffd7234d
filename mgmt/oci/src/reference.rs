//! How people name OCI images, as skopeo and podman do (containers-transports(5)).

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::Error;

/// The names of transports for files. Which of them it is, is seen there.
const FILES: [&str; 3] = ["oci:", "oci-archive:", "docker-archive:"];

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
}

impl Reference {
    /// Whether a text is meant to be the name of an OCI image.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        FILES.iter().any(|transport| text.starts_with(transport))
    }

    /// A short name for what is made from the image: letters, digits and hyphens.
    #[must_use]
    pub fn stem(&self) -> String {
        let text = match self {
            Reference::Files { path, .. } => {
                path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase()
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
        }
    }
}

/// The longest name that is made of an image's.
const MAX_STEM: usize = 30;

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference, Error> {
        let bad = |why| Error::Reference { text: text.to_owned(), why };
        let rest = FILES.iter().find_map(|transport| text.strip_prefix(transport));
        match rest {
            Some("") => Err(bad("the path is missing")),
            Some(rest) => Ok(files(rest)),
            None => Err(bad("it does not say where the image is")),
        }
    }
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
