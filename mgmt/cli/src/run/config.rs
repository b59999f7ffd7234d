//! Makes one configuration of the command line, the configuration file and the image.

use std::path::{Path, PathBuf};

use images::{Image, ImageName};
use serde_json::{Map, Value};
use vmm_api::{
    ConsoleConfig, Failure, GdbAddress, GdbConfig, GuestModule, NetConfig, NetworkConfig, VmConfig,
};

use super::cloud_init;
use crate::args::{GuestArgs, NetArg, SerialArg};
use crate::{failure, network};

const DEFAULT_CPUS: u32 = 1;
const DEFAULT_MEMORY_MIB: u64 = 1024;

/// A configuration file: the fields of [`VmConfig`], all of which may be left out, and `image`.
#[derive(Debug, Default)]
pub struct File {
    fields: Map<String, Value>,
    /// Where it was read from, for messages and because its paths are relative to it.
    path: PathBuf,
}

/// Reads a TOML file, or a JSON one if its name ends so.
pub fn read_file(path: &Path) -> Result<File, Failure> {
    let text = std::fs::read_to_string(path).map_err(failure::io("read", path))?;
    let bad = |error: &dyn std::fmt::Display| {
        Failure::configuration(format!("{} cannot be understood: {error}", path.display()))
    };
    let fields = if path.extension().is_some_and(|extension| extension == "json") {
        serde_json::from_str(&text).map_err(|error| bad(&error))?
    } else {
        toml::from_str(&text).map_err(|error| bad(&error))?
    };
    Ok(File { fields, path: path.to_owned() })
}

impl File {
    /// The image that it names.
    pub fn image(&self) -> Result<Option<ImageName>, Failure> {
        match self.fields.get("image") {
            None => Ok(None),
            Some(Value::String(name)) => name.parse().map(Some).map_err(failure::image),
            Some(_) => Err(self.bad("image must be a text")),
        }
    }

    /// The guest's name, if it gives one.
    pub fn name(&self) -> Option<&str> {
        self.fields.get("name").and_then(Value::as_str)
    }

    fn bad(&self, what: impl std::fmt::Display) -> Failure {
        let path = self.path.display();
        Failure::configuration(format!("{path} is not a guest's configuration: {what}"))
    }
}

/// Makes the whole configuration, without the image's disk: what the command line gives goes before
/// the file, and the file before the image.
pub fn assemble(
    args: &GuestArgs,
    mut file: File,
    image: Option<&Image>,
    name: &str,
) -> Result<VmConfig, Failure> {
    file.fields.remove("image");
    file.fields.insert("name".into(), name.into());
    file.fields.entry("cpus").or_insert(DEFAULT_CPUS.into());
    file.fields.entry("memory_mib").or_insert(DEFAULT_MEMORY_MIB.into());
    let without_nets = !file.fields.contains_key("nets");
    fill_boot(args, &mut file, image)?;

    let fields = std::mem::take(&mut file.fields);
    let mut config: VmConfig =
        serde_json::from_value(Value::Object(fields)).map_err(|error| file.bad(error))?;
    let directory = file.path.parent().unwrap_or(Path::new(""));
    for_each_path(&mut config, |path| *path = directory.join(&*path));

    if let Some(cpus) = args.cpus {
        config.cpus = cpus;
    }
    if let Some(memory) = args.memory {
        config.memory_mib = memory;
    }
    if let Some(accel) = args.accel {
        config.accelerator = accel.into();
    }
    if let Some(cpu) = args.cpu {
        config.cpu_model = cpu.into();
    }
    if let Some(kernel) = &args.kernel {
        config.boot.kernel.clone_from(kernel);
        config.boot.initrd.clone_from(&args.initrd);
        config.boot.modules = args.module.iter().map(|text| module(text)).collect();
    }
    if let Some(cmdline) = &args.cmdline {
        config.boot.cmdline.clone_from(cmdline);
    }
    config.disks.extend(args.disk.iter().map(|arg| arg.0.clone()));
    config.folders.extend(args.folders.volume.iter().map(|arg| arg.0.clone()));
    set_network(args, &mut config, without_nets)?;
    // Lodge's init takes its name from elsewhere, and there is no cloud-init.
    if super::program::of(image).is_none() {
        cloud_init::set(args, &mut config.cloud_init)?;
    }
    match &args.serial {
        Some(SerialArg::There(console)) => config.serial = console.clone(),
        Some(SerialArg::Here) => config.serial = ConsoleConfig::Null,
        None => {}
    }
    config.hugepages |= args.hugepages;
    config.hyperv |= args.hyperv;
    config.debug.debugcon |= args.debugcon;
    config.debug.debug_exit |= args.debug_exit;
    config.debug.testdev |= args.testdev;
    if let Some(gdb) = &args.gdb {
        config.gdb = Some(GdbConfig { at: gdb.0.clone(), wait: args.gdb_wait });
    }

    config.limits.cpu = args.cpu_limit.or(config.limits.cpu);
    config.limits.memory_mib = args.memory_limit.or(config.limits.memory_mib);
    if let Some(affinity) = &args.cpu_affinity {
        config.limits.affinity.clone_from(&affinity.0);
    }
    if let Some(sandbox) = args.sandbox {
        config.sandbox.mode = sandbox.into();
    }
    config.sandbox.allow.extend(args.sandbox_allow.iter().cloned());

    // The VMM runs where it likes.
    for_each_path(&mut config, |path| {
        if let Ok(absolute) = std::path::absolute(&*path) {
            *path = absolute;
        }
    });
    Ok(config)
}

/// Completes the `boot` table with what the image has for it.
fn fill_boot(args: &GuestArgs, file: &mut File, image: Option<&Image>) -> Result<(), Failure> {
    let mut boot = match file.fields.remove("boot") {
        None => Map::new(),
        Some(Value::Object(boot)) => boot,
        Some(_) => return Err(file.bad("boot must be a table")),
    };
    if !boot.contains_key("kernel") {
        // A kernel from the command line is put in afterwards: its path is not the file's.
        let path = |path: PathBuf| Value::from(path.to_string_lossy());
        match (image.map(|image| (image, image.kernel())), &args.kernel) {
            (_, Some(_)) => {
                boot.insert("kernel".into(), "".into());
            }
            (Some((image, Some(kernel))), None) => {
                boot.insert("kernel".into(), path(kernel));
                if let (false, Some(initrd)) = (boot.contains_key("initrd"), image.initrd()) {
                    boot.insert("initrd".into(), path(initrd));
                }
            }
            (Some((image, None)), None) => {
                return Err(Failure::configuration(format!(
                    "the image {} has no kernel: give one with --kernel, or import the image again \
                     with one",
                    image.name()
                )));
            }
            (None, None) => {
                return Err(Failure::configuration(
                    "there is nothing to start: name an image (`lodge image ls` lists them, \
                     `lodge image build debian:12` builds one) or give a --kernel",
                ));
            }
        }
    }
    if let Some(image) = image {
        boot.entry("cmdline").or_insert_with(|| image.manifest().cmdline.clone().into());
    }
    file.fields.insert("boot".into(), boot.into());
    Ok(())
}

/// The cards: those of the command line take the place of the file's, and where neither says
/// anything, there is one on the user-mode network.
fn set_network(args: &GuestArgs, config: &mut VmConfig, unsaid: bool) -> Result<(), Failure> {
    let cards = args.net.iter().filter_map(|arg| match arg {
        NetArg::None => None,
        NetArg::Card(card) => Some(Ok(card.clone())),
        NetArg::Named(name, card) => {
            Some(network::store().and_then(|store| store.get(name)).map(|it| NetConfig {
                network: NetworkConfig::Bridge(it.bridge()),
                ..card.clone()
            }))
        }
    });
    let cards: Vec<NetConfig> = cards.collect::<Result<_, _>>()?;
    let none = args.net.len() - cards.len();
    if none > 0 && args.net.len() > 1 {
        return Err(Failure::configuration(
            "--net none leaves out all network cards: give it alone, or leave it out",
        ));
    }
    if !args.net.is_empty() {
        config.nets = cards;
    } else if unsaid {
        config.nets.push(NetConfig::default());
    }
    if args.publish.is_empty() {
        return Ok(());
    }
    let forwards = args.publish.iter().map(|arg| arg.0);
    let user = config.nets.iter().position(|net| net.network.is_user());
    let card = match user {
        Some(user) => Some(user),
        None => on_own_network(&config.nets)?,
    };
    match card.and_then(|card| config.nets.get_mut(card)) {
        Some(net) => net.forwards.extend(forwards),
        None => {
            return Err(Failure::configuration(
                "-p leads into the guest by a card on the user-mode network or on one that `lodge \
                 network create` has made, and this guest has none: add one with --net user, or leave \
                 out --net none",
            ));
        }
    }
    Ok(())
}

/// The first card on a network that Lodge has made.
fn on_own_network(cards: &[NetConfig]) -> Result<Option<usize>, Failure> {
    for (index, card) in cards.iter().enumerate() {
        if let NetworkConfig::Bridge(bridge) = &card.network
            && network::store()?.with_bridge(bridge)?.is_some()
        {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// `--module FILE[ TEXT]`, as QEMU's `-initrd` has it for multiboot.
fn module(text: &str) -> GuestModule {
    let (path, cmdline) = text.split_once(' ').unwrap_or((text, ""));
    GuestModule { path: path.into(), cmdline: cmdline.into() }
}

fn for_each_path(config: &mut VmConfig, mut change: impl FnMut(&mut PathBuf)) {
    change(&mut config.boot.kernel);
    config.boot.initrd.iter_mut().for_each(&mut change);
    config.boot.modules.iter_mut().for_each(|module| change(&mut module.path));
    for disk in &mut config.disks {
        change(&mut disk.path);
        disk.overlay.iter_mut().for_each(&mut change);
    }
    config.folders.iter_mut().for_each(|folder| change(&mut folder.path));
    let consoles = [Some(&mut config.serial), Some(&mut config.serial2)];
    for console in consoles.into_iter().chain([config.virtio_console.as_mut()]).flatten() {
        if let ConsoleConfig::Socket(path) | ConsoleConfig::Log(path) = console {
            change(path);
        }
    }
    if let Some(GdbConfig { at: GdbAddress::Socket(path), .. }) = &mut config.gdb {
        change(path);
    }
    config.sandbox.allow.iter_mut().for_each(&mut change);
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    use crate::args::{Cli, Command};

    fn args(line: &str) -> GuestArgs {
        let words = ["lodge", "run"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(args) => args.guest,
            _ => panic!("not run"),
        }
    }

    fn file(name: &str, text: &str) -> Result<File, Failure> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        read_file(&path).map(|file| File { path: Path::new("/etc/guests").join(name), ..file })
    }

    fn assemble(line: &str, file: File) -> Result<VmConfig, Failure> {
        super::assemble(&args(line), file, None, "guest")
    }

    #[test]
    fn a_kernel_is_enough() {
        let config = assemble("--kernel /k", File::default()).unwrap();
        assert_eq!(
            config,
            VmConfig { nets: vec![NetConfig::default()], ..crate::run::empty_config() }
        );
    }

    #[test]
    fn without_anything_to_start_the_message_says_what_to_do() {
        let failure = assemble("--cpus 2", File::default()).unwrap_err();
        assert!(failure.message.contains("lodge image build"), "{failure}");
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let toml = "
            cpus = 4
            memory_mib = 256
            accelerator = 'soft'
            cpu_model = 'x86-64-v2'
            [boot]
            kernel = 'vmlinuz'
            initrd = '/boot/initrd'
            cmdline = 'quiet'
            [[disks]]
            path = 'a.raw'
            [[nets]]
            mac = '52:54:00:00:00:01'
        ";
        let config = assemble("", file("g.toml", toml).unwrap()).unwrap();
        assert_eq!((config.cpus, config.memory_mib), (4, 256));
        assert_eq!(config.boot.kernel, Path::new("/etc/guests/vmlinuz"));
        assert_eq!(config.boot.initrd.as_deref(), Some(Path::new("/boot/initrd")));
        assert_eq!(config.disks[0].path, Path::new("/etc/guests/a.raw"));

        let line = "--cpus 2 -m 1G --accel auto --kernel /k --cmdline x --disk /b.raw -p 80:80";
        let config = assemble(line, file("g.toml", toml).unwrap()).unwrap();
        assert_eq!((config.cpus, config.memory_mib), (2, 1024));
        assert_eq!(config.accelerator, vmm_api::Accelerator::Auto);
        assert_eq!(config.cpu_model, vmm_api::CpuModel::X86_64V2);
        assert_eq!(config.boot.kernel, Path::new("/k"));
        assert_eq!((config.boot.initrd, config.boot.cmdline.as_str()), (None, "x"));
        assert_eq!(config.disks.len(), 2);
        assert_eq!(config.nets[0].forwards.len(), 1);
        assert_eq!(config.nets[0].mac.as_deref(), Some("52:54:00:00:00:01"));
    }

    #[test]
    fn limits_and_sandbox_as_asked_for() {
        let toml = "
            boot = { kernel = 'k' }
            limits = { cpu = 0.5, memory_mib = 2000, affinity = [[1]] }
            sandbox = { mode = 'require', allow = ['d'] }
        ";
        let config = assemble("", file("g.toml", toml).unwrap()).unwrap();
        assert_eq!(config.limits.cpu, vmm_api::CpuShare::new(0.5));
        assert_eq!(config.limits.memory_mib, Some(2000));
        assert_eq!(config.limits.affinity, [[1]]);
        assert_eq!(config.sandbox.mode, vmm_api::SandboxMode::Require);
        assert_eq!(config.sandbox.allow, [Path::new("/etc/guests/d")]);
        let line = "--cpu-limit 1.5 --memory-limit 3G --cpu-affinity 0=2-3 --sandbox off --sandbox-allow /e";
        let config = assemble(line, file("g.toml", toml).unwrap()).unwrap();
        assert_eq!(config.limits.cpu, vmm_api::CpuShare::new(1.5));
        assert_eq!(config.limits.memory_mib, Some(3072));
        assert_eq!(config.limits.affinity, [[2, 3]]);
        assert_eq!(config.sandbox.mode, vmm_api::SandboxMode::Off);
        assert_eq!(config.sandbox.allow, [Path::new("/etc/guests/d"), Path::new("/e")]);
    }

    #[test]
    fn what_lodge_prints_it_reads() {
        let line = "--kernel /k --disk /d,readonly --cpus 3 --cpu-limit 1.5 --cpu-affinity 1,2 -v /a:/b:ro,uid=7";
        let config = assemble(line, File::default()).unwrap();
        let text = serde_json::to_string(&config).unwrap();
        let again = assemble("", file("g.json", &text).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn mistakes_in_a_file_are_named() {
        let failure = file("g.toml", "cpus = ").unwrap_err();
        assert!(failure.message.contains("cannot be understood"), "{failure}");
        for (text, named) in [
            ("cpu = 3\n[boot]\nkernel = 'k'", "cpu"),
            ("cpus = 'two'\n[boot]\nkernel = 'k'", "two"),
            ("boot = 1", "boot"),
        ] {
            let failure = assemble("", file("g.toml", text).unwrap()).unwrap_err();
            assert!(failure.message.contains(named), "{failure}");
            assert!(failure.message.contains("/etc/guests/g.toml"), "{failure}");
        }
        assert!(file("g.toml", "image = 1").unwrap().image().is_err());
        assert!(file("g.toml", "image = 'web'").unwrap().image().unwrap().is_some());
    }

    #[test]
    fn networks_as_asked_for() {
        let nets = |line: &str| assemble(&format!("--kernel k {line}"), File::default());
        assert_eq!(nets("").unwrap().nets.len(), 1);
        assert_eq!(nets("--net none").unwrap().nets.len(), 0);
        assert!(nets("--net none -p 80:80").unwrap_err().message.contains("--net none"));
        let none = || file("g.toml", "nets = []\n[boot]\nkernel = 'k'").unwrap();
        assert_eq!(assemble("", none()).unwrap().nets.len(), 0);
        assert_eq!(assemble("--net user", none()).unwrap().nets.len(), 1);
        assert!(nets("--net user --net none").unwrap_err().message.contains("alone"));
        let both = nets("--net bridge=br0 --net user -p 80:80").unwrap().nets;
        assert_eq!((both[0].forwards.len(), both[1].forwards.len()), (0, 1));
        assert!(nets("--net bridge=br0 -p 80:80").unwrap_err().message.contains("--net user"));
        let toml = "nets = [{ network = { bridge = 'br0' } }]\n[boot]\nkernel = 'k'";
        let bridge = || file("g.toml", toml).unwrap();
        let network = |config: VmConfig| config.nets[0].network.clone();
        let br0 = NetworkConfig::Bridge("br0".into());
        assert_eq!(network(assemble("", bridge()).unwrap()), br0);
        assert_eq!(network(assemble("--net user", bridge()).unwrap()), NetworkConfig::User);
    }

    #[test]
    fn paths_become_absolute() {
        let line = "--kernel k --serial log:l --module m -v f:/f";
        let config = assemble(line, File::default()).unwrap();
        let ConsoleConfig::Log(log) = &config.serial else { panic!("{:?}", config.serial) };
        let folder = &config.folders[0].path;
        for path in [&config.boot.kernel, log, &config.boot.modules[0].path, folder] {
            assert!(path.is_absolute(), "{}", path.display());
        }
    }
}
