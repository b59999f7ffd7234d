//! What is needed to measure: the image, its files for native runs, the workloads' files and the
//! kernels. All is made once and kept in one directory.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use guest_tests::cpio::Archive;
use serde_json::Value;

use super::contestant;
use super::workload::WORKLOADS;
use super::{middle, vmlinux};

/// What workloads need besides the image's usual packages.
const PACKAGES: &[&str] =
    &["gcc", "libc6-dev", "python3", "sqlite3", "openssl", "p7zip-full", "stress-ng", "fio"];

/// The image that `lodge image build` makes.
pub const IMAGE: &str = "debian:12";

/// The driver: the first program in the guest.
const DRIVER: &str = include_str!("../../bench/driver.c");
/// The first program of the guest whose start is timed.
const BOOT: &str = include_str!("../../bench/boot.c");
/// The small workloads in C.
const MICRO: &[(&str, &str)] = &[
    ("micro.h", include_str!("../../bench/micro/micro.h")),
    ("main.c", include_str!("../../bench/micro/main.c")),
    ("processor.c", include_str!("../../bench/micro/processor.c")),
    ("memory.c", include_str!("../../bench/micro/memory.c")),
    ("kernel.c", include_str!("../../bench/micro/kernel.c")),
    ("network.c", include_str!("../../bench/micro/network.c")),
];
/// Files that workloads use as they are.
const SCRIPTS: &[(&str, &str)] = &[
    ("nbody.py", include_str!("../../bench/nbody.py")),
    ("dicts.py", include_str!("../../bench/dicts.py")),
    ("insert.sh", include_str!("../../bench/insert.sh")),
    ("select.sh", include_str!("../../bench/select.sh")),
    ("prepare.sh", include_str!("../../bench/prepare.sh")),
    ("devices.sh", include_str!("../../bench/devices.sh")),
];
const COMPILER: &[&str] = &["cc", "-O2", "-static"];

/// The file that fio reads.
const RANDOM_BYTES: u64 = 128 << 20;
/// The disk that fio writes to.
const SCRATCH_BYTES: u64 = 128 << 20;

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Bed {
    /// The directory of all of it.
    pub dir: PathBuf,
    /// The `lodge` that is measured.
    pub lodge: PathBuf,
    /// The image's disk, raw.
    pub disk: PathBuf,
    /// The image's kernel, as Debian ships it.
    pub kernel: PathBuf,
    /// The image's initial RAM disk.
    pub initrd: PathBuf,
    /// What the image is, in words.
    pub image: String,
    /// Stands for everything that a workload's time depends on, except for what is compared.
    pub stamp: String,
}

impl Bed {
    /// Makes what is not there yet.
    pub fn make(dir: &Path, lodge: &Path) -> anyhow::Result<Bed> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let manifest = image(dir, lodge)?;
        let path = |name: &str| -> anyhow::Result<PathBuf> {
            let text = manifest["paths"][name].as_str();
            text.map(PathBuf::from).with_context(|| format!("the image {IMAGE} has no {name}"))
        };
        let sum = manifest["manifest"]["disk"]["sha256"].as_str().unwrap_or_default();
        let inputs = (sum, MICRO, SCRIPTS, COMPILER, middle::source(), RANDOM_BYTES);
        let bed = Bed {
            dir: dir.to_owned(),
            lodge: lodge.to_owned(),
            disk: path("disk")?,
            kernel: path("kernel")?,
            initrd: path("initrd")?,
            image: source(&manifest).to_owned(),
            stamp: stamp(&(&inputs, DRIVER, BOOT, format!("{WORKLOADS:?}"))),
        };
        bed.once("native", sum, Bed::unpack)?;
        bed.once("vmlinux", sum, |bed, to| vmlinux::extract(&bed.kernel, to))?;
        bed.once("programs", &stamp(&(DRIVER, BOOT, MICRO, COMPILER)), Bed::compile)?;
        bed.once("boot.cpio", &stamp(&(DRIVER, BOOT, COMPILER)), Bed::boot_archive)?;
        bed.once("files", &stamp(&inputs), Bed::gather)?;
        bed.once("files.raw", &stamp(&inputs), Bed::pack)?;
        bed.once("scratch.raw", &stamp(&SCRATCH_BYTES), Bed::scratch)?;
        Ok(bed)
    }

    /// A file or directory of the bed.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The initial RAM disk of a guest that runs a plan: Debian's, for the drivers, and the driver
    /// and the plan on top, which the kernel unpacks one after the other.
    pub fn plan_archive(&self, plan: &str, to: &Path) -> anyhow::Result<()> {
        let mut archive = Archive::default();
        archive.console();
        archive.directory("bench");
        archive.program("bench/driver", &fs::read(self.path("programs/driver"))?);
        archive.program("bench/plan", plan.as_bytes());
        let mut bytes = fs::read(&self.initrd)
            .with_context(|| format!("cannot read {}", self.initrd.display()))?;
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes.extend(archive.finish());
        fs::write(to, bytes).with_context(|| format!("cannot write {}", to.display()))
    }

    /// Makes something unless it is there and was made of the same. Interrupted, it leaves nothing
    /// that would be taken for whole.
    fn once(
        &self,
        name: &str,
        of: &str,
        make: impl FnOnce(&Bed, &Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let stamp_file = self.path(&format!(".{name}.stamp"));
        let path = self.path(name);
        if path.exists() && fs::read_to_string(&stamp_file).is_ok_and(|found| found == of) {
            return Ok(());
        }
        eprintln!("Making {}", path.display());
        let _ = fs::remove_file(&stamp_file);
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        }
        make(self, &path).with_context(|| format!("cannot make {}", path.display()))?;
        fs::write(&stamp_file, of)?;
        Ok(())
    }

    /// The image's files as a directory. debugfs needs neither root nor a mount.
    fn unpack(&self, to: &Path) -> anyhow::Result<()> {
        fs::create_dir(to)?;
        let request = format!("rdump / {}", to.display());
        let mut command = system("debugfs");
        command.args(["-R", &request]).arg(&self.disk);
        // Without root it complains of each file that it cannot give away.
        run(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        if !to.join("usr/bin/gcc").exists() {
            bail!("debugfs did not unpack {}", self.disk.display());
        }
        Ok(())
    }

    fn compile(&self, to: &Path) -> anyhow::Result<()> {
        fs::create_dir(to)?;
        for (name, text) in MICRO.iter().chain(&[("driver.c", DRIVER), ("boot.c", BOOT)]) {
            fs::write(to.join(name), text)?;
        }
        let micro: Vec<&str> =
            MICRO.iter().map(|(name, _)| *name).filter(|name| name.ends_with(".c")).collect();
        for (program, sources) in
            [("driver", &["driver.c"][..]), ("boot", &["boot.c"]), ("micro", &micro)]
        {
            let mut command = Command::new(COMPILER[0]);
            command.args(&COMPILER[1..]).args(["-o", program]).args(sources).current_dir(to);
            run(&mut command)?;
        }
        Ok(())
    }

    fn boot_archive(&self, to: &Path) -> anyhow::Result<()> {
        let mut archive = Archive::default();
        archive.console();
        archive.program("init", &fs::read(self.path("programs/boot"))?);
        fs::write(to, archive.finish())?;
        Ok(())
    }

    /// The files that workloads use. Some are made by the image's own programs.
    fn gather(&self, to: &Path) -> anyhow::Result<()> {
        fs::create_dir(to)?;
        fs::copy(self.path("programs/micro"), to.join("micro"))?;
        for (name, text) in SCRIPTS {
            fs::write(to.join(name), text)?;
        }
        fs::write(to.join("middle.c"), middle::source())?;
        write_random(&to.join("random"), RANDOM_BYTES)?;

        let plan = self.path("prepare.plan");
        fs::write(&plan, "prepare\t600\t\tsh /mnt/prepare.sh\t\n")?;
        let output = contestant::native(self, &plan).output().context("cannot run unshare")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !text.contains("@bench end prepare ok") || !text.contains("@bench done") {
            bail!("{text}{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// A disk that workloads may write to, whose blocks are all there.
    fn scratch(&self, to: &Path) -> anyhow::Result<()> {
        write_random(to, SCRATCH_BYTES)
    }

    /// A disk with the workloads' files.
    fn pack(&self, to: &Path) -> anyhow::Result<()> {
        let files = self.path("files");
        let mut bytes = 0;
        for entry in fs::read_dir(&files)? {
            bytes += entry?.metadata()?.len().next_multiple_of(4096);
        }
        // Room for the file system's own tables.
        let kib = (bytes + (32 << 20)) >> 10;
        File::create(to)?.set_len(kib << 10)?;
        let mut command = system("mke2fs");
        command.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"]);
        command.arg(&files).arg(to).arg(format!("{kib}k"));
        run(&mut command)
    }
}

/// The image with the workloads' packages; built if it is not there. What `lodge` says of it.
fn image(dir: &Path, lodge: &Path) -> anyhow::Result<Value> {
    let command = |arguments: &[&str]| {
        let mut command = Command::new(lodge);
        command.env("LODGE_HOME", dir).args(arguments).stdin(Stdio::null());
        command
    };
    let inspect = || -> anyhow::Result<Option<Value>> {
        let output = command(&["image", "inspect", IMAGE])
            .output()
            .with_context(|| format!("cannot run {}", lodge.display()))?;
        if !output.status.success() {
            return Ok(None);
        }
        let facts: Value = serde_json::from_slice(&output.stdout)?;
        let packages = format!("with {}", PACKAGES.join(", "));
        Ok(Some(facts).filter(|facts| source(facts).ends_with(&packages)))
    };
    if let Some(facts) = inspect()? {
        return Ok(facts);
    }
    let packages = PACKAGES.join(",");
    run(&mut command(&["image", "build", IMAGE, "--force", "--include", &packages]))?;
    inspect()?.context("`lodge image build` built another image than it was asked for")
}

fn source(facts: &Value) -> &str {
    facts["manifest"]["source"]["built"]["what"].as_str().unwrap_or_default()
}

fn stamp(of: &impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Bytes that no disk or file system could leave out.
fn write_random(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let mut file = std::io::BufWriter::new(File::create(path)?);
    let mut state = 88_172_645_463_325_252u64;
    for _ in 0..bytes / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes())?;
    }
    Ok(file.flush()?)
}

/// A program that may be an administrator's, whose place is not in everybody's PATH.
fn system(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{program} failed: {status}");
    }
    Ok(())
}
