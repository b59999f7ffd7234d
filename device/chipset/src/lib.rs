//! The PC's fixed devices: CMOS/RTC, i8042, ACPI registers, fw_cfg, debug ports
