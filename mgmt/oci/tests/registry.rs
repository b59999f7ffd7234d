//! Images from a registry on this machine, which this test is: it speaks what of the distribution
//! specification is needed to pull, with tokens and logins, and may lie.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use oci::{Access, Digest, Error, Image, Limits, Reference, Tree};

/// What is at which path.
type Contents = HashMap<String, Vec<u8>>;

/// What a registry wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    Nothing,
    /// A token that anybody gets.
    Token,
    /// A token that the user gets, by name and password.
    UsersToken,
    /// A token that the user gets for another one.
    Refreshed,
    /// Name and password.
    Password,
}

/// `user:secret`, as base64.
const LOGIN: &str = "dXNlcjpzZWNyZXQ=";

/// A registry; its address.
fn serve(contents: Contents, wants: Wants) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (contents, own) = (Arc::new(contents), address.clone());
    // It goes on until the test ends.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (contents, own) = (contents.clone(), own.clone());
            thread::spawn(move || answer(&stream, &contents, wants, &own));
        }
    });
    address
}

fn answer(stream: &TcpStream, contents: &Contents, wants: Wants, own: &str) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = || {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|&length| length > 0)?;
            Some(line.trim_end().to_owned())
        };
        let request = line()?;
        let path = request.split(' ').nth(1)?.to_owned();
        let (mut authorization, mut length) = (String::new(), 0);
        loop {
            let header = line()?;
            let Some((name, value)) = header.split_once(": ") else { break };
            match name.to_lowercase().as_str() {
                "authorization" => authorization = value.to_owned(),
                "content-length" => length = value.parse().ok()?,
                _ => {}
            }
        }
        let mut form = vec![0; length];
        reader.read_exact(&mut form).ok()?;
        let form = String::from_utf8(form).ok()?;
        let login = format!("Basic {LOGIN}");
        let is_authorized = match wants {
            Wants::Nothing => true,
            Wants::Password => authorization == login,
            _ => authorization == "Bearer token",
        };
        let gets_token = match wants {
            Wants::UsersToken => authorization == login,
            Wants::Refreshed => form.contains("refresh_token=identity") && form.contains("pull"),
            _ => true,
        };
        let (head, body) = if path.starts_with("/token") && gets_token {
            assert!(path.contains("pull") || wants == Wants::Refreshed, "{path}");
            ("200 OK".to_owned(), br#"{"token":"token"}"#.to_vec())
        } else if path.starts_with("/token") {
            ("401 Unauthorized".to_owned(), Vec::new())
        } else if !is_authorized {
            let basic = "WWW-Authenticate: Basic realm=\"test\"";
            let token =
                format!("WWW-Authenticate: Bearer realm=\"http://{own}/token\",service=\"test\"");
            let challenge = if wants == Wants::Password { basic } else { &token };
            (format!("401 Unauthorized\r\n{challenge}"), Vec::new())
        } else {
            match contents.get(&path) {
                Some(body) => ("200 OK".to_owned(), body.clone()),
                None => ("404 Not Found".to_owned(), Vec::new()),
            }
        };
        let mut stream = stream;
        write!(stream, "HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len()).ok()?;
        stream.write_all(&body).ok()?;
    }
}

/// An image `app:1` of one layer with one file, behind an index.
fn image() -> (Contents, Digest) {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_data(&mut header, "hello", &b"hello"[..]).unwrap();
    let layer = builder.into_inner().unwrap();
    let of = |bytes: &[u8]| Digest::of(bytes).to_string();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/hello"]}},
            "rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        of(&layer)
    );
    let describe = |kind: &str, bytes: &[u8], more: &str| {
        let kind = format!("application/vnd.oci.image.{kind}");
        let (digest, size) = (of(bytes), bytes.len());
        format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}{more}}}"#)
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        describe("config.v1+json", config.as_bytes(), ""),
        describe("layer.v1.tar", &layer, "")
    );
    let platform = r#","platform":{"os":"linux","architecture":"amd64"}"#;
    let entry = describe("manifest.v1+json", manifest.as_bytes(), platform);
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
    let digest = Digest::of(&layer);
    let mut contents = Contents::new();
    let at = |kind: &str, name: &str| format!("/v2/app/{kind}/{name}");
    contents.insert(at("manifests", "1"), index.into_bytes());
    contents.insert(at("manifests", &of(manifest.as_bytes())), manifest.into_bytes());
    contents.insert(at("blobs", &of(config.as_bytes())), config.into_bytes());
    contents.insert(at("blobs", &digest.to_string()), layer);
    (contents, digest)
}

fn pull(host: &str, name: &str) -> Result<Tree, Error> {
    pull_with(host, name, &Access::default())
}

fn pull_with(host: &str, name: &str, access: &Access) -> Result<Tree, Error> {
    let reference = format!("docker://{host}/{name}").parse::<Reference>()?;
    let image = Image::open_with(&reference, access)?;
    assert_eq!(image.config().command, ["/hello"]);
    let limits = Limits { bytes: 1 << 20, entries: 100 };
    let mut tree = Tree::new(&std::env::temp_dir(), limits)?;
    image.add_layer(0, &mut tree, &|| false)?;
    Ok(tree)
}

#[test]
fn images_are_pulled_with_and_without_tokens() {
    for wants in [Wants::Nothing, Wants::Token] {
        let host = serve(image().0, wants);
        let usage = pull(&host, "app:1").unwrap().usage();
        assert_eq!((usage.bytes, usage.names), (5, 2));
        let missing = pull(&host, "app:2").err().unwrap();
        assert!(matches!(missing, Error::NotInRegistry { .. }), "{missing}");
        let missing = pull(&host, "other:1").err().unwrap();
        assert!(matches!(missing, Error::NotInRegistry { .. }), "{missing}");
    }
}

#[test]
fn images_that_want_a_login() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("auth.json");
    let access = Access { logins: vec![file.clone()], ..Access::default() };
    for wants in [Wants::UsersToken, Wants::Refreshed, Wants::Password] {
        let host = serve(image().0, wants);
        let failure = |access: &Access| pull_with(&host, "app:1", access).err().unwrap();
        let nobody = failure(&Access::default());
        assert!(matches!(nobody, Error::NoAccess { .. }), "{wants:?}: {nobody}");
        assert!(nobody.to_string().contains("podman login"), "{nobody}");
        let login = |auth: &str, identity: &str| {
            let entry = format!(r#"{{"auth":"{auth}","identitytoken":"{identity}"}}"#);
            std::fs::write(&file, format!(r#"{{"auths":{{"{host}":{entry}}}}}"#)).unwrap();
        };
        let identity = if wants == Wants::Refreshed { "identity" } else { "" };
        login(LOGIN, identity);
        assert_eq!(pull_with(&host, "app:1", &access).unwrap().usage().bytes, 5, "{wants:?}");
        login("d3Jvbmc6d3Jvbmc=", if identity.is_empty() { "" } else { "wrong" });
        let wrong = failure(&access);
        assert!(wrong.to_string().contains("auth.json"), "{wrong}");
        std::fs::write(&file, format!(r#"{{"auths":{{"{host}":{{}}}},"credsStore":"x"}}"#))
            .unwrap();
        let kept = failure(&access);
        assert!(kept.to_string().contains("docker-credential-x"), "{kept}");
        std::fs::write(&file, "{").unwrap();
        assert!(matches!(failure(&access), Error::Logins { .. }));
    }
}

#[test]
fn what_a_registry_gives_is_not_trusted() {
    let (whole, layer) = image();
    let place = format!("/v2/app/blobs/{layer}");
    let damages: [fn(&mut Vec<u8>); 3] =
        [|blob| blob[0] ^= 1, |blob| blob.truncate(100), |blob| blob.push(0)];
    for damage in damages {
        let mut contents = whole.clone();
        damage(contents.get_mut(&place).unwrap());
        let error = pull(&serve(contents, Wants::Nothing), "app:1").err().unwrap();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(&layer.to_string()), "{error}");
    }
    // A manifest that is another one than was asked for.
    let mut contents = whole.clone();
    let other = Digest::of(b"");
    contents.insert(format!("/v2/app/manifests/{other}"), whole["/v2/app/manifests/1"].clone());
    let error = pull(&serve(contents, Wants::Nothing), &format!("app@{other}")).err().unwrap();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}

#[test]
fn registries_that_are_not_there() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = pull(&closed.to_string(), "app:1").err().unwrap();
    assert!(matches!(error, Error::Registry { .. }), "{error}");
    assert_eq!(error.kind(), vmm_api::FailureKind::Host);
}
