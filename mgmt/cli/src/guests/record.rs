//! What is known of a guest besides what it is made of: `guest.json` in its directory.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vmm_api::Failure;

use crate::failure;

const RECORD: &str = "guest.json";

/// What is known of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The image that its disk is based on.
    pub image: Option<String>,
    /// The sum of the image's disk: on another one, the guest's disk would make no sense.
    pub disk_sha256: Option<String>,
    /// Whether the guest outlives the run.
    pub keep: bool,
    /// When it was made, in milliseconds since 1970; 0 if that is not known.
    pub created_ms: u64,
}

impl Record {
    /// Reads the record in a guest's directory, if there is one.
    pub fn read(directory: &Path) -> Result<Option<Record>, Failure> {
        let path = directory.join(RECORD);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failure::io("read", &path)(error)),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            Failure::artifact(format!(
                "{} is damaged: {error}; remove the guest with `lodge rm`",
                path.display()
            ))
        })
    }

    /// Writes it, whole or not at all.
    pub fn write(&self, directory: &Path) -> Result<(), Failure> {
        let text = serde_json::to_vec(self).map_err(Failure::internal)?;
        write_whole(directory, RECORD, &text)
    }
}

/// Writes a file in a guest's directory, whole or not at all, also if the host's power fails.
pub fn write_whole(directory: &Path, name: &str, contents: &[u8]) -> Result<(), Failure> {
    write(directory, name, contents, fs::File::sync_all)
}

/// Writes a file whole or not at all that says nothing any more when the host has lost power.
pub fn write_for_now(directory: &Path, name: &str, contents: &[u8]) -> Result<(), Failure> {
    write(directory, name, contents, |_| Ok(()))
}

/// Writes a file whole or not at all, and has it `settle` before it has its name.
fn write(
    directory: &Path,
    name: &str,
    contents: &[u8],
    settle: impl Fn(&fs::File) -> io::Result<()>,
) -> Result<(), Failure> {
    let path = directory.join(name);
    let temporary = directory.join(format!(".{name}.new"));
    let write = || {
        let mut file = fs::File::create(&temporary)?;
        io::Write::write_all(&mut file, contents)?;
        settle(&file)?;
        fs::rename(&temporary, &path)
    };
    write().map_err(failure::io("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_before_are_understood() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(home.path()).unwrap(), None);
        let old = r#"{"image":"debian:12","disk_sha256":"00","keep":true}"#;
        fs::write(home.path().join(RECORD), old).unwrap();
        let record = Record::read(home.path()).unwrap().unwrap();
        assert_eq!((record.image.as_deref(), record.keep), (Some("debian:12"), true));
        let record = Record { created_ms: 5, ..record };
        record.write(home.path()).unwrap();
        assert_eq!(Record::read(home.path()).unwrap(), Some(record));
        fs::write(home.path().join(RECORD), "{").unwrap();
        let failure = Record::read(home.path()).unwrap_err();
        assert!(failure.message.contains("is damaged"), "{failure}");
    }
}
