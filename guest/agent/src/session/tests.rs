//! Requests over a pair of sockets, with the commands of this machine.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use agent_protocol::{Control, Exec, INPUT_WINDOW, Size};
use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};

use super::*;

/// `lodge`'s end of a connection.
struct Client {
    stream: UnixStream,
    frames: FrameReader,
    agent: Option<JoinHandle<()>>,
}

/// What a command has done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    output: Vec<u8>,
    errors: Vec<u8>,
    credit: usize,
    end: Option<Reply>,
}

impl Client {
    fn new(task: Task) -> Self {
        let (stream, far) = UnixStream::pair().unwrap();
        let agent = Some(thread::spawn(move || serve(far.into())));
        let mut client = Self { stream, frames: FrameReader::default(), agent };
        client.send_json(Type::Request, &Request { version: VERSION, task });
        client
    }

    fn send_json(&mut self, kind: Type, message: &impl serde::Serialize) {
        let mut frames = FrameWriter::default();
        frames.push_json(kind, message).unwrap();
        frames.flush(&mut self.stream).unwrap();
    }

    fn send(&mut self, kind: Type, payload: &[u8]) {
        let mut frames = FrameWriter::default();
        frames.push(kind, payload);
        frames.flush(&mut self.stream).unwrap();
    }

    fn frame(&mut self) -> agent_protocol::frame::Frame {
        self.frames.wait(&mut self.stream).unwrap().expect("a frame")
    }

    fn reply(&mut self) -> Reply {
        self.frame().json().unwrap()
    }

    /// Everything up to the last reply.
    fn outcome(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some(frame) = self.frames.wait(&mut self.stream).unwrap() {
            match frame.kind {
                Type::Output => outcome.output.extend(frame.payload),
                Type::Errors => outcome.errors.extend(frame.payload),
                Type::Credit => outcome.credit += frame.credit().unwrap(),
                Type::Reply => match frame.json().unwrap() {
                    Reply::Started => {}
                    end => {
                        outcome.end = Some(end);
                        break;
                    }
                },
                kind => panic!("{kind:?}"),
            }
        }
        self.agent.take().unwrap().join().unwrap();
        outcome
    }
}

fn shell(script: &str) -> Exec {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    Exec { command, user: Some(me()), ..Exec::default() }
}

/// A command that ends by signals alone. No shell is in between: a signal may come at the moment when a shell
/// has forked, and its child, which still has the shell's handlers, goes on.
fn sleeper() -> Exec {
    let command = ["sleep", "1000"].map(str::to_owned).to_vec();
    Exec { command, user: Some(me()), ..Exec::default() }
}

/// Who runs this test, who need not be root.
fn me() -> String {
    rustix::process::geteuid().as_raw().to_string()
}

fn run(exec: Exec) -> Outcome {
    Client::new(Task::Exec(exec)).outcome()
}

#[track_caller]
fn failure(outcome: &Outcome) -> (u8, &str) {
    match &outcome.end {
        Some(Reply::Failed { status, message }) => (*status, message),
        end => panic!("{end:?}"),
    }
}

#[test]
fn a_command_has_output_errors_and_a_status() {
    let outcome = run(shell("echo out; echo err >&2; exit 7"));
    assert_eq!(outcome.output, b"out\n");
    assert_eq!(outcome.errors, b"err\n");
    assert_eq!(outcome.end, Some(Reply::Exited(7)));
    assert_eq!(run(shell("exit 255")).end, Some(Reply::Exited(255)));
    assert_eq!(run(shell("kill -TERM $$")).end, Some(Reply::Exited(143)));
}

#[test]
fn environment_and_directory_are_as_asked_for() {
    let environment = vec![("A".to_owned(), "b c".to_owned())];
    let directory = Some("/usr".to_owned());
    let exec =
        Exec { environment, directory, ..shell("echo \"$A\"; pwd; echo $HOME $PATH; id -u") };
    let text = String::from_utf8(run(exec).output).unwrap();
    assert!(text.starts_with("b c\n/usr\n/"), "{text}");
    assert!(text.contains("/usr/bin") && text.ends_with(&format!("{}\n", me())), "{text}");
    // It is in a session of its own, and has nobody's descriptors.
    let look = "ls /proc/self/fd | wc -l";
    let outcome = run(shell(&format!("{look}; [ $(ps -o sid= -p $$) = $$ ] && echo own")));
    let native = std::process::Command::new("sh").args(["-c", look]).output().unwrap();
    assert_eq!(outcome.output, [&native.stdout, &b"own\n"[..]].concat());
}

#[test]
fn what_cannot_be_run_is_told_apart() {
    let command =
        |name: &str| Exec { command: vec![name.to_owned()], user: Some(me()), ..Exec::default() };
    assert_eq!(failure(&run(command("no-such-command"))).0, 127);
    assert_eq!(failure(&run(command("/no/such/command"))).0, 127);
    assert_eq!(failure(&run(command("/etc/passwd"))).0, 126);
    assert_eq!(failure(&run(command("/"))).0, 126);
    assert_eq!(failure(&run(Exec::default())).0, 126);
    let nowhere = Exec { directory: Some("/no/such".into()), ..shell("true") };
    assert!(failure(&run(nowhere)).1.contains("/no/such"));
    let nobody = Exec { user: Some("no-such-user".into()), ..shell("true") };
    assert!(failure(&run(nobody)).1.contains("no-such-user"));
}

#[test]
fn input_of_any_length_reaches_the_command() {
    let mut client = Client::new(Task::Exec(Exec { input: true, ..shell("cksum") }));
    assert_eq!(client.reply(), Reply::Started);
    let data: Vec<u8> = (0..5_000_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let (mut sent, mut taken) = (0, 0);
    while sent < data.len() {
        let len = (INPUT_WINDOW - (sent - taken)).min(data.len() - sent).min(50_000);
        if len == 0 {
            taken += client.frame().credit().unwrap();
        } else {
            client.send(Type::Input, &data[sent..sent + len]);
            sent += len;
        }
    }
    client.send(Type::Input, b"");
    let outcome = client.outcome();
    assert_eq!(taken + outcome.credit, data.len());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &data).unwrap();
    let native =
        std::process::Command::new("cksum").stdin(file.reopen().unwrap()).output().unwrap();
    assert_eq!(outcome.output, native.stdout);
    assert_eq!(outcome.end, Some(Reply::Exited(0)));
}

#[test]
fn a_command_that_reads_nothing_holds_nothing_up() {
    let mut client = Client::new(Task::Exec(Exec { input: true, ..sleeper() }));
    assert_eq!(client.reply(), Reply::Started);
    client.send(Type::Input, &[0; INPUT_WINDOW]);
    client.send_json(Type::Control, &Control::Signal(2));
    assert_eq!(client.outcome().end, Some(Reply::Exited(130)));
    // One that has closed its input takes everything.
    let script = "exec <&-; echo closed; exec sleep 1000";
    let mut client = Client::new(Task::Exec(Exec { input: true, ..shell(script) }));
    assert_eq!(client.reply(), Reply::Started);
    assert_eq!(client.frame().payload, b"closed\n");
    client.send(Type::Input, &[0; 100_000]);
    let mut credit = 0;
    while credit < 100_000 {
        credit += client.frame().credit().unwrap();
    }
    client.send_json(Type::Control, &Control::Signal(2));
    assert_eq!(client.outcome().end, Some(Reply::Exited(130)));
    // More than was asked for is refused, and the command ended. The agent takes no more of it than that, so
    // that who sends may find nobody there.
    let mut client = Client::new(Task::Exec(Exec { input: true, ..sleeper() }));
    let mut frames = FrameWriter::default();
    frames.push(Type::Input, &[0; 2 * INPUT_WINDOW]);
    let _ = frames.flush(&mut client.stream);
    assert_eq!(failure(&client.outcome()).0, 125);
}

#[test]
fn long_output_arrives_whole() {
    let outcome = run(shell("head -c 3000000 /dev/zero; echo end"));
    assert_eq!(outcome.output.len(), 3_000_004);
    assert!(outcome.output.ends_with(b"end\n"));
}

#[test]
fn who_runs_on_in_the_background_is_not_waited_for() {
    let outcome = run(shell("sleep 1000 & echo started; echo $! >&2"));
    assert_eq!(
        (outcome.output.as_slice(), outcome.end),
        (&b"started\n"[..], Some(Reply::Exited(0)))
    );
    let pid = String::from_utf8(outcome.errors).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_terminal_is_one() {
    let terminal = Some(Size { rows: 33, columns: 101 });
    let mut client = Client::new(Task::Exec(Exec {
        input: true,
        terminal,
        ..shell("tty; stty size; read x; stty size; echo got $x")
    }));
    assert_eq!(client.reply(), Reply::Started);
    client.send_json(Type::Control, &Control::Resize(Size { rows: 20, columns: 30 }));
    client.send(Type::Input, b"word\r");
    let text = String::from_utf8(client.outcome().output).unwrap();
    assert!(text.contains("/dev/pts/"), "{text}");
    assert!(text.contains("20 30\r\n") && text.ends_with("got word\r\n"), "{text}");
    // Ctrl-C is a signal there, and the end of input an end of file.
    for (key, status) in [(&b"\x03"[..], 130), (b"", 0)] {
        let terminal = Some(Size::default());
        let mut client = Client::new(Task::Exec(Exec {
            input: true,
            terminal,
            ..shell("echo ready; exec cat")
        }));
        assert_eq!(client.reply(), Reply::Started);
        let mut seen = Vec::new();
        while !seen.ends_with(b"ready\r\n") {
            seen.extend(client.frame().payload);
        }
        client.send(Type::Input, key);
        assert_eq!(client.outcome().end, Some(Reply::Exited(status)));
    }
}

#[test]
fn a_connection_that_ends_hangs_the_command_up() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("hung-up");
    let script = format!(
        "exec 2>/dev/null; trap 'echo yes > {}; exit' HUP; echo ready; while :; do sleep 0.05; done",
        file.display()
    );
    let mut client = Client::new(Task::Exec(shell(&script)));
    assert_eq!(client.reply(), Reply::Started);
    assert_eq!(client.frame().payload, b"ready\n");
    client.stream.shutdown(std::net::Shutdown::Both).unwrap();
    client.agent.take().unwrap().join().unwrap();
    assert_eq!(std::fs::read_to_string(file).unwrap(), "yes\n");
}

#[test]
fn files_come_and_go() {
    let here = tempfile::tempdir().unwrap();
    let tree = here.path().join("tree");
    std::fs::create_dir_all(tree.join("sub/empty")).unwrap();
    std::fs::write(tree.join("sub/file"), vec![5; 300_000]).unwrap();
    std::fs::write(tree.join("run"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(tree.join("run"), PermissionsExt::from_mode(0o750)).unwrap();
    symlink("sub/file", tree.join("link")).unwrap();
    let _pipe = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();

    // Out of the "guest" ...
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mut client = Client::new(Task::CopyOut { path: text(&tree), name: "copy".into() });
    assert_eq!(client.reply(), Reply::Started);
    let mut archive = Vec::new();
    let mut data = DataReader::new(&client.stream, &mut client.frames, Type::Output);
    data.read_to_end(&mut archive).unwrap();
    assert_eq!(data.finish().unwrap(), Reply::Done);

    // ... and back into it.
    let mut client = Client::new(Task::CopyIn { directory: text(here.path()) });
    assert_eq!(client.reply(), Reply::Started);
    let mut data = DataWriter::new(&client.stream, Type::Input);
    data.write_all(&archive).unwrap();
    data.flush().unwrap();
    client.send(Type::Input, b"");
    assert_eq!(client.reply(), Reply::Done);
    let copy = here.path().join("copy");
    assert_eq!(std::fs::read(copy.join("link")).unwrap(), vec![5; 300_000]);
    assert_eq!(std::fs::read_link(copy.join("link")).unwrap(), Path::new("sub/file"));
    assert_eq!(std::fs::metadata(copy.join("run")).unwrap().permissions().mode() & 0o7777, 0o750);
    assert!(copy.join("sub/empty").is_dir() && !copy.join("socket").exists());

    let stat = |path: &Path| Client::new(Task::Stat { path: text(path) }).reply();
    assert_eq!(stat(&copy), Reply::Stat(Kind::Directory));
    assert_eq!(stat(&copy.join("run")), Reply::Stat(Kind::File));
    assert_eq!(stat(&copy.join("none")), Reply::Stat(Kind::Missing));
    let missing = Client::new(Task::CopyOut { path: text(&copy.join("none")), name: "x".into() });
    assert!(failure(&{ missing }.outcome()).1.contains("none"));
    let nowhere = Client::new(Task::CopyIn { directory: text(&copy.join("run")) });
    assert!(failure(&{ nowhere }.outcome()).1.contains("no such directory"));
}

#[test]
fn ports_are_connected_to() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut client = Client::new(Task::Connect { port });
    let (mut program, _) = listener.accept().unwrap();
    assert_eq!(client.reply(), Reply::Started);
    client.stream.write_all(b"hello").unwrap();
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    program.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    program.write_all(b"goodbye").unwrap();
    drop(program);
    let mut text = String::new();
    client.stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "goodbye");
    // A port that is taken and has nobody listening. A listener that was dropped may still be there, in what
    // another test has forked and not executed yet.
    let taken = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&taken, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = SocketAddrV4::try_from(getsockname(&taken).unwrap()).unwrap().port();
    let refused = Client::new(Task::Connect { port });
    assert!(failure(&{ refused }.outcome()).1.contains(&port.to_string()));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut client = Client::new(Task::Ping);
    assert_eq!(client.reply(), Reply::Done);
    for request in [r#"{"version":2,"task":"ping"}"#, r#"{"version":1,"task":"dance"}"#, "x"] {
        let (mut stream, far) = UnixStream::pair().unwrap();
        let agent = thread::spawn(move || serve(far.into()));
        let mut frames = FrameWriter::default();
        frames.push(Type::Request, request.as_bytes());
        frames.flush(&mut stream).unwrap();
        let mut client = Client { stream, frames: FrameReader::default(), agent: Some(agent) };
        assert!(failure(&client.outcome()).1.contains("understand"), "{request}");
    }
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[3, 0, 0, 0, 0]] {
        let (mut stream, far) = UnixStream::pair().unwrap();
        let agent = thread::spawn(move || serve(far.into()));
        stream.write_all(bytes).unwrap();
        let mut client = Client { stream, frames: FrameReader::default(), agent: Some(agent) };
        assert_eq!(failure(&client.outcome()).0, 125);
    }
}
