//! From the exec of a VMM to the guest's first instruction, on this machine: Lodge beside QEMU's
//! microvm.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::system::which;

/// Each VMM is started so often.
const RUNS: usize = 21;
/// One that needs longer is given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the kernel is loaded and begins.
const ENTRY: u32 = 0x10_0000;

/// What was found, a line for each VMM.
pub fn run(dir: &Path, lodge: &Path) -> anyhow::Result<Vec<String>> {
    let kernel = dir.join("first");
    fs::write(&kernel, first_instruction()).context("cannot write the kernel")?;
    let vmm = lodge.with_file_name("lodge-vmm");
    let config = |accelerator: &str| -> anyhow::Result<_> {
        let path = dir.join(format!("first-{accelerator}.toml"));
        let kernel = kernel.display();
        let text = format!(
            "name = 'first'\ncpus = 1\nmemory_mib = 128\naccelerator = '{accelerator}'\n\
             boot.kernel = '{kernel}'\ndebug.debugcon = true\n"
        );
        fs::write(&path, text)?;
        Ok(path)
    };
    let mut lines = Vec::new();
    for accelerator in ["soft", "kvm"] {
        let config = config(accelerator)?;
        let name = format!("lodge-vmm, {accelerator}");
        lines.push(measure(&name, || {
            let mut command = Command::new(&vmm);
            command.arg("--config").arg(&config);
            command
        }));
    }
    let qemu = which("qemu-system-x86_64")?;
    for accelerator in ["tcg", "kvm"] {
        let name = format!("QEMU microvm, {accelerator}");
        lines.push(measure(&name, || {
            let mut command = Command::new(&qemu);
            command
                .args(["-nodefaults", "-no-user-config", "-display", "none", "-m", "128"])
                .args(["-machine", "microvm", "-accel", accelerator, "-debugcon", "stdio"])
                .arg("-kernel")
                .arg(&kernel);
            command
        }));
    }
    Ok(lines)
}

/// A line about one VMM.
fn measure(name: &str, command: impl Fn() -> Command) -> String {
    let times: anyhow::Result<Vec<Duration>> = (0..RUNS).map(|_| time(command())).collect();
    match times {
        Ok(mut times) => {
            times.sort();
            let ms = |time: Duration| time.as_secs_f64() * 1000.0;
            let (best, median) = (ms(times[0]), ms(times[RUNS / 2]));
            format!("  {name:<20} {median:>8.1} ms, at best {best:.1} ms")
        }
        Err(error) => format!("  {name:<20} {error:#}"),
    }
}

/// From the start of a program to the first byte that it prints.
fn time(mut command: Command) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot be started")?;
    let mut output = child.stdout.take().context("has no output")?;
    let (sender, first) = mpsc::channel();
    thread::spawn(move || {
        let mut byte = [0];
        let outcome = output.read_exact(&mut byte).map(|()| Instant::now());
        // If nobody waits any longer, it came too late.
        let _ = sender.send(outcome);
    });
    let outcome = first.recv_timeout(PATIENCE);
    let _ = child.kill();
    let said = child.wait_with_output()?;
    match outcome {
        Ok(Ok(when)) => Ok(when - begun),
        Ok(Err(_)) => {
            let said = String::from_utf8_lossy(&said.stderr).into_owned();
            bail!("ends without one: {}", said.lines().next().unwrap_or("nothing is said"))
        }
        Err(_) => bail!("does not come to one within {} s", PATIENCE.as_secs()),
    }
}

/// A PVH kernel (Xen's docs/misc/pvh.pandoc) that writes a byte to the debug console at once.
fn first_instruction() -> Vec<u8> {
    // mov al, '!'; out 0xe9, al; hlt; jmp to hlt.
    const CODE: [u8; 7] = [0xb0, b'!', 0xe6, 0xe9, 0xf4, 0xeb, 0xfd];
    const HEADER: u32 = 52;
    const ENTRIES: u32 = HEADER + 2 * 32;
    const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
    let note = [4, 4, XEN_ELFNOTE_PHYS32_ENTRY, u32::from_le_bytes(*b"Xen\0"), ENTRY];
    let note_len = 4 * note.len() as u32;
    let code_at = ENTRIES + note_len;
    let code_len = CODE.len() as u32;
    // e_ident: 32-bit, little-endian, version 1.
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 1, 1, 1];
    bytes.resize(16, 0);
    // An executable for the 80386.
    bytes.extend([2, 0, 3, 0]);
    for word in [1, ENTRY, HEADER, 0, 0] {
        bytes.extend(u32::to_le_bytes(word));
    }
    // Sizes of the header and of two program headers; no sections.
    for half in [HEADER as u16, 32, 2, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    // PT_LOAD and PT_NOTE: offset, addresses, sizes, flags, alignment.
    let load = [1, code_at, ENTRY, ENTRY, code_len, code_len, 7, 1];
    let notes = [4, ENTRIES, 0, 0, note_len, note_len, 4, 4];
    for word in load.into_iter().chain(notes).chain(note) {
        bytes.extend(u32::to_le_bytes(word));
    }
    bytes.extend(CODE);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_where_its_headers_say() {
        let kernel = first_instruction();
        let word = |at: usize| u32::from_le_bytes(kernel[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!(word(24), ENTRY as usize);
        let load = word(28);
        assert_eq!(kernel[word(load + 4)..], [0xb0, b'!', 0xe6, 0xe9, 0xf4, 0xeb, 0xfd]);
        let note = word(load + 32 + 4);
        assert_eq!((word(note + 8), word(note + 16)), (18, ENTRY as usize));
    }
}
