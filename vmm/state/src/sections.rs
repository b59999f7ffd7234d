//! A state as a row of sections.

use std::collections::BTreeMap;

use crate::Damage;
use crate::format::{FileHeader, MAX_FILE, MAX_NAME, MAX_PAYLOAD, MAX_SECTIONS, SectionHeader};

/// A saved state: its sections by their names.
///
/// ```
/// let mut state = state::Sections::default();
/// state.add("clock", 1, b"{\"ns\":7}".to_vec())?;
/// let bytes = state.to_bytes();
/// let again = state::Sections::from_bytes(&bytes)?;
/// assert_eq!(again.get("clock").unwrap().payload, b"{\"ns\":7}");
/// # Ok::<(), state::Damage>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sections(BTreeMap<String, Section>);

/// A section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The version of what it holds.
    pub version: u32,
    /// What it holds.
    pub payload: Vec<u8>,
    /// Where the payload lies in the file that it was read from; 0 if it was not.
    pub offset: u64,
}

impl Sections {
    /// Adds a section.
    ///
    /// # Errors
    ///
    /// If it could not be read again: its name is taken or no name, or it is too long.
    pub fn add(&mut self, name: &str, version: u32, payload: Vec<u8>) -> Result<(), Damage> {
        let is_name = (1..=MAX_NAME).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        let why = if !is_name {
            "it has no possible name"
        } else if payload.len() > MAX_PAYLOAD {
            "it is too long"
        } else if self.0.len() >= MAX_SECTIONS {
            "there are too many"
        } else if self.0.contains_key(name) {
            "it is there twice"
        } else {
            self.0.insert(name.to_owned(), Section { version, payload, offset: 0 });
            return Ok(());
        };
        Err(Damage::at(0, why).of(name))
    }

    /// The section of this name.
    pub fn get(&self, name: &str) -> Option<&Section> {
        self.0.get(name)
    }

    /// All, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.0.iter().map(|(name, section)| (name.as_str(), section))
    }

    /// The file that holds them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; FileHeader::LEN];
        for (name, Section { version, payload, .. }) in self.iter() {
            SectionHeader { name, version: *version, payload }.write(&mut bytes);
        }
        let header = FileHeader { sections: self.0.len(), len: bytes.len() };
        header.write(&mut bytes[..FileHeader::LEN]);
        bytes
    }

    /// Reads a file whole. Nothing in it goes unchecked.
    ///
    /// # Errors
    ///
    /// Where it is damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Damage> {
        if bytes.len() > MAX_FILE {
            return Err(Damage::at(MAX_FILE, "the file is longer than any state"));
        }
        let FileHeader { sections, len } = FileHeader::read(bytes)?;
        let mut read = Self::default();
        let mut at = FileHeader::LEN;
        for _ in 0..sections {
            let (header, end) = SectionHeader::read(bytes, at)?;
            let SectionHeader { name, version, payload } = header;
            let offset = (payload.as_ptr() as usize - bytes.as_ptr() as usize) as u64;
            read.add(name, version, payload.to_vec())
                .map_err(|damage| Damage { offset: at as u64, ..damage })?;
            if let Some(section) = read.0.get_mut(name) {
                section.offset = offset;
            }
            at = end;
        }
        if at != len {
            return Err(Damage::at(at, "something follows the last section"));
        }
        Ok(read)
    }
}
