//! The real GDB looks into guests, stops them and has them go on.

use std::fs::File;
use std::process::{Child, Stdio};

use guest_tests::gdb::Gdb;
use guest_tests::{Lab, tiny};

/// The address of a symbol of the guest's kernel.
fn symbol(symbols: &str, name: &str) -> u64 {
    let is_it = |line: &&str| line.split(' ').nth(2) == Some(name);
    let line = symbols.lines().find(is_it).unwrap_or_else(|| panic!("no {name} in {symbols}"));
    let address = line.split(' ').next().and_then(|digits| u64::from_str_radix(digits, 16).ok());
    address.unwrap_or_else(|| panic!("no address in {line}"))
}

#[test]
fn debians_kernel_under_gdb() {
    if !Gdb::is_here() {
        return;
    }
    let Some(lab) = Lab::debian() else { return };
    let mut guest = lab.guest("debugged").cpus(2).memory("1G").gdb().start();
    guest.log_in();
    let symbols = guest.run("grep -E ' (__x64_sys_sethostname|panic_timeout)$' /proc/kallsyms");
    let sethostname = symbol(&symbols, "__x64_sys_sethostname");
    let panic_timeout = symbol(&symbols, "panic_timeout");
    // Often enough that it is no longer interpreted.
    guest.run("for i in $(seq 100); do hostname before; done");

    let mut gdb = Gdb::connect(&lab, &lab.path("debugged.stderr"));
    let threads = gdb.ask("info threads");
    assert!(threads.contains("processor 0, ") && threads.contains("processor 1, "), "{threads}");

    // A breakpoint, met by a program; registers; memory of kernel and program; a step.
    gdb.ask(&format!("break *{sethostname:#x}"));
    gdb.go_on();
    let begun = guest.begin("hostname behind-gdb; hostname");
    let said = gdb.wait();
    assert!(said.contains("Breakpoint 1, "), "{said}");
    assert_eq!(gdb.value("$rip"), sethostname);
    assert_eq!(gdb.value("$cs & 3"), 0, "the kernel runs in ring 0");
    assert_eq!(gdb.value("($cr0 >> 31) & 1"), 1, "it has paging");
    assert_eq!(gdb.value("($efer >> 10) & 1"), 1, "in long mode");
    // The argument is the program's registers; RDI among them is what it passed first.
    let name = gdb.ask("x/s *(char **)($rdi + 0x70)");
    assert!(name.contains("\"behind-gdb\""), "{name}");
    let code = gdb.ask(&format!("x/2i {sethostname:#x}"));
    assert!(!code.contains("int3"), "the breakpoint shows: {code}");
    let behind = gdb.value(&format!("*(unsigned char *){sethostname:#x}"));
    assert_ne!(behind, 0xcc, "the breakpoint shows");
    gdb.ask("stepi");
    let rip = gdb.value("$rip");
    assert!(rip > sethostname && rip < sethostname + 16, "{rip:#x} is not one instruction behind");
    gdb.ask("delete");
    gdb.go_on();
    assert_eq!(guest.finish(begun).output.trim(), "behind-gdb");

    // Ctrl-C; a watchpoint in the kernel's data; a store of our own.
    let said = gdb.interrupt();
    assert!(said.contains("SIGINT"), "{said}");
    gdb.ask(&format!("watch *(int *){panic_timeout:#x}"));
    gdb.go_on();
    let begun = guest.begin("echo 77 > /proc/sys/kernel/panic");
    let said = gdb.wait();
    assert!(said.contains("Hardware watchpoint") && said.contains("New value = 77"), "{said}");
    gdb.ask("delete");
    gdb.ask(&format!("set var *(int *){panic_timeout:#x} = 78"));
    gdb.go_on();
    assert_eq!(guest.finish(begun).status, 0);
    assert_eq!(guest.run("cat /proc/sys/kernel/panic").trim(), "78");

    // A hardware breakpoint, and a processor that is not what the guest believes it to be.
    gdb.interrupt();
    gdb.ask(&format!("hbreak *{sethostname:#x}"));
    gdb.go_on();
    let begun = guest.begin("hostname again; hostname");
    let said = gdb.wait();
    assert!(said.contains("Breakpoint 3, "), "{said}");
    assert_eq!(gdb.value("$rip"), sethostname);
    let r15 = gdb.value("$r15");
    gdb.ask("set $r15 = 0x1122334455667788");
    assert_eq!(gdb.value("$r15"), 0x1122_3344_5566_7788);
    gdb.ask(&format!("set $r15 = {r15:#x}"));
    gdb.ask("delete");

    // Without GDB, and with it again, to the end.
    gdb.ask("detach");
    assert_eq!(guest.finish(begun).output.trim(), "again");
    drop(gdb);
    let mut gdb = Gdb::connect(&lab, &lab.path("debugged.stderr"));
    gdb.go_on();
    guest.assert_no_complaints();
    guest.power_off();
    let said = gdb.wait();
    assert!(said.contains("exited normally"), "{said}");
    drop(gdb);
    lab.close();
}

#[test]
fn a_guest_waits_for_gdb_and_is_killed_by_it() {
    if !Gdb::is_here() {
        return;
    }
    let lab = Lab::empty();
    let errors = lab.path("tiny.stderr");
    let mut lodge = waiting(&lab, tiny::busy64(), &[]);
    let mut gdb = Gdb::connect(&lab, &errors);
    assert_eq!(gdb.value("$rip"), 0x10_0020, "something ran before GDB came");
    assert_eq!(gdb.value("$cr0 & 1"), 1);
    // The page tables are made by the guest: nothing is in their place yet.
    assert_eq!(gdb.value("*(int *)0x70000"), 0);
    gdb.ask("watch *(int *)0x71000");
    let said = gdb.ask("continue");
    assert!(said.contains("New value = 131"), "{said}");
    gdb.ask("delete");
    gdb.go_on();
    gdb.interrupt();
    gdb.begin("kill");
    let status = lodge.0.wait().expect("our child");
    assert_eq!(status.code(), Some(0), "{}", std::fs::read_to_string(&errors).unwrap_or_default());
    drop(gdb);
    lab.close();
}

/// The same on KVM, where breakpoints and steps are KVM's, and what they raise is the interpreter's to pass on.
#[test]
fn a_guest_on_kvm_waits_for_gdb_and_is_killed_by_it() {
    if !Gdb::is_here() {
        return;
    }
    let lab = Lab::empty();
    let check = lab.lodge().args(["check", "--json"]).output().expect("lodge runs");
    let check: serde_json::Value = serde_json::from_slice(&check.stdout).expect("JSON");
    let working = |finding: &&serde_json::Value| finding["id"] == "working";
    let working = check["findings"].as_array().and_then(|findings| findings.iter().find(working));
    if working.is_none_or(|finding| finding["answer"] != "yes") {
        eprintln!("SKIPPED: GDB on KVM: `lodge check` says of it {working:?}");
        return;
    }
    let errors = lab.path("tiny.stderr");
    let mut lodge = waiting(&lab, tiny::counter(), &["--accel", "kvm"]);
    let mut gdb = Gdb::connect(&lab, &errors);
    assert_eq!(gdb.value("$rip"), 0x10_0020, "something ran before GDB came");
    gdb.ask("set $rax = 5");
    gdb.ask("break *0x100021");
    for count in 6..9 {
        let said = gdb.ask("continue");
        assert!(said.contains("Breakpoint 1, "), "{said}");
        assert_eq!(gdb.value("$rip"), 0x10_0021);
        assert_eq!(gdb.value("$rax"), count);
    }
    assert_eq!(gdb.value("*(unsigned char *)0x100021"), 0x90, "the breakpoint shows");
    gdb.ask("stepi");
    assert_eq!(gdb.value("$rip"), 0x10_0022);
    gdb.ask("delete");
    // From now on it counts downwards.
    gdb.ask("set var *(unsigned char *)0x100020 = 0x48");
    gdb.ask("stepi 2");
    assert_eq!((gdb.value("$rip"), gdb.value("$rax")), (0x10_0021, 7));
    gdb.go_on();
    gdb.interrupt();
    gdb.begin("kill");
    let status = lodge.0.wait().expect("our child");
    assert_eq!(status.code(), Some(0), "{}", std::fs::read_to_string(&errors).unwrap_or_default());
    drop(gdb);
    lab.close();
}

/// Ends it when the test ends in whatever way.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A guest with this kernel that waits for GDB, and says so in `tiny.stderr`.
fn waiting(lab: &Lab, kernel: Vec<u8>, options: &[&str]) -> Running {
    let kernel = lab.file("kernel", kernel);
    let errors = File::create(lab.path("tiny.stderr")).expect("a file in the lab");
    let lodge = lab
        .lodge()
        .args(["run", "--name", "tiny", "--memory", "64M", "--net", "none"])
        .args(["--gdb", "0", "--gdb-wait"])
        .args(options)
        .arg("--kernel")
        .arg(kernel)
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn();
    Running(lodge.expect("lodge starts"))
}
