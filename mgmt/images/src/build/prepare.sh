# Run by mmdebstrap when the essential packages are there and the kernel is not yet: what the
# kernel's installation will look at. $1 is the guest's root directory.
set -eu
root=$1

# The initial RAM disk holds what the root file system on virtio needs and nothing else: a small
# one is loaded and unpacked in a fraction of the time. ext4 is built into Debian's cloud kernel.
mkdir -p "$root/etc/initramfs-tools/conf.d" "$root/usr/share/initramfs-tools/modules.d"
cat > "$root/etc/initramfs-tools/conf.d/lodge" <<'END'
# Written when this image was built. MODULES=most makes it fit for other machines.
MODULES=list
COMPRESS=lz4
RESUME=none
FSTYPE=ext4
END
printf 'virtio_pci\nvirtio_blk\n' > "$root/usr/share/initramfs-tools/modules.d/lodge"

# Checked by the RAM disk, before it is mounted for writing: FSTYPE above puts fsck there.
cat > "$root/etc/fstab" <<'END'
# <file system> <mount point> <type> <options> <dump> <pass>
@ROOT_DEVICE@ / ext4 errors=remount-ro 0 1
END
