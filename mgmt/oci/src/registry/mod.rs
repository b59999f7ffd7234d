//! Registries (distribution-spec): manifests by tag or digest, and blobs by digest, over HTTP.

mod access;
mod challenge;
mod login;
mod patient;
mod roots;

use std::cell::RefCell;
use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ureq::http::Response;
use ureq::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::document::{self, Document};
use crate::image::{self, Blob, Blobs};
use crate::{Digest, Error, Image};
pub use access::Access;
use challenge::Challenge;
use login::{Found, Login};
use patient::Patient;

/// How long a registry may take to be reached, and to begin to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many indexes lead to a manifest, at most.
const MAX_DEPTH: usize = 4;
/// The most bytes of a token's document.
const MAX_TOKEN: u64 = 1 << 20;
/// The manifests that are understood.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Finds the image that a registry has under a tag or a digest.
pub(crate) fn open(
    host: &str,
    repository: &str,
    version: &str,
    access: &Access,
) -> Result<Image, Error> {
    let registry = Registry::new(host, repository, access)?;
    let image = format!("{host}/{repository}:{version}");
    let mut blob = Blob {
        place: format!("manifests/{version}"),
        name: image.clone(),
        digest: version.contains(':').then(|| version.parse()).transpose()?,
        size: None,
    };
    for _ in 0..MAX_DEPTH {
        let bytes = blob.read(&registry)?;
        match Document::read(&blob.name, &bytes)? {
            Document::Index(index) => {
                let next = document::choose(&image, index.manifests().iter())?;
                blob = registry_blob("manifests", next)?;
            }
            Document::Manifest(manifest) => {
                let digest = Digest::of(&bytes);
                let blob = |descriptor: &_| registry_blob("blobs", descriptor);
                return image::of_manifest(digest, &manifest, Box::new(registry), blob);
            }
        }
    }
    Err(Error::damaged(image, "its indexes lead to nothing but indexes"))
}

fn registry_blob(kind: &str, descriptor: &oci_spec::image::Descriptor) -> Result<Blob, Error> {
    let digest = document::digest(descriptor)?;
    Ok(Blob {
        place: format!("{kind}/{digest}"),
        name: digest.to_string(),
        digest: Some(digest),
        size: Some(descriptor.size()),
    })
}

/// A repository of a registry.
struct Registry {
    agent: Agent,
    host: String,
    base: String,
    repository: String,
    /// Files of logins.
    logins: Vec<PathBuf>,
    /// What requests say about who asks.
    authorization: RefCell<Option<String>>,
}

impl Registry {
    fn new(host: &str, repository: &str, access: &Access) -> Result<Registry, Error> {
        // What docker.io is called where it is spoken to.
        let server = if host == "docker.io" { "registry-1.docker.io" } else { host };
        Ok(Registry {
            agent: agent(scheme(host), roots::of(&access.certificates, host)?),
            host: host.to_owned(),
            base: format!("{}://{server}/v2/{repository}", scheme(host)),
            repository: repository.to_owned(),
            logins: access.logins.clone(),
            authorization: RefCell::new(None),
        })
    }

    /// What the registry has at a place below the repository; `None`: nothing.
    fn get(&self, place: &str) -> Result<Option<Response<Body>>, Error> {
        let url = format!("{}/{place}", self.base);
        let mut response = self.ask(&url)?;
        // Nobody has said yet who asks, or a token's time is over: Docker Hub's last for five minutes.
        if response.status().as_u16() == 401 {
            let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
            let authorization = self.authorize(headers.filter_map(|value| value.to_str().ok()))?;
            *self.authorization.borrow_mut() = Some(authorization);
            response = self.ask(&url)?;
        }
        match response.status().as_u16() {
            200 => Ok(Some(response)),
            404 => Ok(None),
            401 | 403 => Err(self.no_access(&self.find_login()?)),
            status => Err(self.failed(format!("it answers with HTTP status {status}"))),
        }
    }

    fn ask(&self, url: &str) -> Result<Response<Body>, Error> {
        let mut request = self.agent.get(url).header("Accept", ACCEPT);
        if let Some(authorization) = &*self.authorization.borrow() {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.call().map_err(|error| self.failed(error))
    }

    fn find_login(&self) -> Result<Found, Error> {
        login::find(&self.logins, &self.host, &self.repository)
    }

    /// What a request is to say about who asks, where the registry wants to know it so.
    fn authorize<'a>(&self, headers: impl Iterator<Item = &'a str>) -> Result<String, Error> {
        let mut challenges: Vec<_> = headers.filter_map(Challenge::read).collect();
        // A token leaves the password at home.
        challenges.sort_by_key(|challenge| *challenge == Challenge::Basic);
        let found = self.find_login()?;
        match (challenges.into_iter().next(), &found) {
            (Some(Challenge::Bearer { realm, service }), _) => {
                Ok(format!("Bearer {}", self.fetch_token(&realm, service, &found)?))
            }
            (Some(Challenge::Basic), Found::Login(login)) => Ok(format!("Basic {}", login.basic)),
            (Some(Challenge::Basic), _) => Err(self.no_access(&found)),
            (None, _) => {
                Err(self.failed("it asks for a way of logging in that Lodge does not know"))
            }
        }
    }

    /// Asks the server that the registry names for a token with which to read (distribution,
    /// docs/spec/auth/token.md and oauth.md).
    fn fetch_token(
        &self,
        realm: &str,
        service: Option<String>,
        found: &Found,
    ) -> Result<String, Error> {
        // What a registry names is asked as safely as itself.
        let server = realm.strip_prefix("http://").and_then(|rest| rest.split(['/', '?']).next());
        // What stands before an `@` is no server's name.
        let is_safe = |server: &str| {
            scheme(&self.host) == "http" && scheme(server) == "http" && !server.contains('@')
        };
        if !server.is_none_or(is_safe) {
            return Err(self.failed(format!("it sends to {realm}, which is not safe")));
        }
        let mut fields = vec![("scope", format!("repository:{}:pull", self.repository))];
        fields.extend(service.map(|service| ("service", service)));
        let response = match found {
            Found::Login(Login { identity_token: Some(token), .. }) => {
                fields.push(("grant_type", "refresh_token".to_owned()));
                fields.push(("client_id", "lodge".to_owned()));
                fields.push(("refresh_token", token.clone()));
                self.agent.post(realm).send_form(fields)
            }
            _ => {
                let mut request = self.agent.get(realm).query_pairs(fields);
                if let Found::Login(login) = found {
                    request = request.header(AUTHORIZATION, format!("Basic {}", login.basic));
                }
                request.call()
            }
        };
        let response = response.map_err(|error| self.failed(error))?;
        if matches!(response.status().as_u16(), 401 | 403) {
            return Err(self.no_access(found));
        }
        let mut text = Vec::new();
        let reader = Patient::new(response.into_body().into_reader());
        reader.take(MAX_TOKEN).read_to_end(&mut text).map_err(|error| self.failed(error))?;
        #[derive(serde::Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let answer: Option<Answer> = serde_json::from_slice(&text).ok();
        let token = answer.and_then(|answer| answer.token.or(answer.access_token));
        let is_good = |token: &String| token.bytes().all(|byte| byte.is_ascii_graphic());
        token.filter(is_good).ok_or_else(|| self.failed(format!("{realm} gives no token")))
    }

    fn failed(&self, why: impl ToString) -> Error {
        Error::Registry { host: self.host.clone(), why: why.to_string() }
    }

    /// The registry does not let this person read the image.
    fn no_access(&self, found: &Found) -> Error {
        let host = &self.host;
        let why = match found {
            Found::Login(login) => format!(
                "does not let the login in {} read {}: log in anew, with `podman login {host}` or `docker \
                 login {host}`",
                login.file.display(),
                self.repository
            ),
            Found::Helper(helper) => format!(
                "wants a login, which {helper} keeps, a program that Lodge does not ask: `podman login \
                 --authfile FILE {host}` writes one to a file, which REGISTRY_AUTH_FILE names"
            ),
            Found::None => format!(
                "lets nobody read {} without a login: `podman login {host}` or `docker login {host}` leave one \
                 where Lodge finds it",
                self.repository
            ),
        };
        Error::NoAccess { host: host.clone(), why }
    }
}

/// What speaks to registries.
fn agent(scheme: &str, roots: RootCerts) -> Agent {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        // Wherever it sends to.
        .https_only(scheme == "https")
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE));
    if scheme == "http" {
        // No other machine comes between.
        config = config.proxy(None);
    }
    config.build().into()
}

impl Blobs for Registry {
    fn open(&self, place: &str) -> Result<Option<Box<dyn Read + '_>>, Error> {
        let response = self.get(place)?;
        if let (None, Some(version)) = (&response, place.strip_prefix("manifests/")) {
            let image = format!("{}/{}:{version}", self.host, self.repository);
            return Err(Error::NotInRegistry { image });
        }
        Ok(response.map(|response| {
            Box::new(Patient::new(response.into_body().into_reader())) as Box<dyn Read>
        }))
    }
}

/// Registries of this machine are spoken to without TLS, as docker does.
fn scheme(host: &str) -> &'static str {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let address: Option<IpAddr> = name.trim_matches(['[', ']']).parse().ok();
    let is_local = name == "localhost" || address.is_some_and(|address| address.is_loopback());
    if is_local { "http" } else { "https" }
}

#[cfg(test)]
mod tests;
