//! What a registry wants to see before it gives anything (RFC 6750, section 3; RFC 9110, section 11).

/// Where to get a token.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// The address of the server.
    pub(super) realm: String,
    /// What the registry is called there.
    pub(super) service: Option<String>,
}

impl Challenge {
    /// Reads a header such as `Bearer realm="https://auth.example/token",service="x"`. `None`: it is
    /// another scheme, or none.
    pub(super) fn read(header: &str) -> Option<Challenge> {
        let (scheme, mut rest) = header.trim().split_once(' ')?;
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
        Some(Challenge { realm, service })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_of_registries() {
        let read =
            |text: &str| Challenge::read(text).map(|it| (it.realm, it.service.unwrap_or_default()));
        let header = r#"Bearer realm="https://a/t",service="r,1",scope="repository:x:pull""#;
        assert_eq!(read(header), Some(("https://a/t".into(), "r,1".into())));
        assert_eq!(read("bearer realm=http://a"), Some(("http://a".into(), String::new())));
        for bad in ["", "Bearer", "Basic realm=\"x\"", "Bearer realm=\"file:///x\"", "Bearer a=\"b"]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
