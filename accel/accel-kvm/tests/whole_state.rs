//! All of a processor's state goes to KVM and comes back, whichever accelerator has it next.

mod common;

use accel::{Accelerator, CpuState, Fault, Sections, Vcpu};
use accel_kvm::KvmAccelerator;
use accel_soft::SoftAccelerator;
use common::{enter, has_kvm, machine, memory};
use x86::cpuid::{CpuidResult, CpuidTable, Model, build};
use x86::state::{
    Activity, Cr4, DescriptorTable, Efer, Msrs, SegReg, Segment, SegmentAttributes, VectorState,
};

fn model() -> CpuidTable {
    let host = |leaf, subleaf| {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    };
    build(Model::Host, host, runtime::tsc::frequency_hz()).unwrap()
}

/// A state in which each field has a value of its own, as far as a processor with this CPUID can have
/// it. All fields are named, so that none that is added is forgotten here.
fn distinct(cpuid: &CpuidTable) -> CpuState {
    let mut state = CpuState::reset(0);
    enter(&mut state);
    let CpuState {
        gpr,
        rip,
        rflags,
        seg,
        ldtr,
        tr,
        gdtr,
        idtr,
        cr0: _,
        cr2,
        cr3: _,
        cr4,
        efer,
        // Of PAE paging, in which KVM reads them from memory.
        pdpte: _,
        dr,
        dr6,
        dr7,
        msrs,
        xcr0,
        vector,
        activity,
        interrupt_shadow,
        nmi_blocked,
    } = &mut state;
    for (number, register) in (1..).zip(gpr) {
        *register = number * 0x0101_0101_0101_0101;
    }
    *rip = common::CODE + 5;
    // OF, DF, SF, ZF, AF, PF, CF.
    *rflags = 0xcd7;
    let system = |base, limit, selector, attributes| Segment { selector, base, limit, attributes };
    seg[SegReg::Fs as usize].base = 0x7fff_1234_5000;
    seg[SegReg::Gs as usize].base = 0xffff_8880_0000_1000;
    *ldtr = system(0xffff_8000_0000_3000, 0xfff, 0x28, SegmentAttributes::LDT);
    *tr = system(0xffff_8000_0000_4000, 0x67, 0x30, SegmentAttributes::TSS_BUSY);
    *gdtr = DescriptorTable { base: 0xffff_8000_0000_5000, limit: 0x7f };
    *idtr = DescriptorTable { base: 0xffff_8000_0000_6000, limit: 0xfff };
    *cr2 = 0x7fff_dead_b000;
    *cr4 |= Cr4::PGE | Cr4::OSXMMEXCPT;
    *efer |= Efer::SCE | Efer::NXE;
    *dr = [0x1111_0000, 0x2222_0000, 0x7fff_3333_0000, 0xffff_8000_4444_0000];
    *dr6 = 0xffff_0ff2;
    *dr7 = 0x402;
    distinct_msrs(msrs);
    let components = cpuid.get(0xd, 0).unwrap_or_default().eax;
    *xcr0 = u64::from(components.max(1));
    if components != 0 {
        *cr4 |= Cr4::OSXSAVE;
    }
    distinct_vector(vector, components | 3);
    *activity = Activity::Halted;
    *interrupt_shadow = true;
    *nmi_blocked = true;
    state
}

fn distinct_msrs(msrs: &mut Msrs) {
    let Msrs {
        star,
        lstar,
        cstar,
        sfmask,
        kernel_gs_base,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
        pat,
        tsc_aux,
        // By the clock; the pauses of the conformance suite are about it.
        tsc_offset: _,
        tsc_adjust: _,
        misc_enable: _,
        mtrr_def_type,
        mtrr_fixed,
        mtrr_var,
        // None of these has a bit that every processor has.
        debugctl: _,
        xss: _,
        spec_ctrl: _,
        mcg_status,
        mc0,
        hwcr,
        // Of these neither.
        hardware: _,
    } = msrs;
    *mcg_status = 4;
    *mc0 = [0, 1 << 63 | 0x135, 0x1234_5000, 0x42];
    *hwcr = 1 << 18;
    *star = 0x0023_0010_0000_0000;
    *lstar = 0xffff_8000_1234_5678;
    *cstar = 0xffff_8000_2345_6789;
    *sfmask = 0x4_7700;
    *kernel_gs_base = 0xffff_8880_0000_2000;
    *sysenter_cs = 0x10;
    *sysenter_esp = 0xffff_8000_0000_7000;
    *sysenter_eip = 0xffff_8000_0000_8000;
    *pat = 0x0007_0406_0107_0500;
    *tsc_aux = 0x1234;
    *mtrr_def_type = 0xc06;
    for (number, range) in (0..).zip(mtrr_fixed) {
        *range = [0x0606_0606_0606_0606, 0x0505_0505_0505_0505][number % 2];
    }
    for (number, (base, mask)) in (1..).zip(mtrr_var) {
        (*base, *mask) = (number << 24 | 6, 0xff_ff00_0800);
    }
}

/// Registers of these components.
fn distinct_vector(vector: &mut VectorState, components: u32) {
    let has = |component: u32| components >> component & 1 != 0;
    for (number, register) in (0u64..).zip(&mut vector.zmm) {
        let words = match (number, has(7), has(6), has(2)) {
            (16.., true, ..) | (..16, _, true, _) => 8,
            (16.., false, ..) => 0,
            (_, _, _, true) => 4,
            _ => 2,
        };
        for (at, word) in (1u64..).zip(&mut register[..words]) {
            *word = (number << 8 | at) * 0x1_0000_0001;
        }
    }
    for (number, mask) in (1u64..).zip(vector.k.iter_mut().filter(|_| has(5))) {
        *mask = number * 0x1111;
    }
    let x87 = &mut vector.x87;
    // TOP is 7, which has a number; exceptions are masked.
    (x87.fcw, x87.fsw, x87.ftw, x87.fop) = (0x27f, 0x3800, 0x80, 0x123);
    (x87.fip, x87.fdp, x87.mxcsr) = (0x1234_5678_9abc, 0x7edc_ba98, 0x1fa0);
    x87.st[0] = [0x8000_0000_0000_0001, 0x3fff];
}

/// What is left of `state` once `vcpu` has it.
fn through(vcpu: &mut dyn Vcpu, state: &CpuState) -> CpuState {
    let room = vcpu.load(Sections::all()).unwrap();
    let (mask, hardware) = (room.vector.x87.mxcsr_mask, room.msrs.hardware);
    *room = state.clone();
    room.vector.x87.mxcsr_mask = mask;
    // A guest is told what its processor is, of which only a part can be chosen.
    room.msrs.hardware = hardware;
    vcpu.store(Sections::all()).unwrap();
    vcpu.load(Sections::all()).unwrap().clone()
}

/// Fails for each part that is not the same, by name. What KVM says of its TSC is another matter, as
/// are bits that processors set themselves.
fn compare(expected: &CpuState, got: &CpuState, who: &str) {
    let mut expected = expected.clone();
    expected.msrs.tsc_offset = got.msrs.tsc_offset;
    expected.msrs.tsc_adjust = got.msrs.tsc_adjust;
    expected.msrs.misc_enable = got.msrs.misc_enable;
    expected.msrs.hardware = got.msrs.hardware;
    expected.vector.x87.mxcsr_mask = got.vector.x87.mxcsr_mask;
    let parts = |s: &CpuState| {
        [
            ("general registers", format!("{:x?}", (s.gpr, s.rip, s.rflags))),
            ("segments", format!("{:x?}", (s.seg, s.ldtr, s.tr, s.gdtr, s.idtr))),
            ("control registers", format!("{:x?}", (s.cr0, s.cr2, s.cr3, s.cr4, s.efer, s.xcr0))),
            ("debug registers", format!("{:x?}", (s.dr, s.dr6, s.dr7))),
            ("MSRs", format!("{:x?}", s.msrs)),
            ("x87", format!("{:x?}", s.vector.x87)),
            ("vector registers", format!("{:x?}", (s.vector.zmm, s.vector.k))),
            ("events", format!("{:?}", (s.activity, s.interrupt_shadow, s.nmi_blocked))),
        ]
    };
    for ((name, expected), (_, got)) in parts(&expected).iter().zip(&parts(got)) {
        assert_eq!(expected, got, "{who}: {name}");
    }
}

/// Why a processor does not take over a state with this register of a hypervisor's.
fn refusal(accelerator: &dyn Accelerator, index: u32) -> Fault {
    let memory = memory(|a| a.hlt());
    let (_vm, mut vcpu) = machine(accelerator, &accelerator.offered(&model()).unwrap(), &memory);
    let mut state = vcpu.save().unwrap();
    vcpu.restore(&state).unwrap();
    state.hypervisor_msrs.insert(index, 1);
    vcpu.restore(&state).unwrap_err()
}

#[test]
fn what_a_hypervisor_kept_is_not_lost_in_silence() {
    let soft = SoftAccelerator::default();
    // KVM's steal time.
    let fault = refusal(&soft, 0x4b56_4d03);
    assert!(matches!(fault, Fault::Unsupported(_)), "{fault:?}");
    assert!(fault.to_string().contains("0x4b564d03"), "{fault}");
    if !has_kvm() {
        return;
    }
    let kvm = KvmAccelerator::open().unwrap();
    // Hyper-V's synthetic interrupt controller, and nobody's register.
    let fault = refusal(&kvm, 0x4000_0080);
    assert!(matches!(fault, Fault::Unsupported(_)), "{fault:?}");
    assert!(fault.to_string().contains("--hyperv"), "{fault}");
    let fault = refusal(&kvm, 0x4b56_4d00);
    assert!(matches!(fault, Fault::BadState(_)), "{fault:?}");
}

/// A guest that does without workarounds is not led to where it needs them.
#[test]
fn flaws_that_were_denied_are_not_to_be_had() {
    if !has_kvm() {
        return;
    }
    let kvm = KvmAccelerator::open().unwrap();
    let cpuid = kvm.offered(&model()).unwrap();
    if cpuid.get(7, 0).unwrap_or_default().edx >> 29 & 1 == 0 {
        eprintln!("SKIPPED: this host's KVM offers no IA32_ARCH_CAPABILITIES");
        return;
    }
    let memory = memory(|a| a.hlt());
    let (_vm, mut vcpu) = machine(&kvm, &cpuid, &memory);
    let mut state = vcpu.save().unwrap();
    vcpu.restore(&state).unwrap();
    let told = &mut state.cpu.msrs.hardware.arch_capabilities;
    // No processor denies all flaws there are, and has the ways around them besides.
    let missing = !*told & !(1 << 2 | 1 << 19);
    *told |= missing;
    let fault = vcpu.restore(&state).unwrap_err();
    assert!(matches!(fault, Fault::Unsupported(_)), "{fault:?}");
    assert!(fault.to_string().contains(&format!("{missing:#x}")), "{fault}");
}

#[test]
fn no_part_of_a_state_is_lost() {
    if !has_kvm() {
        return;
    }
    let kvm = KvmAccelerator::open().unwrap();
    let soft = SoftAccelerator::default();
    let cpuid = kvm.offered(&model()).unwrap();
    let memory = memory(|a| a.hlt());
    let state = distinct(&cpuid);
    let mut travelled = state.clone();
    let accelerators: [&dyn Accelerator; 4] = [&kvm, &soft, &kvm, &soft];
    for accelerator in accelerators {
        let (_vm, mut vcpu) = machine(accelerator, &cpuid, &memory);
        travelled = through(vcpu.as_mut(), &travelled);
        compare(&state, &travelled, accelerator.name());
    }
    // The same for processors that do something else.
    for activity in [Activity::Active, Activity::WaitForSipi, Activity::Shutdown] {
        let mut state = state.clone();
        (state.activity, state.interrupt_shadow, state.nmi_blocked) = (activity, false, false);
        let (_vm, mut vcpu) = machine(&kvm, &cpuid, &memory);
        compare(&state, &through(vcpu.as_mut(), &state), "kvm");
    }
}
