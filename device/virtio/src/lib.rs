//! virtio 1.x devices over PCI: block, net, console, rng
