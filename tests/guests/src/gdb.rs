//! The real GDB, at whose prompt we sit.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::console::Console;
use crate::{Lab, has_tool, skipped};

const PROMPT: &str = "(gdb) ";
/// The longest wait for what a guest has to do first; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(600);

/// A GDB that is connected to a guest. Dropped, it is ended by force.
pub struct Gdb {
    child: Child,
    console: Console,
}

impl Gdb {
    /// Whether there is a GDB. If not, this is said loudly.
    #[must_use]
    pub fn is_here() -> bool {
        let is_here = has_tool("gdb");
        if !is_here {
            skipped("GDB on guests", "there is no gdb: scripts/install-lab-deps installs it");
        }
        is_here
    }

    /// Starts it, and connects it to a guest that says on its standard error, in `errors`, where.
    ///
    /// # Panics
    ///
    /// If the guest does not say it, or GDB cannot be started.
    #[must_use]
    pub fn connect(lab: &Lab, errors: &Path) -> Gdb {
        let place = await_place(errors);
        let mut child = Command::new("gdb")
            .args(["-nx", "-q", "-iex", "set auto-load off"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .current_dir(lab.path(""))
            .spawn()
            .expect("gdb starts");
        let keyboard = child.stdin.take().expect("its input is ours");
        let output = child.stdout.take().expect("its output is ours");
        let transcript = File::create(lab.path("gdb.log")).expect("a file in the lab");
        let mut gdb = Gdb { child, console: Console::new(keyboard, output, transcript) };
        gdb.wait();
        for setting in ["pagination off", "confirm off", "width 0", "architecture i386:x86-64"] {
            gdb.ask(&format!("set {setting}"));
        }
        let said = gdb.ask(&format!("target remote {place}"));
        assert!(said.contains("Remote debugging using"), "{said}");
        gdb
    }

    /// Types a command; what GDB said until it was done.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> String {
        self.begin(command);
        self.wait()
    }

    /// Types a command that is not waited for.
    pub fn begin(&mut self, command: &str) {
        self.console.type_text(&format!("{command}\n"));
    }

    /// Lets the guest go on.
    ///
    /// # Panics
    ///
    /// If GDB does not.
    #[track_caller]
    pub fn go_on(&mut self) {
        self.begin("continue");
        if let Err(why) = self.console.wait_for("Continuing.", PATIENCE) {
            panic!("gdb does not let the guest go on ({why:?}):\n{}", self.console.tail());
        }
    }

    /// What GDB said until its prompt.
    ///
    /// # Panics
    ///
    /// If none comes.
    #[track_caller]
    pub fn wait(&mut self) -> String {
        match self.console.wait_for(PROMPT, PATIENCE) {
            Ok(said) => said,
            Err(why) => panic!("gdb does not come back ({why:?}):\n{}", self.console.tail()),
        }
    }

    /// The value of an expression.
    ///
    /// # Panics
    ///
    /// If it has none.
    #[track_caller]
    pub fn value(&mut self, expression: &str) -> u64 {
        let said = self.ask(&format!("print/x {expression}"));
        let value = said
            .trim()
            .rsplit_once("0x")
            .and_then(|(_, digits)| u64::from_str_radix(digits, 16).ok());
        value.unwrap_or_else(|| panic!("{expression} has no value: {said}"))
    }

    /// Ctrl-C; what GDB said until its prompt. One that comes just when GDB lets the guest go on is lost.
    ///
    /// # Panics
    ///
    /// If GDB is gone, or does not come back.
    #[track_caller]
    pub fn interrupt(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            kill_process(Pid::from_child(&self.child), Signal::INT).expect("gdb is our child");
            match self.console.wait_for(PROMPT, Duration::from_secs(5)) {
                Ok(said) => return said,
                Err(_) if Instant::now() < deadline => {}
                Err(why) => panic!("gdb does not come back ({why:?}):\n{}", self.console.tail()),
            }
        }
    }
}

impl Drop for Gdb {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `lodge` says about where GDB connects.
fn await_place(errors: &Path) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = std::fs::read_to_string(errors).unwrap_or_default();
        if let Some((_, rest)) = said.split_once("target remote ")
            && let Some((place, _)) = rest.split_once('\n')
        {
            return place.trim().to_owned();
        }
        assert!(Instant::now() < deadline, "there is no place for GDB: {said}");
        thread::sleep(Duration::from_millis(20));
    }
}
