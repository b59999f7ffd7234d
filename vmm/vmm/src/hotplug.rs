//! What the guest's machine is made of, now and after a reset: devices may come and go.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use machine::{AttachedDisk, Files, Machine};
use net::Tap;
use vmm_api::{
    AttachRequest, DetachRequest, Device, Failure, NetConfig, SandboxMode, VmConfig, card_mac,
    format_mac,
};

use crate::confinement;
use crate::control::Order;
use crate::taps::{self, Taps};

/// A device that a client wants the guest to have, and what it has opened for that.
#[derive(Debug)]
pub struct Attachment {
    request: AttachRequest,
    /// Taken by whoever carries it out.
    descriptors: Mutex<Vec<OwnedFd>>,
}

impl Attachment {
    /// As the client says.
    pub fn new(request: AttachRequest, descriptors: Vec<OwnedFd>) -> Arc<Self> {
        Arc::new(Self { request, descriptors: Mutex::new(descriptors) })
    }
}

/// What the guest's machine is made of, and what is being taken from it.
pub struct Hardware {
    /// All of it.
    pub config: Arc<VmConfig>,
    /// What is open of the host's files.
    pub files: Files,
    /// What cards lead to.
    pub taps: Taps,
    /// The slot of the first disk that the guest was started with, if it has one.
    root: Option<u8>,
    /// Whether this process may make connections to other hosts.
    may_connect: bool,
    /// The slot that was filled last.
    last_slot: Option<u8>,
    leaving: Vec<Leaving>,
}

/// Somebody waits for a device to be gone.
struct Leaving {
    slot: u8,
    id: String,
    order: Order,
    deadline: Option<Instant>,
    /// The device is taken away then.
    force: bool,
}

/// A device that is gone, and what came of its last data.
pub struct Gone {
    /// What it was called.
    pub id: String,
    /// Whether all that was on its way is on stable storage.
    pub closed: Result<(), Failure>,
    /// Who has waited for it.
    pub orders: Vec<Order>,
}

impl Hardware {
    /// What the guest was started with.
    pub fn new(config: Arc<VmConfig>, files: Files, taps: Taps) -> Self {
        let may_connect =
            config.sandbox.mode == SandboxMode::Off || confinement::has_services(&config);
        let root = config.disks.first().and_then(|disk| disk.slot);
        Self { config, files, taps, root, may_connect, last_slot: None, leaving: Vec::new() }
    }

    /// Gives the guest, which runs, a device. The value is what it then has.
    ///
    /// # Errors
    ///
    /// It cannot be, and the guest is as before.
    pub fn attach(
        &mut self,
        machine: &Machine,
        attachment: &Attachment,
    ) -> Result<Device, Failure> {
        if !machine.listens_for_devices() {
            return Err(Failure::configuration(
                "the guest notices no devices that are attached: its kernel has no ACPI, or has not got so \
                 far yet; try again later, or add the device while the guest is stopped",
            ));
        }
        let AttachRequest { mut device, descriptors: names } = attachment.request.clone();
        let fds = std::mem::take(
            &mut *attachment.descriptors.lock().unwrap_or_else(PoisonError::into_inner),
        );
        if fds.len() != names.len() {
            return Err(Failure::configuration(format!(
                "{} descriptors came, and {} were announced",
                fds.len(),
                names.len()
            )));
        }
        if device.slot().is_none() {
            device.set_slot(self.config.free_slot(self.last_slot).ok_or_else(no_free_slot)?);
        }
        let mut config = (*self.config).clone();
        complete(&config, &mut device)?;
        match &device {
            Device::Disk(disk) => config.disks.push(disk.clone()),
            Device::Net(card) => config.nets.push(card.clone()),
        }
        config.validate().map_err(Failure::configuration)?;

        let opened = names.into_iter().zip(fds);
        match &device {
            Device::Disk(disk) => {
                let disk = AttachedDisk::given(disk, opened)?;
                machine.attach_disk(disk.clone())?;
                self.files.add_disk(disk);
            }
            Device::Net(card) => {
                let tap = opened.map(|(name, fd)| Tap::given(fd, name.display().to_string()));
                let card = (config.nets.len() - 1, card);
                let backend = self.lead(&config.name, card, tap.collect())?;
                machine.attach_card(&config.name, card, backend.clone())?;
                self.taps.push(backend);
            }
        }
        self.last_slot = device.slot();
        self.config = Arc::new(config);
        Ok(device)
    }

    /// Has a new card lead to what it is to lead to.
    fn lead(
        &self,
        guest: &str,
        (index, card): (usize, &NetConfig),
        mut taps: Vec<Tap>,
    ) -> Result<taps::End, Failure> {
        if !self.may_connect && (card.network.is_user() || card.lease.is_some()) {
            return Err(Failure::configuration(
                "this guest was started without a card on the user-mode network or on one that `lodge \
                 network create` has made, so that its sandbox lets it make no connections: attach a card \
                 on a bridge or a tap, or start the guest with such a card",
            ));
        }
        let tap = taps.pop();
        if !taps.is_empty() || tap.is_some() == card.network.is_user() {
            return Err(Failure::configuration(
                "a card on a network of the host comes with its tap, and no other card does",
            ));
        }
        taps::lead(guest, (index, card), tap)
    }

    /// Has the guest be asked to let go of a device. The order is answered once it is gone, or at once if that
    /// cannot be.
    pub fn detach(&mut self, machine: &Machine, request: &DetachRequest, order: Order) {
        match self.leave(machine, request) {
            Ok((slot, id)) => {
                let patience = Duration::from_secs(request.timeout_s.into());
                let deadline = Instant::now().checked_add(patience);
                self.leaving.push(Leaving { slot, id, order, deadline, force: request.force });
            }
            Err(failure) => order.answer(Err(failure)),
        }
    }

    fn leave(&self, machine: &Machine, request: &DetachRequest) -> Result<(u8, String), Failure> {
        let DetachRequest { id: name, force, timeout_s: _ } = request;
        let device = self.config.devices().find(|device| device.is_called(name));
        let device = device.ok_or_else(|| self.no_such_device(name))?;
        let Some((slot, id)) = device.slot().zip(device.id()) else {
            return Err(Failure::configuration(format!(
                "{name} is there for as long as the guest runs: only what was attached, or has a slot in \
                 the guest's configuration, can be detached"
            )));
        };
        if *force && !machine.listens_for_devices() {
            machine.take_away(slot);
            return Ok((slot, id));
        }
        if self.root == Some(slot) && !force {
            return Err(Failure::configuration(format!(
                "{id} is the guest's first disk, which it likely runs from: --force takes it away all the \
                 same"
            )));
        }
        if !machine.listens_for_devices() {
            return Err(Failure::configuration(
                "the guest does not notice that it is asked: its kernel has no ACPI, or has not got so far \
                 yet; --force takes the device away",
            ));
        }
        machine.ask_to_release(slot);
        Ok((slot, id))
    }

    fn no_such_device(&self, name: &str) -> Failure {
        let ids: Vec<String> = self.config.devices().filter_map(|device| device.id()).collect();
        let there = match ids.is_empty() {
            true => "no device that can be detached".to_owned(),
            false => ids.join(", "),
        };
        Failure::configuration(format!("the guest has no device {name}; it has {there}"))
    }

    /// Closes what the guest has let go of.
    pub fn close_removed(&mut self, machine: &Machine) -> Vec<Gone> {
        let mut gone = Vec::new();
        for removed in machine.take_removed() {
            let slot = removed.slot;
            // Its work ends here.
            drop(removed);
            let Some((id, closed)) = self.close(machine, slot) else { continue };
            let is_its = |leaving: &mut Leaving| leaving.slot == slot;
            let orders = self.leaving.extract_if(.., is_its).map(|leaving| leaving.order).collect();
            gone.push(Gone { id, closed, orders });
        }
        gone
    }

    fn close(&mut self, machine: &Machine, slot: u8) -> Option<(String, Result<(), Failure>)> {
        let mut config = (*self.config).clone();
        let closed = if let Some(index) = config.disks.iter().position(|it| it.slot == Some(slot)) {
            let disk = Device::Disk(config.disks.remove(index));
            self.files.remove_disk(index);
            (disk.id()?, machine.close_disk(index))
        } else {
            let index = config.nets.iter().position(|it| it.slot == Some(slot))?;
            let card = Device::Net(config.nets.remove(index));
            if index < self.taps.len() {
                self.taps.remove(index);
            }
            machine.close_card(index);
            (card.id()?, Ok(()))
        };
        self.config = Arc::new(config);
        Some(closed)
    }

    /// When [`Hardware::lose_patience`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.leaving.iter().filter_map(|leaving| leaving.deadline).min()
    }

    /// Takes away what the guest has not let go of in time, or tells who has waited for it.
    pub fn lose_patience(&mut self, machine: &Machine) {
        let now = Instant::now();
        let is_over = |it: &mut Leaving| it.deadline.is_some_and(|deadline| deadline <= now);
        for leaving in self.leaving.iter_mut().filter(|it| it.force) {
            if is_over(leaving) {
                machine.take_away(leaving.slot);
                // It is gone at once, and then the order is answered.
                leaving.deadline = None;
            }
        }
        for Leaving { id, order, .. } in self.leaving.extract_if(.., is_over) {
            order.answer(Err(Failure::configuration(format!(
                "the guest has been asked to let go of {id} and has not done so yet: see whether something \
                 in it uses the device; it may still let go of it later, and --force takes it away"
            ))));
        }
    }

    /// The machine was reset, and has what it had.
    pub fn keep_all(&mut self) {
        for Leaving { id, order, .. } in self.leaving.drain(..) {
            order.answer(Err(Failure::configuration(format!(
                "the guest was reset meanwhile, and still has {id}: try again once it is there"
            ))));
        }
    }
}

fn no_free_slot() -> Failure {
    let count = vmm_api::HOT_SLOTS.count();
    Failure::configuration(format!(
        "all {count} slots for devices that come and go are taken: detach one first"
    ))
}

/// Fills in what was not said of a device, so that it stays the same one, and refuses what only a guest that is
/// started can have.
fn complete(config: &VmConfig, device: &mut Device) -> Result<(), Failure> {
    let id = device.id();
    match device {
        Device::Disk(disk) if disk.overlay.is_some() => Err(Failure::configuration(
            "a disk that is attached cannot have an overlay that its VMM makes: make one before, with `lodge \
             disk create --backing`, and attach that",
        )),
        Device::Disk(disk) => {
            // The guest finds it by that: /dev/disk/by-id/virtio-disk-24.
            disk.serial = disk.serial.take().or(id);
            Ok(())
        }
        Device::Net(card) => {
            let mac = card_mac(&config.name, config.nets.len(), card);
            let mac = mac.map_err(Failure::configuration)?;
            card.mac = Some(format_mac(mac));
            Ok(())
        }
    }
}
