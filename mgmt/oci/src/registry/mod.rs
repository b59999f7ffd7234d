//! Registries (distribution-spec): manifests by tag or digest, and blobs by digest, over HTTP.

mod challenge;
mod patient;

use std::cell::RefCell;
use std::io::Read;
use std::net::IpAddr;
use std::time::Duration;

use ureq::http::Response;
use ureq::{Agent, Body};

use crate::document::{self, Document};
use crate::image::{self, Blob, Blobs};
use crate::{Digest, Error, Image};
use challenge::Challenge;
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
pub(crate) fn open(host: &str, repository: &str, version: &str) -> Result<Image, Error> {
    let registry = Registry::new(host, repository);
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
    token: RefCell<Option<String>>,
}

impl Registry {
    fn new(host: &str, repository: &str) -> Registry {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // Wherever it sends to.
            .https_only(scheme(host) == "https")
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE));
        if scheme(host) == "http" {
            // No other machine comes between.
            config = config.proxy(None);
        }
        // What docker.io is called where it is spoken to.
        let server = if host == "docker.io" { "registry-1.docker.io" } else { host };
        Registry {
            agent: config.build().into(),
            host: host.to_owned(),
            base: format!("{}://{server}/v2/{repository}", scheme(host)),
            repository: repository.to_owned(),
            token: RefCell::new(None),
        }
    }

    /// What the registry has at a place below the repository; `None`: nothing.
    fn get(&self, place: &str) -> Result<Option<Response<Body>>, Error> {
        let url = format!("{}/{place}", self.base);
        let mut response = self.ask(&url)?;
        // There is no token yet, or its time is over: Docker Hub's last for five minutes.
        if response.status().as_u16() == 401 {
            let header = response.headers().get("www-authenticate");
            let challenge = header.and_then(|value| value.to_str().ok()).and_then(Challenge::read);
            let token = self.fetch_token(challenge)?;
            *self.token.borrow_mut() = Some(token);
            response = self.ask(&url)?;
        }
        match response.status().as_u16() {
            200 => Ok(Some(response)),
            404 => Ok(None),
            401 | 403 => Err(self.failed("it lets nobody read this image without logging in")),
            status => Err(self.failed(format!("it answers with HTTP status {status}"))),
        }
    }

    fn ask(&self, url: &str) -> Result<Response<Body>, Error> {
        let mut request = self.agent.get(url).header("Accept", ACCEPT);
        if let Some(token) = &*self.token.borrow() {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        request.call().map_err(|error| self.failed(error))
    }

    /// Asks the server that the registry names for a token that lets anybody read (distribution,
    /// docs/spec/auth/token.md).
    fn fetch_token(&self, challenge: Option<Challenge>) -> Result<String, Error> {
        let refused = || self.failed("it asks for a way of logging in that Lodge does not know");
        let Challenge { realm, service } = challenge.ok_or_else(refused)?;
        // What a registry on the network names is asked as safely as itself.
        if !realm.starts_with("https://") && scheme(&self.host) == "https" {
            return Err(self.failed(format!("it sends to {realm}, which is not safe")));
        }
        let scope = format!("repository:{}:pull", self.repository);
        let mut request = self.agent.get(&realm).query("scope", scope);
        if let Some(service) = service {
            request = request.query("service", service);
        }
        let response = request.call().map_err(|error| self.failed(error))?;
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
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_spoken_to_without_tls() {
        for local in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"] {
            assert_eq!(scheme(local), "http", "{local}");
        }
        for far in ["docker.io", "10.0.0.1:5000", "localhost.example", "example:5000", "[::2]:1"] {
            assert_eq!(scheme(far), "https", "{far}");
        }
    }
}
