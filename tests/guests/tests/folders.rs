//! Folders of this machine in a Debian guest: what it does there, what it cannot, and what it sees of what
//! happens here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::{Lab, compile, note, skipped};

/// How long a guest may take to get somewhere on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs a command as root in the guest, which has to succeed.
#[track_caller]
fn exec(lab: &Lab, command: &str) -> String {
    lab.say(&["exec", "deb", "--", "sh", "-ec", command])
}

/// What becomes of a command in the guest.
fn attempt(lab: &Lab, command: &str) -> Output {
    let arguments = ["exec", "deb", "--", "sh", "-c", command];
    lab.lodge().args(arguments).output().expect("lodge starts")
}

#[track_caller]
fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not come");
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn folders_of_debian() {
    let Some(lab) = Lab::debian() else { return };
    if !lab.image().has_agent() {
        return skipped("folders in Debian", "its image was built without Lodge's agent");
    }
    for name in ["work", "site", "outside"] {
        fs::create_dir(lab.path(name)).expect("a directory");
    }
    lab.file("site/index.html", "hello\n");
    lab.file("outside/secret", "what nobody is to see\n");
    // Relative to where lodge runs, which is the lab.
    let folders = ["-v", "work:/srv/work", "-v", "./site:/srv/site:ro"];
    let run = ["run", "-d", "--wait", "debian:12", "--name", "deb", "--memory", "384M"];
    lab.say(&[&run[..], &["--net", "none"], &folders].concat());

    if attempt(&lab, "test -e /etc/systemd/system-generators/lodge-folders").status.success() {
        exec(
            &lab,
            "grep -q ' /srv/work virtiofs rw' /proc/mounts; grep -q ' /srv/site virtiofs ro' /proc/mounts",
        );
    } else {
        skipped(
            "folders that are mounted by themselves",
            "the image debian:12 was built before they were",
        );
        let mount =
            |tag: &str, place: &str| format!("mkdir -p {place} && mount -t virtiofs {tag} {place}");
        exec(&lab, &mount("folder0", "/srv/work"));
        exec(&lab, &mount("folder1", "/srv/site"));
    }

    each_sees_what_the_other_does(&lab);
    a_folder_for_reading_is_only_read(&lab);
    programs_work_there(&lab);
    thousands_of_files(&lab);
    links_lead_to_the_guests_own(&lab);
    a_snapshot_has_files_open(&lab);

    let statistics = lab.say(&["stats", "deb", "--json"]);
    let statistics: serde_json::Value = serde_json::from_str(&statistics).expect("JSON");
    assert!(statistics["folders"][1]["read_bytes"].as_u64() >= Some(6), "{statistics}");
    lab.say(&["rm", "--force", "deb"]);
    for name in ["work", "site", "outside"] {
        fs::remove_dir_all(lab.path(name)).expect("it goes");
    }
    lab.close();
}

#[track_caller]
fn each_sees_what_the_other_does(lab: &Lab) {
    let read = |name: &str| fs::read_to_string(lab.path("work").join(name)).expect(name);
    exec(lab, "cd /srv/work; echo one > a; echo two >> a; mkdir d; mv a d/b; chmod 640 d/b");
    assert_eq!(read("d/b"), "one\ntwo\n");
    assert!(!lab.path("work/a").exists());
    // This machine goes on with it.
    let grown = fs::OpenOptions::new().append(true).open(lab.path("work/d/b"));
    std::io::Write::write_all(&mut grown.expect("the file"), b"three\n").expect("a line");
    lab.file("work/new", "from the host");
    wait("what the host wrote", || exec(lab, "cat /srv/work/d/b").ends_with("three\n"));
    assert_eq!(exec(lab, "cat /srv/work/new; echo four >> /srv/work/d/b"), "from the host");
    assert_eq!(read("d/b"), "one\ntwo\nthree\nfour\n");
    assert_eq!(exec(lab, "stat -c '%U:%G %a' /srv/work/d/b"), "root:root 640\n");
    // Replaced, and removed.
    lab.file("work/newer", "another");
    fs::rename(lab.path("work/newer"), lab.path("work/new")).expect("a rename");
    wait("the other file", || exec(lab, "cat /srv/work/new") == "another");
    fs::remove_file(lab.path("work/new")).expect("it goes");
    wait("its end", || {
        exec(lab, "ls /srv/work") == "d\n"
            && attempt(lab, "cat /srv/work/new").status.code() == Some(1)
    });
    exec(lab, "rm -r /srv/work/d");
    assert_eq!(fs::read_dir(lab.path("work")).expect("the folder").count(), 0);
    // Much at once.
    exec(
        lab,
        "cd /srv/work; head -c 20000000 /dev/urandom > big; sync; sha256sum big > sum; echo 3 > /proc/sys/vm/drop_caches; sha256sum -c --quiet sum",
    );
    let file = fs::File::open(lab.path("work/big")).expect("the file");
    assert_eq!(read("sum"), format!("{}  big\n", guest_tests::sha256(file)));
}

#[track_caller]
fn a_folder_for_reading_is_only_read(lab: &Lab) {
    assert_eq!(exec(lab, "cat /srv/site/index.html"), "hello\n");
    // Also if the guest believes that it may.
    exec(
        lab,
        "mkdir -p /run/site; mount -t virtiofs -o rw folder1 /run/site || mount --bind /srv/site /run/site; mount -o remount,rw /run/site || true",
    );
    for command in [
        "echo x > /run/site/index.html",
        "echo x > /run/site/new",
        "rm /run/site/index.html",
        "mkdir /run/site/d",
        "chmod 777 /run/site/index.html",
        "mv /run/site/index.html /run/site/x",
    ] {
        let refused = attempt(lab, command);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && said.contains("Read-only file system"),
            "{command}: {said}"
        );
    }
    assert_eq!(fs::read(lab.path("site/index.html")).expect("the file"), b"hello\n");
    assert_eq!(fs::read_dir(lab.path("site")).expect("the folder").count(), 1);
}

#[track_caller]
fn programs_work_there(lab: &Lab) {
    let Some(program) = compile(lab, "folder") else { return };
    fs::rename(program, lab.path("work/folder")).expect("it is moved");
    let said = exec(lab, "cd /srv/work; mkdir there; ./folder there; rm -r there folder");
    assert_eq!(said, "all is well\n");
}

#[track_caller]
fn thousands_of_files(lab: &Lab) {
    let place = lab.path("work/many");
    for n in 0..50 {
        let directory = place.join(format!("d{n}"));
        fs::create_dir_all(&directory).expect("a directory");
        (0..60).for_each(|m| fs::write(directory.join(format!("f{m}")), "x").expect("a file"));
    }
    assert_eq!(exec(lab, "find /srv/work/many -type f | wc -l"), "3000\n");
    assert_eq!(
        exec(lab, "cat /srv/work/many/*/* | wc -c; cp -r /srv/work/many /srv/work/copy"),
        "3000\n"
    );
    let count = |place: &Path| {
        let directories = fs::read_dir(place).expect("the folder").flatten();
        directories.map(|d| fs::read_dir(d.path()).expect("a directory").count()).sum::<usize>()
    };
    assert_eq!(count(&lab.path("work/copy")), 3000);
    exec(lab, "rm -r /srv/work/many /srv/work/copy");
    assert!(!place.exists());
}

/// A link in the folder leads where it leads in the guest, whoever made it.
#[track_caller]
fn links_lead_to_the_guests_own(lab: &Lab) {
    let secret = lab.path("outside/secret");
    symlink(&secret, lab.path("work/absolute")).expect("a link");
    symlink("../outside", lab.path("work/relative")).expect("a link");
    exec(lab, &format!("ln -s {} /srv/work/own", secret.display()));
    for path in ["absolute", "own", "relative/secret", "../../../outside/secret"] {
        let tried = attempt(lab, &format!("cat /srv/work/{path}"));
        assert!(!tried.status.success(), "{path}");
        assert!(!attempt(lab, &format!("echo x > /srv/work/{path}")).status.success(), "{path}");
    }
    exec(lab, "ln -s /etc/hostname /srv/work/name; cmp /srv/work/name /etc/hostname");
    exec(lab, "rm /srv/work/absolute /srv/work/relative /srv/work/own /srv/work/name");
    assert_eq!(fs::read_to_string(&secret).expect("it"), "what nobody is to see\n");
}

#[track_caller]
fn a_snapshot_has_files_open(lab: &Lab) {
    exec(
        lab,
        "cd /srv/work; (setsid sh -c 'echo $$ > /run/ticker; exec 3>> ticks; while :; do echo tick >&3; sleep 0.2; done' > /dev/null 2>&1 &)",
    );
    let length = || fs::metadata(lab.path("work/ticks")).map_or(0, |it| it.len());
    wait("the first ticks", || length() > 10);
    lab.say(&["snapshot", "create", "deb", "one"]);
    note("back to a snapshot");
    lab.say(&["snapshot", "restore", "--force", "deb", "one"]);
    let before = length();
    wait("more ticks", || length() > before + 10);
    exec(
        lab,
        "kill $(cat /run/ticker); rm /srv/work/ticks; cd /srv/work; echo after > there; cat there",
    );
    assert_eq!(fs::read(lab.path("work/there")).expect("the file"), b"after\n");
    // Without its folder, it is not started.
    lab.say(&["stop", "--timeout", "0", "deb"]);
    fs::rename(lab.path("site"), lab.path("gone")).expect("a rename");
    let refused = lab.lodge().args(["start", "deb"]).output().expect("lodge starts");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(4), "{said}");
    assert!(said.contains("site cannot be shared") && said.contains("mkdir"), "{said}");
    fs::rename(lab.path("gone"), lab.path("site")).expect("a rename");
    lab.say(&["start", "deb"]);
    exec(lab, "true");
}
