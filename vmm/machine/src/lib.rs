//! Wires a PC together: memory map, ACPI, boot loading, devices
