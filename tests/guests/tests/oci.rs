//! OCI images run as guests: what their programs say, see and end with.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::oci::{Entry, OciImage, static_busybox};
use guest_tests::{Lab, has_tool, sha256, skipped};
use serde_json::json;

const COMMANDS: [&str; 11] =
    ["sh", "cat", "id", "ls", "stat", "hostname", "sleep", "sync", "wget", "sha256sum", "grep"];

/// Exit statuses, as the manual page has them.
const CONFIGURATION: i32 = 2;
const ARTIFACT: i32 = 4;

/// A lab with a store of its own, in which there is a kernel, and a static shell for images. `None`,
/// said loudly, if something is missing.
fn lab() -> Option<(Lab, Vec<u8>)> {
    let skip = |why: &str| {
        skipped("OCI images", why);
        None
    };
    let Some(busybox) = static_busybox() else {
        return skip("there is no static busybox: apt-get install busybox-static");
    };
    if !has_tool("debugfs") {
        return skip("there is no debugfs: apt-get install e2fsprogs");
    }
    let lab = Lab::debian_apart()?;
    if !lab.has_agent_program() {
        return skip("there is no lodge-agent beside lodge: `make build` makes it");
    }
    Some((lab, busybox))
}

fn image(busybox: &[u8]) -> OciImage {
    let mut base: Vec<Entry<'_>> = vec![
        ("bin/", 0, 0o755, b""),
        ("bin/busybox", 0, 0o755, busybox),
        ("etc/passwd", 0, 0o644, b"root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/srv:/bin/sh\n"),
        ("etc/group", 0, 0o644, b"root:x:0:\nweb:x:1000:\n"),
        ("srv/", 1000, 0o750, b""),
        ("srv/hello", 1000, 0o640, b"of the first layer\n"),
        ("srv/gone", 0, 0o644, b"removed by the second layer"),
    ];
    let names: Vec<String> = COMMANDS.iter().map(|name| format!("bin/{name}")).collect();
    base.extend(names.iter().map(|name| (name.as_str(), 0, 0o777, &b"->busybox"[..])));
    let top: &[Entry<'_>] =
        &[("srv/.wh.gone", 0, 0o644, b""), ("srv/hello", 1000, 0o640, b"hello from the image\n")];
    let config = json!({
        "Env": ["PATH=/bin", "GREETING=hi"],
        "Cmd": ["/bin/cat", "hello"],
        "WorkingDir": "/srv",
        "User": "web",
    });
    OciImage::new(config, &[&base, top])
}

/// Runs a guest to its end, with this input.
fn run(lab: &Lab, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = lab.lodge();
    command.arg("run").args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("lodge starts");
    // A guest that reads nothing may be gone already.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("lodge ends")
}

#[track_caller]
fn assert_ran(output: &Output, status: i32, text: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{errors}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), text, "{errors}");
}

#[track_caller]
fn assert_refused(lab: &Lab, arguments: &[&str], status: i32, words: &[&str]) {
    let output = run(lab, arguments, b"");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{message}");
    assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    assert!(output.stdout.is_empty());
}

#[track_caller]
fn wait_for_log(lab: &Lab, guest: &str, text: &str) {
    let deadline = Instant::now() + Duration::from_secs(300);
    while !lab.say(&["logs", guest]).contains(text) {
        assert!(Instant::now() < deadline, "no {text:?} in the log of {guest}");
        thread::sleep(Duration::from_millis(100));
    }
}

fn name(path: &Path) -> String {
    format!("oci:{}", path.display())
}

#[test]
fn the_programs_of_images() {
    let Some((lab, busybox)) = lab() else { return };
    let image = image(&busybox);
    let layout = lab.path("layout");
    image.write_layout(&layout);
    let layout = name(&layout);

    let output = run(&lab, &[&layout], b"");
    assert_ran(&output, 0, "hello from the image\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Unpacking layer 2 of 2"));

    // The command is this one now; what the image says of environment, user and directory holds.
    let script = "echo $GREETING $MORE; id -un; ls; stat -c '%U %a' . hello; hostname; exit 7";
    let arguments = ["--name", "box", "-e", "MORE=ha", &layout, "--", "/bin/sh", "-c", script];
    let output = run(&lab, &arguments, b"");
    assert_ran(&output, 7, "hi ha\nweb\nhello\nweb 750\nweb 640\nbox\n");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("Unpacking"), "it is there already: {errors}");

    // Bytes that a terminal would change, and the end of input.
    let bytes = b"one\x03\r\n\ttwo\x11 \x04\0\x16\xff\x7f".repeat(500);
    let bytes = [&bytes[..], &b"a long line ".repeat(1000), b" without an end"].concat();
    let output = run(&lab, &[&layout, "cat"], &bytes);
    assert_eq!((output.status.code(), output.stdout), (Some(0), bytes));
    // More than a terminal and its driver hold, for who reads late and slowly.
    let much: Vec<u8> = (0..2_000_000u32).map(|n| (n.wrapping_mul(n) >> 5) as u8).collect();
    let late = [&layout, "--", "sh", "-c", "sleep 3; sha256sum"];
    let output = run(&lab, &late, &much);
    assert_ran(&output, 0, &format!("{}  -\n", sha256(&much[..])));
    let other = ["-u", "0", "-w", "/made", "--entrypoint", "sh", &layout, "--", "-c", "id -u; pwd"];
    let output = run(&lab, &other, b"");
    assert_ran(&output, 0, "0\n/made\n");

    let output = run(&lab, &[&layout, "nothing"], b"");
    assert_ran(&output, 127, "lodge: nothing: command not found\n");
    assert_eq!(run(&lab, &[&layout, "/etc/passwd"], b"").status.code(), Some(126));
    let output = run(&lab, &[&layout, "-u", "nobody"], b"");
    assert_eq!(output.status.code(), Some(126));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("there is no user nobody"), "{errors}");
    let output = run(&lab, &[&layout, "sh", "-c", "kill -9 $$"], b"");
    assert_eq!(output.status.code(), Some(128 + 9));

    // A kernel that gives up does not begin anew.
    let output = run(&lab, &["-u", "0", &layout, "sh", "-c", "echo c > /proc/sysrq-trigger"], b"");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(ARTIFACT), "{errors}");
    assert!(errors.contains("kernel gave up"), "{errors}");

    let archive = lab.file("saved.tar", image.docker_archive());
    let tagged = format!("docker-archive:{}:test:1", archive.display());
    assert_ran(&run(&lab, &[&tagged], b""), 0, "hello from the image\n");
    lab.close();
}

#[test]
fn folders_of_this_machine() {
    let Some((lab, busybox)) = lab() else { return };
    let layout = lab.path("layout");
    image(&busybox).write_layout(&layout);
    let layout = name(&layout);
    fs::create_dir(lab.path("work")).expect("a directory");
    lab.file("work/in", "from this machine\n");
    let work = lab.path("work").display().to_string();
    let (both, readonly) =
        (format!("{work}:/srv/deep/work:uid=1000"), format!("{work}:/mnt/ro:ro"));
    let script = "cat /mnt/ro/in; echo from the guest > deep/work/out; echo x > /mnt/ro/in || echo refused; \
                  grep -c ' virtiofs ' /proc/mounts";
    let arguments = ["-v", &both, "-v", &readonly, &layout, "--", "sh", "-c", script];
    let output = run(&lab, &arguments, b"");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}{errors}");
    assert!(said.starts_with("from this machine\n") && said.ends_with("refused\n2\n"), "{said}");
    assert!(!errors.contains("may not mount"), "{errors}");
    let out = fs::read_to_string(lab.path("work/out")).expect("the guest's file");
    assert_eq!(out, "from the guest\n");
    lab.close();
}

#[test]
fn images_in_the_background() {
    let Some((lab, busybox)) = lab() else { return };
    let layout = lab.path("layout");
    image(&busybox).write_layout(&layout);
    let script = "trap 'sync; exit 9' TERM; echo $(cat kept) up; echo kept > kept; \
                  echo ready; while :; do sleep 1; done";
    let layout = name(&layout);
    lab.say(&["run", "-d", "--wait", "--name", "web", &layout, "--", "sh", "-c", script]);
    assert_eq!(lab.say(&["exec", "web", "--", "hostname"]), "web\n");
    assert_eq!(lab.say(&["exec", "web", "--", "cat", "/srv/hello"]), "hello from the image\n");
    // Only then does it take signals as it wants to.
    wait_for_log(&lab, "web", "ready");
    lab.say(&["stop", "web"]);
    assert!(lab.say(&["events", "--once", "web"]).contains("ended with status 9"));
    // As it was made, on the disk as it was left.
    lab.say(&["start", "web"]);
    wait_for_log(&lab, "web", "kept up");
    lab.say(&["rm", "--force", "web"]);
    lab.close();
}

#[test]
fn images_that_are_none() {
    let Some((lab, busybox)) = lab() else { return };
    let layout = lab.path("layout");
    let mut image = image(&busybox);
    let blobs = image.write_layout(&layout);
    let of = name(&layout);
    assert_refused(&lab, &[&format!("{of}:old")], CONFIGURATION, &["no old in", "latest"]);
    assert_refused(&lab, &["oci:/no/where"], ARTIFACT, &["/no/where"]);
    let home = format!("oci:{}", lab.path("home").display());
    assert_refused(&lab, &[&home], ARTIFACT, &["no OCI image", "index.json"]);
    assert_refused(&lab, &["debian:12", "ls"], CONFIGURATION, &["lodge exec"]);
    let archive = image.docker_archive();
    let archive = lab.file("cut.tar", &archive[..archive.len() / 2]);
    assert_refused(&lab, &[&name(&archive)], ARTIFACT, &["cut.tar", "truncated"]);

    let blob = layout.join("blobs/sha256").join(&blobs[1][7..]);
    let whole = fs::read(&blob).expect("a blob");
    let mut changed = whole.clone();
    changed[40] ^= 1;
    for contents in [&changed[..], &whole[..whole.len() - 1], &[&whole[..], b"x"].concat()] {
        fs::write(&blob, contents).expect("a blob");
        assert_refused(&lab, &[&of], ARTIFACT, &[&blobs[1], "damaged"]);
    }
    fs::remove_file(&blob).expect("a blob");
    assert_refused(&lab, &[&of], ARTIFACT, &[&blobs[1], "missing"]);

    let whole = name(&lab.path("whole"));
    image.write_layout(&lab.path("whole"));
    let long = "x".repeat(3000);
    assert_refused(&lab, &[&whole, &long], CONFIGURATION, &["too long"]);

    image.architecture = "arm64";
    let foreign = lab.path("foreign");
    image.write_layout(&foreign);
    assert_refused(&lab, &[&name(&foreign)], ARTIFACT, &["linux/arm64", "linux/amd64"]);

    let hostile: &[Entry<'_>] = &[("etc", 0, 0o777, b"->/etc"), ("srv/", 0, 0o755, b"")];
    let quiet = OciImage::new(json!({}), &[hostile]);
    let directory = lab.path("quiet");
    quiet.write_layout(&directory);
    assert_refused(&lab, &[&name(&directory)], CONFIGURATION, &["which program"]);
    let linked =
        OciImage::new(json!({ "Cmd": ["x"] }), &[&[("a", 0, 0, b"->a"), ("a/x", 0, 0, b"")]]);
    let directory = lab.path("linked");
    linked.write_layout(&directory);
    assert_refused(&lab, &[&name(&directory)], ARTIFACT, &["a/x", "refused"]);
    lab.close();
}
