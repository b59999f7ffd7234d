//! A whole machine as its processors see it: through ports and memory.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use accel::CpuBus;
use chardev::{Backend, Chardev};
use irqchip::{IrqSink, Msi};
use machine::{Files, Machine, MemoryMap, Parts, PowerRequest};
use runtime::{Clock, Timers};
use tempfile::TempDir;
use vmm_api::{
    BlockConfig, BootConfig, DebugDevices, FailureKind, ForwardedPort, NetConfig, VmConfig,
};
use x86::CpuState;

/// Interrupt controllers that note who is high.
#[derive(Default)]
struct Pins(Mutex<Vec<u32>>);

impl IrqSink for Pins {
    fn set_gsi(&self, gsi: u32, level: bool) {
        let mut high = self.0.lock().unwrap();
        high.retain(|&other| other != gsi);
        if level {
            high.push(gsi);
        }
    }
    fn send_msi(&self, _: Msi) {}
}

struct Bench {
    dir: TempDir,
    config: VmConfig,
    pins: Arc<Pins>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A flat multiboot kernel: its header alone.
        let header = [0x1bad_b002u32, 0x1_0000, 0xe451_4ffe, 0x10_0000, 0x10_0000, 0, 0, 0x10_0020];
        let bytes: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
        let kernel = dir.path().join("kernel");
        std::fs::write(&kernel, bytes).unwrap();
        let config = VmConfig {
            name: "test".to_owned(),
            cpus: 2,
            memory_mib: 64,
            accelerator: Default::default(),
            cpu_model: Default::default(),
            hugepages: false,
            balloon: false,
            hyperv: false,
            boot: BootConfig { kernel, initrd: None, cmdline: String::new(), modules: vec![] },
            disks: vec![],
            nets: vec![],
            folders: vec![],
            serial: Default::default(),
            serial2: Default::default(),
            virtio_console: None,
            exit_port: true,
            debug: DebugDevices { debugcon: false, debug_exit: true, testdev: true },
            cloud_init: None,
            gdb: None,
            sandbox: Default::default(),
            limits: Default::default(),
        };
        Self { dir, config, pins: Arc::default() }
    }

    fn disk(&mut self, name: &str, sectors: u64) {
        let path = self.dir.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(sectors * 512).unwrap();
        self.config.disks.push(BlockConfig {
            path,
            format: vmm_api::DiskFormat::Raw,
            ..Default::default()
        });
    }

    fn build_with(&self, serial: Chardev) -> Result<Machine, machine::BuildError> {
        let map = MemoryMap::new(self.config.memory_mib << 20, 40).unwrap();
        let clock = Arc::new(Clock::stopped_at(0));
        let files = Files::open(&self.config, None)?;
        let machine = Machine::build(Parts {
            config: &self.config,
            files: &files,
            memory: mem::allocate(map.ram()).unwrap(),
            map,
            phys_bits: 40,
            is_restored: false,
            doorbells: None,
            irq: self.pins.clone(),
            timers: Arc::new(Timers::new(clock).unwrap()),
            serial: Arc::new(serial),
            serial2: Arc::new(Chardev::null()),
            virtio_console: None,
            debug_console: None,
            taps: Vec::new(),
            balloon: None,
            vsock: Arc::new(hybrid_vsock::Vsock::new(None).unwrap()),
        })?;
        files.keep().unwrap();
        Ok(machine)
    }

    fn build(&self) -> Machine {
        self.build_with(Chardev::null()).unwrap()
    }

    fn is_high(&self, gsi: u32) -> bool {
        self.pins.0.lock().unwrap().contains(&gsi)
    }
}

fn inl(machine: &Machine, port: u16) -> u32 {
    let mut data = [0; 4];
    machine.port_read(port, &mut data);
    u32::from_le_bytes(data)
}

fn outl(machine: &Machine, port: u16, value: u32) {
    machine.port_write(port, &value.to_le_bytes());
}

/// Vendor and device ID of each PCI device, by the old ports.
fn pci_devices(machine: &Machine) -> Vec<u32> {
    (0..32)
        .map(|device| {
            outl(machine, 0xcf8, 1 << 31 | device << 11);
            inl(machine, 0xcfc)
        })
        .filter(|id| *id != 0xffff_ffff)
        .collect()
}

#[test]
fn the_bus_holds_what_the_configuration_says() {
    let mut bench = Bench::new();
    bench.disk("a", 8);
    bench.disk("b", 16);
    bench.config.nets = vec![NetConfig::default()];
    let machine = bench.build();
    let devices = pci_devices(&machine);
    // Host bridge, two disks, a card, entropy, sockets.
    assert!(devices[1..].iter().all(|id| id & 0xffff == 0x1af4));
    let virtio: Vec<_> = devices[1..].iter().map(|id| id >> 16).collect();
    assert_eq!(virtio, [0x1042, 0x1042, 0x1041, 0x1044, 0x1053]);
    // The same by ECAM.
    let mut data = [0; 4];
    machine.mmio_read(0xe000_0000 + (1 << 15), &mut data);
    assert_eq!(u32::from_le_bytes(data), devices[1]);
    machine.stop().unwrap();
}

#[test]
fn a_machine_lets_go_of_its_disks() {
    let mut bench = Bench::new();
    bench.disk("a", 8);
    for _ in 0..2 {
        let machine = bench.build();
        // A second user is refused while the first lives.
        let Err(error) = bench.build_with(Chardev::null()) else { panic!("the disk is shared") };
        assert_eq!(error.kind(), FailureKind::Host, "{error}");
        machine.stop().unwrap();
    }
}

#[test]
fn an_overlay_stays_only_if_the_machine_does() {
    let mut bench = Bench::new();
    bench.disk("base", 2048);
    let overlay = bench.dir.path().join("overlay");
    bench.config.disks[0].overlay = Some(overlay.clone());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let forward = ForwardedPort {
        protocol: vmm_api::Protocol::Tcp,
        host_addr: "127.0.0.1".parse().unwrap(),
        host_port: taken.local_addr().unwrap().port(),
        guest_port: 22,
    };
    bench.config.nets = vec![NetConfig { forwards: vec![forward], ..Default::default() }];
    let Err(error) = bench.build_with(Chardev::null()) else { panic!("the port is taken") };
    assert_eq!(error.kind(), FailureKind::Host, "{error}");
    assert!(!overlay.exists());

    drop(taken);
    for _ in 0..2 {
        bench.build().stop().unwrap();
        assert!(overlay.exists());
    }
}

#[test]
fn the_guest_switches_off_and_resets() {
    let machine = Bench::new().build();
    // SLP_TYP 5 and SLP_EN, as \_S5 says.
    machine.port_write(0x604, &(5u16 << 10 | 1 << 13).to_le_bytes());
    assert_eq!(machine.power_requests().take(), Some(PowerRequest::PowerOff));
    machine.port_write(0xcf9, &[6]);
    assert_eq!(machine.power_requests().take(), Some(PowerRequest::Reset));
    machine.port_write(0x64, &[0xfe]);
    assert_eq!(machine.power_requests().take(), Some(PowerRequest::Reset));
    outl(&machine, 0xf4, 0x10);
    assert_eq!(machine.power_requests().take(), Some(PowerRequest::DebugExit { value: 0x10 }));
    machine.port_write(0xf8, &[7]);
    assert_eq!(machine.power_requests().take(), Some(PowerRequest::Exit { status: 7 }));
}

#[test]
fn the_power_button_raises_the_sci() {
    let bench = Bench::new();
    let machine = bench.build();
    assert!(!machine.press_power_button(), "nobody listens yet");
    assert!(!bench.is_high(9));
    machine.port_write(0x602, &0x100u16.to_le_bytes());
    assert!(bench.is_high(9));
    machine.port_write(0x600, &0x100u16.to_le_bytes());
    assert!(!bench.is_high(9));
    assert!(machine.press_power_button());
    assert!(bench.is_high(9));
}

#[test]
fn the_serial_port_speaks() {
    let bench = Bench::new();
    let (near, mut far) = UnixStream::pair().unwrap();
    let machine = bench.build_with(Chardev::open(Backend::Stream(near.into())).unwrap()).unwrap();
    for byte in b"hello" {
        machine.port_write(0x3f8, &[*byte]);
    }
    let mut text = [0; 5];
    far.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
}

#[test]
fn fw_cfg_knows_the_machine() {
    let machine = Bench::new().build();
    machine.port_write(0x510, &5u16.to_le_bytes());
    let mut cpus = [0];
    machine.port_read(0x511, &mut cpus);
    assert_eq!(cpus, [2]);
}

#[test]
fn what_nobody_claims_floats() {
    let machine = Bench::new().build();
    let mut data = [0; 8];
    machine.mmio_read(0xd000_0000, &mut data);
    assert_eq!(data, [0xff; 8]);
    machine.mmio_write(u64::MAX, &[1]);
    assert_eq!(inl(&machine, 0x2e8), 0xffff_ffff);
}

#[test]
fn processors_are_prepared() {
    let machine = Bench::new().build();
    let mut states = [CpuState::reset(0), CpuState::reset(0)];
    for (index, state) in states.iter_mut().enumerate() {
        machine.prepare_processor(index as u32, state);
    }
    assert_eq!(states[0].rip, 0x10_0020);
    assert_eq!(states[1].rip, 0xfff0);
    assert_eq!(states[0].msrs.mtrr_var, states[1].msrs.mtrr_var);
}

#[test]
fn problems_are_told_apart() {
    let kind = |bench: &Bench| match bench.build_with(Chardev::null()) {
        Ok(_) => panic!("it was built"),
        Err(error) => error.kind(),
    };
    let mut bench = Bench::new();
    bench.config.boot.kernel = bench.dir.path().join("missing");
    assert_eq!(kind(&bench), FailureKind::Artifact);
    let mut bench = Bench::new();
    bench.disk("a", 8);
    bench.config.disks[0].path = bench.dir.path().join("missing");
    assert_eq!(kind(&bench), FailureKind::Artifact);
    let mut bench = Bench::new();
    bench.config.cpus = 5000;
    assert_eq!(kind(&bench), FailureKind::Configuration);
}

/// What a hostile guest does: accesses of any width anywhere, most of them where something is.
#[test]
fn nonsense_harms_only_the_guest() {
    let mut bench = Bench::new();
    bench.disk("a", 64);
    bench.config.nets = vec![NetConfig::default()];
    bench.config.debug.debugcon = true;
    let machine = bench.build();
    const PORTS: [u16; 12] =
        [0x3f8, 0x60, 0x64, 0x70, 0x92, 0x510, 0x514, 0x600, 0x604, 0xcf8, 0xcfc, 0x2000];
    const MEMORY: [u64; 6] =
        [0xe000_0000, 0xe000_8000, 0xc000_0000, 0xff00_0000, 0x4_0000_0000, 0x10_0000_0000];
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        // xorshift64
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..200_000 {
        let (what, value) = (random(), random().to_le_bytes());
        let len = [1, 2, 4, 8][(what >> 8 & 3) as usize];
        let mut data = [0; 8];
        let pick = (what >> 16) as usize;
        if what & 1 == 0 {
            let len = len.min(4);
            let port = match what & 0xf0 {
                0 => what.to_le_bytes()[4].into(),
                _ => PORTS[pick % PORTS.len()].wrapping_add((what >> 32 & 7) as u16),
            };
            machine.port_write(port, &value[..len]);
            machine.port_read(port, &mut data[..len]);
        } else {
            let addr = match what & 0xf0 {
                0 => random(),
                _ => MEMORY[pick % MEMORY.len()].wrapping_add(what >> 32 & 0x7fff),
            };
            machine.mmio_write(addr, &value[..len]);
            machine.mmio_read(addr, &mut data[..len]);
        }
    }
    machine.stop().unwrap();
}
