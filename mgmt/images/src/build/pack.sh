# Makes a disk of a tar archive: reads the archive from standard input, writes the disk, the
# kernel and the RAM disk to the open files /proc/self/fd/$2, $3 and $4.
# Usage: pack.sh WORKDIR DISK_FD KERNEL_FD INITRD_FD OFFSET_BYTES SIZE_KIB
set -eu
umask 022
root=$(mktemp -d "$1/root.XXXXXX")
trap 'rm -rf "$root"' EXIT
trap 'exit 143' HUP INT TERM

# The kernel fills /dev itself when the machine starts; a user namespace could not make devices.
tar --extract --preserve-permissions --numeric-owner --xattrs --xattrs-include='*' \
    --exclude='./dev/*' --directory "$root"
cat "$root/vmlinuz" > "/proc/self/fd/$3"
cat "$root/initrd.img" > "/proc/self/fd/$4"

# Tables and journal are written now (they are zeros, so they take no room in a sparse file)
# rather than by the guest in the background after its first start.
mke2fs -q -F -t ext4 -L root -E "offset=$5,lazy_itable_init=0,lazy_journal_init=0" \
    -d "$root" "/proc/self/fd/$2" "$6k"
