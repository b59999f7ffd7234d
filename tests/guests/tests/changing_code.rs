//! Code that changes after it was run: programs that rewrite themselves and each other, and a kernel
//! that loads modules and patches its own text. Is what runs always what is in memory?

use guest_tests::{Guest, Lab, compile, note};

const PROGRAM: &str = "changing_code";

#[test]
fn code_that_changes() {
    let Some(lab) = Lab::debian() else { return };
    let Some(program) = compile(&lab, PROGRAM) else { return };
    let disk = lab.file("code.raw", code_disk());
    for cpus in [1, 2] {
        let mut guest = lab
            .guest(&format!("changing-{cpus}"))
            .cpus(cpus)
            .memory("512M")
            .disk(&program, "program", ",format=raw,readonly")
            .disk(&disk, "code", ",format=raw,readonly")
            .start();
        guest.log_in();
        guest.run("cat /dev/disk/by-id/virtio-program > /tmp/program; chmod +x /tmp/program");
        let rounds = guest.run("/tmp/program");
        let rounds: u64 = rounds.lines().map(rounds_of).sum();
        note(&format!("{rounds} rounds of programs' code on {cpus} processors"));
        keep_busy(&mut guest);
        modules_come_and_go(&mut guest);
        functions_are_traced(&mut guest);
        events_are_traced(&mut guest);
        probes_are_hit(&mut guest);
        branches_are_switched(&mut guest);
        assert_all_was_right(&mut guest);
        guest.assert_no_complaints();
        guest.power_off();
    }
    lab.close();
}

/// The number in a line of the program's.
fn rounds_of(line: &str) -> u64 {
    let rounds = line.strip_suffix(" rounds").and_then(|line| line.split(' ').nth(1));
    let rounds = rounds.and_then(|rounds| rounds.parse().ok()).filter(|&rounds| rounds > 0);
    rounds.unwrap_or_else(|| panic!("{PROGRAM} says {line:?}"))
}

/// A disk each of whose 4096 sectors has the function that `write_hot` writes in
/// `programs/changing_code/writers.c`, with the sector's number.
fn code_disk() -> Vec<u8> {
    const LOOP: [u8; 17] = [
        0x31, 0xc0, // xor eax, eax
        0xb9, 50, 0, 0, 0, // mov ecx, 50
        0xe8, 0, 0, 0, 0, // 1: call 2f
        0xff, 0xc9, // dec ecx
        0x75, 0xf7, // jnz 1b
        0xc3, // ret
    ];
    const BODY: usize = 195;
    let sector = |number: u32| {
        let mut sector = [0xcc; 512];
        sector[..LOOP.len()].copy_from_slice(&LOOP);
        sector[8..12].copy_from_slice(&(BODY as u32 - 12).to_le_bytes());
        // 2: jmp 3f; ud2; 3: add eax, NUMBER; ret
        sector[BODY..BODY + 5].copy_from_slice(&[0xeb, 0x02, 0x0f, 0x0b, 0x05]);
        sector[BODY + 5..BODY + 9].copy_from_slice(&number.to_le_bytes());
        sector[BODY + 9] = 0xc3;
        sector
    };
    (0..4096).flat_map(sector).collect()
}

/// Has programs compute while their kernel is patched.
fn keep_busy(guest: &mut Guest) {
    guest.run(
        r#"rm -f /tmp/stop /tmp/wrong /tmp/right
           while [ ! -e /tmp/stop ]; do
               sum=$(seq 1 2000 | sort -R | sort -n |
                     awk '{ s += $1 * NR } END { printf "%.0f", s }')
               [ "$sum" = 2668667000 ] && echo . >> /tmp/right || echo "$sum" >> /tmp/wrong
               sleep 0.1
           done > /dev/null 2>&1 &"#,
    );
}

/// Their results.
fn assert_all_was_right(guest: &mut Guest) {
    guest.run("touch /tmp/stop; while pgrep -x 'seq|sort|awk' > /dev/null; do sleep 0.1; done");
    let outcome = guest.try_run("cat /tmp/wrong");
    assert_ne!(outcome.status, 0, "wrong sums: {}", outcome.output);
    let right: u32 = guest.run("wc -l < /tmp/right").trim().parse().expect("a number");
    assert!(right > 0);
    note(&format!("{right} sums computed meanwhile"));
}

/// Runs a script whose every command has to succeed, and tells which one did not.
#[track_caller]
fn script(guest: &mut Guest, text: &str) {
    let outcome = guest.try_run(&format!("exec 2> /tmp/steps; set -ex\n{text}"));
    if outcome.status != 0 {
        let steps = guest.run("tail -n 20 /tmp/steps");
        panic!("status {}:\n{}{steps}", outcome.status, outcome.output);
    }
}

/// Each time, modules lie where others were. What they are for has to work.
fn modules_come_and_go(guest: &mut Guest) {
    script(
        guest,
        r#"before=$(cut -d ' ' -f 1 /proc/modules | sort)
           (
               for round in 1 2 3; do
                   modprobe -a nls_cp437 serpent_generic nls_cp850 sha3_generic nls_utf8
                   awk '/^name/ { name = $3 } /^selftest/ && name == "sha3-256" { print $3 }' \
                       /proc/crypto | grep -qx passed
                   modprobe -r nls_utf8 sha3_generic serpent_generic nls_cp850 nls_cp437
               done
           ) & others=$!
           head -c 300000 /dev/urandom > /tmp/data
           for round in 1 2 3 4; do
               modprobe -a brd dummy
               cat /tmp/data > /dev/ram0
               blockdev --flushbufs /dev/ram0
               cmp -n 300000 /tmp/data /dev/ram0
               ip link add dummy9 type dummy
               ip link set dummy9 up
               ip -brief link show up dev dummy9 | grep -qw dummy9
               ip link delete dummy9
               modprobe -r dummy brd
           done
           wait $others
           [ "$(cut -d ' ' -f 1 /proc/modules | sort)" = "$before" ]"#,
    );
}

/// Ftrace patches the entry of each function, tens of thousands. A trace is read while nothing
/// is added: it would not end.
fn functions_are_traced(guest: &mut Guest) {
    script(
        guest,
        r#"cd /sys/kernel/tracing
           echo 128 > buffer_size_kb
           trace() { # TRACER FILTER
               echo "$2" > set_ftrace_filter
               echo > trace
               echo $1 > current_tracer
               ls -l /tmp > /dev/null
               sleep 0.1
               echo 0 > tracing_on
               grep -v '^#' trace > /tmp/trace
               echo nop > current_tracer
               echo > set_ftrace_filter
               echo 1 > tracing_on
               cat /etc/hostname > /dev/null
               [ "$(grep -vc '^#' trace)" = 0 ]
               [ "$(grep -c . /tmp/trace)" -gt 20 ]
           }
           trace function ''
           [ "$(grep -c ' <-' /tmp/trace)" -gt 500 ]
           for filter in 'vfs_*' '*lock*' '*_page*'; do
               trace function "$filter"
               pattern=$(echo "$filter" | sed 's/\*/[^ ]*/g')
               if grep -v 'LOST' /tmp/trace | grep -v ": $pattern <-"; then exit 1; fi
           done
           trace function_graph ''
           grep -q '() {$' /tmp/trace"#,
    );
}

/// Tracepoints are jump labels and static calls.
fn events_are_traced(guest: &mut Guest) {
    script(
        guest,
        r#"cd /sys/kernel/tracing
           count() { # EVENTS
               echo > trace
               echo 1 > "$1"
               cat /etc/hostname > /dev/null
               sleep 0.02
               echo 0 > tracing_on
               grep -v '^#' trace > /tmp/trace
               echo 0 > "$1"
               echo 1 > tracing_on
           }
           for round in 1 2 3 4; do
               count events/sched/enable
               grep -q ' sched_switch: ' /tmp/trace
               count events/syscalls/enable
               grep -q ' sys_openat' /tmp/trace
               count events/kmem/enable
               grep -q ' kmem_cache_alloc: ' /tmp/trace
           done
           count events/enable
           [ "$(grep -c . /tmp/trace)" -gt 100 ]
           echo > trace
           cat /etc/hostname > /dev/null
           [ "$(grep -vc '^#' trace)" = 0 ]"#,
    );
}

/// Probes at a function's entry and end, and within one, where the kernel first has a breakpoint
/// and then, some ticks later, a jump.
fn probes_are_hit(guest: &mut Guest) {
    script(
        guest,
        r#"cd /sys/kernel/tracing
           within=
           for offset in $(seq 6 60); do
               if echo "p:lodge/within vfs_read+$offset" > kprobe_events 2> /dev/null; then
                   within="p:lodge/within vfs_read+$offset"
                   break
               fi
           done
           [ "$within" ]
           for round in 1 2 3; do
               echo > kprobe_events
               echo > trace
               echo "$within" >> kprobe_events
               echo 'p:lodge/opened do_sys_openat2' >> kprobe_events
               echo 'r:lodge/returned do_sys_openat2 $retval' >> kprobe_events
               echo 1 > events/lodge/enable
               for file in 1 2 3 4 5; do head -n 1 /etc/hostname > /dev/null; done
               sleep 0.$((round % 3))
               head -n 1 /etc/hostname > /dev/null
               echo 0 > events/lodge/enable
               hits() { awk -v name=$1 '$1 == name { print $2 }' kprobe_profile; }
               [ "$(hits opened)" -ge 12 ]
               [ "$(hits within)" -ge 12 ]
               [ "$(hits returned)" -ge 12 ]
               grep -q ' opened: (do_sys_openat2+0x0/' trace
               grep -q ' returned: .* <- do_sys_openat2) ' trace
           done
           echo > kprobe_events"#,
    );
}

/// Static keys: of the scheduler's statistics, of messages for debugging, of time stamps for packets.
fn branches_are_switched(guest: &mut Guest) {
    script(
        guest,
        r#"switch=/proc/sys/kernel/sched_schedstats
           for round in $(seq 30); do
               echo 1 > $switch
               grep -q wait_sum /proc/self/sched
               echo 0 > $switch
               if grep -q wait_sum /proc/self/sched; then exit 1; fi
           done
           control=/sys/kernel/debug/dynamic_debug/control
           for round in 1 2; do
               echo 'file kernel/module/main.c +p' > $control
               dmesg > /tmp/before
               modprobe nls_cp437
               dmesg > /tmp/between
               echo 'file kernel/module/main.c -p' > $control
               modprobe -r nls_cp437
               dmesg > /tmp/after
               [ $(wc -l < /tmp/before) -lt $(wc -l < /tmp/between) ]
               if tail -n +$(($(wc -l < /tmp/between) + 1)) /tmp/after | grep finit_module; then
                   exit 1
               fi
           done
           perl -e '
               use Socket;
               for my $round (1 .. 100) {
                   socket(my $a, PF_INET, SOCK_DGRAM, 0) or die "socket: $!";
                   bind($a, sockaddr_in(0, INADDR_LOOPBACK)) or die "bind: $!";
                   # SO_TIMESTAMP
                   setsockopt($a, SOL_SOCKET, 29, pack("i", 1)) or die "setsockopt: $!";
                   send($a, "round $round", 0, getsockname($a)) or die "send: $!";
                   defined recv($a, my $text, 100, 0) or die "recv: $!";
                   $text eq "round $round" or die "received $text";
               }'"#,
    );
}
