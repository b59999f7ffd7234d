//! A guest that writes nonsense to every port, register and queue harms only itself.

use std::fs::File;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::{Lab, hostile, note};

/// How long one course runs, how many there are, and how many more a busy machine may need.
const COURSE: Duration = Duration::from_millis(1500);
const COURSES: u32 = 8;
const MOST_COURSES: u32 = 80;
/// How much the guests do in all. One course or another may soon end in a jam of its own making.
const ROUNDS: u32 = 20 * hostile::HEARTBEAT;

#[test]
fn a_hostile_guest_harms_only_itself() {
    let lab = Lab::empty();
    let disk = lab.file("disk", vec![0; 4 << 20]);
    let readonly = lab.file("readonly", vec![7; 1 << 20]);
    let outside = lab.file("outside", b"not the guest's");
    let mut all_rounds = 0;
    for seed in 1_u32.. {
        let kernel = lab.file("kernel", hostile::kernel(seed.wrapping_mul(0x9e37_79b9)));
        let (errors_path, output_path) = (lab.path("stderr"), lab.path("stdout"));
        let mut lodge = lab
            .lodge()
            .args(["run", "--cpus", "2", "--memory", "64M", "--debugcon", "--testdev", "--kernel"])
            .arg(kernel)
            .args(["--disk", &format!("{},format=raw", disk.display())])
            .args(["--disk", &format!("{},format=raw,readonly", readonly.display())])
            .stdin(Stdio::piped())
            .stdout(File::create(&output_path).expect("a file in the lab"))
            .stderr(File::create(&errors_path).expect("a file in the lab"))
            .spawn()
            .expect("lodge starts");
        let errors = || std::fs::read_to_string(&errors_path).expect("a file in the lab");
        let begun = Instant::now();
        while !errors().contains(" runs on ") {
            assert!(begun.elapsed() < Duration::from_secs(120), "course {seed}: {}", errors());
            thread::sleep(Duration::from_millis(10));
        }
        let begun = Instant::now();
        let ended_itself = loop {
            if lodge.try_wait().expect("our child").is_some() {
                break true;
            }
            if begun.elapsed() >= COURSE {
                break false;
            }
            thread::sleep(Duration::from_millis(20));
        };
        // A guest that has armed its power button is given time to obey it, until asked again.
        while !ended_itself && lodge.try_wait().expect("our child").is_none() {
            let pid = rustix::process::Pid::from_child(&lodge);
            rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a signal");
            thread::sleep(Duration::from_millis(500));
        }
        let status = lodge.wait().expect("our child").code();
        let errors = errors();
        // It switched itself off, perhaps just before it was asked to, or was stopped by us.
        let as_wanted = status == Some(0) || !ended_itself && status == Some(128 + 2);
        assert!(as_wanted, "course {seed}: {status:?}, {errors}");
        assert!(!errors.contains("panicked"), "course {seed}: {errors}");
        let output = std::fs::read(&output_path).expect("a file in the lab");
        let rounds =
            output.iter().filter(|&&byte| byte == b'.').count() as u32 * hostile::HEARTBEAT;
        all_rounds += rounds;
        note(&format!(
            "course {seed}: {rounds} rounds, {}, {} restarts, {} lines of complaint",
            if status == Some(0) { "switched itself off" } else { "stopped by us" },
            errors.matches("restarts").count(),
            errors.lines().count()
        ));
        if seed >= COURSES && all_rounds >= ROUNDS {
            break;
        }
        assert!(seed < MOST_COURSES, "the guest does next to nothing: {all_rounds} rounds");
    }
    assert_eq!(std::fs::read(&readonly).expect("a file"), vec![7; 1 << 20]);
    assert_eq!(disk.metadata().expect("a file").len(), 4 << 20);
    assert_eq!(std::fs::read(&outside).expect("a file"), b"not the guest's");
    lab.close();
}
