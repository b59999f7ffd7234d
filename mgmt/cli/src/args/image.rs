//! What is said about images.

use std::path::PathBuf;

use clap::Subcommand;
use images::{ImageName, PackageName};
use oci::Reference;

use crate::size;

/// `lodge image`.
#[derive(Subcommand, Debug)]
pub enum ImageCommand {
    /// Build an image from Debian's archive, as apt on this machine is set up
    ///
    /// An image that is there already is left alone. Needs mmdebstrap and e2fsprogs; works as root
    /// and, where user namespaces are allowed, as anyone.
    Build {
        /// What to build
        #[arg(value_name = "IMAGE", default_value = "debian:12")]
        name: ImageName,
        /// The length of the disk, which takes only what is in it
        #[arg(long, value_name = "SIZE", value_parser = size::parse_mib, default_value = "4G")]
        size: u64,
        /// Give the disk a partition table, with the root file system on its only partition
        #[arg(long)]
        partitioned: bool,
        /// Install these Debian packages as well, as in gcc,python3; repeatable
        #[arg(long, value_name = "PACKAGES", value_delimiter = ',')]
        include: Vec<PackageName>,
        /// Leave Lodge's agent out: `lodge exec`, `cp` and `ssh` will not work
        #[arg(long)]
        no_agent: bool,
        /// Build even if there is such an image, and take its place
        #[arg(long)]
        force: bool,
    },
    /// Copy a disk, and the kernel to start it with, into the store
    #[command(after_help = "\
Example:
  lodge image import web --disk web.qcow2 --kernel vmlinuz --initrd initrd.img \\
      --cmdline 'root=/dev/vda1 console=ttyS0'")]
    Import {
        /// The image's name, as in web or web:2
        name: ImageName,
        /// The disk, raw or qcow2
        #[arg(long, value_name = "FILE")]
        disk: PathBuf,
        /// The kernel to start it with
        #[arg(long, value_name = "FILE")]
        kernel: Option<PathBuf>,
        /// The initial RAM disk to start it with
        #[arg(long, value_name = "FILE", requires = "kernel")]
        initrd: Option<PathBuf>,
        /// The kernel's command line [default: root=/dev/vda rw console=ttyS0]
        #[arg(long, value_name = "TEXT")]
        cmdline: Option<String>,
        /// Take the place of an image of the same name
        #[arg(long)]
        force: bool,
    },
    /// Make an image of an OCI image, from a registry or from files, so that it is there for `lodge run`
    #[command(after_help = "\
Examples:
  lodge image pull docker://registry.example/team/app:1.2
  lodge image pull docker://debian:12           without a host, from Docker Hub
  lodge image pull oci:./layout:latest
  lodge run docker://registry.example/team/app:1.2

Registries of this machine (localhost) are spoken to without TLS, others with it. Images that need a login are not
pulled: `skopeo copy` makes files of them.")]
    Pull {
        /// docker://[HOST/]NAME[:TAG|@DIGEST] or oci:PATH[:TAG]
        reference: Reference,
    },
    /// List images
    Ls,
    /// Remove images
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<ImageName>,
        /// Remove even what kept guests are based on; they cannot be continued then
        #[arg(long)]
        force: bool,
    },
    /// Compare every byte of an image with its manifest
    Verify {
        /// The image's name
        name: ImageName,
    },
    /// Print an image's manifest as JSON, with the place of its files
    Inspect {
        /// The image's name
        name: ImageName,
    },
}
