//! Guests' names on networks.

/// A guest's name as a host name: letters, digits and inner hyphens (RFC 1123, 2.1), in lower case.
/// `None` if nothing is left of it.
#[must_use]
pub fn host_name(name: &str) -> Option<String> {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = name.chars().map(letter).take(63).collect();
    let name = name.trim_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_host_names() {
        assert_eq!(host_name("Web").as_deref(), Some("web"));
        assert_eq!(host_name("debian_12.test-").as_deref(), Some("debian-12-test"));
        assert_eq!(host_name("_"), None);
    }
}
