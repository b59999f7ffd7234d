//! Small guests: many at once, and through whatever can happen to them in any order.
//!
//! `LODGE_GUESTS` says how many at once, `LODGE_ROUNDS` for how many rounds, `LODGE_SEED` repeats rounds
//! (docs/testing.md, "Small guests").

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use guest_tests::small::{Answer, LEAST_MEMORY, Small, Talk, vmm};
use guest_tests::{Lab, note};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A number from the environment.
fn setting<T: FromStr>(name: &str, default: T) -> T {
    match env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

fn directory(lab: &Lab, name: &str) -> PathBuf {
    lab.path("home/guests").join(name)
}

/// What `lodge ps` says that the guests do.
#[track_caller]
fn states(lab: &Lab) -> BTreeMap<String, String> {
    let all: Value = serde_json::from_str(&lab.say(&["ps", "--all", "--json"])).expect("JSON");
    let text = |guest: &Value, field: &str| guest[field].as_str().expect("a text").to_owned();
    let guests = all.as_array().expect("guests").iter();
    guests.map(|guest| (text(guest, "name"), text(guest, "state"))).collect()
}

/// The cards of this machine.
fn cards() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn many_answer_at_once() {
    let Some(lab) = Lab::debian() else { return };
    let Some(small) = Small::make(&lab) else { return };
    let count: usize = setting("LODGE_GUESTS", 6);
    let names: Vec<String> = (1..=count).map(|n| format!("small{n}")).collect();
    let begun = Instant::now();
    for name in &names {
        lab.say(&small.run(name, LEAST_MEMORY));
    }
    let mut talks: Vec<Talk> =
        names.iter().map(|name| Talk::with(&directory(&lab, name))).collect();
    for round in 1..=3 {
        for (name, talk) in names.iter().zip(&mut talks) {
            let answer = talk.ask("stir 100").expect("an answer");
            assert_eq!(answer, Answer { count: round, sum: None }, "{name}");
        }
    }
    note(&format!("{count} guests answer after {:.1} s", begun.elapsed().as_secs_f32()));
    let sums: Vec<_> = talks.iter_mut().map(|talk| talk.ask("sum").expect("a sum")).collect();
    assert!(sums.iter().all(|answer| *answer == sums[0] && answer.sum.is_some()), "{sums:?}");
    let states = states(&lab);
    assert_eq!(states.len(), count);
    assert!(states.values().all(|state| state == "running"), "{states:?}");
    let all: Vec<&str> =
        ["rm", "--force"].into_iter().chain(names.iter().map(String::as_str)).collect();
    lab.say(&all);
    lab.close();
}

/// Numbers that follow from a seed (Steele and others, "SplitMix").
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ x >> 31) % end as u64) as usize
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        if all.is_empty() { None } else { all.get(self.below(all.len())) }
    }
}

/// What must be true of a guest.
#[derive(Default)]
struct Model {
    /// While it runs: how many lines it has answered.
    count: Option<u64>,
    /// What it was when each snapshot was made.
    snapshots: BTreeMap<String, Answer>,
}

/// Guests, what they must be, and what happened to them.
struct Rounds<'a> {
    lab: &'a Lab,
    small: &'a Small,
    chance: Chance,
    guests: BTreeMap<String, Model>,
    /// How many guests and snapshots there were, for their names.
    names: u32,
    story: Vec<String>,
}

/// So many guests are there at once at most, and so many snapshots of one.
const MOST: usize = 4;

impl Rounds<'_> {
    fn new_name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}{}", self.names)
    }

    /// One of the guests.
    fn any(&mut self, does: impl Fn(&Model) -> bool) -> Option<String> {
        let all: Vec<String> = self
            .guests
            .iter()
            .filter(|(_, model)| does(model))
            .map(|(name, _)| name.clone())
            .collect();
        self.chance.of(&all).cloned()
    }

    fn any_snapshot(&mut self) -> Option<(String, String, Answer)> {
        let guest = self.any(|model| !model.snapshots.is_empty())?;
        let names: Vec<String> = self.guests[&guest].snapshots.keys().cloned().collect();
        let name = self.chance.of(&names)?.clone();
        let was = self.guests[&guest].snapshots[&name].clone();
        Some((guest, name, was))
    }

    fn say(&mut self, arguments: &[&str]) {
        self.story.push(arguments.join(" "));
        self.lab.say(arguments);
    }

    /// Asks a guest that runs, which must be where it was.
    fn ask(&mut self, name: &str, line: &str) -> Answer {
        self.story.push(format!("{name}: {line}"));
        let answer = Talk::with(&directory(self.lab, name)).ask(line).expect("an answer");
        let model = self.guests.get_mut(name).expect("a guest");
        let count = model.count.as_mut().expect("one that runs");
        *count += 1;
        assert_eq!(answer.count, *count, "{name} is not where it was");
        answer
    }

    /// A guest that goes on from a snapshot has the memory that it had then.
    fn went_on(&mut self, name: &str, was: &Answer) {
        self.guests.get_mut(name).expect("a guest").count = Some(was.count);
        let answer = self.ask(name, "sum");
        assert_eq!(answer.sum, was.sum, "{name} has another memory");
    }

    /// Does something; false if there is nothing that it could be done to.
    fn act(&mut self) -> bool {
        self.try_to_act().is_some()
    }

    fn try_to_act(&mut self) -> Option<()> {
        let has_room = self.guests.len() < MOST;
        match self.chance.below(20) {
            0 if has_room => {
                let name = self.new_name("g");
                self.guests.insert(name.clone(), Model { count: Some(0), ..Model::default() });
                let small = self.small;
                self.say(&small.run(&name, LEAST_MEMORY));
                self.ask(&name, "count");
            }
            1 => {
                let name = self.any(|model| model.count.is_none())?;
                self.say(&["start", &name]);
                self.guests.get_mut(&name)?.count = Some(0);
                self.ask(&name, "count");
            }
            2..=5 => {
                let name = self.any(|model| model.count.is_some())?;
                let pages = [1, 30, 1000, 20_000][self.chance.below(4)];
                self.ask(&name, &format!("stir {pages}"));
            }
            6..=9 => {
                let name =
                    self.any(|model| model.count.is_some() && model.snapshots.len() < MOST)?;
                let answer = self.ask(&name, "sum");
                let snapshot = self.new_name("s");
                self.say(&["snapshot", "create", &name, &snapshot]);
                self.guests.get_mut(&name)?.snapshots.insert(snapshot, answer);
            }
            10..=12 => {
                let (name, snapshot, was) = self.any_snapshot()?;
                self.say(&["snapshot", "restore", "--force", &name, &snapshot]);
                self.went_on(&name, &was);
            }
            13 | 14 if has_room => {
                let (name, snapshot, was) = self.any_snapshot()?;
                let clone = self.new_name("c");
                self.say(&["clone", &name, &clone, "--snapshot", &snapshot]);
                let snapshots = [("origin".to_owned(), was.clone())].into();
                self.guests.insert(clone.clone(), Model { count: None, snapshots });
                self.went_on(&clone, &was);
            }
            15 => {
                let (name, snapshot, _) = self.any_snapshot()?;
                self.say(&["snapshot", "rm", &name, &snapshot]);
                self.guests.get_mut(&name)?.snapshots.remove(&snapshot);
            }
            16 => {
                let name = self.any(|model| model.count.is_some())?;
                self.say(&["kill", &name]);
                self.guests.get_mut(&name)?.count = None;
            }
            17 | 18 => {
                let name = self.any(|model| model.count.is_some())?;
                self.kill_vmm(&name);
                self.guests.get_mut(&name)?.count = None;
            }
            19 => {
                let name = self.any(|_| true)?;
                self.say(&["rm", "--force", &name]);
                self.guests.remove(&name);
            }
            _ => return None,
        }
        Some(())
    }

    /// Ends a guest's VMM from outside, in the midst of whatever.
    fn kill_vmm(&mut self, name: &str) {
        self.story.push(format!("SIGKILL for the VMM of {name}"));
        let pid = vmm(&directory(self.lab, name)).expect("a VMM");
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a PID");
        kill_process(process, Signal::KILL).expect("a process of ours");
        // It is gone when nobody but its parent knows of it (proc(5)).
        let stat = || fs::read_to_string(format!("/proc/{pid}/stat"));
        while stat().is_ok_and(|stat| !stat.contains(") Z ")) {
            std::thread::yield_now();
        }
    }

    /// `lodge ps` knows what runs.
    fn check(&self) {
        let states = states(self.lab);
        assert!(states.keys().eq(self.guests.keys()), "{states:?}");
        for (name, model) in &self.guests {
            let possible: &[_] =
                if model.count.is_some() { &["running"] } else { &["stopped", "crashed"] };
            assert!(possible.contains(&states[name].as_str()), "{name}: {states:?}");
        }
    }
}

impl Drop for Rounds<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let from = self.story.len().saturating_sub(40);
            note(&format!("the last steps:\n{}", self.story[from..].join("\n")));
        }
    }
}

#[test]
fn rounds_leave_nothing_behind() {
    let Some(lab) = Lab::debian() else { return };
    let Some(small) = Small::make(&lab) else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let (count, seed): (u32, u64) = (setting("LODGE_ROUNDS", 20), setting("LODGE_SEED", now));
    note(&format!("{count} rounds with LODGE_SEED={seed}"));
    let before = cards();
    let mut rounds = Rounds {
        lab: &lab,
        small: &small,
        chance: Chance(seed),
        guests: BTreeMap::new(),
        names: 0,
        story: Vec::new(),
    };
    for round in 0..count {
        while !rounds.act() {}
        rounds.check();
        if round % 100 == 99 {
            note(&format!("{} rounds", round + 1));
        }
    }
    for name in rounds.guests.keys() {
        lab.say(&["rm", "--force", name]);
    }
    drop(rounds);
    assert_eq!(cards(), before, "network cards are left");
    lab.close();
}
