//! One run of the driver, followed line by line.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::usage;
use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

/// How long a guest may take until the driver runs.
const START_PATIENCE: Duration = Duration::from_secs(180);
/// What is allowed on top of the workload's limit, which the driver sees to itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a guest may take to switch itself off.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// What became of a workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// What was measured, or what went wrong.
    pub result: Result<Measured, String>,
}

/// What a workload that went well said.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The seconds that all of it took.
    pub whole: f64,
    /// Which part of that time it had a processor.
    pub share: f64,
    /// The seconds or rate that it measured itself.
    pub own: Option<(Own, f64)>,
    /// What has to be the same everywhere.
    pub check: String,
}

/// How a workload measured itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// In seconds.
    Seconds,
    /// In something per second.
    Rate,
}

/// A point in the life of a program: seconds since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    /// That passed.
    pub passed: f64,
    /// Of processors that it used.
    pub used: f64,
}

impl Moment {
    /// Which part of the time since another moment it had a processor. An emulator may use more
    /// than one, which makes it no slower.
    pub fn share_since(self, begun: Moment) -> f64 {
        let passed = self.passed - begun.passed;
        if passed > 0.0 { ((self.used - begun.used) / passed).min(1.0) } else { 1.0 }
    }
}

/// A running program whose lines are read.
pub struct Session {
    begun: Instant,
    child: Child,
    end_patience: Duration,
    lines: Receiver<(Instant, String)>,
}

impl Session {
    /// Starts a command; what it prints goes to the log as well.
    pub fn start(mut command: Command, log: &Path) -> anyhow::Result<Session> {
        let mut log =
            File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        writeln!(log, "{command:?}")?;
        let begun = Instant::now();
        let mut child = command.spawn().context("cannot run setpriv (of util-linux)")?;
        let (sender, lines) = mpsc::channel();
        let follow = |stream: Box<dyn std::io::Read + Send>| -> anyhow::Result<()> {
            let (sender, mut log) = (sender.clone(), log.try_clone()?);
            thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut bytes = Vec::new();
                while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
                    let now = Instant::now();
                    let _ = log.write_all(&bytes);
                    let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                    if sender.send((now, line)).is_err() {
                        return;
                    }
                    bytes.clear();
                }
            });
            Ok(())
        };
        if let Some(stream) = child.stdout.take() {
            follow(Box::new(stream))?;
        }
        if let Some(stream) = child.stderr.take() {
            follow(Box::new(stream))?;
        }
        Ok(Session { begun, child, end_patience: END_PATIENCE, lines })
    }

    /// Waits for a line that contains this; returns when it came. The error is the last line.
    pub fn wait_for(&self, what: &str, patience: Duration) -> Result<Moment, String> {
        let deadline = Instant::now() + patience;
        let mut last = String::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((when, line)) if line.contains(what) => return Ok(self.moment(when)),
                Ok((_, line)) if line.is_empty() => {}
                Ok((_, line)) => last = line,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("{} s passed, {}", patience.as_secs(), said(&last)));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(format!("ended, {}", said(&last)));
                }
            }
        }
    }

    /// Follows the driver to its end, or until something breaks. What became of each workload is
    /// passed on as soon as it is known; the error is of what cannot be ascribed to one.
    pub fn follow(
        &self,
        limit: Duration,
        mut report: impl FnMut(Outcome) -> anyhow::Result<()>,
    ) -> anyhow::Result<Result<(), String>> {
        let mut follower = Follower::default();
        let mut last = String::new();
        loop {
            let patience = match follower.state {
                State::Starting => START_PATIENCE,
                _ => limit + PATIENCE,
            };
            let why = match self.lines.recv_timeout(patience) {
                Ok((when, line)) => {
                    // Looking costs a little, and only these two lines matter.
                    let matters =
                        line.starts_with("@bench begin ") || line.starts_with("@bench end ");
                    let moment = if matters { self.moment(when) } else { Moment::default() };
                    match follower.line(&line, moment) {
                        Said::Nothing if line.is_empty() => {}
                        Said::Nothing => last = line,
                        Said::Outcome(outcome) => report(outcome)?,
                        Said::Done => return Ok(Ok(())),
                        Said::Broken(why) => return Ok(Err(why)),
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {
                    format!("nothing came for {} s", patience.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => "it ended".to_owned(),
            };
            let why = format!("{why}, {}", said(&last));
            return Ok(match follower.give_up(&why) {
                Some(outcome) => report(outcome).map(|()| Ok(()))?,
                None => Err(why),
            });
        }
    }
}

impl Session {
    /// The memory that it and all that it started hold now, in MiB.
    pub fn memory_mib(&self) -> f64 {
        usage::memory_of(self.child.id()) / f64::from(1 << 20)
    }

    /// A point in the life of the program.
    fn moment(&self, when: Instant) -> Moment {
        Moment { passed: (when - self.begun).as_secs_f64(), used: usage::time_of(self.child.id()) }
    }

    /// Ends it at once: there is nothing in it to be waited for.
    pub fn kill(mut self) {
        self.end_patience = Duration::ZERO;
    }

    /// Waits until it has ended by itself, as a guest does that switches itself off.
    fn ends_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Session {
    /// Leaves nothing behind that would be in the way of the next measurement.
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.child);
        // Lodge asks its guest to switch off at the first signal, and ends it at the second.
        for patience in [self.end_patience, Duration::from_millis(200), END_PATIENCE] {
            if self.ends_within(patience) {
                return;
            }
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn said(last: &str) -> String {
    if last.is_empty() { "without a word".to_owned() } else { format!("after saying: {last}") }
}

/// Makes outcomes of lines.
#[derive(Default)]
struct Follower {
    state: State,
    name: String,
    begun: Moment,
    result: Option<Result<Measured, String>>,
    said: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Starting,
    Ready,
}

/// What a line meant.
enum Said {
    Nothing,
    Outcome(Outcome),
    Done,
    Broken(String),
}

impl Follower {
    fn line(&mut self, line: &str, moment: Moment) -> Said {
        let Some(words) = line.strip_prefix("@bench ") else { return Said::Nothing };
        let (word, rest) = words.split_once(' ').unwrap_or((words, ""));
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        match word {
            "ready" if self.state == State::Ready => {
                return Said::Broken("the guest started anew".to_owned());
            }
            "ready" => self.state = State::Ready,
            // One that dies of its preparation is to be known, too.
            "prepare" | "begin" => {
                *self = Follower {
                    state: State::Ready,
                    name: name.to_owned(),
                    begun: moment,
                    ..Follower::default()
                };
            }
            "end" => self.result = Some(self.end(rest, moment)),
            "check" => self.check(rest),
            "said" => self.said.push(rest.trim().to_owned()),
            "over" => return self.over(name),
            "done" => return Said::Done,
            "broken" => return Said::Broken(format!("the driver: {name} {rest}")),
            _ => {}
        }
        Said::Nothing
    }

    /// `STATUS SECONDS PROCESSOR KIND VALUE`.
    fn end(&self, rest: &str, moment: Moment) -> Result<Measured, String> {
        let fields: Vec<&str> = rest.split(' ').collect();
        let [status, seconds, used, kind, value] = fields[..] else {
            return Err(format!("the driver said {rest:?}"));
        };
        let whole: f64 = seconds.parse().map_err(|_| format!("it took {seconds:?} s"))?;
        match status.split_once(':') {
            _ if status == "ok" => {}
            _ if status == "timeout" => return Err(format!("not done after {whole:.0} s")),
            Some(("exit", code)) => return Err(format!("exit status {code}")),
            Some(("signal", number)) => return Err(format!("ended by signal {number}")),
            _ => return Err(format!("its preparation failed: {status}")),
        }
        let passed = moment.passed - self.begun.passed;
        if !clocks_agree(whole, passed) {
            return Err(format!(
                "the guest's clock is wrong: {whole:.3} s there, {passed:.3} s here"
            ));
        }
        let own = match (kind, value.parse::<f64>()) {
            ("-", _) => None,
            ("seconds", Ok(value)) if value > 0.0 && value <= whole => Some((Own::Seconds, value)),
            ("rate", Ok(value)) if value > 0.0 && value.is_finite() => Some((Own::Rate, value)),
            _ => return Err(format!("it measured {kind} {value:?} within {whole} s")),
        };
        // Natively the driver knows better than what /proc says of processes that are gone.
        let share = match used.parse::<f64>() {
            Ok(used) => (used / whole).min(1.0),
            Err(_) => moment.share_since(self.begun),
        };
        Ok(Measured { whole, share, own, check: String::new() })
    }

    /// `STATUS TEXT`.
    fn check(&mut self, rest: &str) {
        let (status, text) = rest.split_once(' ').unwrap_or((rest, ""));
        if status != "ok" {
            self.result = Some(Err(format!("its check failed: {status}")));
        } else if let Some(Ok(measured)) = &mut self.result {
            measured.check = text.trim().to_owned();
        }
    }

    fn over(&mut self, name: &str) -> Said {
        match self.result.take() {
            Some(result) if name == self.name => {
                let said = std::mem::take(&mut self.said).join(" / ");
                let name = std::mem::take(&mut self.name);
                let result = result
                    .map_err(|why| if said.is_empty() { why } else { format!("{why}: {said}") });
                Said::Outcome(Outcome { name, result })
            }
            _ => Said::Broken(format!("the driver is confused about {name}")),
        }
    }

    /// The workload that was at work when everything stopped.
    fn give_up(&mut self, why: &str) -> Option<Outcome> {
        let name = std::mem::take(&mut self.name);
        (!name.is_empty()).then(|| Outcome { name, result: Err(why.to_owned()) })
    }
}

/// Whether the seconds by the guest's clock are those that passed here, give or take what it takes
/// a line to come here.
fn clocks_agree(guest: f64, host: f64) -> bool {
    (guest - host).abs() <= 0.1 + host * 0.03
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows lines that come 1.5 s after each other; the last words say how it ended.
    fn follow(text: &str) -> (Vec<Outcome>, &'static str) {
        let (mut follower, mut outcomes) = (Follower::default(), Vec::new());
        for (number, line) in text.lines().enumerate() {
            let moment = Moment { passed: 1.5 * number as f64, used: 0.75 * number as f64 };
            match follower.line(line.trim(), moment) {
                Said::Nothing => {}
                Said::Outcome(outcome) => outcomes.push(outcome),
                Said::Done => return (outcomes, "done"),
                Said::Broken(_) => return (outcomes, "broken"),
            }
        }
        outcomes.extend(follower.give_up("it ended"));
        (outcomes, "lost")
    }

    #[test]
    fn a_workload_is_followed_to_its_end() {
        let (outcomes, end) = follow(
            "noise
            @bench ready
            @bench begin fib
            @bench end fib ok 1.510000 - seconds 1.25
            @bench check fib ok 00ff 1
            @bench over fib
            @bench begin aes
            @bench end aes ok 1.500000 1.125 rate 2299.4
            @bench over aes
            @bench done",
        );
        let measured =
            |own, check: &str| Measured { whole: 0.0, share: 0.5, own, check: check.into() };
        let whole = |outcome: &Outcome| outcome.result.as_ref().unwrap().whole;
        assert_eq!(end, "done");
        assert_eq!(outcomes.len(), 2);
        assert_eq!((outcomes[0].name.as_str(), whole(&outcomes[0])), ("fib", 1.51));
        assert_eq!(
            outcomes[0].result,
            Ok(Measured { whole: 1.51, ..measured(Some((Own::Seconds, 1.25)), "00ff 1") })
        );
        assert_eq!(
            outcomes[1].result,
            Ok(Measured { whole: 1.5, share: 0.75, ..measured(Some((Own::Rate, 2299.4)), "") })
        );
    }

    #[test]
    fn failures_are_told_with_their_reason() {
        let failure = |end: &str, more: &str| {
            let text =
                format!("@bench ready\n@bench begin x\n@bench end x {end}\n{more}@bench over x\n");
            follow(&text).0.remove(0).result.unwrap_err()
        };
        assert_eq!(failure("exit:1 1.5 - - -", "@bench said x no gcc\n"), "exit status 1: no gcc");
        assert_eq!(failure("signal:11 1.5 - - -", ""), "ended by signal 11");
        assert_eq!(failure("timeout 1.5 - - -", ""), "not done after 2 s");
        assert!(failure("prepare:exit:2 1.5 - - -", "").contains("preparation"));
        assert!(failure("ok 1.2 - - -", "").contains("clock is wrong"));
        assert!(failure("ok 1.5 - seconds 1.6", "").contains("measured"));
        assert!(failure("ok 1.5 - rate inf", "").contains("measured"));
        assert!(failure("ok 1.5 - rate 0", "").contains("measured"));
        assert!(failure("ok", "").contains("driver said"));
        assert!(failure("ok 1.5 - - -", "@bench check x exit:1\n").contains("check failed"));
    }

    #[test]
    fn a_guest_that_is_lost_costs_only_the_workload_at_work() {
        let text = "@bench ready\n@bench prepare a\n@bench begin a\n@bench end a ok 1.5 - - -\n@bench over a\n\
                    @bench prepare b\n";
        let (outcomes, end) = follow(text);
        assert_eq!(end, "lost");
        assert!(outcomes[0].result.is_ok());
        assert_eq!((outcomes[1].name.as_str(), outcomes[1].result.is_err()), ("b", true));
        assert_eq!(follow("@bench ready\n@bench ready\n").1, "broken");
        assert_eq!(follow("@bench broken /dev/vda: none\n").1, "broken");
        assert_eq!(follow("@bench begin a\n@bench over b\n").1, "broken");
    }
}
