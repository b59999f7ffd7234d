//! Commands and files in guests, by way of the agent: Debian, as `lodge image build` makes it, and a
//! guest that has no agent.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::{Lab, sha256, skipped, tiny};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(600);

/// A guest of Debian in the background, which has the agent.
struct Server<'a> {
    lab: &'a Lab,
}

impl Server<'_> {
    fn lodge(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.lodge();
        command.args(arguments);
        command
    }

    /// Runs `lodge`.
    fn run(&self, arguments: &[&str]) -> Output {
        self.lodge(arguments).output().expect("lodge starts")
    }

    /// Runs `lodge`, which has to succeed; what it prints.
    #[track_caller]
    fn say(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {:?} {errors}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a script in the guest, which has to succeed.
    #[track_caller]
    fn shell(&self, script: &str) -> String {
        self.say(&["exec", "server", "--", "sh", "-c", script])
    }

    /// Starts `lodge`, with its input and output for us.
    fn start(&self, arguments: &[&str]) -> Running {
        let mut command = self.lodge(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(command.spawn().expect("lodge starts"))
    }
}

/// A command that is ended when the test ends in whatever way.
struct Running(Child);

impl Running {
    /// Waits for a line of output.
    fn line(&mut self) -> String {
        let output = self.0.stdout.as_mut().expect("piped");
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\n") && output.read(&mut byte).expect("output") == 1 {
            line.extend(byte);
        }
        String::from_utf8(line).expect("text")
    }

    #[track_caller]
    fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().expect("our child") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes without a pattern that a mistake could leave as it is.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| byte()).collect()
}

#[test]
fn commands_and_files_in_debian() {
    let Some(lab) = Lab::debian() else { return };
    if !lab.image().has_agent() {
        skipped(
            "commands in guests of Debian",
            "the image debian:12 was built without Lodge's agent: \
             `lodge image build debian:12 --force` builds it anew",
        );
        return;
    }
    let server = Server { lab: &lab };
    let cmdline = lab.image().patient_cmdline();
    server.say(&["run", "-d", "debian:12", "--name", "server", "--cmdline", &cmdline]);
    // It has hardly begun to start, and is waited for.
    assert_eq!(server.shell("echo hello; cat /etc/hostname"), "hello\ndebian\n");

    let events = server.say(&["events", "--once", "--json", "server"]);
    assert_eq!(events.matches("\"agent-ready\"").count(), 1, "{events}");

    output_and_status(&server);
    input(&server);
    signals(&server);
    terminals(&server);
    many_at_once(&server);
    copies(&server);
    ssh(&server);
    hybrid(&server);

    server.say(&["pause", "server"]);
    let paused = server.run(&["exec", "server", "--", "true"]);
    assert_eq!(paused.status.code(), Some(255), "{paused:?}");
    assert!(String::from_utf8_lossy(&paused.stderr).contains("resume"), "{paused:?}");
    server.say(&["resume", "server"]);
    // A connection does not outlive the guest.
    let mut sleeper = server.start(&["exec", "server", "--", "sh", "-c", "echo in; sleep 1000"]);
    assert_eq!(sleeper.line(), "in\n");
    server.say(&["kill", "server"]);
    assert_eq!(sleeper.wait(), Some(255));
    let gone = server.run(&["exec", "server", "--", "true"]);
    assert_eq!(gone.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("lodge start"), "{gone:?}");
    server.say(&["rm", "server"]);
    lab.close();
}

fn output_and_status(server: &Server<'_>) {
    let output =
        server.run(&["exec", "server", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(output.status.code(), Some(7));
    let status =
        |command: &[&str]| server.run(&[&["exec", "server", "--"], command].concat()).status.code();
    assert_eq!(status(&["sh", "-c", "exit 255"]), Some(255));
    assert_eq!(status(&["sh", "-c", "kill -KILL $$"]), Some(137));
    assert_eq!(status(&["no-such-command"]), Some(127));
    assert_eq!(status(&["/etc/passwd"]), Some(126));
    let first = ["exec", "-u", "lodge", "-w", "/tmp", "-e", "COLOUR=dark blue", "server", "--"];
    let command = ["sh", "-c", "id -un; id -Gn; pwd; echo $COLOUR $HOME"];
    let said = server.say(&[&first[..], &command].concat());
    assert_eq!(said, "lodge\nlodge sudo\n/tmp\ndark blue /home/lodge\n");
}

fn input(server: &Server<'_>) {
    let data = noise(8 << 20);
    let mut cat = server.start(&["exec", "-i", "server", "--", "sh", "-c", "tee /tmp/input | cat"]);
    let mut keyboard = cat.0.stdin.take().expect("piped");
    let mut screen = cat.0.stdout.take().expect("piped");
    thread::scope(|scope| {
        scope.spawn(|| {
            keyboard.write_all(&data).expect("input");
            drop(keyboard);
        });
        let mut echo = Vec::new();
        screen.read_to_end(&mut echo).expect("output");
        assert!(echo == data, "{} bytes come back changed", echo.len());
    });
    assert_eq!(cat.wait(), Some(0));
    let sum = server.shell("sha256sum < /tmp/input");
    assert_eq!(sum.split(' ').next().expect("a sum"), sha256(data.as_slice()));
    // Without -i there is none.
    assert_eq!(server.shell("cat | wc -c").trim(), "0");
}

fn signals(server: &Server<'_>) {
    let script = "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.1; done";
    let mut command = server.start(&["exec", "server", "--", "sh", "-c", script]);
    assert_eq!(command.line(), "ready\n");
    kill_process(Pid::from_child(&command.0), Signal::INT).expect("a signal");
    assert_eq!(command.line(), "interrupted\n");
    assert_eq!(command.wait(), Some(9));
    let mut sleeper =
        server.start(&["exec", "server", "--", "sh", "-c", "echo ready; exec sleep 1000"]);
    assert_eq!(sleeper.line(), "ready\n");
    kill_process(Pid::from_child(&sleeper.0), Signal::TERM).expect("a signal");
    assert_eq!(sleeper.wait(), Some(143));
    // One whose lodge is gone is hung up.
    let script = "echo ready; echo $$ > /tmp/orphan; exec sleep 1000";
    let mut orphan = server.start(&["exec", "server", "--", "sh", "-c", script]);
    assert_eq!(orphan.line(), "ready\n");
    drop(orphan);
    server.shell("while kill -0 $(cat /tmp/orphan) 2>/dev/null; do sleep 0.1; done");
}

fn terminals(server: &Server<'_>) {
    let said =
        server.say(&["exec", "-t", "server", "--", "sh", "-c", "tty; stty size; echo $TERM"]);
    assert!(said.starts_with("/dev/pts/") && said.contains("24 80\r\n"), "{said:?}");
    // A person at a terminal, as script(1) makes one.
    let lodge = server.lodge(&[]).get_program().to_str().expect("a path").to_owned();
    let line =
        format!("stty rows 30 cols 90; {lodge} exec -it server -- sh; stty -a | grep -o ' echo '");
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &line, "/dev/null"]);
    for (name, value) in server.lodge(&[]).get_envs() {
        if let Some(value) = value {
            script.env(name, value);
        }
    }
    script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(child) = script.spawn() else {
        skipped("a command at a terminal", "there is no script(1) here");
        return;
    };
    let mut person = Running(child);
    let mut keyboard = person.0.stdin.take().expect("piped");
    keyboard.write_all(b"stty size; echo sum $((20 + 22))\r").expect("keys");
    let mut seen = String::new();
    while !seen.contains("sum 42") {
        let line = person.line();
        assert!(!line.is_empty(), "{seen}");
        seen.push_str(&line);
    }
    assert!(seen.contains("30 90"), "{seen}");
    // Ctrl-C ends what runs there, and not lodge.
    keyboard.write_all(b"sleep 1000\r").expect("keys");
    thread::sleep(Duration::from_secs(1));
    keyboard.write_all(b"\x03").expect("keys");
    keyboard.write_all(b"echo still $((1 + 1)) here; exit\r").expect("keys");
    let mut rest = String::new();
    person.0.stdout.as_mut().expect("piped").read_to_string(&mut rest).expect("text");
    assert!(rest.contains("still 2 here"), "{rest}");
    // And the terminal is what it was.
    assert!(rest.trim_end().ends_with("echo"), "{rest}");
}

fn many_at_once(server: &Server<'_>) {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|number| {
                scope.spawn(move || {
                    let script =
                        format!("head -c 1000000 /dev/zero | tr '\\0' {number}; exit {number}");
                    server.run(&["exec", "server", "--", "sh", "-c", &script])
                })
            })
            .collect();
        for (number, thread) in threads.into_iter().enumerate() {
            let output = thread.join().expect("lodge ran");
            assert_eq!(output.status.code(), i32::try_from(number).ok());
            let wanted = vec![b'0' + number as u8; 1_000_000];
            assert!(output.stdout == wanted, "{number}: {} bytes", output.stdout.len());
        }
    });
}

fn copies(server: &Server<'_>) {
    let tree = server.lab.path("tree");
    fs::create_dir_all(tree.join("sub/empty")).expect("a directory");
    fs::write(tree.join("large"), noise(3 << 20)).expect("a file");
    fs::write(tree.join("sub/run"), "#!/bin/sh\necho it runs\n").expect("a file");
    fs::set_permissions(tree.join("sub/run"), PermissionsExt::from_mode(0o755)).expect("a mode");
    symlink("sub/run", tree.join("link")).expect("a link");
    let path = tree.to_str().expect("a path");
    let sums = "cd /srv/tree && find . -type f -exec sha256sum {} + | sort";

    server.say(&["cp", path, "server:/srv"]);
    assert_eq!(
        server.shell("/srv/tree/link; readlink /srv/tree/link; ls -d /srv/tree/sub/empty"),
        "it runs\nsub/run\n/srv/tree/sub/empty\n"
    );
    assert_eq!(server.shell("stat -c '%U %a' /srv/tree/sub/run"), "root 755\n");
    let back = server.lab.path("back");
    server.say(&["cp", "server:/srv/tree", back.to_str().expect("a path")]);
    let here = |directory: &Path| {
        let script = sums.replace("/srv/tree", directory.to_str().expect("a path"));
        Command::new("sh").args(["-c", &script]).output().expect("sh starts").stdout
    };
    assert_eq!(here(&back), here(&tree));
    assert_eq!(server.shell(sums).into_bytes(), here(&tree));
    assert_eq!(fs::read_link(back.join("link")).expect("a link"), Path::new("sub/run"));

    // One file, under another name; over a file; what is in a directory.
    server.say(&["cp", &format!("{path}/large"), "server:/srv/renamed"]);
    server.say(&["cp", &format!("{path}/sub/run"), "server:/srv/renamed"]);
    assert_eq!(server.shell("cat /srv/renamed"), "#!/bin/sh\necho it runs\n");
    server.say(&["cp", &format!("{path}/."), "server:/mnt"]);
    assert_eq!(server.shell("ls /mnt"), "large\nlink\nsub\n");
    // Archives.
    let mut unpack = server.start(&["cp", "-", "server:/opt"]);
    let archive = Command::new("tar").args(["-c", "-C", path, "sub"]).output().expect("tar").stdout;
    unpack.0.stdin.take().expect("piped").write_all(&archive).expect("input");
    assert_eq!(unpack.wait(), Some(0));
    assert_eq!(server.shell("/opt/sub/run"), "it runs\n");
    let output = server.run(&["cp", "server:/opt/sub", "-"]);
    let file = server.lab.file("sub.tar", &output.stdout);
    let list = Command::new("tar").arg("-tf").arg(file).output().expect("tar").stdout;
    assert!(String::from_utf8_lossy(&list).contains("sub/run\n"), "{list:?}");

    // What cannot be.
    for (arguments, why) in [
        (["cp", "server:/no/such", "x"], "/no/such"),
        (["cp", path, "server:/no/such/place"], "/no/such"),
        (["cp", path, "server:/srv/renamed"], "no directory"),
        (["cp", "server:/etc", "server:/srv"], "both"),
        (["cp", path, "y"], "neither"),
        (["cp", "no-such-file", "server:/srv"], "no-such-file"),
    ] {
        let refusal = server.lab.refusal(&arguments);
        assert_ne!(refusal.status, Some(0), "{arguments:?}");
        assert!(refusal.message.contains(why), "{arguments:?}: {}", refusal.message);
    }
    // A full disk in the guest is told as such, and early.
    server.shell("mkdir /tmp/small && mount -t tmpfs -o size=1m none /tmp/small");
    let full = server.lab.refusal(&["cp", &format!("{path}/large"), "server:/tmp/small/"]);
    assert!(full.message.contains("No space left"), "{}", full.message);
}

fn ssh(server: &Server<'_>) {
    // The image has no sshd, and that is said before ssh starts.
    let refusal = server.lab.refusal(&["ssh", "server"]);
    assert!(refusal.message.contains("openssh-server"), "{}", refusal.message);
    // With something that listens, the connection is that, also without ends of lines.
    server.shell(
        "printf SSH-2.0-a-test > /tmp/banner; nc -l 127.0.0.1 2222 < /tmp/banner > /tmp/heard & \
                  while ! ss -ltn | grep -q :2222; do sleep 0.1; done",
    );
    let mut proxy = server.start(&["ssh", "--proxy", "--port", "2222", "server"]);
    let mut banner = [0; 14];
    proxy.0.stdout.as_mut().expect("piped").read_exact(&mut banner).expect("a banner");
    assert_eq!(&banner, b"SSH-2.0-a-test");
    proxy.0.stdin.take().expect("piped").write_all(b"hello sshd").expect("input");
    assert_eq!(proxy.wait(), Some(0));
    server.shell("while ! grep -q 'hello sshd' /tmp/heard; do sleep 0.1; done");
}

/// Programs of the host by themselves, through the socket in the guest's directory.
fn hybrid(server: &Server<'_>) {
    let directory = server.lab.path("home/guests/server");
    let mut stream =
        std::os::unix::net::UnixStream::connect(directory.join("vsock.sock")).expect("a socket");
    stream.write_all(b"CONNECT 1023\n").expect("a request");
    let mut answer = [0; 3];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"OK ");
    // Nobody listens there.
    let mut refused =
        std::os::unix::net::UnixStream::connect(directory.join("vsock.sock")).expect("a socket");
    refused.write_all(b"CONNECT 4242\n").expect("a request");
    assert_eq!(refused.read(&mut answer).expect("the end"), 0);
}

#[test]
fn a_guest_without_an_agent_is_told_apart() {
    let lab = Lab::empty();
    let kernel = lab.file("echo", tiny::echo()).display().to_string();
    let server = Server { lab: &lab };
    let run =
        ["run", "-d", "--name", "tiny", "--kernel", &kernel, "--memory", "32M", "--net", "none"];
    server.say(&run);
    for (arguments, status) in [
        (vec!["exec", "tiny", "--", "true"], 255),
        (vec!["cp", "/etc/passwd", "tiny:/"], 2),
        (vec!["cp", "tiny:/etc/passwd", "-"], 2),
        (vec!["ssh", "tiny"], 2),
    ] {
        let refusal = lab.refusal(&arguments);
        assert_eq!(refusal.status, Some(status), "{arguments:?}: {}", refusal.message);
        assert!(refusal.message.contains("lodge-agent"), "{arguments:?}: {}", refusal.message);
    }
    assert_eq!(lab.refusal(&["exec", "nobody", "--", "true"]).status, Some(255));
    server.say(&["rm", "--force", "tiny"]);
    lab.close();
}
