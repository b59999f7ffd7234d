//! A machine that does not run yet: just switched on, or as it was when a snapshot was made.

use std::io;
use std::sync::Arc;

use accel::{Accelerator, CpuidTable, Sections, Vcpu, Vm, VmResources};
use hybrid_vsock::Vsock;
use machine::{Files, Machine, MemoryMap, Parts};
use mem::GuestMemory;
use runtime::{Clock, Timers};
use virtio::Balloon;
use vmm_api::{Failure, VmConfig};

use crate::accelerators;
use crate::consoles::Consoles;
use crate::running::fault;
use crate::snapshot::Opened;
use crate::taps::Taps;

/// Where the machine's devices lead.
#[derive(Clone, Copy)]
pub struct Links<'a> {
    /// Serial ports and other consoles.
    pub consoles: &'a Consoles,
    /// Disks, and what the guest starts from.
    pub files: &'a Files,
    /// The host's end of the balloon, if there is one.
    pub balloon: Option<&'a Arc<Balloon>>,
    /// The host's end of the socket device.
    pub vsock: &'a Arc<Vsock>,
    /// What cards lead to that are on networks of the host.
    pub taps: &'a Taps,
}

/// Everything of a machine, standing still.
pub struct Assembly {
    /// The devices.
    pub machine: Arc<Machine>,
    /// The interrupt controllers.
    pub vm: Arc<dyn Vm>,
    /// The processors.
    pub vcpus: Vec<Box<dyn Vcpu>>,
    /// All of RAM.
    pub memory: GuestMemory,
    /// Guest time, which is stopped.
    pub clock: Arc<Clock>,
    /// What CPUID tells the guest.
    pub cpuid: CpuidTable,
}

impl Assembly {
    /// A machine that has just been switched on, with its kernel loaded.
    pub fn boot(
        config: &VmConfig,
        accelerator: &dyn Accelerator,
        links: Links,
    ) -> Result<Self, Failure> {
        let cpuid = accelerators::cpuid(config.cpu_model, accelerator)?;
        let map = memory_map(config, &cpuid)?;
        let memory = if config.hugepages {
            accelerators::check_hugepages(accelerator)?;
            mem::allocate_huge(map.ram())
        } else {
            mem::allocate(map.ram())
        };
        let memory = memory.map_err(Failure::host)?;
        let parts = Bare { config, accelerator, links, cpuid, map, memory, ns: 0 };
        let mut assembly = parts.assemble(false)?;
        for (index, vcpu) in (0..).zip(&mut assembly.vcpus) {
            let sections = Sections::GENERAL | Sections::SYSTEM | Sections::MSRS;
            assembly.machine.prepare_processor(index, vcpu.load(sections).map_err(fault)?);
            vcpu.store(sections).map_err(fault)?;
        }
        Ok(assembly)
    }

    /// A machine as it was when a snapshot was made. Its memory has not been read, and may yet be found
    /// damaged; until [`Files::keep`], what its disks were meanwhile is there.
    pub fn restore(
        config: &VmConfig,
        accelerator: &dyn Accelerator,
        links: Links,
        snapshot: &Opened,
    ) -> Result<Self, Failure> {
        let offered = accelerators::cpuid(config.cpu_model, accelerator)?;
        let cpuid = snapshot.cpuid(&offered, config.hyperv, accelerator.scales_tsc())?;
        snapshot.check_processors(config.cpus)?;
        let map = memory_map(config, &cpuid)?;
        let memory = snapshot.map_memory(map.ram())?;
        let clock = snapshot.clock()?;
        let ns = clock.guest_ns;
        let bare = Bare { config, accelerator, links, cpuid, map, memory, ns };
        let mut assembly = bare.assemble(true)?;
        assembly.machine.pause();
        assembly.machine.restore(snapshot.sections())?;
        // The TSCs stood still since the snapshot was made, on whatever host that was.
        let since = runtime::tsc::read();
        assembly.vm.stop_time();
        for (index, vcpu) in assembly.vcpus.iter_mut().enumerate() {
            let mut state = snapshot.processor(index)?;
            let offset = &mut state.cpu.msrs.tsc_offset;
            *offset = offset.wrapping_add(clock.host_tsc).wrapping_sub(since);
            vcpu.restore(&state).map_err(fault)?;
        }
        assembly.vm.restore(&snapshot.shared_chips()?).map_err(fault)?;
        assembly.machine.announce_copy();
        assembly.machine.resume();
        Ok(assembly)
    }
}

fn memory_map(config: &VmConfig, cpuid: &CpuidTable) -> Result<MemoryMap, Failure> {
    let phys_bits = machine::physical_address_bits(cpuid);
    MemoryMap::new(config.memory_mib << 20, phys_bits).map_err(Failure::configuration)
}

/// What a machine is assembled from.
struct Bare<'a> {
    config: &'a VmConfig,
    accelerator: &'a dyn Accelerator,
    links: Links<'a>,
    cpuid: CpuidTable,
    map: MemoryMap,
    memory: GuestMemory,
    /// Guest time.
    ns: u64,
}

impl Bare<'_> {
    fn assemble(self, is_restored: bool) -> Result<Assembly, Failure> {
        let Bare { config, accelerator, links, cpuid, map, memory, ns } = self;
        let clock = Arc::new(Clock::stopped_at(ns));
        let timers = Arc::new(Timers::new(clock.clone()).map_err(no_thread)?);
        let vm = accelerator
            .create_vm(VmResources {
                memory: memory.clone(),
                clock: clock.clone(),
                timers: timers.clone(),
                cpus: config.cpus,
                cpuid: cpuid.clone(),
                hyperv: config.hyperv,
            })
            .map_err(fault)?;
        let machine = Arc::new(Machine::build(Parts {
            config,
            files: links.files,
            phys_bits: machine::physical_address_bits(&cpuid),
            map,
            memory: memory.clone(),
            is_restored,
            irq: vm.irq_sink(),
            doorbells: vm.doorbells(),
            timers,
            serial: links.consoles.serial.clone(),
            serial2: links.consoles.serial2.clone(),
            virtio_console: links.consoles.virtio.clone(),
            debug_console: links.consoles.debug.clone(),
            taps: links.taps.clone(),
            balloon: links.balloon.cloned(),
            vsock: links.vsock.clone(),
        })?);
        let vcpus = (0..config.cpus)
            .map(|index| vm.take_vcpu(index).map_err(fault))
            .collect::<Result<_, _>>()?;
        Ok(Assembly { machine, vm, vcpus, memory, clock, cpuid })
    }
}

/// A thread could not be started.
pub fn no_thread(error: io::Error) -> Failure {
    Failure::host(format!("cannot start a thread: {error}; raise the limit on processes"))
}
