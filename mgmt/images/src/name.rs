//! The names of images.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// The name of an image: `debian:12`, `my-server`. Lower-case letters, digits, `.`, `_` and `-`,
/// and optionally one `:` with a tag behind it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName(String);

impl ImageName {
    /// The name as people write it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the image's directory. A colon would make QEMU's tools take the path for a
    /// protocol, so it becomes `@`, which no name has.
    pub(crate) fn directory(&self) -> String {
        self.0.replace(':', "@")
    }

    pub(crate) fn from_directory(directory: &str) -> Option<ImageName> {
        if directory.contains(':') {
            return None;
        }
        directory.replacen('@', ":", 1).parse().ok()
    }

    /// The name without what a guest's name may not have, to name guests after it.
    #[must_use]
    pub fn to_guest_name(&self) -> String {
        self.0.replace(':', "-")
    }
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(text: &str) -> Result<ImageName, Error> {
        let part_is_good = |part: &str| {
            part.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
        };
        let good = match text.split_once(':') {
            Some((name, tag)) => part_is_good(name) && part_is_good(tag),
            None => part_is_good(text),
        };
        // A guest named after its image, with a number behind it, must still be a good name.
        if good && text.len() <= 48 {
            Ok(ImageName(text.to_owned()))
        } else {
            Err(Error::Name(text.to_owned()))
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_people_write() {
        for good in ["debian:12", "web", "a.b-c_d:1.2"] {
            assert_eq!(good.parse::<ImageName>().unwrap().as_str(), good);
        }
        for bad in ["", ":", "debian:", ":12", "a:b:c", "../x", "a/b", "A", ".a", "a@b", "a b"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_directory_leads_back_to_its_name(text in "[a-z0-9.:_@/-]{0,12}") {
            if let Ok(name) = text.parse::<ImageName>() {
                let directory = name.directory();
                prop_assert!(!directory.contains(['/', ':']) && !directory.starts_with('.'));
                prop_assert_eq!(ImageName::from_directory(&directory), Some(name));
            }
        }
    }
}
