//! The agent's program, which is put into images, and is the init of OCI images.

use std::fs;
use std::path::{Path, PathBuf};

use vmm_api::Failure;

/// `$LODGE_AGENT`, else the `lodge-agent` beside this program.
pub fn find() -> Result<PathBuf, Failure> {
    if let Some(program) = std::env::var_os("LODGE_AGENT").filter(|value| !value.is_empty()) {
        return check(program.into());
    }
    let program = std::env::current_exe()
        .map_err(|error| Failure::host(format!("cannot find lodge's own program file: {error}")))?
        .with_file_name("lodge-agent");
    if program.is_file() {
        return check(program);
    }
    Err(Failure::host(format!(
        "{} is missing, which is in images for `lodge exec`, and the init of OCI images: build it with \
         `make build`, name it in LODGE_AGENT, or build an image of Debian with --no-agent",
        program.display()
    )))
}

/// What a plain `cargo build` makes does not start where this machine's libraries are not: in an initial RAM
/// disk, the guest would reset itself for ever.
fn check(program: PathBuf) -> Result<PathBuf, Failure> {
    match wants_libraries(&program) {
        Ok(Some(false)) => Ok(program),
        Ok(Some(true)) => Err(Failure::host(format!(
            "{} needs libraries that guests may not have: `make build` builds one that needs none",
            program.display()
        ))),
        Ok(None) => {
            Err(Failure::artifact(format!("{} is no program for x86-64", program.display())))
        }
        Err(error) => Err(Failure::host(format!("{} cannot be read: {error}", program.display()))),
    }
}

/// Whether a program names an interpreter that is to load libraries (elf(5), PT_INTERP). `None`: it is none
/// for x86-64.
fn wants_libraries(program: &Path) -> std::io::Result<Option<bool>> {
    Ok(interpreted(&fs::read(program)?))
}

fn interpreted(file: &[u8]) -> Option<bool> {
    const ELF64_LITTLE: &[u8] = b"\x7fELF\x02\x01";
    const EM_X86_64: u16 = 62;
    const PT_INTERP: [u8; 4] = [3, 0, 0, 0];
    let half = |at: usize| Some(u16::from_le_bytes(file.get(at..at + 2)?.try_into().ok()?));
    if !file.starts_with(ELF64_LITTLE) || half(18)? != EM_X86_64 {
        return None;
    }
    let table = u64::from_le_bytes(file.get(32..40)?.try_into().ok()?);
    let table = file.get(usize::try_from(table).ok()?..)?;
    let (size, count) = (usize::from(half(54)?), usize::from(half(56)?));
    let headers = table.get(..size.checked_mul(count)?)?;
    Some(size > 0 && headers.chunks_exact(size).any(|header| header.starts_with(&PT_INTERP)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_need_libraries_are_told_apart() {
        // This test is one, as Rust's programs are by default.
        let own = std::env::current_exe().unwrap();
        assert_eq!(wants_libraries(&own).unwrap(), Some(cfg!(not(target_feature = "crt-static"))));
        let file = fs::read(own).unwrap();
        for bad in [&b""[..], b"#!/bin/sh\n", &file[..40], &file[..100]] {
            assert_eq!(interpreted(bad), None);
        }
        let mut no_table = file[..64].to_vec();
        no_table[56..58].fill(0);
        no_table[32..40].copy_from_slice(&64u64.to_le_bytes());
        assert_eq!(interpreted(&no_table), Some(false));
        let mut far = file;
        far[32..40].fill(0xff);
        assert_eq!(interpreted(&far), None);
    }
}
