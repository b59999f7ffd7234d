//! Logins at registries, as `docker login` and `podman login` leave them (containers-auth.json(5)).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Error;

/// The most bytes of a file of logins.
const MAX_FILE: u64 = 1 << 20;
/// What docker.io is called there.
const DOCKER_HUB: [&str; 2] = ["docker.io", "index.docker.io"];

/// A login.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    /// User and password, as HTTP's basic authentication has them (RFC 7617).
    pub(super) basic: String,
    /// What takes their place where a server gives tokens.
    pub(super) identity_token: Option<String>,
    /// The file that has it.
    pub(super) file: PathBuf,
}

/// What is understood of such a file.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Logins {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    identitytoken: String,
}

/// What the files say about an image in a registry.
pub(super) enum Found {
    /// A login.
    Login(Login),
    /// A program that is to be asked, which Lodge does not do.
    Helper(String),
    /// Nothing.
    None,
}

/// Looks for a login in these files, the first of which that has one counts. Within a file the longest
/// name does: `registry.example/team` before `registry.example`.
///
/// # Errors
///
/// A file that is there and cannot be read or understood.
pub(super) fn find(files: &[PathBuf], host: &str, repository: &str) -> Result<Found, Error> {
    let mut helper = None;
    for file in files {
        let Some(logins) = read(file)? else { continue };
        let fits = |name: &str| covers(name, host, repository);
        let entries = logins.auths.into_iter().filter(|(name, _)| fits(name));
        let best = entries.max_by_key(|(name, _)| plain(name).len());
        let is_value =
            |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        match best {
            Some((_, Entry { auth: basic, identitytoken })) if is_value(&basic) => {
                let identity_token = Some(identitytoken).filter(is_value);
                return Ok(Found::Login(Login { basic, identity_token, file: file.clone() }));
            }
            // Where a program keeps it, there is at most an empty entry.
            best => {
                let named = logins.helpers.into_iter().find(|(name, _)| fits(name));
                let general = best.and(logins.store);
                helper = helper.or(named.map(|(_, helper)| helper)).or(general);
            }
        }
    }
    Ok(helper.map_or(Found::None, |helper| Found::Helper(format!("docker-credential-{helper}"))))
}

fn read(file: &Path) -> Result<Option<Logins>, Error> {
    match fs::metadata(file) {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        Ok(metadata) if metadata.len() > MAX_FILE => {
            let limit = format!("{MAX_FILE} bytes");
            return Err(Error::TooLarge { what: file.display().to_string(), limit });
        }
        _ => {}
    }
    let text = fs::read(file).map_err(Error::io("read", file))?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| Error::Logins { path: file.to_owned(), why: error.to_string() })
}

/// Whether a login of this name is for the image.
fn covers(name: &str, host: &str, repository: &str) -> bool {
    let name = plain(name);
    let (its_host, its_path) = name.split_once('/').unwrap_or((name, ""));
    let same_host =
        its_host == host || (DOCKER_HUB.contains(&its_host) && DOCKER_HUB.contains(&host));
    let within = |rest: &str| rest.is_empty() || rest.starts_with('/');
    same_host && (its_path.is_empty() || repository.strip_prefix(its_path).is_some_and(within))
}

/// A name without what docker writes around it: `https://index.docker.io/v1/`.
fn plain(name: &str) -> &str {
    let name = name.trim_start_matches("https://").trim_start_matches("http://");
    name.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, host: &str, repository: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("auth.json");
        fs::write(&file, text).unwrap();
        match find(&[directory.path().join("none"), file], host, repository) {
            Ok(Found::Login(login)) => login.basic + &login.identity_token.unwrap_or_default(),
            Ok(Found::Helper(helper)) => helper,
            Ok(Found::None) => "-".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_login_for_an_image_is_found() {
        let text = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"aHVi"},"r.example":{"auth":"cg=="},
            "r.example/team":{"auth":"dGVhbQ=="},"r.example:5000":{"auth":"cA==","identitytoken":"!t"}},
            "credHelpers":{"other.example":"pass"}}"#;
        assert_eq!(found(text, "docker.io", "library/debian"), "aHVi");
        assert_eq!(found(text, "r.example", "app"), "cg==");
        assert_eq!(found(text, "r.example", "teamwork"), "cg==");
        assert_eq!(found(text, "r.example", "team/app"), "dGVhbQ==");
        assert_eq!(found(text, "r.example:5000", "app"), "cA==!t");
        assert_eq!(found(text, "sub.r.example", "app"), "-");
        assert_eq!(found(text, "other.example", "app"), "docker-credential-pass");
    }

    #[test]
    fn files_that_have_none() {
        assert_eq!(found("{}", "a", "b"), "-");
        assert_eq!(found(r#"{"auths":{"a":{"auth":""}}}"#, "a", "b"), "-");
        assert_eq!(found(r#"{"auths":{"a":{"auth":"x\r\nHost: y"}}}"#, "a", "b"), "-");
        let text = r#"{"auths":{"a":{}},"credsStore":"secretservice"}"#;
        assert_eq!(found(text, "a", "b"), "docker-credential-secretservice");
        assert_eq!(found(text, "c", "b"), "-");
        assert!(found("no JSON", "a", "b").contains("auth.json"));
    }
}
