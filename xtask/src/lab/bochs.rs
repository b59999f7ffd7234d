//! Bochs, which emulates a processor with Intel VT-x.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::boot_disk;
use super::machine::{Running, bound};
use super::system::System;

/// How long it may take until Bochs has its devices.
const CONNECT_PATIENCE: Duration = Duration::from_secs(300);

/// What Debian's packages install.
pub const FIRMWARE: [&str; 2] =
    ["/usr/share/bochs/BIOS-bochs-latest", "/usr/share/bochs/VGABIOS-lgpl-latest"];

/// Starts it, with one of its models of processors. Bochs boots from disks only, so one is made with
/// the system on it.
pub fn start(
    system: &System,
    dir: &Path,
    job: &str,
    cmdline: &str,
    model: &str,
) -> anyhow::Result<Running> {
    let disk = dir.join("bochs.disk");
    boot_disk::write(&disk, dir, &fs::read(&system.kernel)?, &fs::read(&system.initrd)?, cmdline)?;
    // A Bochs that was killed leaves this behind, and the next refuses the disk.
    let _ = fs::remove_file(dir.join("bochs.disk.lock"));
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
    listener.set_nonblocking(true)?;
    let configuration = configuration(dir, job, listener.local_addr()?.port(), model);
    let (file, commands) = (dir.join("bochs.conf"), dir.join("bochs.commands"));
    fs::write(&file, configuration)?;
    // Debian's build has a debugger, which waits to be told to go on.
    fs::write(&commands, "continue\n")?;
    let output = File::create(dir.join(format!("{job}.emulator")))?;
    let mut command = bound("bochs-bin")?;
    command.arg("-q").arg("-f").arg(file).arg("-rc").arg(commands);
    // Its screen is drawn into a pseudo terminal of its own, by curses.
    let mut child = command
        .env("TERM", "vt100")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("cannot run setpriv (of util-linux)")?;
    match connect(&listener, &mut child) {
        Ok(line) => {
            let keyboard = line.try_clone()?;
            Ok(Running { child, keyboard: Box::new(keyboard), screen: Box::new(line) })
        }
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// Waits until Bochs has connected its second serial port.
fn connect(listener: &TcpListener, child: &mut Child) -> anyhow::Result<TcpStream> {
    let deadline = Instant::now() + CONNECT_PATIENCE;
    loop {
        match listener.accept() {
            Ok((line, _)) => {
                line.set_nonblocking(false)?;
                return Ok(line);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("cannot talk to Bochs"),
        }
        if let Some(status) = child.try_wait()? {
            bail!("Bochs ended at its start ({status})");
        }
        if Instant::now() > deadline {
            bail!("Bochs does not start");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The rate (`ips`) is what Bochs comes to, so that time in there goes about as fast as here.
fn configuration(dir: &Path, job: &str, port: u16, model: &str) -> String {
    let [bios, vga] = FIRMWARE;
    let dir = dir.display();
    format!(
        "cpu: model={model}, count=1, ips=50000000, reset_on_triple_fault=0\n\
         memory: guest=1536, host=1536\n\
         romimage: file={bios}\n\
         vgaromimage: file={vga}\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=disk, path={dir}/bochs.disk, mode=flat, cylinders=0, heads=16, spt=63\n\
         boot: disk\n\
         com1: enabled=1, mode=file, dev={dir}/{job}.kernel\n\
         com2: enabled=1, mode=socket-client, dev=127.0.0.1:{port}\n\
         log: {dir}/bochs.log\n\
         logprefix: %t%e%d\n\
         panic: action=fatal\n\
         error: action=ignore\n\
         display_library: term\n\
         sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy\n\
         clock: sync=none\n"
    )
}
