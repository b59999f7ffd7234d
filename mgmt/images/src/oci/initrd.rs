//! The initial RAM disk: init, the modules that it loads, and what it runs (Linux,
//! driver-api/early-userspace/buffer-format.rst).

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use agent_protocol::program::{MODULES, PROGRAM_FILE, Program};
use cpio::newc::{Builder, trailer};

use super::kernel::Module;
use crate::Error;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// Writes it to a new file.
pub(super) fn write(
    path: &Path,
    init: &Path,
    program: &Program,
    modules: &[Module],
) -> Result<(), Error> {
    let init = fs::read(init).map_err(Error::io("read", init))?;
    let file = File::create_new(path).map_err(Error::io("create", path))?;
    archive(BufWriter::new(file), &init, program, modules).map_err(Error::io("write", path))
}

fn archive(out: impl Write, init: &[u8], program: &Program, modules: &[Module]) -> io::Result<()> {
    let mut archive = Archive { out, entries: 0 };
    for directory in ["lodge", inside(MODULES)] {
        archive.add(directory, DIRECTORY, &[])?;
    }
    archive.add("init", PROGRAM, init)?;
    archive.add(inside(PROGRAM_FILE), FILE, &serde_json::to_vec(program)?)?;
    for (index, module) in modules.iter().enumerate() {
        let name = format!("{}/{index:03}-{}", inside(MODULES), module.name);
        archive.add(&name, FILE, &module.contents)?;
    }
    trailer(archive.out)?.flush()
}

/// A path as archives have it, from the root on.
fn inside(path: &str) -> &str {
    path.trim_start_matches('/')
}

struct Archive<W> {
    out: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    fn add(&mut self, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let length = u32::try_from(contents.len()).map_err(io::Error::other)?;
        // What has the same number would be one file.
        let entry = Builder::new(name).ino(self.entries).mode(mode).nlink(1);
        let mut writer = entry.write(&mut self.out, length);
        writer.write_all(contents)?;
        writer.finish().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_where_init_looks_for_it() {
        let program = Program { command: vec!["sh".into()], ..Program::default() };
        let module = Module { name: "button.ko".into(), contents: b"module".to_vec() };
        let mut bytes = Vec::new();
        archive(&mut bytes, b"init", &program, &[module]).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let mut rest = &bytes[..];
        let mut found = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut contents = Vec::new();
            io::Read::read_to_end(&mut reader, &mut contents).unwrap();
            found.push((reader.entry().name().to_owned(), contents));
            rest = reader.finish().unwrap();
        }
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        let expected =
            ["lodge", "lodge/modules", "init", "lodge/program.json", "lodge/modules/000-button.ko"];
        assert_eq!(names, expected);
        assert_eq!(serde_json::from_slice::<Program>(&found[3].1).unwrap(), program);
        assert_eq!(found[4].1, b"module");
    }
}
