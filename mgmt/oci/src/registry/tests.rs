//! Who is spoken to, and how safely.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

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

#[test]
fn a_password_does_not_leave_this_machine_without_tls() {
    let registry = Registry::new("localhost:1", "app", &Access::default()).unwrap();
    for far in ["http://far.invalid/token", "http://localhost:1@far.invalid/token"] {
        let error = registry.fetch_token(far, None, &Found::None).unwrap_err().to_string();
        assert!(error.contains("not safe"), "{far}: {error}");
    }
    // Here, nobody listens.
    let error = registry.fetch_token("http://localhost:1/token", None, &Found::None).unwrap_err();
    assert!(!error.to_string().contains("not safe"), "{error}");
}

const CONFIGURATION: &str = "
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
[server]
basicConstraints = CA:FALSE
subjectAltName = DNS:localhost
";

/// OpenSSL's server, with a certificate of an authority that nobody knows; it ends with this.
struct Server {
    process: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `None`: there is no OpenSSL.
fn serve(directory: &Path) -> Option<Server> {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        command.current_dir(directory).args(arguments.split(' '));
        command
    };
    fs::write(directory.join("conf"), CONFIGURATION).unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    for made in [
        format!(
            "req -x509 -config conf -extensions authority -subj /CN=own {key} -keyout cakey -out ca"
        ),
        format!(
            "req -x509 -config conf -extensions server -subj /CN=localhost -CA ca -CAkey cakey {key} -keyout \
             key -out cert"
        ),
    ] {
        let made = openssl(&made).output().ok()?;
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let mut process = openssl("s_server -accept 127.0.0.1:0 -cert cert -key key -www")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let place = lines.map(Result::unwrap).find(|line| line.starts_with("ACCEPT")).unwrap();
    let port = place.rsplit(':').next().unwrap().parse().unwrap();
    Some(Server { process, port })
}

#[test]
fn a_registry_may_have_a_certificate_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let Some(server) = serve(directory.path()) else {
        let _ =
            writeln!(std::io::stderr(), "SKIPPED: certificates of registries: there is no openssl");
        return;
    };
    let host = format!("localhost:{}", server.port);
    let trusted = directory.path().join("certs.d");
    let own = trusted.join(&host);
    let get = |directories: &[PathBuf]| {
        let roots = roots::of(directories, &host)?;
        let answer = agent("https", roots).get(format!("https://{host}/")).call();
        Ok::<_, Error>(answer.map(|answer| answer.status().as_u16()).map_err(|e| e.to_string()))
    };
    let stranger = get(&[]).unwrap().unwrap_err();
    assert!(stranger.contains("certificate"), "{stranger}");
    fs::create_dir_all(&own).unwrap();
    // Only what is called so.
    fs::write(own.join("ca.pem"), "nothing").unwrap();
    assert!(get(std::slice::from_ref(&trusted)).unwrap().is_err());
    fs::copy(directory.path().join("ca"), own.join("ca.crt")).unwrap();
    assert_eq!(get(std::slice::from_ref(&trusted)).unwrap(), Ok(200));
    fs::write(own.join("other.crt"), "nothing").unwrap();
    let damaged = get(&[trusted]).unwrap_err().to_string();
    assert!(damaged.contains("other.crt") && damaged.contains("no certificate"), "{damaged}");
}
