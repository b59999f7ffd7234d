//! Names of Debian packages.

use std::str::FromStr;

/// The name of a Debian package (Debian Policy, section 5.6.1), and nothing that mmdebstrap or apt
/// would take for anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageName(String);

impl PackageName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PackageName {
    type Err = String;

    fn from_str(text: &str) -> Result<PackageName, String> {
        let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        // apt takes a last + or - for an order to install or to remove.
        let good = text.len() >= 2
            && text.starts_with(lower)
            && text.chars().all(|c| lower(c) || "+-.".contains(c))
            && !text.ends_with('-')
            && (!text.ends_with('+') || text.ends_with("++"));
        if good {
            Ok(PackageName(text.to_owned()))
        } else {
            Err(format!(
                "{text:?} is no name of a Debian package: these have small letters, digits, +, - \
                 and . only"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_options_and_orders() {
        for good in ["gcc", "p7zip-full", "g++", "libc6", "python3.11", "7zip"] {
            assert_eq!(good.parse::<PackageName>().unwrap().as_str(), good);
        }
        for bad in
            ["", "a", "-o", "gcc-", "gcc+", "GCC", "a,b", "a b", "./x.deb", "?all", "~n", "a/b"]
        {
            assert!(bad.parse::<PackageName>().is_err(), "{bad:?}");
        }
    }
}
