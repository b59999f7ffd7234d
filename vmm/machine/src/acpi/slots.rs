//! Slots of the PCI bus whose devices come and go (ACPI 6.5, 6.3): what the guest is told of them.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local,
    Method, Name, Notify, OpRegion, OpRegionSpace, Path, Scope, Store, ZERO,
};
use vmm_api::HOT_SLOTS;

use super::Platform;
use crate::slots::{EVENT, LEN};

/// Notifications (5.6.6): there may be something new, and it shall go.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// The slots, and the registers about them. Only these slots can be emptied by the guest: others have no
/// object here.
pub(super) fn slots(platform: &Platform, out: &mut Vec<u8>) {
    let mut bridge = Vec::new();
    let (first, len) = (platform.slots, LEN);
    OpRegion::new("HPRG".into(), OpRegionSpace::SystemIO, &first, &len).to_aml_bytes(&mut bridge);
    Field::new(
        "HPRG".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Named(*b"HPUP", 32),
            FieldEntry::Named(*b"HPDN", 32),
            FieldEntry::Named(*b"HPEJ", 32),
        ],
    )
    .to_aml_bytes(&mut bridge);
    for slot in HOT_SLOTS {
        let address = Name::new("_ADR".into(), &(u32::from(slot) << 16));
        let number = Name::new("_SUN".into(), &slot);
        let (register, bit) = (Path::new("HPEJ"), 1u32 << slot);
        let eject = Store::new(&register, &bit);
        let eject = Method::new("_EJ0".into(), 1, true, vec![&eject]);
        let name = name(slot);
        Device::new(name.as_str().into(), vec![&address, &number, &eject])
            .to_aml_bytes(&mut bridge);
    }
    out.extend(Scope::raw("\\_SB_.PCI0".into(), bridge));
}

/// `\_GPE._Enn`: tells the slots that have news.
pub(super) fn event(out: &mut Vec<u8>) {
    let mut body = Vec::new();
    for (local, register, value) in [(0, "HPUP", DEVICE_CHECK), (1, "HPDN", EJECT_REQUEST)] {
        let register = Path::new(&format!("\\_SB_.PCI0.{register}"));
        // Reading clears the register, so that it is read once.
        let news = Local(local);
        Store::new(&news, &register).to_aml_bytes(&mut body);
        for slot in HOT_SLOTS {
            let (bit, device) = (1u32 << slot, Path::new(&format!("\\_SB_.PCI0.{}", name(slot))));
            let has_news = And::new(&ZERO, &news, &bit);
            let notify = Notify::new(&device, &value);
            If::new(&has_news, vec![&notify]).to_aml_bytes(&mut body);
        }
    }
    let name = format!("_E{:02X}", EVENT);
    let body = Raw(body);
    let method = Method::new(name.as_str().into(), 0, true, vec![&body]);
    Scope::new("\\_GPE".into(), vec![&method]).to_aml_bytes(out);
}

fn name(slot: u8) -> String {
    format!("SL{slot:02X}")
}

/// AML that is there already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}
