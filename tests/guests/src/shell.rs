//! A shell at a guest's console that a program talks to.

/// What a command in the guest led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What it printed, on either stream.
    pub output: String,
    /// Its exit status, as the shell has it.
    pub status: i32,
}

/// Frames commands, so that their output can be told from anything else.
#[derive(Clone, Debug, Default)]
pub struct Shell {
    commands: u32,
}

impl Shell {
    /// Makes a person's shell one for programs: no line editing, no prompts, no echo, newlines as
    /// they are, and neither the kernel nor systemd writes in between.
    pub const ENTER: &str = "exec env PS1= PS2= TERM=dumb LC_ALL=C.UTF-8 SYSTEMD_COLORS=0 \
         SYSTEMD_PAGER= sh +i\nstty -echo -onlcr; dmesg --console-off; kill -s RTMIN+21 1\n\
         printf '@@%s@@\\n' ready\n";
    /// Appears when that is done.
    pub const READY: &str = "@@ready@@\n";
    /// Asks whether that is done.
    pub const NUDGE: &str = "\nprintf '@@%s@@\\n' ready\n";
    /// Waits for the end of the boot. A degraded system is told by a status, too; which units
    /// failed is for a test to ask.
    pub const SETTLE: &str = "systemctl is-system-running --wait > /dev/null || true";

    /// The text to type for a command, and what stands between its output and its status.
    pub fn frame(&mut self, command: &str) -> (String, String) {
        self.commands += 1;
        let number = self.commands;
        let text =
            format!("( {command}\n) < /dev/null 2>&1; printf '\\n@@%s:%s@@\\n' {number} $?\n");
        (text, format!("\n@@{number}:"))
    }
}
