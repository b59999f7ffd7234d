//! PCI Express host bridge, configuration space, BARs and MSI-X
