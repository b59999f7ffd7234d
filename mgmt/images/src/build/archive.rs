//! Which archives a build takes packages from: Debian's own, as apt on this host is set up.

use std::path::Path;
use std::process::Stdio;

use super::{Release, host_command};
use crate::Progress;

/// The keys that Debian's archives are signed with.
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One archive and suite of Debian's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Archive {
    pub(super) uri: String,
    pub(super) suite: String,
}

/// The archives for a release: those that apt on this host uses for it, else Debian's public ones.
///
/// apt itself is asked, so that mirrors, every form of source list and all its settings count.
/// Only what Debian publishes is taken (the origin in the archive's signed Release file), never
/// a third party's packages. `scratch` is a directory for temporary files.
pub(super) fn for_release(
    release: &Release,
    scratch: &Path,
    progress: &mut dyn Progress,
) -> Vec<Archive> {
    let mut archives = select(&index_targets(&[]), release);
    if archives.is_empty() {
        // A host whose package lists were never fetched, or were removed to save space.
        let lists = format!("Dir::State::lists={}", scratch.join("lists").display());
        let cache = format!("Dir::Cache={}", scratch.join("cache").display());
        let fetched = host_command("apt-get")
            .args(["-q", "-q", "-o", &lists, "-o", &cache, "update"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        // Some archive of several may fail; what the others gave is still there.
        if fetched.is_ok() {
            archives = select(&index_targets(&["-o", &lists]), release);
        }
    }
    if !archives.iter().any(|archive| archive.suite == release.codename) {
        progress.note(&format!(
            "apt on this machine has no source for Debian {}; using deb.debian.org",
            release.codename
        ));
        archives = public(release);
    }
    archives
}

fn index_targets(options: &[&str]) -> String {
    const FORMAT: &str =
        "$(IDENTIFIER)|$(ARCHITECTURE)|$(ORIGIN)|$(COMPONENT)|$(CODENAME)|$(REPO_URI)";
    host_command("apt-get")
        .args(options)
        .args(["indextargets", "--format", FORMAT])
        .stderr(Stdio::null())
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}

/// Picks the release's archives from what `apt-get indextargets` printed.
fn select(targets: &str, release: &Release) -> Vec<Archive> {
    let mut archives: Vec<Archive> = targets
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.splitn(6, '|').collect();
            let ["Packages", "amd64", "Debian", "main", suite, uri] = fields[..] else {
                return None;
            };
            // The archive calls it by codename even where the host's list says "stable".
            let wanted = release.suites().iter().any(|known| known == suite);
            // What the guest could not use itself later, a disc or a local directory, is passed
            // over as well.
            let reachable = uri.starts_with("http://") || uri.starts_with("https://");
            (wanted && reachable).then(|| Archive { uri: uri.to_owned(), suite: suite.to_owned() })
        })
        .collect();
    archives.sort();
    archives.dedup();
    archives
}

fn public(release: &Release) -> Vec<Archive> {
    let [main, updates, security] = release.suites();
    [("debian/", main), ("debian/", updates), ("debian-security/", security)]
        .map(|(path, suite)| Archive { uri: format!("http://deb.debian.org/{path}"), suite })
        .to_vec()
}

/// The archives in the form of a deb822 source list (sources.list(5)).
pub(super) fn to_sources(archives: &[Archive]) -> String {
    let stanzas: Vec<String> = archives
        .iter()
        .map(|Archive { uri, suite }| {
            format!(
                "Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n"
            )
        })
        .collect();
    stanzas.join("\n")
}

/// The archives as the lines of a one-line-style source list, for people.
pub(super) fn to_lines(archives: &[Archive]) -> Vec<String> {
    archives.iter().map(|a| format!("deb {} {} main", a.uri, a.suite)).collect()
}

/// How the host's apt reaches archives (proxies, retries, certificates), for another apt.
pub(super) fn transport_options() -> Vec<String> {
    let dump = host_command("apt-config")
        .args(["dump", "Acquire"])
        .stderr(Stdio::null())
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    select_transport(&dump)
}

fn select_transport(dump: &str) -> Vec<String> {
    const SECTIONS: [&str; 5] = [
        "Acquire::http::",
        "Acquire::https::",
        "Acquire::Retries ",
        "Acquire::Check-",
        "Acquire::ForceIPv",
    ];
    dump.lines()
        .filter(|line| SECTIONS.iter().any(|section| line.starts_with(section)))
        // A section's own line has an empty value and says nothing.
        .filter(|line| !line.ends_with(" \"\";"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::RELEASES;

    fn archive(uri: &str, suite: &str) -> Archive {
        Archive { uri: uri.into(), suite: suite.into() }
    }

    #[test]
    fn only_debians_own_packages_are_taken() {
        let targets = "\
Packages|amd64|Debian|main|bookworm|http://mirror.example/debian/
DEP-11|amd64|Debian|main|bookworm|http://mirror.example/debian/
Packages|i386|Debian|main|bookworm|http://mirror.example/debian/
Packages|amd64|Debian|main|bookworm|http://mirror.example/debian/
Packages|amd64|Debian|non-free|bookworm|http://mirror.example/debian/
Packages|amd64|Debian|main|bookworm-security|https://mirror.example/debian-security/
Packages|amd64|Debian Backports|main|bookworm-backports|http://mirror.example/debian/
Packages|amd64|Docker|main|bookworm|https://download.docker.example/linux/debian/
Packages|amd64|Debian|main|trixie|http://mirror.example/debian/
Packages|amd64|Debian|main|bookworm|cdrom:[Debian]/
Packages|amd64
";
        assert_eq!(
            select(targets, &RELEASES[0]),
            [
                archive("http://mirror.example/debian/", "bookworm"),
                archive("https://mirror.example/debian-security/", "bookworm-security"),
            ]
        );
    }

    #[test]
    fn without_sources_debians_public_archive_serves() {
        let lines = to_lines(&public(&RELEASES[0]));
        assert_eq!(lines[0], "deb http://deb.debian.org/debian/ bookworm main");
        assert_eq!(lines[2], "deb http://deb.debian.org/debian-security/ bookworm-security main");
    }

    #[test]
    fn sources_name_debians_keys() {
        let text = to_sources(&[archive("http://a/", "x"), archive("http://b/", "y")]);
        assert_eq!(
            text.matches("Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg").count(),
            2
        );
        assert!(text.contains("x\nComponents: main\nSigned-By"), "{text}");
        assert!(text.contains("\n\nTypes: deb\nURIs: http://b/"), "{text}");
    }

    #[test]
    fn proxies_are_passed_on_and_nothing_else() {
        let dump = r#"Acquire "";
Acquire::Languages "none";
Acquire::http "";
Acquire::http::Proxy "http://proxy:3128";
Acquire::https::Verify-Peer "";
Acquire::Check-Valid-Until "false";
Acquire::GzipIndexes "true";
Acquire::Retries "3";
"#;
        assert_eq!(
            select_transport(dump),
            [
                r#"Acquire::http::Proxy "http://proxy:3128";"#,
                r#"Acquire::Check-Valid-Until "false";"#,
                r#"Acquire::Retries "3";"#,
            ]
        );
    }
}
