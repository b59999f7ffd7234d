# Makes a file system of a tar archive: reads the archive from standard input, writes the file system to
# the open file /proc/self/fd/$2.
# Usage: pack.sh WORKDIR DISK_FD SIZE ROOT_MODE ROOT_OWNER
set -eu
umask 022
# Nobody else can enter what mktemp makes: what is in it may have set-user-ID programs.
work=$(mktemp -d "$1/root.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 143' HUP INT TERM
mkdir "$work/root"

tar --extract --preserve-permissions --numeric-owner --xattrs --xattrs-include='*' --directory "$work/root"
chown "$5" "$work/root"
chmod "$4" "$work/root"

# Tables and journal are written now, not by the guest in the background (mke2fs(8)).
mke2fs -q -F -t ext4 -L root -E lazy_itable_init=0,lazy_journal_init=0 \
    -d "$work/root" "/proc/self/fd/$2" "$3"
