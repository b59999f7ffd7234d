//! A place of its own for each test, which is clean at the end.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Image, Launch, note};

/// The variable that marks the processes of a lab.
const MARK: &str = "LODGE_TEST_LAB";
/// How long the last processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// A refusal that takes longer is not one that a person would wait for.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(120);

/// The `lodge` under test: `$LODGE_BIN`, else this workspace's release build.
///
/// # Panics
///
/// If it or the `lodge-vmm` beside it is not there.
pub(crate) fn program() -> PathBuf {
    let built = || {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        workspace.join(target.unwrap_or_else(|| "target".into())).join("release/lodge")
    };
    let lodge = std::env::var_os("LODGE_BIN").map_or_else(built, PathBuf::from);
    for program in [&lodge, &lodge.with_file_name("lodge-vmm")] {
        assert!(
            program.is_file(),
            "{} is missing: build it with `cargo build --release -p cli -p vmm`, or name another \
             lodge in LODGE_BIN",
            program.display()
        );
    }
    lodge
}

/// A directory for the files of a test's guests, and all that they may use.
pub struct Lab {
    directory: Option<TempDir>,
    image: Option<Image>,
}

/// How `lodge` turned something down.
#[derive(Debug)]
pub struct Refusal {
    /// The exit status.
    pub status: Option<i32>,
    /// What it said on standard error.
    pub message: String,
}

impl Lab {
    /// A lab without an image, for kernels of the test's own.
    ///
    /// # Panics
    ///
    /// If the host does not let it be made.
    #[must_use]
    pub fn empty() -> Lab {
        let directory = tempfile::Builder::new().prefix("lodge-test-").tempdir();
        let lab = Lab { directory: Some(directory.expect("a directory")), image: None };
        for name in ["home", "tmp", "run"] {
            fs::create_dir(lab.path(name)).expect("a directory");
        }
        lab
    }

    /// A lab whose guests are made of Debian. `None`, said loudly, if there is no image and none
    /// can be built.
    ///
    /// # Panics
    ///
    /// If the host does not let it be made.
    #[must_use]
    pub fn debian() -> Option<Lab> {
        let image = Image::find()?;
        let mut lab = Lab::empty();
        // The user's images, but no guests of theirs.
        symlink(image.store(), lab.path("home/images")).expect("a link");
        lab.image = Some(image);
        Some(lab)
    }

    /// A lab that has Debian's image in a store of its own, for tests that make further images.
    /// `None`, said loudly, if there is no image and none can be built.
    ///
    /// # Panics
    ///
    /// If the host does not let it be made.
    #[must_use]
    pub fn debian_apart() -> Option<Lab> {
        let image = Image::find()?;
        let mut lab = Lab::empty();
        let directory = image.kernel().parent().expect("an image is a directory");
        let images = lab.path("home/images");
        fs::create_dir(&images).expect("a directory");
        let name = directory.file_name().expect("a directory has a name");
        symlink(directory, images.join(name)).expect("a link");
        lab.image = Some(image);
        Some(lab)
    }

    /// Whether there is a program of the agent, which is in images.
    #[must_use]
    pub fn has_agent_program(&self) -> bool {
        std::env::var_os("LODGE_AGENT").is_some()
            || program().with_file_name("lodge-agent").is_file()
    }

    /// A file or directory in the lab.
    ///
    /// # Panics
    ///
    /// Never.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.as_ref().expect("there until the end").path().join(name)
    }

    /// The image of the lab's guests.
    ///
    /// # Panics
    ///
    /// If the lab has none.
    #[must_use]
    pub fn image(&self) -> &Image {
        self.image.as_ref().expect("a lab with an image")
    }

    /// A file in the lab with these contents.
    ///
    /// # Panics
    ///
    /// If it cannot be written.
    pub fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).expect("a file in the lab");
        path
    }

    /// What `lodge` prints with these arguments; it has to succeed.
    #[track_caller]
    pub fn say(&self, arguments: &[&str]) -> String {
        let output = self.lodge().args(arguments).output().expect("lodge starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `lodge`, all of whose files are in the lab and none of whose settings come from outside.
    #[must_use]
    pub fn lodge(&self) -> Command {
        let mut command = Command::new(program());
        command
            .env(MARK, self.path(""))
            .env("LODGE_HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("LODGE_CHECK_CODE", "1")
            .env_remove("LODGE_VMM")
            .env_remove("LODGE_LOG")
            .current_dir(self.path(""))
            .stdin(Stdio::null());
        command
    }

    /// A guest of the lab's image, to be started.
    #[must_use]
    pub fn guest(&self, name: &str) -> Launch<'_> {
        Launch::new(self, name)
    }

    /// Runs `lodge`, which is to turn down what it is asked for, soon and leaving nothing behind.
    ///
    /// # Panics
    ///
    /// If it does not end, or leaves something.
    #[track_caller]
    pub fn refusal(&self, arguments: &[&str]) -> Refusal {
        self.refusal_of(self.lodge().args(arguments))
    }

    /// Like [`Lab::refusal`], for a command that was prepared.
    ///
    /// # Panics
    ///
    /// As there.
    #[track_caller]
    pub fn refusal_of(&self, command: &mut Command) -> Refusal {
        let before = self.files();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("lodge starts");
        let deadline = Instant::now() + REFUSAL_PATIENCE;
        while child.try_wait().expect("lodge is our child").is_none() {
            if Instant::now() >= deadline {
                let _ = child.kill();
                let output = child.wait_with_output().expect("lodge is our child");
                let said = String::from_utf8_lossy(&output.stderr);
                panic!("{command:?} does not end:\n{said}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = child.wait_with_output().expect("lodge is our child");
        assert_eq!(self.files(), before, "{command:?} leaves files behind");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        Refusal { status: output.status.code(), message }
    }

    /// Ends the test: asserts that nothing is left of the guests, and that nobody wrote to the
    /// image.
    ///
    /// # Panics
    ///
    /// If something is left.
    #[track_caller]
    pub fn close(self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.processes().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.processes(), Vec::<String>::new(), "processes are left");
        for place in ["home/guests", "tmp", "run"] {
            let left = files_below(&self.path(place));
            assert!(left.is_empty(), "files are left in {place}: {left:?}");
        }
        let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let here = self.path("").display().to_string();
        let left: Vec<_> = sockets.lines().filter(|line| line.contains(&here)).collect();
        assert!(left.is_empty(), "sockets are left: {left:?}");
        if let Some(image) = &self.image {
            image.assert_untouched();
        }
    }

    /// The command lines of the lab's processes that still run.
    fn processes(&self) -> Vec<String> {
        let mark = format!("{MARK}={}\0", self.path("").display()).into_bytes();
        let is_ours = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.windows(mark.len()).any(|window| window == mark)
        };
        let name = |pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            format!("{pid}: {}", String::from_utf8_lossy(&line).replace('\0', " "))
        };
        processes().filter(is_ours).map(name).collect()
    }

    /// All files in the lab.
    fn files(&self) -> Vec<PathBuf> {
        files_below(&self.path(""))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(directory) = self.directory.take()
        {
            note(&format!("what was left is in {}", directory.keep().display()));
        }
    }
}

/// All processes (proc(5)).
pub(crate) fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").expect("/proc");
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// All files and directories below a directory; none if it is not there. Links are not followed.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_below(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}
