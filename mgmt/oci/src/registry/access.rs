//! Where to find what a person is known by at registries, and whom that person trusts.

use std::env;
use std::path::PathBuf;

/// Files of this machine that say how to reach registries.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Logins, as `docker login` and `podman login` write them; the first that has one counts.
    pub logins: Vec<PathBuf>,
    /// Directories that have one for each registry, `HOST:PORT`, with certificates that are trusted there:
    /// `*.crt`.
    pub certificates: Vec<PathBuf>,
}

impl Access {
    /// Those of the user that this process runs as, where podman and docker look
    /// (containers-auth.json(5), containers-certs.d(5)).
    #[must_use]
    pub fn of_user() -> Access {
        let variable =
            |name: &str| env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
        let home = variable("HOME");
        let below_home = |path: &str| home.as_ref().map(|home| home.join(path));
        let config = variable("XDG_CONFIG_HOME").or_else(|| below_home(".config"));
        let docker = variable("DOCKER_CONFIG").or_else(|| below_home(".docker"));
        let logins = [
            variable("REGISTRY_AUTH_FILE"),
            variable("XDG_RUNTIME_DIR").map(|it| it.join("containers/auth.json")),
            config.as_ref().map(|it| it.join("containers/auth.json")),
            docker.as_ref().map(|it| it.join("config.json")),
        ];
        let certificates = [
            config.map(|it| it.join("containers/certs.d")),
            docker.map(|it| it.join("certs.d")),
            Some("/etc/containers/certs.d".into()),
            Some("/etc/docker/certs.d".into()),
        ];
        Access {
            logins: logins.into_iter().flatten().collect(),
            certificates: certificates.into_iter().flatten().collect(),
        }
    }
}
