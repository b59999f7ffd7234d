//! The API as it is served, held against docs/api/openapi.json: each path, method and status that
//! is described is asked for, and each answer must be as described.

mod common;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use common::{ECHOES, HEEDS_POWER_BUTTON, IGNORES_POWER_BUTTON, LETS_GO, SLEEPS, Vmm, wait};
use serde_json::{Value, json};
use vmm_api::Event;

/// The description, and what of it has been seen.
struct Description {
    document: Value,
    seen: RefCell<BTreeSet<(String, String, String)>>,
}

struct Answer {
    status: u16,
    content_type: String,
    body: Vec<u8>,
}

impl Description {
    fn read() -> Description {
        let text = include_str!("../../../docs/api/openapi.json");
        Description { document: serde_json::from_str(text).unwrap(), seen: RefCell::default() }
    }

    /// All (method, path, status) that are described, but for defaults.
    fn described(&self) -> BTreeSet<(String, String, String)> {
        let mut described = BTreeSet::new();
        for (path, methods) in self.document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                for status in operation["responses"].as_object().unwrap().keys() {
                    if status != "default" {
                        let method = method.to_uppercase();
                        described.insert((method, path.clone(), status.clone()));
                    }
                }
            }
        }
        described
    }

    /// Checks an answer against what is said of it.
    #[track_caller]
    fn check(&self, method: &str, path: &str, answer: &Answer) {
        let path = path.split('?').next().unwrap();
        let responses = &self.document["paths"][path][method.to_lowercase()]["responses"];
        assert!(responses.is_object(), "{method} {path} is not described");
        let status = answer.status.to_string();
        let described = responses.get(&status).unwrap_or(&responses["default"]);
        self.seen.borrow_mut().insert((method.to_owned(), path.to_owned(), status.clone()));
        let Some(content) = described.get("content") else {
            let text = String::from_utf8_lossy(&answer.body);
            assert!(answer.body.is_empty(), "{method} {path} {status}: a body: {text}");
            return;
        };
        let schema = content.get(&answer.content_type);
        let schema =
            schema.unwrap_or_else(|| panic!("{method} {path} {status}: {}", answer.content_type));
        let Some(schema) = schema.get("schema") else { return };
        match answer.content_type.as_str() {
            "application/jsonl" => {
                for line in answer.body.split(|&byte| byte == b'\n').filter(|l| !l.is_empty()) {
                    self.validate(schema, &serde_json::from_slice(line).unwrap());
                }
            }
            _ => self.validate(schema, &serde_json::from_slice(&answer.body).unwrap()),
        }
    }

    #[track_caller]
    fn validate(&self, schema: &Value, value: &Value) {
        let mut whole = schema.clone();
        whole["components"] = self.document["components"].clone();
        let validator = jsonschema::validator_for(&whole).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(value).map(|e| format!("{e} at {}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{errors:#?} in {value:#}");
    }

    /// Asks, and checks the answer.
    #[track_caller]
    fn ask(&self, vmm: &Vmm, method: &str, path: &str, wanted: u16) -> Answer {
        self.ask_with(vmm, method, path, "", "", wanted)
    }

    #[track_caller]
    fn ask_with(
        &self,
        vmm: &Vmm,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
        wanted: u16,
    ) -> Answer {
        let answer = ask(vmm.connect(), method, path, headers, body);
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status, wanted, "{method} {path}: {text}");
        self.check(method, path, &answer);
        answer
    }
}

fn ask(mut stream: UnixStream, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{headers}\
         Connection: close\r\n\r\n"
    );
    // One that is refused need not be read to its end.
    let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat());
    read_answer(&mut BufReader::new(stream))
}

fn read_answer(reader: &mut BufReader<UnixStream>) -> Answer {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let header = |name: &str| {
        let mut headers = lines.iter().skip(1).filter_map(|line| line.split_once(": "));
        headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
    let mut body = Vec::new();
    if header("transfer-encoding").as_deref() == Some("chunked") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).unwrap();
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    } else if status != 101 {
        let length = header("content-length").map_or(0, |length| length.parse().unwrap());
        body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
    }
    Answer { status, content_type: header("content-type").unwrap_or_default(), body }
}

#[test]
fn the_server_is_as_described_and_the_description_as_the_server() {
    const UPGRADE: &str = "Upgrade: lodge-console\r\nConnection: Upgrade\r\n";
    const ATTACH: &str = "Upgrade: lodge-attach\r\nConnection: Upgrade\r\n";
    const VSOCK: &str = "Upgrade: lodge-vsock\r\nConnection: Upgrade\r\n";
    let description = Description::read();

    let full = json!({
        "cpu_model": "x86-64-v2", "serial2": { "log": "/dev/null" }, "virtio_console": "null",
        "nets": [{ "forwards": [] }],
    });
    let mut vmm = Vmm::start(ECHOES, full);
    for path in ["/v1/instance", "/v1/config", "/v1/statistics", "/v1/log"] {
        description.ask(&vmm, "GET", path, 200);
    }
    description.ask(&vmm, "GET", "/v1/log?tail=x", 400);
    description.ask(&vmm, "GET", "/v1/events?follow=no", 400);
    description.ask(&vmm, "GET", "/v1/console?follow=true", 400);
    description.ask(&vmm, "GET", "/v1/console", 426);
    let console = {
        let mut stream = vmm.connect();
        let head = format!("GET /v1/console HTTP/1.1\r\nHost: x\r\n{UPGRADE}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let answer = read_answer(&mut reader);
        assert_eq!(answer.status, 101);
        description.check("GET", "/v1/console", &answer);
        reader.get_mut().write_all(b"hello").unwrap();
        let mut echo = [0; 5];
        reader.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"hello");
        reader
    };
    description.ask(&vmm, "GET", "/v1/vsock", 400);
    description.ask(&vmm, "GET", "/v1/vsock?port=1023", 426);
    // This guest has no driver.
    description.ask_with(&vmm, "GET", "/v1/vsock?port=1023", VSOCK, "", 409);
    description.ask(&vmm, "POST", "/v1/pause", 204);
    description.ask_with(&vmm, "GET", "/v1/vsock?port=1023", VSOCK, "", 409);
    description.ask(&vmm, "GET", "/v1/statistics", 200);
    let instance = description.ask(&vmm, "GET", "/v1/instance", 200);
    let instance: Value = serde_json::from_slice(&instance.body).unwrap();
    assert_eq!(instance["state"], "paused");
    description.ask(&vmm, "POST", "/v1/power-button", 409);
    description.ask(&vmm, "POST", "/v1/resume", 204);
    description.ask_with(&vmm, "POST", "/v1/snapshots", "", "{\"name\":\"one\"}", 204);
    description.ask_with(&vmm, "POST", "/v1/snapshots", "", "{\"name\":\"one\"}", 409);
    description.ask_with(&vmm, "POST", "/v1/snapshots", "", "{\"name\":1}", 400);
    description.ask_with(&vmm, "POST", "/v1/snapshots", "", &" ".repeat(100_000), 413);
    description.ask_with(&vmm, "POST", "/v1/balloon", "", "{\"target_mib\":10}", 204);
    description.ask_with(&vmm, "POST", "/v1/balloon", "", "{\"target_mib\":0}", 409);
    description.ask_with(&vmm, "POST", "/v1/balloon", "", "{\"target_mib\":17}", 409);
    description.ask_with(&vmm, "POST", "/v1/balloon", "", "{\"target_mib\":-1}", 400);
    description.ask_with(&vmm, "POST", "/v1/balloon", "", &" ".repeat(100_000), 413);
    let balloon = description.ask(&vmm, "GET", "/v1/balloon", 200);
    let balloon: Value = serde_json::from_slice(&balloon.body).unwrap();
    assert_eq!(
        [&balloon["target_mib"], &balloon["actual_mib"], &balloon["guest"]],
        [&json!(10), &json!(16), &Value::Null]
    );
    let snapshots = description.ask(&vmm, "GET", "/v1/snapshots", 200);
    let snapshots: Value = serde_json::from_slice(&snapshots.body).unwrap();
    assert_eq!(snapshots[0]["name"], "one");
    description.ask(&vmm, "POST", "/v1/reset", 204);
    wait("the reset", || vmm.client().instance().unwrap().resets == 1);
    description.ask(&vmm, "GET", "/v1/events?follow=false", 200);
    description.ask_with(&vmm, "POST", "/v1/stop", "", "{\"timeout\":1}", 400);
    description.ask_with(&vmm, "POST", "/v1/stop", "", &" ".repeat(100_000), 413);
    // What follows a guest sees its last event.
    let mut follower = vmm.connect();
    follower.write_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut follower = BufReader::new(follower);
    follower.fill_buf().unwrap();
    description.ask_with(&vmm, "POST", "/v1/stop", "", "{\"timeout_s\":0}", 204);
    drop(console);
    let events = read_answer(&mut follower);
    description.check("GET", "/v1/events", &events);
    let events = String::from_utf8(events.body).unwrap();
    assert!(events.trim_end().lines().last().unwrap().contains("\"stopped\""), "{events}");
    assert_eq!(vmm.end(), 0);

    let mut vmm = Vmm::start(HEEDS_POWER_BUTTON, json!({}));
    vmm.wait_until_it_listens();
    description.ask(&vmm, "POST", "/v1/power-button", 204);
    assert_eq!(vmm.end(), 0);

    // Asked to stop, it can be paused no more.
    let vmm = Vmm::start(IGNORES_POWER_BUTTON, json!({}));
    vmm.wait_until_it_listens();
    description.ask(&vmm, "POST", "/v1/stop", 204);
    description.ask(&vmm, "POST", "/v1/pause", 409);
    let instance = vmm.client().instance().unwrap();
    assert_eq!(instance.state, vmm_api::RunState::Stopping);

    // A device comes and goes.
    let mut vmm = Vmm::start(LETS_GO, json!({}));
    vmm.wait_until_it_listens();
    description.ask(&vmm, "GET", "/v1/attach", 426);
    let image = std::fs::File::open(vmm.dir.path().join("kernel")).unwrap();
    let mut stream = vmm.connect();
    let head = format!("GET /v1/attach HTTP/1.1\r\nHost: x\r\n{ATTACH}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    description.check("GET", "/v1/attach", &read_answer(&mut reader));
    let schema = |name: &str| description.document["components"]["schemas"][name].clone();
    let answer = |reader: &mut BufReader<UnixStream>, request: &Value| {
        description.validate(&schema("AttachRequest"), request);
        let mut lines = [String::new(), String::new()];
        reader.read_line(&mut lines[0]).unwrap();
        assert_eq!(lines[0], "\n");
        reader.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
        reader.read_line(&mut lines[1]).unwrap();
        let answer: Value = serde_json::from_str(&lines[1]).unwrap();
        description.validate(&schema("AttachAnswer"), &answer);
        answer
    };
    let request = json!({ "device": { "disk": { "path": "/d" } }, "descriptors": ["/d"] });
    assert!(answer(&mut reader, &request)["refused"]["message"].is_string());
    let disk = vmm_api::BlockConfig {
        path: "/nowhere".into(),
        readonly: true,
        ..vmm_api::BlockConfig::default()
    };
    let request = vmm_api::AttachRequest {
        device: vmm_api::Device::Disk(disk),
        descriptors: vec!["/nowhere".into()],
    };
    let attached = vmm.client().attach(&request, &[image.as_fd()]).unwrap();
    description.validate(&schema("Device"), &serde_json::to_value(&attached).unwrap());
    description.ask(&vmm, "GET", "/v1/config", 200);
    description.ask_with(&vmm, "POST", "/v1/detach", "", "{\"id\":\"disk-24\"}", 204);
    description.ask_with(&vmm, "POST", "/v1/detach", "", "{\"id\":\"disk-24\"}", 409);
    description.ask_with(&vmm, "POST", "/v1/detach", "", "{}", 400);
    description.ask_with(&vmm, "POST", "/v1/detach", "", &" ".repeat(100_000), 413);
    description.ask(&vmm, "GET", "/v1/events?follow=false", 200);
    vmm.client().stop(vmm_api::StopRequest { timeout_s: 0 }).unwrap();
    assert_eq!(vmm.end(), 0);

    let vmm = Vmm::start(SLEEPS, json!({ "serial": "null", "balloon": false }));
    description.ask(&vmm, "GET", "/v1/balloon", 409);
    description.ask(&vmm, "GET", "/v1/log", 409);
    description.ask_with(&vmm, "GET", "/v1/console", UPGRADE, "", 409);
    assert_eq!(ask(vmm.connect(), "GET", "/v2/instance", "", "").status, 404);
    assert_eq!(ask(vmm.connect(), "DELETE", "/v1/instance", "", "").status, 405);

    let seen = description.seen.borrow();
    // It takes a kernel with a driver for virtio sockets: tests/guests/tests/exec.rs.
    let elsewhere = [("GET".to_owned(), "/v1/vsock".to_owned(), "101".to_owned())].into();
    let described = &description.described() - &elsewhere;
    let missing: Vec<_> = described.difference(&seen).cloned().collect();
    assert!(missing.is_empty(), "described and never seen: {missing:?}");
}

#[test]
fn events_are_as_described() {
    let description = Description::read();
    let schema = &description.document["components"]["schemas"]["EventRecord"];
    let mut vmm = Vmm::start_in(tempfile::tempdir().unwrap(), &[0x0f, 0x0b], json!({}));
    // A triple fault, again and again: resets and a warning.
    wait("a warning", || matches!(vmm.event(), Some(Event::Warning { .. })));
    vmm.client().stop(vmm_api::StopRequest { timeout_s: 0 }).unwrap();
    assert_eq!(vmm.end(), 0);
    let text = std::fs::read_to_string(vmm.dir.path().join("events.jsonl")).unwrap();
    let mut kinds = BTreeSet::new();
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        description.validate(schema, &record);
        kinds.insert(record["event"].as_str().unwrap().to_owned());
    }
    let wanted = ["reset", "started", "stopped", "warning"].map(str::to_owned);
    assert_eq!(kinds, BTreeSet::from(wanted));
}
