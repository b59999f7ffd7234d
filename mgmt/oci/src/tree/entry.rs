//! Entries of layers, as their archives have them (pax(1), GNU tar's manual, "Basic Tar Format").
//!
//! The library reads headers and finds contents. What extends a header is read here, so that it is
//! bounded, and so that values with newlines in them are whole.

use std::io::Read;

use tar::{Entry, EntryType};

use super::Attributes;

/// The longest name or link, PATH_MAX.
pub(super) const MAX_PATH: usize = 4096;
/// The longest name in a directory, NAME_MAX.
const MAX_NAME: usize = 255;
/// More than all extended attributes of a file can have.
const MAX_EXTENSION: u64 = 1 << 20;
/// What extended attributes' names have before them (star's and Go's archives).
const ATTRIBUTE: &str = "SCHILY.xattr.";

/// What extends the next header.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    user: Option<u64>,
    group: Option<u64>,
    modified: Option<u64>,
    size: Option<u64>,
    attributes: Vec<(String, Vec<u8>)>,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Directory,
    File,
    SymbolicLink,
    HardLink,
    BlockDevice,
    CharacterDevice,
    Pipe,
}

/// An entry without its contents.
#[derive(Debug)]
pub(super) struct Item {
    /// The names of which the path consists; none for the root.
    pub(super) path: Vec<Vec<u8>>,
    pub(super) what: What,
    pub(super) link: Vec<u8>,
    pub(super) attributes: Attributes,
    pub(super) length: u64,
    pub(super) device: (u32, u32),
}

/// Why an entry is refused.
pub(super) type Reason = String;

impl Extensions {
    /// Takes an entry that extends the next one. `false`: it is an entry of its own.
    pub(super) fn take(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<bool, Reason> {
        match entry.header().entry_type() {
            EntryType::GNULongName => self.path = Some(until_zero(read_all(entry)?)),
            EntryType::GNULongLink => self.link = Some(until_zero(read_all(entry)?)),
            EntryType::XHeader => self.take_records(&read_all(entry)?)?,
            // What holds for the whole archive says nothing about files, in practice.
            EntryType::XGlobalHeader => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn take_records(&mut self, mut bytes: &[u8]) -> Result<(), Reason> {
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or("has a damaged extended header")?;
            bytes = rest;
            let number = || {
                // Times have a fraction, and may be of before 1970.
                let text = std::str::from_utf8(value).unwrap_or_default();
                let whole = text.split('.').next().unwrap_or_default();
                if whole.starts_with('-') { Some(0) } else { whole.parse().ok() }
            };
            match key {
                "path" => self.path = Some(value.to_vec()),
                "linkpath" => self.link = Some(value.to_vec()),
                "uid" => self.user = number(),
                "gid" => self.group = number(),
                "mtime" => self.modified = number(),
                "size" => self.size = number(),
                _ if key.starts_with("GNU.sparse.") => {
                    return Err("is a sparse file in GNU's form, which layers do not have".into());
                }
                _ => {
                    if let Some(name) = key.strip_prefix(ATTRIBUTE) {
                        self.attributes.push((name.to_owned(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }

    /// The entry that they extend.
    pub(super) fn complete(self, entry: &Entry<'_, impl Read>) -> Result<Item, Reason> {
        let header = entry.header();
        let bad = |_| "has a damaged header";
        let what = match header.entry_type() {
            EntryType::Directory => What::Directory,
            EntryType::Regular | EntryType::Continuous => What::File,
            EntryType::Symlink => What::SymbolicLink,
            EntryType::Link => What::HardLink,
            EntryType::Block => What::BlockDevice,
            EntryType::Char => What::CharacterDevice,
            EntryType::Fifo => What::Pipe,
            other => return Err(format!("is of type {:?}", char::from(other.as_byte()))),
        };
        let length = header.entry_size().map_err(bad)?;
        if self.size.is_some_and(|size| size != length) {
            return Err("says two different lengths".into());
        }
        let path = self.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let in_header = || header.link_name_bytes().map(|link| link.into_owned());
        let link = self.link.or_else(in_header).unwrap_or_default();
        // An old form of archives has directories only by their name (POSIX.1-1988).
        let what = if what == What::File && path.ends_with(b"/") { What::Directory } else { what };
        let is_device = matches!(what, What::BlockDevice | What::CharacterDevice);
        let device = if is_device {
            let major = header.device_major().map_err(bad)?.unwrap_or(0);
            (major, header.device_minor().map_err(bad)?.unwrap_or(0))
        } else {
            (0, 0)
        };
        let or = |extended: Option<u64>, plain: std::io::Result<u64>| match extended {
            Some(value) => Ok(value),
            None => plain.map_err(bad),
        };
        Ok(Item {
            path: names(&path)?,
            what,
            link,
            attributes: Attributes {
                mode: header.mode().map_err(bad)? & 0o7777,
                user: or(self.user, header.uid())?,
                group: or(self.group, header.gid())?,
                modified: or(self.modified, header.mtime())?,
                extended: self.attributes,
            },
            length,
            device,
        })
    }
}

/// The first record of an extended header, `LENGTH KEY=VALUE\n`, and what is behind it.
fn record(bytes: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(bytes.get(..space)?).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((std::str::from_utf8(body.get(..equals)?).ok()?, body.get(equals + 1..)?, rest))
}

fn read_all(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, Reason> {
    let mut bytes = Vec::new();
    let read = entry.take(MAX_EXTENSION + 1).read_to_end(&mut bytes);
    match read {
        Ok(_) if bytes.len() as u64 <= MAX_EXTENSION => Ok(bytes),
        Ok(_) => Err(format!("has an extended header of more than {MAX_EXTENSION} bytes")),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

fn until_zero(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// The names of a path within the tree, whether it begins with a slash or not.
pub(super) fn names(path: &[u8]) -> Result<Vec<Vec<u8>>, Reason> {
    if path.len() > MAX_PATH {
        return Err(format!("has a name of more than {MAX_PATH} bytes"));
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err("leads out of its directory".into()),
            _ if name.len() > MAX_NAME => {
                return Err(format!("has a name of more than {MAX_NAME} bytes"));
            }
            _ if name.contains(&0) => return Err("has a zero in its name".into()),
            _ => names.push(name.to_vec()),
        }
    }
    Ok(names)
}

/// The target of a symbolic link, which may lead anywhere: it is followed within the tree only.
pub(super) fn check_target(target: &[u8]) -> Result<(), Reason> {
    match target.len() {
        1..MAX_PATH if !target.contains(&0) => Ok(()),
        _ => Err("is a link to nowhere".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_with_all_that_is_in_them() {
        let value = b"\x01\0\0\x02\n=\n\0";
        let record = |key: &str, value: &[u8]| {
            let body = [key.as_bytes(), b"=", value, b"\n"].concat();
            // The length counts its own digits.
            let mut lengths = (1..4).map(|digits| body.len() + 1 + digits);
            let length = lengths.find(|l| l.to_string().len() + 1 + body.len() == *l).unwrap();
            [length.to_string().as_bytes(), b" ", &body].concat()
        };
        let bytes = [
            record("path", b"a\nb"),
            record("SCHILY.xattr.security.capability", value),
            record("mtime", b"17.123456"),
            record("uid", b"70000"),
            record("comment", b""),
        ]
        .concat();
        let mut extensions = Extensions::default();
        extensions.take_records(&bytes).unwrap();
        assert_eq!(extensions.path.as_deref(), Some(&b"a\nb"[..]));
        let expected = [("security.capability".to_owned(), value.to_vec())];
        assert_eq!(extensions.attributes, expected);
        assert_eq!((extensions.modified, extensions.user), (Some(17), Some(70000)));
        let mut extensions = Extensions::default();
        for bad in [&b"3"[..], b"99 a=b\n", b"0 a=b\n", b"6 a=b ", b"6 abc\n", b"-1 a=b\n"] {
            assert!(extensions.take_records(bad).is_err(), "{bad:?}");
        }
        assert!(extensions.take_records(&record("GNU.sparse.major", b"1")).is_err());
    }

    #[test]
    fn paths_stay_inside() {
        let split = |path: &[u8]| names(path).map(|names| names.join(&b'|'));
        assert_eq!(split(b"./a//b/").unwrap(), b"a|b");
        assert_eq!(split(b"/etc/passwd").unwrap(), b"etc|passwd");
        assert_eq!(split(b"./").unwrap(), b"");
        for bad in ["../x", "a/../../b", "a/..", "x\0y", &"n".repeat(256), &"n/".repeat(3000)] {
            assert!(split(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
