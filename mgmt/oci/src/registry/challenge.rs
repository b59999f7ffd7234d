//! What a registry wants to see before it gives anything (RFC 6750, section 3; RFC 9110, section 11).

/// What it wants to see.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password (RFC 7617).
    Basic,
    /// A token.
    Bearer {
        /// The address of the server that gives one.
        realm: String,
        /// What the registry is called there.
        service: Option<String>,
    },
}

impl Challenge {
    /// Reads a header such as `Bearer realm="https://auth.example/token",service="x"`. `None`: it is
    /// another scheme, or none.
    pub(super) fn read(header: &str) -> Option<Challenge> {
        let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        while let Some((name, behind)) = rest.split_once('=') {
            let name = name.trim_matches([',', ' ']);
            let (value, left) = match behind.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => behind.split_once(',').unwrap_or((behind, "")),
            };
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = Some(value.to_owned()),
                _ => {}
            }
            rest = left;
        }
        let realm = realm.filter(|it| it.starts_with("https://") || it.starts_with("http://"))?;
        Some(Challenge::Bearer { realm, service })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_of_registries() {
        let read = |text: &str| match Challenge::read(text)? {
            Challenge::Bearer { realm, service } => Some((realm, service.unwrap_or_default())),
            Challenge::Basic => None,
        };
        let header = r#"Bearer realm="https://a/t",service="r,1",scope="repository:x:pull""#;
        assert_eq!(read(header), Some(("https://a/t".into(), "r,1".into())));
        assert_eq!(read("bearer realm=http://a"), Some(("http://a".into(), String::new())));
        for bad in ["", "Bearer", "Digest a=b", "Bearer realm=\"file:///x\"", "Bearer a=\"b"] {
            assert_eq!(Challenge::read(bad), None, "{bad}");
        }
        for basic in ["Basic realm=\"x\"", "basic"] {
            assert_eq!(Challenge::read(basic), Some(Challenge::Basic));
        }
    }
}
