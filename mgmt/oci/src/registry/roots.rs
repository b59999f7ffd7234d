//! Whose certificates are trusted: this machine's, and those that a person has put beside a registry's name.

use std::fs;
use std::path::{Path, PathBuf};

use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};

use crate::Error;

/// Where distributions keep what this machine trusts, a company's own authority among them: Debian, Fedora,
/// openSUSE, Alpine.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Names it instead, as OpenSSL has it.
const BUNDLE_VARIABLE: &str = "SSL_CERT_FILE";

/// Whom to trust where a registry of this name is spoken to. A machine that says nothing trusts Mozilla's
/// list, which is in this program.
///
/// # Errors
///
/// A file for this registry that cannot be read, or has no certificate.
pub(super) fn of(directories: &[PathBuf], host: &str) -> Result<RootCerts, Error> {
    let mut own = Vec::new();
    for directory in directories.iter().map(|directory| directory.join(host)) {
        for file in fs::read_dir(directory).into_iter().flatten().flatten() {
            let file = file.path();
            if file.extension().is_some_and(|extension| extension == "crt") {
                let text = fs::read(&file).map_err(Error::io("read", &file))?;
                let found = certificates(&text);
                if found.is_empty() {
                    let why = "there is no certificate in it, as PEM".to_owned();
                    return Err(Error::Logins { path: file, why });
                }
                own.extend(found);
            }
        }
    }
    let named = std::env::var_os(BUNDLE_VARIABLE).map(PathBuf::from);
    let bundles = named.iter().map(PathBuf::as_path).chain(BUNDLES.map(Path::new));
    let machine = bundles.filter_map(|path| fs::read(path).ok()).map(|text| certificates(&text));
    match machine.into_iter().find(|found| !found.is_empty()) {
        Some(machine) => Ok(RootCerts::from(own.into_iter().chain(machine))),
        None if own.is_empty() => Ok(RootCerts::WebPki),
        None => Ok(RootCerts::from(own)),
    }
}

fn certificates(text: &[u8]) -> Vec<Certificate<'static>> {
    let is_certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    };
    parse_pem(text).filter_map(is_certificate).collect()
}
