//! What is known of an image.

use agent_protocol::program::Program;
use serde::{Deserialize, Serialize};
use vmm_api::DiskFormat;

use crate::Error;

/// The version of the manifest's form that this program writes and reads.
pub const MANIFEST_FORMAT: u32 = 1;

/// What is known of an image; `manifest.json` in its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`].
    pub format: u32,
    /// The image's name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Where it comes from.
    pub source: Source,
    /// The disk.
    pub disk: Artifact,
    /// The disk's format; never [`DiskFormat::Auto`].
    pub disk_format: DiskFormat,
    /// The kernel to start it with.
    pub kernel: Option<Artifact>,
    /// The initial RAM disk to start it with.
    pub initrd: Option<Artifact>,
    /// The kernel's command line, where the person who starts a guest gives none.
    pub cmdline: String,
    /// Who can log in.
    pub logins: Vec<Login>,
    /// Whether Lodge's agent is in it and starts with the system.
    #[serde(default)]
    pub agent: bool,
    /// What its guests run, if it was made of an OCI image: Lodge's init is their first program then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Program>,
    /// Whether it mounts shared folders by itself, as the kernel's command line says.
    #[serde(default)]
    pub folders: bool,
}

/// One file of an image, in the image's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Its name, without any directory.
    pub file: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256 sum, in hexadecimal.
    pub sha256: String,
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Built from an archive of packages.
    Built {
        /// What was built, such as "Debian 12 (bookworm)".
        what: String,
        /// The archives, as lines of apt's sources.list.
        archives: Vec<String>,
    },
    /// Copied from a file.
    Imported {
        /// The file at that time.
        from: String,
    },
    /// Made of an OCI image.
    Oci {
        /// The name by which it was found then.
        from: String,
        /// Its digest, which says which image it is.
        digest: String,
    },
}

/// An account in the image that has a known password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl Manifest {
    /// Reads a manifest and checks that it cannot lead outside its directory.
    pub(crate) fn parse(name: &str, bytes: &[u8]) -> Result<Manifest, Error> {
        let damaged = |what: String| Error::Damaged { name: name.to_owned(), what };
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let version: Version = serde_json::from_slice(bytes)
            .map_err(|e| damaged(format!("its manifest.json cannot be read: {e}")))?;
        if version.format != MANIFEST_FORMAT {
            return Err(Error::OtherVersion {
                name: name.to_owned(),
                found: version.format,
                known: MANIFEST_FORMAT,
            });
        }
        let manifest: Manifest = serde_json::from_slice(bytes)
            .map_err(|e| damaged(format!("its manifest.json cannot be read: {e}")))?;
        for artifact in manifest.artifacts() {
            let file = artifact.file.as_str();
            if file.is_empty() || file.contains('/') || file == "." || file == ".." {
                return Err(damaged(format!("its manifest.json names a file {file:?}")));
            }
        }
        Ok(manifest)
    }

    /// All files of the image but the manifest.
    pub fn artifacts(&self) -> impl Iterator<Item = &Artifact> {
        [Some(&self.disk), self.kernel.as_ref(), self.initrd.as_ref()].into_iter().flatten()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn manifest() -> Manifest {
        let artifact = |file: &str| Artifact { file: file.into(), bytes: 1, sha256: "00".into() };
        Manifest {
            format: MANIFEST_FORMAT,
            name: "debian:12".into(),
            created: 1,
            source: Source::Imported { from: "/tmp/x".into() },
            disk: artifact("disk.raw"),
            disk_format: DiskFormat::Raw,
            kernel: Some(artifact("vmlinuz")),
            initrd: None,
            cmdline: "console=ttyS0".into(),
            logins: vec![Login { user: "root".into(), password: "lodge".into() }],
            agent: false,
            program: None,
            folders: false,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let written = serde_json::to_vec(&manifest()).unwrap();
        assert_eq!(Manifest::parse("debian:12", &written).unwrap(), manifest());
    }

    #[test]
    fn a_manifest_of_another_version_says_so() {
        let error = Manifest::parse("x", br#"{"format": 7, "shape": "unknown"}"#).unwrap_err();
        assert!(matches!(error, Error::OtherVersion { found: 7, known: 1, .. }), "{error}");
        assert!(error.to_string().contains("newer"), "{error}");
    }

    #[test]
    fn a_manifest_cannot_lead_outside() {
        for file in ["../../etc/passwd", "/etc/passwd", "..", ""] {
            let mut bad = manifest();
            bad.disk.file = file.into();
            let bytes = serde_json::to_vec(&bad).unwrap();
            assert!(matches!(Manifest::parse("x", &bytes), Err(Error::Damaged { .. })), "{file:?}");
        }
    }

    #[test]
    fn truncated_manifests_are_damaged() {
        let whole = serde_json::to_vec(&manifest()).unwrap();
        for length in 0..whole.len() {
            assert!(matches!(Manifest::parse("x", &whole[..length]), Err(Error::Damaged { .. })));
        }
    }
}
