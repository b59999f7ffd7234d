//! Images from a registry on this machine, which this test is: it speaks what of the distribution
//! specification is needed to pull, with tokens, and may lie.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use oci::{Digest, Error, Image, Limits, Reference, Tree};

/// What is at which path.
type Contents = HashMap<String, Vec<u8>>;

/// A registry; its address.
fn serve(contents: Contents, wants_token: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (contents, own) = (Arc::new(contents), address.clone());
    // It goes on until the test ends.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (contents, own) = (contents.clone(), own.clone());
            thread::spawn(move || answer(&stream, &contents, wants_token, &own));
        }
    });
    address
}

fn answer(stream: &TcpStream, contents: &Contents, wants_token: bool, own: &str) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    loop {
        let request = lines.next()?.ok()?;
        let path = request.split(' ').nth(1)?.to_owned();
        let mut authorized = !wants_token;
        loop {
            let header = lines.next()?.ok()?.to_lowercase();
            if header.is_empty() {
                break;
            }
            authorized |= header == "authorization: bearer secret";
        }
        let (head, body) = if path.starts_with("/token?") && path.contains("pull") {
            ("200 OK".to_owned(), br#"{"token":"secret"}"#.to_vec())
        } else if !authorized {
            let realm = format!("Bearer realm=\"http://{own}/token\",service=\"test\"");
            (format!("401 Unauthorized\r\nWWW-Authenticate: {realm}"), Vec::new())
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
    let image = Image::open(&format!("docker://{host}/{name}").parse::<Reference>()?)?;
    assert_eq!(image.config().command, ["/hello"]);
    let limits = Limits { bytes: 1 << 20, entries: 100 };
    let mut tree = Tree::new(&std::env::temp_dir(), limits)?;
    image.add_layer(0, &mut tree, &|| false)?;
    Ok(tree)
}

#[test]
fn images_are_pulled_with_and_without_tokens() {
    for wants_token in [false, true] {
        let host = serve(image().0, wants_token);
        let usage = pull(&host, "app:1").unwrap().usage();
        assert_eq!((usage.bytes, usage.names), (5, 2));
        let missing = pull(&host, "app:2").err().unwrap();
        assert!(matches!(missing, Error::NotInRegistry { .. }), "{missing}");
        let missing = pull(&host, "other:1").err().unwrap();
        assert!(matches!(missing, Error::NotInRegistry { .. }), "{missing}");
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
        let error = pull(&serve(contents, false), "app:1").err().unwrap();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(&layer.to_string()), "{error}");
    }
    // A manifest that is another one than was asked for.
    let mut contents = whole.clone();
    let other = Digest::of(b"");
    contents.insert(format!("/v2/app/manifests/{other}"), whole["/v2/app/manifests/1"].clone());
    let error = pull(&serve(contents, false), &format!("app@{other}")).err().unwrap();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}

#[test]
fn registries_that_are_not_there() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = pull(&closed.to_string(), "app:1").err().unwrap();
    assert!(matches!(error, Error::Registry { .. }), "{error}");
    assert_eq!(error.kind(), vmm_api::FailureKind::Host);
}
