//! Programs for guests, made here from their sources in `programs/`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Lab, skipped};

/// Compiles all C files of `programs/NAME`. The program needs nothing of the guest's, and is as long
/// as a disk may be, so that it can be handed over as one. `None`, said loudly, without a compiler.
///
/// # Panics
///
/// If the sources are wrong.
#[must_use]
pub fn compile(lab: &Lab, name: &str) -> Option<PathBuf> {
    compile_with(lab, name, &["-pthread"].map(str::to_owned))
}

/// The same for a 32-bit program that needs no library, so that none has to be there; `defines` are
/// macros and their values.
///
/// # Panics
///
/// If the sources are wrong.
#[must_use]
pub fn compile32(lab: &Lab, name: &str, defines: &[(&str, u64)]) -> Option<PathBuf> {
    let fixed =
        ["-m32", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie", "-fno-stack-protector"];
    let defines = defines.iter().map(|(name, value)| format!("-D{name}={value}"));
    let options: Vec<String> =
        fixed.iter().map(|&option| option.to_owned()).chain(defines).collect();
    compile_with(lab, name, &options)
}

fn compile_with(lab: &Lab, name: &str, options: &[String]) -> Option<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name);
    let entries = std::fs::read_dir(&directory).expect("the program's sources").flatten();
    let sources: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "c"))
        .collect();
    let program = lab.path(name);
    let mut command = Command::new("cc");
    command.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static"]).args(options);
    match command.arg("-o").arg(&program).args(sources).output() {
        Err(error) => {
            skipped(name, &format!("the C compiler cannot be started: {error}"));
            return None;
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name} does not compile:\n{said}");
        }
    }
    let length = program.metadata().expect("the program").len();
    let mut file = std::fs::File::options().append(true).open(&program).expect("the program");
    let padding = length.next_multiple_of(512) - length;
    file.write_all(&vec![0; padding as usize]).expect("a longer program");
    Some(program)
}
