//! `lodge stats` with a VMM that is played by the test, and how a guest comes to be found.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;

use common::{Home, outcome, text};
use vmm_api::{Accelerator, Failure, ProcessorStatistics, Statistics};

/// A running guest named `web`: its lock, and a socket that nobody listens at yet.
struct Web {
    directory: PathBuf,
    _lock: File,
}

impl Web {
    fn new(home: &Home) -> Web {
        let directory = home.path().join("guests/web");
        fs::create_dir_all(&directory).unwrap();
        let lock = File::create(directory.join("lock")).unwrap();
        lock.try_lock().unwrap();
        Web { directory, _lock: lock }
    }

    /// Serves one client.
    fn serve(&self, serve: impl FnOnce(UnixStream) + Send + 'static) {
        let path = self.directory.join("api.sock");
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(path).unwrap();
        thread::spawn(move || serve(listener.accept().unwrap().0));
    }

    /// Answers one client with more and more entries.
    fn count(&self) {
        self.serve(|client| {
            let mut reader = BufReader::new(&client);
            let mut look = 0;
            while let Some(request) = read_request(&mut reader) {
                assert!(request.starts_with("GET /v1/statistics HTTP/1.1\r\n"), "{request}");
                look += 1;
                let counts = [("entries".to_owned(), 1000 * look)].into();
                let processor =
                    ProcessorStatistics { current: true, counts, levels: Default::default() };
                let statistics = Statistics {
                    name: "web".into(),
                    accelerator: Accelerator::Soft,
                    resets: 0,
                    running_ns: 500_000_000 * look,
                    memory: Default::default(),
                    processors: vec![processor],
                    disks: Vec::new(),
                    nets: Vec::new(),
                    folders: Vec::new(),
                };
                answer(&client, "200 OK", &serde_json::to_string(&statistics).unwrap());
            }
        });
    }
}

/// Reads the head of a request without a body; `None` at the end.
fn read_request(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

fn answer(mut client: &UnixStream, status: &str, body: &str) {
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
    client.write_all(text.as_bytes()).unwrap();
}

fn stats(home: &Home, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = home.lodge(&[&["stats"], arguments].concat()).output().unwrap();
    let (code, errors) = outcome(&output);
    (code, text(&output.stdout), errors)
}

#[test]
fn a_person_sees_rates_and_a_program_what_was_counted() {
    let home = Home::new();
    let web = Web::new(&home);
    web.count();
    let (code, output, errors) = stats(&home, &["web", "--interval", "0.1"]);
    assert_eq!(code, Some(0), "{errors}");
    let entries = output.lines().find(|line| line.trim().starts_with("entries")).unwrap();
    let words: Vec<&str> = entries.split_whitespace().collect();
    assert_eq!(words, ["entries", "2,000", "2,000"], "{output}");

    web.count();
    let (code, output, errors) = stats(&home, &["web", "--json"]);
    assert_eq!(code, Some(0), "{errors}");
    let json: serde_json::Value = serde_json::from_str(&output).unwrap();
    assert_eq!(json["processors"][0]["counts"]["entries"], 1000);
    assert_eq!(json["accelerator"], "soft");
}

#[test]
fn guests_that_cannot_be_asked() {
    let home = Home::new();
    for (name, wanted) in [("web", "no guest web"), ("../web", "letters")] {
        let (code, _, errors) = stats(&home, &[name]);
        assert_eq!(code, Some(2), "{errors}");
        assert!(errors.contains(wanted), "{errors}");
    }
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "asking leaves nothing");

    let web = Web::new(&home);
    let ask = |wanted: &str| {
        let (code, output, errors) = stats(&home, &["web"]);
        assert_eq!(code, Some(6), "{errors}");
        assert!(errors.contains(wanted) && output.is_empty(), "{errors}");
    };
    ask("starting or ending");
    web.serve(drop);
    ask("ended before it answered");
    for nonsense in ["hello\n", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{\"a\""] {
        web.serve(move |mut client| {
            read_request(&mut BufReader::new(&client));
            client.write_all(nonsense.as_bytes()).unwrap();
        });
        ask("another version");
    }
    web.serve(|client| {
        read_request(&mut BufReader::new(&client));
        let failure = serde_json::to_string(&Failure::host("no time")).unwrap();
        answer(&client, "503 Service Unavailable", &failure);
    });
    ask("no time");

    // What a killed run leaves is no guest; what it was to keep is one.
    let record = r#"{"image":"debian:12","disk_sha256":"00","keep":true}"#;
    let directory = web.directory.clone();
    drop(web);
    let (code, _, errors) = stats(&home, &["web"]);
    assert!(code == Some(2) && errors.contains("no guest web"), "{errors}");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("guest.json"), record).unwrap();
    let (code, _, errors) = stats(&home, &["web"]);
    assert!(code == Some(2) && errors.contains("lodge run --name web"), "{errors}");
}

/// A VMM that has bash tell what it was given, and waits for its end.
const LISTENING: &str = r#"
    [ "$5" = --api-fd ] && [ -S "/proc/$$/fd/$6" ]
    trap 'event "$requested"; exit 0' TERM
    event "$started"; echo ready >&$console
    while :; do sleep 0.05; done"#;

#[test]
fn a_guest_without_an_image_is_found_and_leaves_nothing() {
    let home = Home::new();
    let arguments = ["run", "--kernel", "/k", "--name", "tiny"];
    let mut command = home.lodge_with_vmm(LISTENING, &arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert_eq!(home.guests(), ["tiny"]);
    assert!(home.path().join("guests/tiny/api.sock").exists());
    let list = text(&home.lodge(&["ls"]).output().unwrap().stdout);
    assert!(list.contains("tiny") && list.contains("unresponsive"), "{list}");
    let (code, message) = outcome(&home.lodge(&arguments).output().unwrap());
    assert!(code == Some(2) && message.contains("running already"), "{message}");
    let pid = child.id().to_string();
    let kill = std::process::Command::new("kill").arg(pid).status().unwrap();
    assert!(kill.success());
    child.wait().unwrap();
    assert!(!home.path().join("guests").exists());
}

#[test]
fn a_guest_without_an_image_runs_without_a_place_for_files() {
    let home = Home::new();
    let script = r#"[ $# = 4 ]; event "$started"; event "$power_off""#;
    let mut command = home.lodge_with_vmm(script, &["run", "--kernel", "/k"]);
    let output = command.env("LODGE_HOME", "/proc/lodge").output().unwrap();
    let (code, errors) = outcome(&output);
    assert_eq!(code, Some(0), "{errors}");
    assert!(errors.contains("will not find this guest"), "{errors}");
}
